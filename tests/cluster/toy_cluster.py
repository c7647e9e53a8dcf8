"""A cluster of one test: real job processes and real job agents, its controller a toy.

It grants slots, opens agents as AgentHandles of this process, and passes messages on. Losing a
node means here that its agent is killed, and that NodeGone is said when the test says so.
"""

from __future__ import annotations

import os
import queue
import secrets
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from penstock.cluster.bundle import Bundle, unpack_modules
from penstock.cluster.job_messages import (
    AgentGone,
    CloseAgent,
    Ended,
    Granted,
    GrantedNode,
    LaunchJob,
    NeedSlots,
    NodeGone,
    NodeLost,
    OpenAgent,
    Report,
    StopJob,
    Tell,
    ToJob,
    Told,
    decode_from_job,
    encode,
)
from penstock.cluster.node_messages import NodeName
from penstock.dataflow.launcher import JobStatus, Summary
from penstock.dataflow.settings import JobSettings
from penstock.elements.clock import SystemClock
from penstock.runtime.agent_handle import AgentHandle, AgentLost, ToControllerOrLost
from penstock.runtime.framing import frame, receive_frame
from penstock.runtime.messages import Deploy, UseNetwork, decode_to_agent
from penstock.runtime.messages import encode as encode_runtime

PATIENCE_S = 60
SECRET = secrets.token_bytes(32)


