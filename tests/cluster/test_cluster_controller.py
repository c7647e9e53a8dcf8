from __future__ import annotations

import hashlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from toy_node import ToyNode

from penstock.cluster.bundle import Bundle
from penstock.cluster.bundle_store import BundleStore
from penstock.cluster.client import Client
from penstock.cluster.client_messages import JobInfo
from penstock.cluster.controller import ClusterController, ControllerSettings
from penstock.cluster.job_host import JobProcess
from penstock.cluster.job_pool import REWARM_NS, JobPool
from penstock.cluster.link import Link, dial, format_address
from penstock.cluster.node_messages import (
    CHUNK_BYTES,
    BundleChunk,
    CloseJob,
    Draining,
    FetchLog,
    Leave,
    LogText,
    NeedBundle,
    Refused,
    ToJobAgent,
    Welcome,
)
from penstock.dataflow.settings import JobSettings
from penstock.elements.errors import ProtocolError, SettingsError, StateError, Unreachable
from penstock.runtime.net.credentials import Credentials

CREDENTIALS = Credentials(secret=b"s" * 32)
TOY_JOB = (sys.executable, str(Path(__file__).with_name("toy_job.py")))
PATIENCE_S = 20.0


def bundle_of(**orders: Any) -> Bundle:
    data = json.dumps(orders).encode()
    return Bundle(hashlib.sha256(data).hexdigest(), data, len(data))


def until(look: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.01)


@dataclass
class Cluster:
    """A controller in this process, toy nodes, toy jobs."""

    data: Path
    stack: ExitStack
    lease_s: float = 10.0
    margin_s: float = 0.2

    def start(self) -> Cluster:
        settings = ControllerSettings(
            "127.0.0.1:0", self.data, CREDENTIALS, lease_s=self.lease_s, heartbeat_s=0.1,
            margin_s=self.margin_s,
        )  # fmt: skip
        self.controller = ClusterController(settings, job_command=TOY_JOB)
        self.stack.callback(self.controller.close)
        self.controller.start()
        self.address = format_address(*self.controller.address)
        self.client = Client(self.address, CREDENTIALS)
        self.stack.callback(self.client.close)
        return self

    def node(self, node: str = "a", incarnation: str = "1", slots: int = 2) -> ToyNode:
        made = ToyNode(self.address, CREDENTIALS, node, incarnation, slots)
        self.stack.callback(made.close)
        return made

    def submit(self, job: str = "j", slots: int = 2, **orders: Any) -> JobInfo:
        return self.client.submit(job, bundle_of(slots=slots, **orders), JobSettings())

    def job(self, job: str = "j") -> JobInfo:
        return self.client.jobs(job, ended=True)[-1]

    def until_state(self, state: str, job: str = "j") -> JobInfo:
        info: JobInfo = until(lambda: info if (info := self.job(job)).state == state else None)
        return info

    def coordinator(self, job: str = "j") -> int:
        """The pid of the job's process."""
        process = self.controller._world.processes[job]._process
        assert process is not None
        return process.pid


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with ExitStack() as stack:
        yield Cluster(tmp_path / "data", stack).start()


# Members ------------------------------------------------------------------------------------------


def test_a_node_is_welcomed_and_listed(cluster: Cluster) -> None:
    welcome = cluster.node().until(Welcome)
    assert (welcome.term, welcome.lease_ms, welcome.heartbeat_ms) == (1, 10_000, 100)
    (info,) = cluster.client.nodes()
    assert (info.name, info.state, info.slots, info.used) == ("a", "member", 2, 0)
    assert info.labels == {"zone": "x"}


def test_a_second_node_of_the_name_is_refused_until_the_first_is_gone(cluster: Cluster) -> None:
    first = cluster.node().joined()
    second = cluster.node(incarnation="2")
    refused = second.until(Refused)
    assert refused.again
    assert second.ended.wait(PATIENCE_S)
    first.close()
    until(lambda: cluster.client.nodes()[0].state == "lost")
    cluster.node(incarnation="3").joined()


def test_a_silent_node_is_lost_and_its_link_cut(tmp_path: Path) -> None:
    with ExitStack() as stack:
        cluster = Cluster(tmp_path / "data", stack, lease_s=0.4).start()
        node = cluster.node().joined()
        node.be_quiet()
        assert node.ended.wait(PATIENCE_S)
        assert "no heartbeat" in until(cluster.client.nodes)[0].note


