"""Each kind of process of a cluster is killed, stopped or drained; no row is lost or doubled.

The ledger job runs on real processes over loopback. Each test prints its time to recover: from the
fault to the first visible rows of a checkpoint that was begun after it.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_harness import Cluster, LedgerRun, Process

from penstock.cluster.security import make_secret

ROWS, RATE = 12_000, 2_000.0
"""Per split: six seconds of rows, which is longer than any of the faults."""
TIMEOUT_S = 180
STOPPED_S = 4.0
"""Longer than the lease and the controller's margin."""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path) as cluster:
        yield cluster


def report(what: str, seconds: float) -> None:
    print(f"\nrecovery  {what}: {seconds:.2f} s")


def one(cluster: Cluster, kind: str) -> Process:
    """One of that kind that is at work."""
    found: Process = cluster.until(f"a {kind} works", lambda: cluster.at_work(kind))
    return found


@pytest.mark.timeout(TIMEOUT_S)
def test_rows_arrive_once_when_nothing_dies(cluster: Cluster) -> None:
    run = LedgerRun(cluster, rows=4_000, rate=RATE)
    run.until_rows()
    used = {process.node for process in cluster.processes("subtask")}
    assert len(used) > 1, "it was to spread over nodes"
    assert cluster.processes("net")
    run.prove()


@pytest.mark.timeout(TIMEOUT_S)
@pytest.mark.parametrize("kind", ["subtask", "net", "fork server", "job agent", "job"])
def test_rows_arrive_once_although_a_process_is_killed(cluster: Cluster, kind: str) -> None:
    run = LedgerRun(cluster, rows=ROWS, rate=RATE)
    before = run.until_rows()
    victim = one(cluster, kind)
    at = time.monotonic()
    cluster.kill(victim)
    report(f"kill -9 of a {kind}", run.recovery_s(at, before))
    run.prove()


@pytest.mark.timeout(TIMEOUT_S)
def test_rows_arrive_once_although_a_node_dies_and_stays_away(cluster: Cluster) -> None:
    run = LedgerRun(cluster, rows=ROWS, rate=RATE)
    before = run.until_rows()
    name = one(cluster, "subtask").node
    at = time.monotonic()
    cluster.kill_root(name)
    report("kill -9 of an agent", run.recovery_s(at, before))
    assert name not in {node.name for node in cluster.members()}
    run.prove()


@pytest.mark.timeout(TIMEOUT_S)
def test_a_node_that_comes_back_may_join_again(cluster: Cluster) -> None:
    run = LedgerRun(cluster, rows=ROWS, rate=RATE)
    before = run.until_rows()
    name = one(cluster, "subtask").node
    at = time.monotonic()
    cluster.kill_root(name)
    cluster.start_agent(name)
    report("kill -9 of an agent that is started again", run.recovery_s(at, before))
    cluster.until(f"{name} is a member", lambda: name in {n.name for n in cluster.members()})
    run.prove()


@pytest.mark.timeout(TIMEOUT_S)
def test_rows_arrive_once_although_the_controller_dies(cluster: Cluster) -> None:
    run = LedgerRun(cluster, rows=ROWS, rate=RATE)
    before = run.until_rows()
    at = time.monotonic()
    cluster.kill_root("controller")
    cluster.start_controller()
    report("kill -9 of the controller, started again", run.recovery_s(at, before))
    run.prove()


@pytest.mark.timeout(TIMEOUT_S)
def test_a_node_that_stood_still_beyond_its_lease_does_no_harm_when_it_wakes(
    cluster: Cluster,
) -> None:
    run = LedgerRun(cluster, rows=ROWS, rate=RATE)
    before = run.until_rows()
    name = one(cluster, "subtask").node
    stopped = cluster.processes(node=name)
    at = time.monotonic()
    for process in stopped:
        os.kill(process.pid, signal.SIGSTOP)
    try:
        report("SIGSTOP of a node", run.recovery_s(at, before))
        time.sleep(max(0.0, at + STOPPED_S - time.monotonic()))
    finally:
        for process in stopped:
            try:
                os.kill(process.pid, signal.SIGCONT)
            except ProcessLookupError:
                pass
    cluster.until(f"{name} has joined anew", lambda: name in {n.name for n in cluster.members()})
    old = {process.pid for process in stopped} - {cluster.popens[name].pid}
    cluster.until(
        "what ran on it before is gone",
        lambda: not old & {process.pid for process in cluster.processes()},
    )
    run.prove()


@pytest.mark.timeout(TIMEOUT_S)
def test_a_stopped_agent_alone_is_noticed_too(cluster: Cluster) -> None:
    """Its subtasks run on while it stands: they are fenced, and die when it wakes."""
    run = LedgerRun(cluster, rows=ROWS, rate=RATE)
    before = run.until_rows()
    name = one(cluster, "subtask").node
    at = time.monotonic()
    cluster.popens[name].send_signal(signal.SIGSTOP)
    try:
        report("SIGSTOP of an agent alone", run.recovery_s(at, before))
    finally:
        cluster.popens[name].send_signal(signal.SIGCONT)
    run.prove()


@pytest.mark.timeout(TIMEOUT_S)
def test_a_node_that_is_asked_to_go_hands_its_work_over(cluster: Cluster) -> None:
    run = LedgerRun(cluster, rows=ROWS, rate=RATE)
    before = run.until_rows()
    name = one(cluster, "subtask").node
    at = time.monotonic()
    cluster.popens[name].send_signal(signal.SIGTERM)
    assert cluster.popens[name].wait(60) == 0
    report("drain by SIGTERM", run.recovery_s(at, before))
    assert not cluster.processes(node=name)
    run.prove()


@pytest.mark.timeout(TIMEOUT_S)
def test_a_job_goes_on_at_another_width(cluster: Cluster) -> None:
    run = LedgerRun(cluster, rows=ROWS, rate=RATE, parallelism=2)
    before = run.until_rows()
    at = time.monotonic()
    # Without the command around it, which a busy machine may start only when all rows are through.
    cluster.client.scale("ledger", {"": 4})
    cluster.until(
        "four subtasks of one operator",
        lambda: [p for p in cluster.processes("subtask") if p.title.endswith("[3]")],
    )
    report("scale from 2 to 4", run.recovery_s(at, before))
    run.prove()


@pytest.mark.timeout(TIMEOUT_S)
def test_a_stopped_job_goes_on_when_it_is_submitted_again(cluster: Cluster) -> None:
    LedgerRun(cluster, rows=ROWS, rate=RATE / 20).until_rows()
    done = cluster.penstock("stop", "ledger", "--wait")
    assert done.returncode == 0, done.stderr
    assert "ledger: stopped at epoch" in done.stderr
    assert not cluster.processes("subtask")
    LedgerRun(cluster, rows=ROWS, rate=RATE * 20, parallelism=2).prove()


@pytest.mark.timeout(TIMEOUT_S)
def test_an_agent_with_another_secret_is_no_member(cluster: Cluster) -> None:
    make_secret(cluster.folder / "other")
    cluster.start_agent("stranger", cluster.folder / "other")
    log = cluster.folder / "stranger.log"
    cluster.until("it is turned away", lambda: "credentials" in log.read_text())
    assert {node.name for node in cluster.members()} == set(cluster.agents)
    cluster.kill_root("stranger")
