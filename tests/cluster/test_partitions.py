"""Cut, one-way, slow and lossy links between nodes; no row is lost or doubled, and the job goes on.

Each node is an emulated host of its own. Each test prints its time to recover: from the fault, or
from its end where the job cannot go on before, to the first visible rows of a checkpoint that was
begun after it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from cluster_harness import LedgerRun

from penstock.testing.emulated_cluster import CONTROLLER, EmulatedCluster, emulated_cluster
from penstock.testing.emulated_network import why_not

REASON = why_not()
pytestmark = [
    pytest.mark.skipif(REASON is not None, reason=REASON or ""),
    pytest.mark.timeout(180),
]
ROWS, RATE = 6_000, 1_000.0
"""Per split: six seconds of rows, which is longer than it takes to notice a silent peer."""
DELAY_S, LOSS = 0.2, 0.05


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmulatedCluster]:
    with emulated_cluster(tmp_path_factory.mktemp("partitions")) as cluster:
        yield cluster


@pytest.fixture
def cluster(nodes: EmulatedCluster) -> Iterator[EmulatedCluster]:
    """With all links whole, all nodes members, and no job."""
    yield nodes
    nodes.network.heal()
    nodes.until("all are members", lambda: len(nodes.members()) == len(nodes.agents))
    for job in nodes.client.jobs():
        # Of a test that failed.
        nodes.client.stop(job.job, "now")
        nodes.until_state(job.job, "stopped")


def start(cluster: EmulatedCluster, rows: int = ROWS) -> LedgerRun:
    """The job, from its beginning."""
    return LedgerRun(cluster, rows=rows, rate=RATE, out=f"out-{time.monotonic_ns()}")


def report(what: str, seconds: float) -> None:
    print(f"\nrecovery  {what}: {seconds:.2f} s")


def neighbours(cluster: EmulatedCluster) -> list[str]:
    """Nodes that work, in the order of their names."""
    return sorted({process.node for process in cluster.processes("subtask")})


def until_member(cluster: EmulatedCluster, name: str) -> None:
    cluster.until(f"{name} is a member", lambda: name in {n.name for n in cluster.members()})


def test_a_link_between_two_nodes_is_cut_and_healed(cluster: EmulatedCluster) -> None:
    """Both stay members, so their work stays where it is and waits for the link."""
    run = start(cluster)
    before = run.until_rows()
    one, other = (cluster.host(name) for name in neighbours(cluster)[:2])
    cluster.network.link(one, other, cut=True)
    cluster.network.link(other, one, cut=True)
    cluster.until("the job has noticed", lambda: cluster.job("ledger").state == "restarting")
    before = run.checkpoint()
    assert {node.name for node in cluster.members()} == set(cluster.agents)
    cluster.network.link(one, other)
    cluster.network.link(other, one)
    report("a link between agents, from its healing", run.recovery_s(time.monotonic(), before))
    run.prove()


def test_a_node_is_cut_off_from_all_and_healed(cluster: EmulatedCluster) -> None:
    run = start(cluster)
    before = run.until_rows()
    name = neighbours(cluster)[-1]
    old = {process.pid for process in cluster.processes("subtask", name)}
    at = time.monotonic()
    cluster.network.isolate(cluster.host(name))
    report("an agent cut off from all", run.recovery_s(at, before))
    cluster.until(
        "what ran there is gone, though nobody could tell it to go",
        lambda: not old & {process.pid for process in cluster.processes()},
    )
    cluster.network.isolate(cluster.host(name), cut=False)
    until_member(cluster, name)
    run.prove()


def test_links_with_the_controller_work_one_way_only(cluster: EmulatedCluster) -> None:
    """First nothing arrives at it from one node, then nothing from it at another."""
    run = start(cluster)
    before = run.until_rows()
    hears, speaks = neighbours(cluster)[-2:]
    for what, name, source, target in (
        ("nothing arrives at the controller", hears, cluster.host(hears), CONTROLLER),
        ("nothing arrives from the controller", speaks, CONTROLLER, cluster.host(speaks)),
    ):
        at = time.monotonic()
        cluster.network.link(source, target, cut=True)
        report(what, run.recovery_s(at, before))
        cluster.network.link(source, target)
        until_member(cluster, name)
        before = run.checkpoint()
    run.prove()


def test_the_controller_is_cut_off_from_all_and_healed(cluster: EmulatedCluster) -> None:
    """Every lease lapses, so everything ends; all of it begins again by itself."""
    run = start(cluster)
    run.until_rows()
    cluster.network.isolate(CONTROLLER)
    cluster.until("all subtasks are gone", lambda: not cluster.processes("subtask"))
    before = run.checkpoint()
    cluster.network.isolate(CONTROLLER, cut=False)
    at = time.monotonic()
    report("the controller cut off, from its healing", run.recovery_s(at, before))
    run.prove()


def test_a_job_starts_and_ends_although_every_frame_is_late(cluster: EmulatedCluster) -> None:
    harm(cluster, delay_s=DELAY_S)
    run = start(cluster, rows=2_000)
    run.prove()
    assert all(process.kind != "subtask" for process in cluster.processes())


def test_a_job_goes_on_although_frames_are_lost(cluster: EmulatedCluster) -> None:
    run = start(cluster, rows=ROWS // 2)
    before = run.until_rows()
    at = time.monotonic()
    harm(cluster, loss=LOSS)
    report(f"{LOSS:.0%} of all frames lost", run.recovery_s(at, before))
    run.prove()


def harm(cluster: EmulatedCluster, *, delay_s: float = 0, loss: float = 0) -> None:
    hosts = cluster.network.hosts
    for source in hosts:
        for target in hosts:
            if source != target:
                cluster.network.link(source, target, delay_s=delay_s, loss=loss)