def test_who_breaks_the_protocol_is_cut_off_and_nobody_else(cluster: Cluster) -> None:
    node = cluster.node().joined()
    for garbage in (b"", b"\xc1", b"\x91\x01" * 100):
        ended = threading.Event()
        on_end = partial(_set, ended)
        dial(cluster.address, CREDENTIALS, _ignore, on_end, 5).send(garbage)
        assert ended.wait(PATIENCE_S)
    stranger = cluster.node("b").joined()
    stranger.link.send(b"\xc1")
    assert stranger.ended.wait(PATIENCE_S)
    assert not node.ended.is_set()


def _ignore(link: Link, body: bytes) -> None:
    pass


def _set(ended: threading.Event, link: Link, reason: str) -> None:
    ended.set()


def test_one_directory_serves_one_controller(cluster: Cluster) -> None:
    settings = ControllerSettings("127.0.0.1:0", cluster.data, CREDENTIALS)
    with pytest.raises(StateError, match="another controller"):
        ClusterController(settings)


def test_a_heartbeat_that_cannot_keep_its_lease_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="at least twice"):
        ControllerSettings("127.0.0.1:0", tmp_path, CREDENTIALS, lease_s=1, heartbeat_s=0.6)


# Jobs ---------------------------------------------------------------------------------------------


def test_a_job_runs_on_its_slots_to_its_end(cluster: Cluster) -> None:
    a, b = cluster.node("a").joined(), cluster.node("b").joined()
    info = cluster.submit(slots=4)
    assert info.job == "j"
    opened = a.opened("j")
    assert b.opened("j").launch == opened.launch == 1
    assert a.until(ToJobAgent).body == b"deploy"
    a.from_agent("j", 1, b"hello")
    assert a.until(ToJobAgent).body == b"heard hello"
    running = cluster.until_state("running")
    assert (running.slots, running.nodes) == (4, ["a", "b"])
    a.from_agent("j", 1, b"finish")
    for node in (a, b):
        node.until(CloseJob)
        node.agent_gone("j", 1)
    ended = cluster.until_state("finished")
    assert ended.summary == b"summary"
    assert ended.ended_ns > ended.submitted_ns > 0
    until(lambda: [n.used for n in cluster.client.nodes()] == [0, 0])


def test_a_job_without_a_state_directory_gets_the_clusters(cluster: Cluster) -> None:
    cluster.node().joined()
    cluster.submit()
    status = json.loads(cluster.until_state("running").status)
    assert json.loads(status["settings"])["state_dir"] == str(cluster.data / "state")


def test_a_node_fetches_the_bundle_in_pieces(cluster: Cluster) -> None:
    node = cluster.node().joined()
    bundle = bundle_of(slots=1, padding="x" * (CHUNK_BYTES + 5))
    cluster.client.submit("j", bundle, JobSettings())
    opened = node.opened("j")
    assert (opened.bundle, opened.bundle_bytes) == (bundle.sha256, bundle.size)
    data = b""
    while len(data) < bundle.size:
        node.say(NeedBundle(bundle.sha256, len(data)))
        piece = node.until(BundleChunk)
        assert piece.offset == len(data)
        assert 0 < len(piece.data) <= CHUNK_BYTES
        data += piece.data
    assert data == bundle.data
    node.say(NeedBundle(bundle.sha256, bundle.size))
    assert node.until(BundleChunk).data == b""
    node.say(NeedBundle("f" * 64, 0))
    assert node.until(BundleChunk).data == b""


def test_a_job_waits_for_slots_and_says_for_which(cluster: Cluster) -> None:
    cluster.node("a").joined()
    cluster.submit(slots=4)
    waiting = cluster.until_state("waiting")
    assert "needs 4 slots; 2 of 2 are free" in waiting.note
    cluster.node("b").joined()
    assert cluster.until_state("running").note == ""


def test_a_name_that_runs_is_refused_with_what_to_do(cluster: Cluster) -> None:
    node = cluster.node().joined()
    cluster.submit()
    cluster.until_state("running")
    with pytest.raises(SettingsError, match="running already: stop it first"):
        cluster.submit()
    cluster.client.stop("j")
    node.until(CloseJob)
    # The old launch still has an agent: the new submission is taken, and waits for its end.
    assert cluster.submit().launch == 0
    node.agent_gone("j", 1)
    assert node.opened("j").launch == 2
    assert cluster.client.jobs("j", ended=True)[0].state == "stopped"


