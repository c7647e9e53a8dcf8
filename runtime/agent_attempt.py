"""One attempt inside the agent: its processes from start to death, and what they say meanwhile.

Promises: events of a subtask are relayed before its exit; a death aborts its channels at once;
`gone` only after every process's own pidfd has fired, the net process's too (hazard 17). No
process is ever killed by number once it has said hello.
"""

from __future__ import annotations

import os
import selectors
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import msgspec

from penstock.elements.clock import Clock
from penstock.elements.errors import EngineError

from .agent_memory import AttemptMemory
from .agent_net import AttemptNet, Network
from .failpoint import failpoint
from .fork_server import START_TIMEOUT_NS, Child, Start, Starter, StartResult
from .framing import frame
from .handover import ATTACHED, HELLO, put_handover
from .messages import (
    AgentFailure,
    Deploy,
    FromSubtask,
    NetAddresses,
    NotResponding,
    SubtaskDeployment,
    SubtaskExited,
    SubtaskKey,
)
from .peer import Peer
from .progress_word import Stall

CHILD = "penstock.runtime.subtask_process:main"
ATTACH_TIMEOUT_NS = 5_000_000_000
"""From a process's start to ATTACHED, which needs no user code (hazard 39)."""
STATUS_GRACE_NS = 200_000_000
"""After a death, for the fork server to tell the exit status; then it counts as killed. It tells
at once unless the machine is overloaded or the server is stopped."""
STALL_NS = 10_000_000_000
OUTBOX_BYTES_MAX = 64 * 1024 * 1024
"""Commands a subtask has not read. Its reader thread only queues, so it is stopped or broken."""


@dataclass(frozen=True)
class Surroundings:
    """What an attempt uses of its agent."""

    selector: selectors.BaseSelector
    starter: Starter
    fork_server_pid: int
    send: Callable[[msgspec.Struct], None]
    clock: Clock
    scratch_root: str
    liveness: int
    entry: str
    network: Network | None = None
    """None: the controller has not said how to reach other nodes."""


