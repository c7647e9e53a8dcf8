"""The node agent in a process of its own: what it runs, what it survives, how it goes."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from node_harness import (
    HEARTBEAT_MS,
    LEASE_MS,
    PATIENCE_S,
    FakeController,
    below,
    deploy,
    gone,
    node_process,
    open_job,
    toy,
)

from penstock.cluster.node_messages import (
    CloseJob,
    Draining,
    FetchLog,
    Heartbeat,
    JobAgentGone,
    Join,
    Leave,
    LogText,
    Refused,
    ToJobAgent,
    Welcome,
)
from penstock.runtime import messages as runtime


@pytest.fixture
def controller(tmp_path: Path) -> Iterator[FakeController]:
    fake = FakeController(tmp_path)
    yield fake
    fake.close()


class Running:
    """A node with a running toy: its processes."""

    def __init__(
        self, controller: FakeController, tmp_path: Path, launch: int = 1, **environment: str
    ) -> None:
        source = tmp_path / f"toy-{launch}"
        self.bundle, self.pipeline = toy(source)
        controller.bundles[self.bundle.sha256] = self.bundle.data
        controller.tell(open_job(self.bundle, launch, **environment))
        self.agent = controller.wait_for_agent(runtime.AgentReady).pid
        controller.tell(deploy(self.pipeline, tmp_path / f"state-{launch}", launch))
        self.subtask = controller.wait_for_event(runtime.Started).pid
        self.processes = [self.agent, *below(self.agent)]
        assert self.subtask in self.processes


def test_a_node_says_what_it_has(controller: FakeController, tmp_path: Path) -> None:
    words = ("--slots", "3", "--label", "zone=b", "--label", "gpu=", "--host", "127.0.0.2")
    with node_process(controller, tmp_path / "node", *words) as node:
        join = controller.wait_for(Join)
        assert join.name.node == "node one"
        assert (join.slots, join.labels) == (3, {"zone": "b", "gpu": ""})
        assert (join.data_host, join.pid) == ("127.0.0.2", node.pid)
        assert join.memory_bytes > 0
        assert join.python == f"{sys.version_info.major}.{sys.version_info.minor}"


def test_a_job_runs_from_its_bundle_and_its_log_can_be_read(
    controller: FakeController, tmp_path: Path
) -> None:
    with node_process(controller, tmp_path / "node"):
        controller.wait_for(Join)
        job = Running(controller, tmp_path, TOY_WORD="cheese")
        text = ""
        for request in range(1000):
            controller.tell(FetchLog(request, "toy", 100_000))
            text = controller.wait_for(LogText, lambda m, r=request: m.request == r).text
            if "toy says" in text and text.endswith("\n"):
                break
            time.sleep(0.05)
        # The module came with the bundle, the variable with OpenJob; the directory is the
        # submitter's, which exists here.
        assert f"toy says cheese in {os.getcwd()}\n" in text
        assert f"launch 1, agent {job.agent}" in text.splitlines()[0]
        controller.tell(CloseJob("toy", 1))
        assert controller.wait_for(JobAgentGone).launch == 1
        gone(job.processes)


def test_closing_what_is_not_there_is_answered(controller: FakeController, tmp_path: Path) -> None:
    with node_process(controller, tmp_path / "node"):
        controller.wait_for(Join)
        controller.tell(CloseJob("nobody", 7))
        answer = controller.wait_for(JobAgentGone)
        assert (answer.job, answer.launch) == ("nobody", 7)
        controller.tell(ToJobAgent("nobody", 7, runtime.encode(runtime.Shutdown())))
        controller.tell(FetchLog(1, "nobody", 1000))
        assert controller.wait_for(LogText) == LogText(1, "")


def test_a_damaged_bundle_is_not_unpacked(controller: FakeController, tmp_path: Path) -> None:
    with node_process(controller, tmp_path / "node"):
        controller.wait_for(Join)
        bundle, _ = toy(tmp_path / "toy")
        damaged = bytearray(bundle.data)
        damaged[len(damaged) // 2] ^= 1
        controller.bundles[bundle.sha256] = bytes(damaged)
        controller.tell(open_job(bundle))
        assert "another hash" in controller.wait_for(JobAgentGone).cause
        assert list((tmp_path / "node" / "bundles").iterdir()) == []
        # One that is not there at all, and one whose name would lead elsewhere.
        del controller.bundles[bundle.sha256]
        controller.tell(open_job(bundle, 2))
        assert "0 bytes" in controller.wait_for(JobAgentGone).cause
        name = "../../" + hashlib.sha256(b"").hexdigest()
        controller.tell(type(open_job(bundle))("toy", 3, name, 10, {}))
        assert "there is no bundle" in controller.wait_for(JobAgentGone).cause
        controller.bundles[bundle.sha256] = bundle.data
        controller.tell(open_job(bundle, 4))
        controller.wait_for_agent(runtime.AgentReady)


def test_a_killed_job_agent_is_reported_and_can_be_opened_again(
    controller: FakeController, tmp_path: Path
) -> None:
    with node_process(controller, tmp_path / "node"):
        controller.wait_for(Join)
        job = Running(controller, tmp_path)
        os.kill(job.agent, signal.SIGKILL)
        lost = controller.wait_for(JobAgentGone)
        assert "SIGKILL" in lost.cause
        gone(job.processes)
        controller.tell(open_job(job.bundle))
        assert controller.wait_for_agent(runtime.AgentReady).pid != job.agent


def test_a_newer_launch_starts_when_the_older_is_gone(
    controller: FakeController, tmp_path: Path
) -> None:
    with node_process(controller, tmp_path / "node"):
        controller.wait_for(Join)
        older = Running(controller, tmp_path, 1)
        controller.tell(open_job(older.bundle, 2))
        assert controller.wait_for(JobAgentGone).launch == 1
        gone(older.processes)
        assert controller.wait_for_agent(runtime.AgentReady).pid != older.agent
        # What is late is refused.
        controller.tell(open_job(older.bundle, 1))
        assert controller.wait_for(JobAgentGone).cause == "launch 2 of the job is here"


def test_a_second_job_finds_a_warm_agent(controller: FakeController, tmp_path: Path) -> None:
    with node_process(controller, tmp_path / "node") as node:
        controller.wait_for(Join)
        (warm,) = _agents(node.pid, 1)
        job = Running(controller, tmp_path)
        assert job.agent == warm
        found = _agents(node.pid, 2)
        assert warm in found


def _agents(node: int, count: int) -> list[int]:
    """The agents below a node, once there are so many."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        found = [p.pid for p in psutil.Process(node).children()]
        if len(found) == count:
            return found
        assert time.monotonic() < deadline
        time.sleep(0.02)


