"""Attempts that span nodes: several agents on this machine, real net processes between them."""

from __future__ import annotations

import os
import queue
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from agent_harness import chain, deploy, wait_until, wait_until_dead
from agent_nodes import LOOPBACK, Nodes
from end_to_end import TICK_S, Count, Row, until, written
from net_certificates import authority, member

import penstock as ps
from penstock.dataflow.launcher import JobHandle, use_launcher
from penstock.runtime.agent_handle import AgentLost, ToControllerOrLost
from penstock.runtime.agent_memory import AttemptMemory
from penstock.runtime.deploying import channel_fingerprints
from penstock.runtime.embedded import EmbeddedLauncher
from penstock.runtime.messages import (
    AgentFailure,
    AttemptGone,
    CancelAttempt,
    NetListening,
    SubtaskKey,
    UseNetwork,
)
from penstock.runtime.splitting import split_deploy

SPLITS = 6
KEYS = 50


class Numbers(ps.Source[Row]):
    """`rows` per split, as fast as they go, or for ever at one per millisecond."""

    def __init__(self, rows: int | None) -> None:
        self.rows = rows

    def splits(self) -> list[str]:
        return [str(n) for n in range(SPLITS)]

    def read(self, split: str, position: Any) -> Iterator[tuple[Row, int]]:
        n = position or 0
        while self.rows is None or n < self.rows:
            n += 1
            if self.rows is None:
                time.sleep(TICK_S)
            yield Row(f"key {n % KEYS}", n), n


@pytest.fixture
def made() -> Iterator[list[Nodes]]:
    """What the launcher has made; every agent is closed afterwards."""
    with launched(LOOPBACK) as nodes:
        yield nodes


@contextmanager
def launched(use: UseNetwork) -> Iterator[list[Nodes]]:
    nodes: list[Nodes] = []

    def make() -> Nodes:
        nodes.append(Nodes("abc", use))
        return nodes[-1]

    before = use_launcher(EmbeddedLauncher(make))
    try:
        yield nodes
    finally:
        use_launcher(before)
        for each in nodes:
            each.close()


def counting(rows: int | None, out: Path) -> ps.Pipeline:
    pipeline = ps.Pipeline("counting")
    counted = pipeline.source(Numbers(rows)).key_by("k").process(Count())
    counted.sink(ps.FileSink(out, format="jsonl", roll_interval="0 s"))
    return pipeline


def expected(rows: int) -> list[tuple[str, int]]:
    """Each key is counted from 1 up to as often as it came."""
    times = {f"key {k}": SPLITS * len(range(k or KEYS, rows + 1, KEYS)) for k in range(KEYS)}
    return sorted((key, n) for key, count in times.items() for n in range(1, count + 1))


def rows_of(out: Path) -> list[tuple[str, int]]:
    return sorted((row["k"], row["v"]) for row in written(out))


def start(pipeline: ps.Pipeline, tmp_path: Path) -> JobHandle:
    return pipeline.start(
        state_dir=str(tmp_path / "state"), checkpoint_interval="100 ms", parallelism=3
    )


def test_a_shuffle_over_three_nodes_yields_the_rows_of_one(
    made: list[Nodes], tmp_path: Path
) -> None:
    summary = counting(5000, tmp_path / "out").run(
        state_dir=str(tmp_path / "state"), checkpoint_interval="100 ms", parallelism=3
    )
    assert (summary.outcome, summary.restarts) == ("finished", 0)
    assert rows_of(tmp_path / "out") == expected(5000)
    listening = {name for name, event in made[0].heard if isinstance(event, NetListening)}
    assert listening == {"a", "b", "c"}, "every node had neighbours elsewhere"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_a_shuffle_over_tls_and_compressed_yields_the_same(tmp_path: Path) -> None:
    authority(tmp_path, "cluster")
    tls = member(tmp_path, "node", "cluster", "cluster").tls
    with launched(UseNetwork("localhost", tls=tls, compression="zstd")):
        counting(500, tmp_path / "out").run(
            state_dir=str(tmp_path / "state"), checkpoint_interval="100 ms", parallelism=3
        )
        assert rows_of(tmp_path / "out") == expected(500)