@pytest.mark.parametrize(
    ("job", "changes", "says"),
    [
        ("../j", {}, "cannot name a directory"),
        ("j" * 201, {}, "bytes at most"),
        ("j", {"placement": "anywhere"}, "pack or spread"),
        ("j", {"environment": {"A=B": "c"}}, "environment variable"),
    ],
)
def test_a_submission_that_cannot_be_is_refused(
    cluster: Cluster, job: str, changes: dict[str, Any], says: str
) -> None:
    with pytest.raises(Exception, match=says):
        cluster.client.submit(job, bundle_of(slots=1), JobSettings(), **changes)
    assert cluster.client.jobs(ended=True) == []


def test_a_coordinator_that_is_killed_is_launched_again_after_its_agents_are_closed(
    cluster: Cluster,
) -> None:
    node = cluster.node().joined()
    cluster.submit()
    cluster.until_state("running")
    os.kill(cluster.coordinator(), signal.SIGKILL)
    closed = node.until(CloseJob)
    assert closed.launch == 1
    info = cluster.until_state("restarting")
    assert "SIGKILL" in info.note
    assert info.launch == 1
    node.agent_gone("j", 1)
    assert node.opened("j").launch == 2
    cluster.until_state("running")


def test_a_coordinator_that_always_dies_fails_the_job(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    from penstock.cluster import jobs
    from penstock.runtime.restart import RestartPolicy

    monkeypatch.setattr(jobs, "LAUNCHES_IN_A_ROW", RestartPolicy(2, 1000, 1000, 10**12))
    cluster.submit(dies=True)
    failed = cluster.until_state("failed")
    assert "SIGKILL" in failed.note
    assert failed.launch == 3
    (part,) = cluster.client.logs("j")
    assert part.text.count("launch 3 of") == 1


def test_a_lost_node_is_replaced_only_when_it_is_gone(tmp_path: Path) -> None:
    with ExitStack() as stack:
        cluster = Cluster(tmp_path / "data", stack, lease_s=1.0, margin_s=0.5).start()
        a, spare = cluster.node("a").joined(), cluster.node("b").joined()
        cluster.submit()
        a.opened("j")
        cluster.until_state("running")
        last_beat = time.monotonic()
        a.close()
        spare.opened("j")
        assert time.monotonic() - last_beat > 1.0
        assert cluster.job().nodes == ["b"]


def test_a_draining_node_moves_its_jobs_away_and_leaves(cluster: Cluster) -> None:
    a = cluster.node("a").joined()
    cluster.submit()
    a.opened("j")
    cluster.until_state("running")
    b = cluster.node("b").joined()
    a.say(Draining("SIGTERM"))
    a.until(CloseJob)
    a.agent_gone("j", 1)
    a.until(Leave)
    assert b.opened("j").launch == 2
    a.close()
    until(lambda: cluster.client.nodes()[0].note == "it left")


def test_scaling_relaunches_with_the_new_widths(cluster: Cluster) -> None:
    node = cluster.node(slots=8).joined()
    cluster.submit(slots=2)
    cluster.until_state("running")
    cluster.client.scale("j", {"": 5})
    node.until(CloseJob)
    assert cluster.job().state in ("rescaling", "restarting")
    node.agent_gone("j", 1)
    until(lambda: cluster.job().slots == 5)
    assert cluster.until_state("running").launch == 2


def test_widths_that_cannot_be_are_taken_back(cluster: Cluster) -> None:
    node = cluster.node().joined()
    cluster.submit()
    cluster.until_state("running")
    cluster.client.scale("j", {"nonsense": 5})
    node.until(CloseJob)
    node.agent_gone("j", 1)
    info = until(lambda: i if (i := cluster.job()).launch == 3 and i.state == "running" else None)
    assert "no operator nonsense" in info.note


def test_logs_come_from_the_coordinator_and_all_nodes_that_have_some(cluster: Cluster) -> None:
    nodes = [cluster.node(name).joined() for name in "abc"]
    cluster.submit()
    cluster.until_state("running")
    link_client = Client(cluster.address, CREDENTIALS)
    try:
        parts: list[Any] = []
        asking = threading.Thread(target=lambda: parts.extend(link_client.logs("j", 1000)))
        asking.start()
        texts = {"a": "from a\n", "b": ""}
        for node in nodes[:2]:
            asked = node.until(FetchLog)
            assert (asked.job, asked.bytes_max) == ("j", 1000)
            node.say(LogText(asked.request, texts[node.name.node]))
        # c never answers: what there is comes in time.
        asking.join(PATIENCE_S)
        assert [part.where for part in parts] == ["coordinator", "a", "c"]
        assert "launch 1 of" in parts[0].text
        assert parts[1].text == "from a\n"
        assert "did not answer" in parts[2].text
    finally:
        link_client.close()


def test_an_answer_that_is_too_large_fails_alone(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [cluster.node(name).joined() for name in "ab"]
    cluster.submit()
    cluster.until_state("running")
    monkeypatch.setattr("penstock.cluster.link.BODY_BYTES_MAX", 50_000)
    with Client(cluster.address, CREDENTIALS) as asking, ThreadPoolExecutor(1) as thread:
        parts = thread.submit(asking.logs, "j", 1000)
        for node in nodes:
            node.say(LogText(node.until(FetchLog).request, "x" * 40_000))
        with pytest.raises(ProtocolError, match="the answer"):
            parts.result(PATIENCE_S)
        # Neither the node whose part was the last is cut off for it, nor the client.
        assert [(node.name, node.state) for node in asking.nodes()] == [
            ("a", "member"), ("b", "member"),
        ]  # fmt: skip


def test_who_asks_for_a_job_that_never_was_is_told(cluster: Cluster) -> None:
    for ask in (cluster.client.stop, cluster.client.logs):
        with pytest.raises(SettingsError, match="there is no job 'x'"):
            ask("x")
    with pytest.raises(SettingsError, match="there is no job 'x'"):
        cluster.client.scale("x", {"": 2})


def test_a_warm_process_serves_the_next_launch(tmp_path: Path) -> None:
    pool = JobPool(TOY_JOB)
    try:
        pool.tick(0)
        assert pool.deadline_ns is None
        spare = pool._spare
        assert spare is not None
        other = pool.take({"A": "b"}, 0)
        assert other is not spare
        assert pool.take({}, 0) is spare
        assert pool.deadline_ns == REWARM_NS
        pool.tick(REWARM_NS)
        killed = pool._spare
        assert killed is not None
        killed.kill()
        killed.join(PATIENCE_S)
        fresh = pool.take({}, REWARM_NS)
        assert fresh not in (killed, spare)
        causes: queue.Queue[str] = queue.Queue()
        for process in (other, spare, fresh, killed):
            process.assign(
                "j", 1, tmp_path / "j.log", lambda p, body: None, lambda p, c: causes.put(c)
            )
            process.kill()
            assert causes.get(timeout=PATIENCE_S) == "it was killed by SIGKILL"
    finally:
        pool.close(PATIENCE_S)


def test_a_process_that_cannot_be_started_is_told_as_one_that_ended(tmp_path: Path) -> None:
    process = JobProcess({}, (str(tmp_path / "none"),))
    process.start()
    causes: queue.Queue[str] = queue.Queue()
    process.assign("j", 1, tmp_path / "j.log", lambda p, body: None, lambda p, c: causes.put(c))
    assert "cannot be started" in causes.get(timeout=PATIENCE_S)


def test_a_coordinator_that_babbles_is_killed(tmp_path: Path) -> None:
    babbler = (sys.executable, "-c", "import os, sys; os.write(int(sys.argv[1]), b'?' * 99)")
    process = JobProcess({}, babbler)
    process.start()
    causes: queue.Queue[str] = queue.Queue()
    process.assign("j", 1, tmp_path / "j.log", lambda p, body: None, lambda p, c: causes.put(c))
    assert causes.get(timeout=PATIENCE_S) in ("it was killed by SIGKILL", "it exited with code 0")


# Bundles ------------------------------------------------------------------------------------------


def test_a_bundle_that_is_not_what_its_name_says_is_refused(tmp_path: Path) -> None:
    store = BundleStore(tmp_path / "bundles")
    good = bundle_of(slots=1)
    with pytest.raises(SettingsError, match="damaged"):
        store.put("c", good.sha256, good.size, 0, b"x" * good.size)
    assert store.size(good.sha256) is None
    assert list((tmp_path / "bundles").iterdir()) == []
    assert store.put("c", good.sha256, good.size, 0, good.data) == good.size
    assert store.read(good.sha256, 0) == good.data
    store.close()


def test_pieces_out_of_order_are_answered_with_what_is_held(tmp_path: Path) -> None:
    store = BundleStore(tmp_path / "bundles")
    bundle = bundle_of(slots=1, padding="x" * 100)
    assert store.put("c", bundle.sha256, bundle.size, 0, bundle.data[:50]) == 50
    assert store.put("c", bundle.sha256, bundle.size, 70, bundle.data[70:]) == 50
    assert store.put("c", bundle.sha256, bundle.size, 50, bundle.data[50:]) == bundle.size
    store.close()


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "F" * 64, "a" * 63 + "\n"])
def test_a_bundles_name_is_a_hash_and_no_path(tmp_path: Path, name: str) -> None:
    store = BundleStore(tmp_path / "bundles")
    with pytest.raises(ProtocolError):
        store.put("c", name, 10, 0, b"x")
    with pytest.raises(ProtocolError):
        store.read(name, 0)