class ToyCluster:
    """Nodes by name; each holds `slots`. One job process at a time."""

    def __init__(self, folder: Path, names: str = "ab", slots: int = 2) -> None:
        self.folder = folder
        self.nodes = {name: NodeName(name, "1") for name in names}
        self.slots = slots
        self.heard: list[object] = []
        self.reports: list[JobStatus] = []
        self.ended: Ended | None = None
        self.modules = ""
        self._handles: dict[NodeName, AgentHandle] = {}
        self._killed: set[NodeName] = set()
        self._changed = threading.Condition()
        self._process: subprocess.Popen[bytes] | None = None
        self._sock: socket.socket | None = None
        self._send_lock = threading.Lock()
        self._threads: list[threading.Thread] = []

    # The job process ------------------------------------------------------------------------------

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def launch(
        self,
        bundle: Bundle,
        job: str,
        settings: JobSettings,
        parallelism: Mapping[str, int] | None = None,
        submission: str = "s",
    ) -> None:
        """Start a job process and tell it what to run."""
        path = self.folder / f"{bundle.sha256}.zip"
        path.write_bytes(bundle.data)
        self.modules = str(self.folder / bundle.sha256)
        unpack_modules(path, self.modules)
        self.ended = None
        ours, theirs = socket.socketpair()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "penstock.cluster.job_process", str(theirs.fileno())],
            pass_fds=(theirs.fileno(),),
        )
        theirs.close()
        if self._sock is not None:
            self._sock.close()
        self._sock = ours
        thread = threading.Thread(target=self._read, args=(ours,), daemon=True)
        self._threads.append(thread)
        thread.start()
        encoded = msgspec.json.encode(settings)
        self.tell(
            LaunchJob(job, 1, str(path), encoded, dict(parallelism or {}), submission=submission)
        )

    def tell(self, message: ToJob) -> None:
        with self._send_lock:
            assert self._sock is not None
            self._sock.sendall(frame(encode(message)))

    def stop(self, mode: str = "checkpoint") -> Summary:
        self.tell(StopJob(mode))
        return self.summary()

    def summary(self) -> Summary:
        """How it ended, which must not be a failure."""
        ended = self.outcome()
        assert not ended.failure, ended.failure
        return msgspec.json.decode(ended.summary, type=Summary)

    def outcome(self) -> Ended:
        self.wait(lambda: self.ended is not None)
        assert self._process is not None
        self._process.wait(PATIENCE_S)
        assert self.ended is not None
        return self.ended

    def until(self, condition: Callable[[JobStatus], bool]) -> JobStatus:
        """The first report from now on of which it is true."""
        have = len(self.reports)
        self.wait(lambda: any(condition(status) for status in self.reports[have:]))
        return next(status for status in self.reports[have:] if condition(status))

    def wait(self, condition: Callable[[], bool]) -> None:
        with self._changed:
            met = self._changed.wait_for(
                lambda: condition() or (self.ended is not None), PATIENCE_S
            )
        assert met, "nothing happened"
        assert condition(), self.ended

    def hang_up(self) -> None:
        """What the job process sees of a controller that has died."""
        assert self._sock is not None
        self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Leave nothing behind."""
        for handle in list(self._handles.values()):
            handle.close()
        if self._process is not None:
            if self._process.poll() is None:
                self._process.kill()
            self._process.wait(PATIENCE_S)
        for thread in self._threads:
            thread.join(PATIENCE_S)
        if self._sock is not None:
            self._sock.close()

    # Nodes ----------------------------------------------------------------------------------------

    def lose(self, name: str) -> NodeName:
        """Contact to a node is lost, and what it runs dies, which only `gone` tells."""
        lost = self.nodes.pop(name)
        self._killed.add(lost)
        self.tell(NodeLost(lost, "the test cut it off"))
        self._handles.pop(lost).kill()
        return lost

    def gone(self, lost: NodeName) -> None:
        self.tell(NodeGone(lost))

    def agent_pid(self, name: str) -> int:
        return self._handles[self.nodes[name]].pid

    def _read(self, sock: socket.socket) -> None:
        while (body := _next_frame(sock)) is not None:
            message = decode_from_job(body)
            with self._changed:
                self._on_message(message)
                self.heard.append(message)
                self._changed.notify_all()

    def _on_message(self, message: object) -> None:
        if isinstance(message, Report):
            self.reports.append(msgspec.json.decode(message.status, type=JobStatus))
        elif isinstance(message, Ended):
            self.ended = message
        elif isinstance(message, NeedSlots):
            self._grant(message)
        elif isinstance(message, OpenAgent):
            self._open(message.name)
        elif isinstance(message, Tell):
            self._pass_on(message)
        elif isinstance(message, CloseAgent):
            handle = self._handles.pop(message.name, None)
            if handle is not None:
                self._threads.append(threading.Thread(target=handle.close, daemon=True))
                self._threads[-1].start()
            else:
                self.tell(AgentGone(message.name, "there is none"))

    def _grant(self, need: NeedSlots) -> None:
        left, granted = need.count, []
        for name in self.nodes.values():
            took = min(left, self.slots)
            left -= took
            granted.append(GrantedNode(name, "127.0.0.1", took))
        if left:
            first = granted[0]
            granted[0] = msgspec.structs.replace(first, slots=first.slots + left)
        self.tell(Granted(need.grant, granted, "shared" if left else ""))

    def _open(self, name: NodeName) -> None:
        events: queue.SimpleQueue[ToControllerOrLost] = queue.SimpleQueue()
        handle = self._handles[name] = AgentHandle()
        handle.start(events)
        handle.send(UseNetwork("127.0.0.1", secret=SECRET))
        thread = threading.Thread(target=self._pump, args=(name, events), daemon=True)
        self._threads.append(thread)
        thread.start()

    def _pump(self, name: NodeName, events: queue.SimpleQueue[ToControllerOrLost]) -> None:
        while True:
            event = events.get()
            try:
                if isinstance(event, AgentLost):
                    if name not in self._killed:
                        self._handles.pop(name, None)
                        self.tell(AgentGone(name, event.cause))
                    return
                self.tell(Told(name, encode_runtime(event)))
            except OSError:
                # The job process is gone, its agents are to follow.
                if isinstance(event, AgentLost):
                    return

    def _pass_on(self, message: Tell) -> None:
        handle = self._handles.get(message.name)
        if handle is None:
            return
        told = decode_to_agent(message.body)
        if isinstance(told, Deploy):
            path = [self.modules, *(entry or os.getcwd() for entry in sys.path)]
            told = msgspec.structs.replace(told, python_path=path)
        handle.send(told)


def _next_frame(sock: socket.socket) -> bytes | None:
    try:
        return receive_frame(sock)
    except ConnectionResetError:
        # Killed while it had not read all that it was told.
        return None


def pause(seconds: float) -> None:
    """For what must not happen meanwhile."""
    SystemClock().sleep(seconds)
