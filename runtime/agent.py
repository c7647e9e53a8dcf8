"""The agent: one exec'd process per job and machine, parent of the fork server and, by it, of all.

A single-threaded loop over sockets, pidfds and a clock; it never runs user code, and no write
blocks it. It carries out what the controller says and reports what it sees. Its end, however it
comes, is the end of everything below it.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import selectors
import signal
import socket
from typing import TYPE_CHECKING, NoReturn

import msgspec
import setproctitle

from penstock.elements.clock import Clock, SystemClock
from penstock.elements.errors import PenstockError

from .doorbell import sweep_stale
from .fork_server import START_TIMEOUT_NS, Child, ForkServer, Start, Starter
from .framing import frame
from .lifeline import die_with_parent, ignore_interrupts, raise_open_files_limit
from .messages import (
    AgentFailure,
    AgentReady,
    AttemptGone,
    CancelAttempt,
    Deploy,
    NetAddresses,
    Shutdown,
    ToSubtask,
    UseNetwork,
    decode_to_agent,
    encode,
)
from .peer import Peer
from .sweep import make_scratch_root, remove_own, socket_directory, sweep_directories

if TYPE_CHECKING:
    from .agent_attempt import Attempt
    from .agent_net import Network

log = logging.getLogger("penstock.agent")

RING_INTERVAL_NS = 100_000_000
"""Every bell of the attempt is rung this often, by a monotonic clock (hazard 2)."""
STALL_INTERVAL_NS = 1_000_000_000
CONTROLLER_OUTBOX_BYTES_MAX = 64 * 1024 * 1024
"""What subtasks said and the controller has not read; above it the agent stops listening."""
GOODBYE_S = 1.0
"""How long the last words may take."""


class Agent:
    """Serves one controller until it hangs up."""

    def __init__(self, controller: socket.socket, liveness: int, entry: str, clock: Clock) -> None:
        self._clock = clock
        self._entry = entry
        self._liveness = liveness
        self._selector = selectors.DefaultSelector()
        self._controller = Peer(self._selector, controller, self._on_message, self._end)
        self._attempt: Attempt | None = None
        self._goodbye: list[tuple[int, int]] = []
        self._paused = False
        self._ready = False
        self._server = ForkServer()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._next_ring_ns = 0
        self._next_stall_ns = 0
        self._warm_by_ns = 0
        self._refusal: str | None = None
        self._network: Network | None = None

    def run(self) -> None:
        """Serve; ends the process."""
        self._scratch_root = make_scratch_root()
        os.chdir(self._scratch_root)
        self._server.start(socket_directory(self._scratch_root))
        # While the server imports: sweep after crashed runs, and load what the first attempt needs.
        sweep_directories()
        sweep_stale()
        importlib.import_module("penstock.runtime.agent_attempt")
        self._selector.register(
            self._server.pidfd, selectors.EVENT_READ, lambda _: self._on_server_death()
        )
        self._starter = Starter(self._server, lambda: os.eventfd_write(self._wake, 1))
        self._selector.register(self._wake, selectors.EVENT_READ, lambda _: self._on_started())
        self._probe()
        while True:
            for key, mask in self._selector.select(self._timeout_s()):
                key.data(mask)
            self._on_time()

    # Warmth ------------------------------------------------------------------------------------

    def _probe(self) -> None:
        """Start a first child that tells what preloading left behind in the server."""
        self._warm_by_ns = self._clock.monotonic_ns() + START_TIMEOUT_NS
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self._probe_end = theirs
        self._selector.register(ours, selectors.EVENT_READ, lambda _: self._on_probe(ours))
        self._starter.submit(
            Start(
                tag=None,
                name="probe",
                target="penstock.runtime.preload:report",
                descriptor=theirs.fileno(),
                args=(),
                wanted=lambda: True,
            )
        )

    def _on_probe(self, sock: socket.socket) -> None:
        body = sock.recv(1024 * 1024)
        self._selector.unregister(sock)
        sock.close()
        if not body:
            self._collapse("the fork server's first child died before it could report")
        found = json.loads(body)
        for name, failure in found["failures"].items():
            log.warning("could not preload %s, so every subtask has to: %s", name, failure)
        if not found["preloaded"]:
            log.warning("the fork server has preloaded nothing: subtasks will start slowly")
        if found["threads"]:
            self._refusal = (
                "the fork server has threads besides its own, and children forked beside threads "
                f"may hang: {', '.join(found['threads'])}; one of the preloaded libraries starts "
                "them at import"
            )
        self._ready = True
        self._send(AgentReady(os.getpid(), os.cpu_count() or 1, self._server.pid))

    # From the controller -----------------------------------------------------------------------

    def _on_message(self, body: bytes, descriptors: list[int]) -> None:
        assert not descriptors
        message = decode_to_agent(body)
        if isinstance(message, Deploy):
            self._deploy(message)
        elif isinstance(message, ToSubtask):
            if self._is_current(message.generation, message.attempt):
                assert self._attempt is not None
                self._attempt.relay(message.key, message.command)
        elif isinstance(message, CancelAttempt):
            self._cancel(message)
        elif isinstance(message, UseNetwork):
            self._use_network(message)
        elif isinstance(message, NetAddresses):
            if self._is_current(message.generation, message.attempt):
                assert self._attempt is not None
                self._attempt.connect(message)
        else:
            assert isinstance(message, Shutdown)
            self._end()

    def _is_current(self, generation: int, attempt: int) -> bool:
        current = self._attempt
        return current is not None and (current.generation, current.attempt) == (
            generation,
            attempt,
        )

    def _use_network(self, use: UseNetwork) -> None:
        from .agent_net import Network

        if self._network is None:
            self._network = Network(self._selector, self._liveness, use)
        self._network.use = use
        self._network.have_spare()

    def _deploy(self, deploy: Deploy) -> None:
        # Imported late: it brings Arrow along, and the fork server is to start before that.
        from .agent_attempt import Attempt, Surroundings

        refusal = self._refusal
        if self._attempt is not None:
            refusal = f"attempt {self._attempt.attempt} still runs"
        if refusal is None:
            try:
                self._attempt = Attempt(
                    deploy,
                    Surroundings(
                        selector=self._selector,
                        starter=self._starter,
                        fork_server_pid=self._server.pid,
                        send=self._send,
                        clock=self._clock,
                        scratch_root=self._scratch_root,
                        liveness=self._liveness,
                        entry=self._entry,
                        network=self._network,
                    ),
                )
                self._attempt.start()
            except (OSError, PenstockError) as error:
                refusal = f"{type(error).__name__}: {error}"
        if refusal is not None:
            self._send(AgentFailure(deploy.generation, deploy.attempt, refusal))
        now_ns = self._clock.monotonic_ns()
        self._next_ring_ns = now_ns + RING_INTERVAL_NS
        self._next_stall_ns = now_ns + STALL_INTERVAL_NS

    def _cancel(self, message: CancelAttempt) -> None:
        name = (message.generation, message.attempt)
        if not self._is_current(*name):
            # Never begun here, or gone already: either way nothing of it runs.
            self._send(AttemptGone(*name))
            return
        assert self._attempt is not None
        if name not in self._goodbye:
            self._goodbye.append(name)
        self._attempt.cancel()
        self._bury()

    def _bury(self) -> None:
        """Release a cancelled attempt whose last process has died, and say so."""
        attempt = self._attempt
        if attempt is None or not attempt.cancelled or not attempt.gone:
            return
        attempt.close()
        self._attempt = None
        for name in self._goodbye:
            self._send(AttemptGone(*name))
        self._goodbye.clear()

    # From below --------------------------------------------------------------------------------

    def _on_started(self) -> None:
        os.eventfd_read(self._wake)
        for result in self._starter.results():
            if result.tag is None:
                self._probe_end.close()
                if result.child is None:
                    self._collapse(f"the fork server does not start: {result.error}")
                self._forget(result.child)
            else:
                attempt, process = result.tag
                attempt.on_started(process, result)
        self._bury()

    def _forget(self, child: Child) -> None:
        """Release the probe's sentinel once it has ended."""

        def release(_: int) -> None:
            self._selector.unregister(child.sentinel)
            child.close()

        self._selector.register(child.sentinel, selectors.EVENT_READ, release)

    def _on_server_death(self) -> None:
        self._collapse("the fork server died, and with it every subtask")

    # Time --------------------------------------------------------------------------------------

    def _timeout_s(self) -> float | None:
        deadlines = [] if self._ready else [self._warm_by_ns]
        if self._attempt is not None:
            deadlines += [self._next_ring_ns, self._next_stall_ns]
            due = self._attempt.next_deadline_ns()
            if due is not None:
                deadlines.append(due)
        if not deadlines:
            return None
        return max(0, min(deadlines) - self._clock.monotonic_ns()) / 1e9

    def _on_time(self) -> None:
        now_ns = self._clock.monotonic_ns()
        if not self._ready and now_ns >= self._warm_by_ns:
            self._collapse("the fork server did not become warm in time")
        self._breathe()
        attempt = self._attempt
        if attempt is None:
            return
        if now_ns >= self._next_ring_ns:
            attempt.ring_all()
            self._next_ring_ns = now_ns + RING_INTERVAL_NS
        if now_ns >= self._next_stall_ns:
            attempt.look_for_stalls(now_ns)
            self._next_stall_ns = now_ns + STALL_INTERVAL_NS
        attempt.on_time(now_ns)
        if attempt.stuck:
            self._collapse("the fork server does not answer")
        self._bury()

    def _breathe(self) -> None:
        """Listen to subtasks only while the controller takes what they say."""
        paused = self._controller.outbox.pending_bytes > CONTROLLER_OUTBOX_BYTES_MAX
        if paused != self._paused and self._attempt is not None:
            self._attempt.pause(paused)
        self._paused = paused

    # The end -----------------------------------------------------------------------------------

    def _send(self, message: msgspec.Struct) -> None:
        self._controller.send(frame(encode(message)))

    def _collapse(self, text: str) -> NoReturn:
        """Go down with everything, saying why."""
        attempt = self._attempt
        name = (0, 0) if attempt is None else (attempt.generation, attempt.attempt)
        self._send(AgentFailure(*name, text))
        self._end()

    def _end(self) -> NoReturn:
        """Kill everything below, tidy up, leave. Children of the server die of its death."""
        if self._attempt is not None:
            self._attempt.cancel()
        if self._network is not None:
            self._network.close()
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._server.pidfd, signal.SIGKILL)
        if self._attempt is not None:
            self._attempt.unlink_names()
        self._last_words()
        remove_own()
        os._exit(0)

    def _last_words(self) -> None:
        deadline_ns = self._clock.monotonic_ns() + int(GOODBYE_S * 1e9)
        with selectors.DefaultSelector() as selector:
            self._controller.move_to(selector)
            while self._controller.outbox.pending_bytes:
                left_s = (deadline_ns - self._clock.monotonic_ns()) / 1e9
                if left_s <= 0 or not selector.select(left_s):
                    return
                self._controller.flush()


def main(controller: int, liveness: int, parent_pid: int, entry: str) -> None:
    """The whole program of an agent's process; `controller` is a connected unix socket."""
    die_with_parent(parent_pid)
    ignore_interrupts()
    raise_open_files_limit()
    setproctitle.setproctitle("penstock: agent")
    logging.basicConfig(format="%(name)s: %(message)s", level=logging.WARNING)
    os.set_inheritable(controller, False)
    os.set_inheritable(liveness, False)
    Agent(socket.socket(fileno=controller), liveness, entry, SystemClock()).run()