def test_bundles_that_nobody_needs_are_swept(tmp_path: Path) -> None:
    store = BundleStore(tmp_path / "bundles")
    named, sent, old = (bundle_of(slots=i) for i in range(3))
    for owner, bundle in (("x", named), ("here", sent), ("x", old)):
        store.put(owner, bundle.sha256, bundle.size, 0, bundle.data)
    store.put("x", bundle_of(slots=9).sha256, 1000, 0, b"half")
    store.ended("x")
    store.sweep([named.sha256])
    found = {path.stem for path in (tmp_path / "bundles").iterdir()}
    assert found == {named.sha256, sent.sha256}


# The controller's own death -----------------------------------------------------------------------


@contextmanager
def controller_process(data: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A controller with toy jobs in a process of its own."""
    program = f"""
import sys
from pathlib import Path
from penstock.cluster.controller import ClusterController, ControllerSettings
from penstock.cluster.link import format_address
from penstock.runtime.net.credentials import Credentials
settings = ControllerSettings("127.0.0.1:0", Path({str(data)!r}), Credentials(secret=b"s" * 32))
controller = ClusterController(settings, job_command={TOY_JOB!r})
controller.start()
print(format_address(*controller.address), flush=True)
controller.wait()
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_killed_controller_goes_on_with_every_job_that_was_wanted(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with controller_process(data) as (process, address), ExitStack() as stack:
        node = ToyNode(address, CREDENTIALS, "a", slots=8)
        stack.callback(node.close)
        client = Client(address, CREDENTIALS)
        stack.callback(client.close)
        for job in ("wanted", "stopped", "finished"):
            client.submit(job, bundle_of(slots=1), JobSettings())
            node.opened(job)
            until(lambda: client.jobs(job)[0].state == "running")  # noqa: B023
        client.stop("stopped")
        node.from_agent("finished", 1, b"finish")
        until(lambda: len(client.jobs()) == 1)
        process.kill()
        # What hangs on it ends with it.
        assert node.ended.wait(PATIENCE_S)
        with pytest.raises(Unreachable):
            client.jobs()
    with controller_process(data) as (process, address), ExitStack() as stack:
        client = Client(address, CREDENTIALS)
        stack.callback(client.close)
        waiting = until(lambda: [j for j in client.jobs() if j.state == "waiting"])[0]
        assert (waiting.job, waiting.launch) == ("wanted", 2)
        assert "waiting for nodes of before: a" in waiting.note
        again = ToyNode(address, CREDENTIALS, "a", "2", slots=8)
        stack.callback(again.close)
        assert again.until(Welcome).term == 2
        assert again.opened("wanted").launch == 2
        until(lambda: client.jobs("wanted")[0].state == "running")
        states = {info.job: info.state for info in client.jobs(ended=True)}
        assert states == {"wanted": "running", "stopped": "stopped", "finished": "finished"}
        assert {p.stem for p in (data / "bundles").iterdir()} == {bundle_of(slots=1).sha256}


def test_a_controller_that_is_closed_leaves_jobs_to_be_resumed(tmp_path: Path) -> None:
    with ExitStack() as stack:
        cluster = Cluster(tmp_path / "data", stack).start()
        node = cluster.node().joined()
        cluster.submit()
        cluster.until_state("running")
        pid = cluster.coordinator()
        cluster.controller.close()
        assert node.ended.wait(PATIENCE_S)
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    with ExitStack() as stack:
        cluster = Cluster(tmp_path / "data", stack).start()
        assert cluster.node(incarnation="2").joined().opened("j").launch == 2
        cluster.until_state("running")
