"""The processes of jobs, their bundles, and the death of the controller itself."""

from __future__ import annotations

import os
import queue
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from controlled_cluster import CREDENTIALS, PATIENCE_S, TOY_JOB, Cluster, bundle_of, until
from toy_node import ToyNode

from penstock.cluster.bundle_store import BundleStore
from penstock.cluster.client import Client
from penstock.cluster.job_host import JobProcess
from penstock.cluster.job_pool import REWARM_NS, JobPool
from penstock.cluster.node_messages import Welcome
from penstock.dataflow.settings import JobSettings
from penstock.elements.errors import ProtocolError, SettingsError, Unreachable


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