@pytest.mark.parametrize(
    ("victim", "cause"),
    [
        ("penstock: net counting", "the net process was killed by signal 9"),
        ("penstock: counting Numbers", "(Numbers) was killed by SIGKILL"),
        ("penstock: counting count", "(count > file_sink) was killed by SIGKILL"),
    ],
)
def test_a_killed_process_costs_one_restart_and_no_row(
    victim: str,
    cause: str,
    made: list[Nodes],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    job = start(counting(None, tmp_path / "out"), tmp_path)
    until(job, lambda status: status.epoch > 1)
    (nodes,) = made
    os.kill(nodes.pid_of("b", victim), signal.SIGKILL)
    again = until(job, lambda status: status.restarts == 1 and status.state == "running").epoch
    until(job, lambda status: status.epoch > again + 1)
    summary = job.stop()
    assert summary.restarts == 1
    assert cause in caplog.text
    counts: dict[str, list[int]] = {}
    for key, n in rows_of(tmp_path / "out"):
        counts.setdefault(key, []).append(n)
    assert all(ns == list(range(1, len(ns) + 1)) for ns in counts.values())
    assert len(counts) == KEYS


def test_nothing_of_a_job_is_left_on_any_node(made: list[Nodes], tmp_path: Path) -> None:
    names = set(os.listdir("/dev/shm"))
    open_before = len(os.listdir("/proc/self/fd"))
    job = start(counting(None, tmp_path / "out"), tmp_path)
    until(job, lambda status: status.epoch > 0)
    (nodes,) = made
    pids = [pid for name in "abc" for pid in nodes.titles(name)]
    agents = [handle.pid for handle in nodes.handles.values()]
    ours = [name for name in os.listdir("/dev/shm") if any(f"-{a}-" in name for a in agents)]
    assert ours == [], "bells lose their names once everyone has opened them"
    job.stop("now")
    wait_until_dead([*pids, *agents])
    assert not [
        n for n in set(os.listdir("/dev/shm")) - names if any(f"-{a}-" in n for a in agents)
    ]
    wait_until(lambda: len(os.listdir("/proc/self/fd")) <= open_before)
    assert not [f for f in os.listdir("/tmp") if any(f"-{a}-" in f for a in agents)]


# The agents alone -----------------------------------------------------------------------------


class Bench:
    """Nodes without a controller; subtasks run an entry of agent_entries."""

    def __init__(self, use: UseNetwork | None = LOOPBACK) -> None:
        self.events: queue.SimpleQueue[ToControllerOrLost] = queue.SimpleQueue()
        self.nodes = Nodes("ab", use, "agent_entries:entry_of_run_id")
        self.nodes.start(self.events)

    def deploy(self, attempt: int) -> None:
        plan = chain("x", "y", parallelism=2, partition="hash")
        self.nodes.send(deploy("echo", plan, attempt))

    def wait_for(self, *kinds: type) -> ToControllerOrLost:
        while not isinstance(event := self.events.get(timeout=20), kinds):
            assert not isinstance(event, AgentLost), event
        return event

    def cancel(self, attempt: int) -> None:
        self.nodes.send(CancelAttempt(1, attempt))
        self.wait_for(AttemptGone)


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.nodes.close()


def net_processes(nodes: Nodes) -> dict[str, list[str]]:
    return {
        name: sorted(t for t in nodes.titles(name).values() if t.startswith("penstock: net"))
        for name in nodes.handles
    }


def test_a_spare_net_process_waits_for_the_next_attempt_and_no_dead_one_stays(
    bench: Bench,
) -> None:
    idle = ["penstock: net, idle"]
    busy = ["penstock: net test job", *idle]
    for attempt in (1, 2, 3):
        bench.deploy(attempt)
        wait_until(lambda: net_processes(bench.nodes) == {"a": busy, "b": busy})
        bench.cancel(attempt)
        assert net_processes(bench.nodes) == {"a": idle, "b": idle}


def test_an_attempt_that_is_cancelled_at_once_leaves_no_net_process(bench: Bench) -> None:
    bench.deploy(1)
    bench.cancel(1)
    for titles in net_processes(bench.nodes).values():
        assert "penstock: net test job" not in titles


def test_a_dead_net_process_is_a_failure_of_the_attempt_and_said_once(bench: Bench) -> None:
    bench.deploy(1)
    wait_until(lambda: "penstock: net test job" in net_processes(bench.nodes)["a"])
    os.kill(bench.nodes.pid_of("a", "penstock: net test job"), signal.SIGKILL)
    bench.wait_for(AgentFailure)
    bench.cancel(1)
    said = [(name, e) for name, e in bench.nodes.heard if isinstance(e, AgentFailure)]
    mine = [event for name, event in said if name == "a"]
    text = "the net process was killed by signal 9"
    assert mine == [AgentFailure(1, 1, text)]
    assert all(event.consequence for name, event in said if name == "b")
    bench.deploy(2)
    wait_until(lambda: "penstock: net test job" in net_processes(bench.nodes)["a"])
    bench.cancel(2)


def test_a_dead_agent_takes_its_net_processes_with_it(bench: Bench) -> None:
    bench.deploy(1)
    wait_until(lambda: len(net_processes(bench.nodes)["a"]) == 2)
    pids = list(bench.nodes.titles("a"))
    bench.nodes.handles["a"].kill()
    while not isinstance(event := bench.events.get(timeout=20), AgentLost):
        pass
    assert event.all_gone
    wait_until_dead(pids)


def test_a_spare_that_was_killed_is_replaced_when_it_is_needed(bench: Bench) -> None:
    wait_until(lambda: net_processes(bench.nodes)["a"] == ["penstock: net, idle"])
    pid = bench.nodes.pid_of("a", "penstock: net, idle")
    os.kill(pid, signal.SIGKILL)
    wait_until_dead([pid])
    bench.deploy(1)
    wait_until(lambda: "penstock: net test job" in net_processes(bench.nodes)["a"])
    bench.cancel(1)


@pytest.mark.parametrize(
    ("use", "says"),
    [
        (None, "nobody said how to reach them"),
        (UseNetwork("0.0.0.0", open_loopback=True), "not a loopback address"),
        (UseNetwork("127.0.0.1", secret=b"short"), "at least"),
        (UseNetwork("no-such-host.invalid", secret=b"x" * 16), "no-such-host.invalid"),
    ],
)
def test_nodes_that_cannot_reach_each_other_say_why(use: UseNetwork | None, says: str) -> None:
    bench = Bench(use)
    bench.deploy(1)
    failure = bench.wait_for(AgentFailure)
    assert isinstance(failure, AgentFailure)
    assert says in failure.text
    bench.cancel(1)
    bench.nodes.close()


# What the net process is told -----------------------------------------------------------------


def test_no_row_crosses_a_socket_between_subtasks_of_one_node(tmp_path: Path) -> None:
    plan = chain("x", "y", "z", parallelism=5, partition="hash")
    whole = deploy("echo", plan)
    where = {each.key: "abc"[each.key.index % 3] for each in whole.subtasks}
    parts = split_deploy(whole, where, channel_fingerprints(plan, whole.channels))
    wires = 0
    for node, part in parts.items():
        memory = AttemptMemory(part, str(tmp_path / node), 0)
        setup, descriptors = memory.net_setup(LOOPBACK)
        local = [c for c in part.channels if where[c.source] == where[c.target]]
        ends = [
            end for peer in setup.peers for group in (peer.sends, peer.receives) for end in group
        ]
        assert len(ends) == len(part.channels) - len(local)
        assert len({(end.segment, end.region) for end in ends}) == len(ends)
        assert setup.descriptors == len(descriptors) == len(set(descriptors))
        handed = {(m.spec.source, m.spec.target) for m in _ends(memory, part.subtasks)}
        assert handed == {(c.source, c.target) for c in part.channels}
        for each in part.subtasks:
            _check_bells(memory, each.key, where, node)
        wires += sum(len(peer.sends) for peer in setup.peers)
        memory.close()
    assert wires == sum(where[c.source] != where[c.target] for c in whole.channels)


def _ends(memory: AttemptMemory, subtasks: list[Any]) -> list[Any]:
    return [
        end
        for ordinal in range(len(subtasks))
        for told in [memory.handover(ordinal, "")[0]]
        for end in (*told.inbound, *told.outbound)
    ]


def _check_bells(
    memory: AttemptMemory, key: SubtaskKey, where: dict[SubtaskKey, str], node: str
) -> None:
    """A neighbour on this node is rung itself, for one elsewhere the net process is."""
    bells = {k: memory.handover(o, "")[0].doorbell for o, k in enumerate(memory.keys)}
    told, _ = memory.handover(memory.keys.index(key), "")
    for ends, other in ((told.inbound, "source"), (told.outbound, "target")):
        for end in ends:
            neighbour = getattr(end.spec, other)
            if where[neighbour] == node:
                assert end.peer_doorbell == bells[neighbour]
            else:
                assert end.peer_doorbell not in bells.values()