# Ends ---------------------------------------------------------------------------------------------


def test_a_lost_connection_kills_what_ran_before_the_node_joins_anew(
    controller: FakeController, tmp_path: Path
) -> None:
    with node_process(controller, tmp_path / "node"):
        first = controller.wait_for(Join)
        job = Running(controller, tmp_path)
        at_joining: list[str] = []

        def note(join: Join) -> Welcome:
            titles = [_title(pid) for pid in job.processes if _runs(pid)]
            # A helper of the fork server, which runs nothing, ends when it notices.
            at_joining.extend(title for title in titles if "resource_tracker" not in title)
            return Welcome(1, LEASE_MS, HEARTBEAT_MS)

        controller.answer = note
        controller.links[-1].cut()
        second = controller.wait_for(Join)
        assert second.name.node == first.name.node
        assert second.name.incarnation != first.name.incarnation
        assert at_joining == []
        # Nothing that the former membership ran is spoken of again.
        controller.tell(CloseJob("toy", 1))
        assert "no agent" in controller.wait_for(JobAgentGone).cause


def _runs(pid: int) -> bool:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return False
    # PF_EXITING: its files are closed, so it counts as gone, and it runs no more than a zombie.
    return fields[0] != "Z" and not int(fields[6]) & 0x4


def test_a_controller_that_falls_silent_ends_the_lease(
    controller: FakeController, tmp_path: Path
) -> None:
    with node_process(controller, tmp_path / "node"):
        controller.wait_for(Join)
        job = Running(controller, tmp_path)
        controller.answer_heartbeats = False
        # The connection is still there when it gives up: it hangs up itself.
        assert controller.wait_for(str) == "the peer hung up"
        controller.wait_for(Join)
        gone(job.processes)