class SubtaskProcess:
    """One process as the agent sees it."""

    def __init__(self, deployment: SubtaskDeployment, ordinal: int, now_ns: int) -> None:
        self.key: SubtaskKey = deployment.key
        self.ordinal = ordinal
        self.peer: Peer | None = None
        self.child_end: socket.socket | None = None
        self.child: Child | None = None
        self.pidfd: int | None = None
        self.attached = False
        self.deadline_ns = now_ns + START_TIMEOUT_NS
        self.dead_since_ns: int | None = None
        self.status: int | None = None
        self.over = False
        """Dead and reported, or never to be started."""
        self.stall = Stall(now_ns)
        self.stall_said_ns = 0

    def kill(self) -> None:
        """SIGKILL, unless it is dead."""
        if self.dead_since_ns is not None or self.over:
            return
        try:
            if self.pidfd is not None:
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            elif self.child is not None:
                # It has not said hello yet, and its server has not reported that it reaped it.
                os.kill(self.child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


class Attempt:
    """The processes of one Deploy."""

    def __init__(self, deploy: Deploy, around: Surroundings) -> None:
        """Raises OSError or EngineError when memory, bells or directories cannot be made."""
        self.generation = deploy.generation
        self.attempt = deploy.attempt
        self._around = around
        self._memory = AttemptMemory(deploy, around.scratch_root, around.liveness)
        now_ns = around.clock.monotonic_ns()
        self._processes = {
            deployment.key: SubtaskProcess(deployment, ordinal, now_ns)
            for ordinal, deployment in enumerate(deploy.subtasks)
        }
        self.cancelled = False
        self.stuck = False
        """The fork server does not answer: nothing can be started, nor be known to be dead."""
        self._failed = False
        self._job = deploy.job
        self._withheld: list[SubtaskExited] = []
        self._net: AttemptNet | None = None
        if deploy.net is not None:
            try:
                self._net = self._start_net()
            except BaseException:
                self._memory.close()
                raise

    def _start_net(self) -> AttemptNet:
        around = self._around
        if around.network is None:
            raise EngineError(
                "the attempt has channels to other nodes, but nobody said how to reach them"
            )
        setup, descriptors = self._memory.net_setup(around.network.use)
        name = (self.generation, self.attempt)
        return AttemptNet(
            around.network, name, setup, descriptors, around.clock, around.send,
            self._forget_names, self.fail,
        )  # fmt: skip

    @property
    def gone(self) -> bool:
        """Nothing of it runs, and nothing will be started."""
        subtasks = all(process.over for process in self._processes.values())
        return subtasks and (self._net is None or self._net.over)

    def start(self) -> None:
        """Ask for every process, and queue what each is to be told."""
        for process in self._processes.values():
            ours, theirs = socket.socketpair()
            process.child_end = theirs
            process.peer = Peer(
                self._around.selector,
                ours,
                partial(self._on_body, process),
                lambda: None,
            )
            told, descriptors = self._memory.handover(process.ordinal, self._around.entry)
            put_handover(process.peer.outbox, told, descriptors)
            process.peer.flush()
            self._around.starter.submit(
                Start(
                    tag=(self, process),
                    name=f"{self._job} {process.key}",
                    target=CHILD,
                    descriptor=theirs.fileno(),
                    args=(self._around.fork_server_pid,),
                    wanted=lambda: not self.cancelled,
                )
            )

    def on_started(self, process: SubtaskProcess, result: StartResult) -> None:
        """The fork server has answered for this process."""
        assert process.child_end is not None
        process.child_end.close()
        process.child_end = None
        if result.child is None:
            process.over = True
            if result.error is not None:
                self.fail(f"{process.key}: {result.error}")
            return
        process.child = result.child
        process.deadline_ns = self._around.clock.monotonic_ns() + ATTACH_TIMEOUT_NS
        self._around.selector.register(
            result.child.sentinel, selectors.EVENT_READ, lambda _: self._on_sentinel(process)
        )
        if self.cancelled:
            process.kill()

    def relay(self, key: SubtaskKey, command: bytes) -> None:
        """Pass a command on; one to a dead or unknown subtask is dropped."""
        process = self._processes.get(key)
        if process is None or process.peer is None or process.over:
            return
        failpoint("before-relay", str(key))
        process.peer.send(frame(command))
        failpoint("after-relay", str(key))
        if process.peer.outbox.pending_bytes > OUTBOX_BYTES_MAX:
            self.fail(f"{key} reads no commands; {OUTBOX_BYTES_MAX:,} bytes wait for it")

    def connect(self, addresses: NetAddresses) -> None:
        """Every node of the attempt listens."""
        if self._net is not None and not self.cancelled:
            self._net.connect(addresses)

    def cancel(self) -> None:
        """Kill every process; `gone` becomes true when the last has died."""
        self.cancelled = True
        for exited in self._withheld:
            self._around.send(exited)
        self._withheld.clear()
        if self._net is not None:
            self._net.kill()
        for process in self._processes.values():
            process.kill()

    def fail(self, text: str, consequence: bool = False) -> None:
        """Say once that this attempt cannot be carried out, and end it."""
        if not self._failed and not self.cancelled:
            self._failed = True
            self._around.send(AgentFailure(self.generation, self.attempt, text, consequence))
        self.cancel()

    def pause(self, paused: bool) -> None:
        """Hold back what subtasks say while the controller does not listen."""
        for process in self._processes.values():
            if process.peer is not None:
                process.peer.pause(paused)

    def ring_all(self) -> None:
        """See AttemptMemory."""
        self._memory.ring_all()

    def next_deadline_ns(self) -> int | None:
        """When `on_time` has something to do, if nothing else happens."""
        due = [self._due_ns(process) for process in self._processes.values()]
        if self._net is not None:
            due.append(self._net.due_ns)
        return min((each for each in due if each is not None), default=None)

    def on_time(self, now_ns: int) -> None:
        """Give up on what is overdue."""
        if self._net is not None:
            self._net.on_time(now_ns)
        for process in self._processes.values():
            due_ns = self._due_ns(process)
            if due_ns is None or now_ns < due_ns:
                continue
            if process.dead_since_ns is not None:
                self._report(process)
            elif process.child is None:
                self.stuck = True
            else:
                self.fail(f"{process.key} did not attach in time")

    def _due_ns(self, process: SubtaskProcess) -> int | None:
        if process.over:
            return None
        if process.dead_since_ns is not None:
            return process.dead_since_ns + STATUS_GRACE_NS
        if process.child is None or not (process.attached or self.cancelled):
            return process.deadline_ns
        return None

    def look_for_stalls(self, now_ns: int) -> None:
        """Report subtasks whose progress word stands still; a verdict is not ours (hazard 40)."""
        page = self._memory.page
        assert page is not None
        for process in self._processes.values():
            if process.over or not process.attached:
                continue
            count, state = page.word(process.ordinal).read()
            standing_ns = process.stall.standing_ns(count, now_ns)
            if standing_ns < STALL_NS:
                if process.stall_said_ns:
                    self._say_stall(process, state, 0)
                process.stall_said_ns = 0
            elif standing_ns >= 2 * process.stall_said_ns:
                process.stall_said_ns = standing_ns
                self._say_stall(process, state, standing_ns)

    def unlink_names(self) -> None:
        """Leave nothing behind in /dev/shm, whatever becomes of the processes."""
        self._memory.unlink_names()

    def close(self) -> None:
        """Release everything. Requires: gone."""
        assert self.gone
        for process in self._processes.values():
            if process.peer is not None:
                process.peer.close()
        self._memory.close()

    def _say_stall(self, process: SubtaskProcess, state: str, standing_ns: int) -> None:
        self._around.send(
            NotResponding(
                self.generation, self.attempt, process.key, state, round(standing_ns / 1e9, 1)
            )
        )

    def _on_body(self, process: SubtaskProcess, body: bytes, descriptors: list[int]) -> None:
        if body == HELLO and descriptors and process.pidfd is None:
            process.pidfd = descriptors[0]
            self._around.selector.register(
                process.pidfd, selectors.EVENT_READ, lambda _: self._on_death(process)
            )
            if self.cancelled:
                process.kill()
        elif body == ATTACHED:
            process.attached = True
            self._forget_names()
        else:
            failpoint("before-relay", str(process.key))
            self._around.send(FromSubtask(self.generation, self.attempt, process.key, body))
            failpoint("after-relay", str(process.key))

    def _forget_names(self) -> None:
        """Unlink the bells' names once whoever needs them has opened them."""
        attached = all(each.attached for each in self._processes.values())
        if attached and (self._net is None or self._net.listening):
            self._memory.unlink_names()

    def _on_death(self, process: SubtaskProcess) -> None:
        """Its pidfd has fired: the process and all its threads are dead."""
        if process.dead_since_ns is not None:
            return
        process.dead_since_ns = self._around.clock.monotonic_ns()
        if process.pidfd is not None:
            self._around.selector.unregister(process.pidfd)
        assert process.peer is not None
        process.peer.drain()
        self._memory.abort_channels_of(process.key)
        if process.status is not None:
            self._report(process)

    def _on_sentinel(self, process: SubtaskProcess) -> None:
        """The fork server has reaped it, or is dead itself."""
        assert process.child is not None
        self._around.selector.unregister(process.child.sentinel)
        process.status = process.child.status()
        if process.pidfd is None:
            # A hello may lie unread before a death that came right after it.
            assert process.peer is not None
            process.peer.drain()
        if process.pidfd is None:
            self._on_death(process)
        elif process.dead_since_ns is not None and process.status is not None:
            self._report(process)

    def _report(self, process: SubtaskProcess) -> None:
        assert process.child is not None
        process.over = True
        if process.pidfd is not None:
            os.close(process.pidfd)
            process.pidfd = None
        if process.status is None:
            process.status = -signal.SIGKILL
            try:
                self._around.selector.unregister(process.child.sentinel)
            except KeyError:
                pass
        process.child.close()
        assert process.peer is not None
        process.peer.close()
        exited = SubtaskExited(
            self.generation, self.attempt, process.key, process.child.pid, process.status
        )
        if process.status == 0 and self._net is not None and self._net.lost and not self.cancelled:
            # It left since a connection is lost. Whoever knows why is to speak first.
            self._withheld.append(exited)
        else:
            self._around.send(exited)
