"""The net processes of an agent: started ahead of need, one per attempt, watched until dead.

A net process is the agent's own child, exec'd with a control socket (net/setup.py). Starting one
takes a few hundred milliseconds of imports, so a spare waits for the next attempt. Nothing here
blocks but the exec itself, a few milliseconds.
"""

from __future__ import annotations

import logging
import os
import select
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Callable

import msgspec

from penstock.elements.clock import Clock

from .framing import frame
from .messages import NetAddresses, NetListening, UseNetwork
from .net.setup import (
    Addresses,
    Listening,
    NetEvent,
    NetFailed,
    NetSetup,
    PeerLost,
    Rejected,
    decode_event,
    encode,
    put_setup,
)
from .peer import Peer

log = logging.getLogger("penstock.agent")

MODULE = "penstock.runtime.net.process"
LISTEN_TIMEOUT_NS = 60_000_000_000
"""From handing over to Listening: a start from a cold disk on a busy machine."""
PEER_LOST_GRACE_NS = 100_000_000
"""A lost connection mostly follows from a death at its other end, which that node's agent reports
within this; then the attempt is being cancelled, and its cause is the better one."""


class NetProcess:
    """One net process as its agent sees it: a spare until `serve`, then of one attempt."""

    def __init__(self, selector: selectors.BaseSelector, liveness: int) -> None:
        """Exec it; raises OSError if there can be no such process."""
        self._selector = selector
        self._on_event: Callable[[NetEvent], None] = _heed_nothing
        self._on_death: Callable[[int], None] = _heed_nothing
        ours, theirs = socket.socketpair()
        try:
            self._popen = subprocess.Popen(
                # -P: a file of the working directory must not stand in for a module of ours.
                [sys.executable, "-P", "-m", MODULE, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), liveness),
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        # Our own child, not waited for: its pid cannot have been reused.
        self._pidfd = os.pidfd_open(self._popen.pid)
        self.dead = False
        selector.register(self._pidfd, selectors.EVENT_READ, lambda _: self._bury())
        self._peer = Peer(selector, ours, self._on_body, lambda: None)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._popen.pid

    def lives(self) -> bool:
        """Whether it does right now; `dead` follows when the loop has seen it."""
        return not self.dead and not _readable(self._pidfd)

    def serve(
        self,
        setup: NetSetup,
        descriptors: list[int],
        on_event: Callable[[NetEvent], None],
        on_death: Callable[[int], None],
    ) -> None:
        """Give it its attempt. `descriptors` must stay open until it is Listening.

        `on_death` gets its exit code, or minus a signal number, after the last event.
        """
        self._on_event, self._on_death = on_event, on_death
        put_setup(self._peer.outbox, setup, descriptors)
        self._peer.flush()

    def tell(self, addresses: Addresses) -> None:
        """All nodes of the attempt listen."""
        self._peer.send(frame(encode(addresses)))

    def kill(self) -> None:
        """SIGKILL, unless it is dead."""
        if not self.dead:
            try:
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            except ProcessLookupError:
                # Dead, and about to be buried.
                pass

    def _on_body(self, body: bytes, descriptors: list[int]) -> None:
        assert not descriptors
        self._on_event(decode_event(body))

    def _bury(self) -> None:
        """Its pidfd has fired: it and all its threads are dead."""
        self.dead = True
        self._selector.unregister(self._pidfd)
        os.close(self._pidfd)
        self._peer.drain()
        self._peer.close()
        self._on_death(self._popen.wait())


class Network:
    """How this node speaks to others, and the spare net process."""

    def __init__(self, selector: selectors.BaseSelector, liveness: int, use: UseNetwork) -> None:
        self.use = use
        self._selector = selector
        self._liveness = liveness
        self._spare: NetProcess | None = None

    def take(self) -> NetProcess:
        """The spare, or a new one if that is dead or in use; raises OSError."""
        spare, self._spare = self._spare, None
        if spare is not None and spare.lives():
            return spare
        return NetProcess(self._selector, self._liveness)

    def have_spare(self) -> None:
        """Start a spare unless one lives: for this attempt or for the next."""
        if self._spare is None or self._spare.dead:
            try:
                self._spare = NetProcess(self._selector, self._liveness)
            except OSError as error:
                # The attempt that needs one tries again, and fails with the reason.
                log.warning("no net process can be started ahead of need: %s", error)

    def close(self) -> None:
        """Kill the spare."""
        if self._spare is not None:
            self._spare.kill()


class AttemptNet:
    """The net process of one attempt: what it says becomes messages, a listening, or a failure."""

    def __init__(
        self,
        network: Network,
        name: tuple[int, int],
        setup: NetSetup,
        descriptors: list[int],
        clock: Clock,
        send: Callable[[msgspec.Struct], None],
        on_listening: Callable[[], None],
        on_failure: Callable[[str, bool], None],
    ) -> None:
        """Starts at once. `name` is (generation, attempt). `on_failure` gets a text, and whether
        it may be the consequence of what somebody else tells better. Raises OSError."""
        self._network = network
        self._name = name
        self._host = setup.address
        self._clock = clock
        self._send = send
        self._on_listening = on_listening
        self._on_failure = on_failure
        self.listening = False
        self._deadline_ns: int | None = clock.monotonic_ns() + LISTEN_TIMEOUT_NS
        self.lost = ""
        """Which node is lost, and why."""
        self._process = network.take()
        self._process.serve(setup, descriptors, self._on_event, self._on_death)

    @property
    def over(self) -> bool:
        """Whether the process is dead."""
        return self._process.dead

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def connect(self, addresses: NetAddresses) -> None:
        """All nodes listen. The next attempt's process may warm up while rows flow."""
        self._process.tell(Addresses(addresses.nodes))
        self._network.have_spare()

    def kill(self) -> None:
        """SIGKILL; `over` follows."""
        self._deadline_ns = None
        self._process.kill()

    @property
    def due_ns(self) -> int | None:
        """When `on_time` has something to do."""
        return self._deadline_ns

    def on_time(self, now_ns: int) -> None:
        """Give up on what is overdue, or on a connection that nobody else has explained."""
        if self._deadline_ns is None or now_ns < self._deadline_ns:
            return
        self._deadline_ns = None
        if self.lost:
            self._on_failure(self.lost, True)
        else:
            self._on_failure("the net process does not listen", False)

    def _on_event(self, event: NetEvent) -> None:
        if isinstance(event, Listening):
            self.listening, self._deadline_ns = True, None
            self._on_listening()
            self._send(NetListening(*self._name, self._host, event.port))
        elif isinstance(event, PeerLost):
            self._lose(f"lost node {event.node}: {event.reason}")
        elif isinstance(event, NetFailed):
            self._on_failure(f"the net process cannot start: {event.reason}", False)
        elif isinstance(event, Rejected):
            log.warning("%d callers were turned away, the last one since %s", *_fields(event))

    def _lose(self, text: str) -> None:
        if not self.lost:
            self.lost = text
            self._deadline_ns = self._clock.monotonic_ns() + PEER_LOST_GRACE_NS

    def _on_death(self, status: int) -> None:
        how = f"exited with code {status}" if status >= 0 else f"was killed by signal {-status}"
        self._on_failure(f"the net process {how}", False)


def _fields(event: Rejected) -> tuple[int, str]:
    return event.count, event.reason


def _heed_nothing(_: object) -> None:
    """What a spare says or how it ends concerns nobody."""


def _readable(descriptor: int) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))