def test_a_node_that_was_stopped_beyond_its_lease_obeys_nothing_said_meanwhile(
    controller: FakeController, tmp_path: Path
) -> None:
    with node_process(controller, tmp_path / "node") as node:
        controller.wait_for(Join)
        job = Running(controller, tmp_path)
        node.send_signal(signal.SIGSTOP)
        # To be found on waking: an answer to what nobody asked, and an order.
        controller.tell(open_job(job.bundle, 2))
        time.sleep(1.5 * LEASE_MS / 1000)
        assert _runs(job.agent), "its job agents are not stopped with it"
        seen = len(controller.heard)
        node.send_signal(signal.SIGCONT)
        controller.wait_for(Join)
        gone(job.processes)
        since = controller.heard[seen:]
        assert not [m for m in since if isinstance(m, JobAgentGone) and m.launch == 2]
        controller.tell(CloseJob("toy", 2))
        assert "no agent" in controller.wait_for(JobAgentGone, lambda m: m.launch == 2).cause


def test_a_killed_node_takes_every_process_along(
    controller: FakeController, tmp_path: Path
) -> None:
    with node_process(controller, tmp_path / "node") as node:
        controller.wait_for(Join)
        Running(controller, tmp_path)
        everything = below(node.pid)
        assert len(everything) >= 3
        node.kill()
        gone(everything)


def test_sigterm_drains_and_leave_ends_it(controller: FakeController, tmp_path: Path) -> None:
    with node_process(controller, tmp_path / "node") as node:
        controller.wait_for(Join)
        job = Running(controller, tmp_path)
        node.send_signal(signal.SIGTERM)
        controller.wait_for(Draining)
        # It goes on until it is told to leave.
        time.sleep(0.5)
        assert _runs(job.subtask)
        controller.tell(CloseJob("toy", 1))
        controller.wait_for(JobAgentGone)
        controller.tell(Leave())
        assert node.wait(PATIENCE_S) == 0
        gone(job.processes)


@pytest.mark.parametrize("again", [True, False])
def test_a_node_that_is_not_let_go_leaves_in_time_or_at_the_second_sigterm(
    controller: FakeController, tmp_path: Path, again: bool
) -> None:
    timeout = "5 min" if again else "0.5 s"
    with node_process(controller, tmp_path / "node", "--drain-timeout", timeout) as node:
        controller.wait_for(Join)
        job = Running(controller, tmp_path)
        node.send_signal(signal.SIGTERM)
        controller.wait_for(Draining)
        if again:
            node.send_signal(signal.SIGTERM)
        assert node.wait(PATIENCE_S) == 0
        gone(job.processes)
        # It told what it killed before it hung up.
        assert controller.wait_for(JobAgentGone).job == "toy"


def test_a_node_without_a_controller_tries_on_and_leaves_at_once_when_asked(
    controller: FakeController, tmp_path: Path
) -> None:
    controller.answer = lambda _: Refused("come again", again=True)
    with node_process(controller, tmp_path / "node") as node:
        first = controller.wait_for(Join)
        assert controller.wait_for(Join).name.incarnation != first.name.incarnation
        controller.close()
        node.send_signal(signal.SIGTERM)
        assert node.wait(PATIENCE_S) == 0


def test_a_node_that_is_refused_for_good_says_why(
    controller: FakeController, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    controller.answer = lambda _: Refused("wrong Python", again=False)
    with node_process(controller, tmp_path / "node") as node:
        assert node.wait(PATIENCE_S) == 2
    assert "wrong Python" in capsys.readouterr().out


def test_a_controller_of_an_earlier_term_is_not_obeyed(
    controller: FakeController, tmp_path: Path
) -> None:
    terms = iter([5, 4, 4, 6])
    controller.answer = lambda _: Welcome(next(terms), LEASE_MS, HEARTBEAT_MS)
    with node_process(controller, tmp_path / "node") as node:
        controller.wait_for(Join)
        controller.tell(CloseJob("a", 1))
        controller.wait_for(JobAgentGone)
        controller.links[-1].cut()
        for _ in range(3):
            controller.wait_for(Join)
        controller.tell(CloseJob("b", 1))
        controller.wait_for(JobAgentGone, lambda m: m.job == "b")
        assert node.poll() is None
        assert next(terms, None) is None


def test_two_nodes_cannot_share_a_directory(controller: FakeController, tmp_path: Path) -> None:
    with node_process(controller, tmp_path / "node") as node:
        controller.wait_for(Join)
        with node_process(controller, tmp_path / "node") as second:
            assert second.wait(PATIENCE_S) == 2
        assert node.poll() is None


def test_leftovers_are_swept_and_the_newest_logs_kept(
    controller: FakeController, tmp_path: Path
) -> None:
    root = tmp_path / "node"
    (root / "bundles" / "abc").mkdir(parents=True)
    (root / "bundles" / ".abc.part").touch()
    logs = root / "logs" / "toy"
    logs.mkdir(parents=True)
    for launch in range(1, 12):
        (logs / f"{launch}.log").write_text("x")
        (logs / f"{launch}.log.1").write_text("x")
    with node_process(controller, root):
        controller.wait_for(Join)
        assert list((root / "bundles").iterdir()) == []
        assert sorted(int(p.stem) for p in logs.glob("*.log")) == [7, 8, 9, 10, 11]
        assert len(list(logs.iterdir())) == 10


def test_a_command_line_of_no_use_is_refused(controller: FakeController, tmp_path: Path) -> None:
    def refused(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "penstock", "agent", "--directory", str(tmp_path / "n"), *words],
            capture_output=True, text=True, check=False, cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 2
        return done.stderr

    good = ("--join", controller.address, "--secret-file", str(controller.secret))
    assert "host:port" in refused("--join", "nowhere", "--secret-file", str(controller.secret))
    assert "address at which other nodes" in refused(*good, "--host", "0.0.0.0")
    # 192.0.2.0/24 is kept for documentation: nobody has it.
    assert "no address of this machine" in refused(*good, "--host", "192.0.2.1")
    assert "--label" in refused(*good, "--label", "nothing")
    os.chmod(controller.secret, 0o644)
    assert "chmod 600" in refused(*good)


def test_a_silent_lease_is_kept_by_heartbeats(controller: FakeController, tmp_path: Path) -> None:
    heartbeats: list[int] = []
    take = controller._on_body

    def count(link: object, body: bytes) -> None:
        if isinstance(_decode(body), Heartbeat):
            heartbeats.append(1)
        take(link, body)  # type: ignore[arg-type]

    controller._on_body = count  # type: ignore[method-assign]
    with node_process(controller, tmp_path / "node"):
        controller.wait_for(Join)
        deadline = time.monotonic() + PATIENCE_S
        while len(heartbeats) < 2 * LEASE_MS // HEARTBEAT_MS:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert len(controller.links) == 1


def _decode(body: bytes) -> object:
    from penstock.cluster.node_messages import decode_from_node

    return decode_from_node(body)


def _title(pid: int) -> str:
    process = psutil.Process(pid)
    return " ".join(process.cmdline())
