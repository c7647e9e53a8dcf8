"""A node's connections to all of its peers: who calls whom, who is let in, who is missing.

Of two nodes the one whose name sorts first connects. One connection per pair and attempt: a second
one is refused, and a lost one is never made again, since what it carried is gone; the attempt
fails and the next one has a net process of its own.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from functools import partial

from penstock.elements.clock import Clock
from penstock.elements.errors import EngineError, PenstockError, ProtocolError
from penstock.runtime.doorbell import Doorbell
from penstock.runtime.segment import Segment

from .compression import Compression
from .connection import Connection
from .credentials import Credentials
from .handshake import accept, connect
from .hello import Hello, offers, remote_slots
from .inbound import Inbound
from .outbound import Outbound
from .setup import NetEvent, NetSetup, PeerFinished, PeerLost, PeerReady, PeerSetup, Rejected
from .streams import ConnectionLost, Stream

CONNECT_S = 10.0
"""From Addresses until every peer must be connected."""
RETRY_S = 0.05
HANDSHAKE_TRIES = 5
"""A listener that hangs up so often does not want us; it tells why only its own agent."""
JOIN_S = 1.0
"""For threads whose connection was just cut."""
DIAL_S = 2.0
"""One attempt to reach a peer's port."""
HANDSHAKES_MAX = 32
"""Callers that have not proved themselves yet; further ones are turned away unheard."""


class Peer:
    """One other node: its channels here, and the connection once there is one."""

    def __init__(
        self, setup: NetSetup, peer: PeerSetup, segments: list[Segment], bells: dict[str, Doorbell]
    ) -> None:
        self.node = peer.node
        self.bell = bells[peer.bell]
        self.outbound = [
            Outbound(e.number, segments[e.segment], e.region, e.fingerprint, bells[e.subtask_bell])
            for e in peer.sends
        ]
        self.inbound = [
            Inbound(e.number, segments[e.segment], e.region, e.fingerprint, bells[e.subtask_bell])
            for e in peer.receives
        ]
        self.hello = Hello(
            setup.job,
            setup.generation,
            setup.attempt,
            setup.node,
            peer.node,
            setup.compression,
            offers(self.outbound),
            offers(self.inbound),
        )
        self.connection: Connection | None = None
        self.failed = False

    def abort(self) -> None:
        """Tell the subtasks at this node's ends that the channels are over."""
        for departing in self.outbound:
            departing.abort()
        for arriving in self.inbound:
            arriving.abort()


class Peers:
    """All of them. `say` delivers an event to the agent, from any thread."""

    def __init__(
        self,
        setup: NetSetup,
        segments: list[Segment],
        bells: dict[str, Doorbell],
        clock: Clock,
        say: Callable[[NetEvent], None],
    ) -> None:
        self._node = setup.node
        self._credentials: Credentials = setup.credentials()
        family, address = _resolve(setup.address)
        self._credentials.check_address(address)
        self._clock = clock
        self._say = say
        self._peers = {p.node: Peer(setup, p, segments, bells) for p in setup.peers}
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._handshakes = threading.Semaphore(HANDSHAKES_MAX)
        self._rejected, self._rejected_for = 0, ""
        self._deadline_ns: int | None = None
        self._compression = Compression(setup.compression).name
        self._listener = socket.create_server((address, 0), family=family)
        self.port: int = self._listener.getsockname()[1]
        _in_thread(self._listen, "net-listener")

    def connect(self, addresses: dict[str, tuple[str, int]]) -> None:
        """Call those peers that are ours to call; the others must call within CONNECT_S."""
        self._deadline_ns = self._clock.monotonic_ns() + int(CONNECT_S * 1e9)
        for node, peer in self._peers.items():
            if self._node < node:
                if node not in addresses:
                    self._fail(peer, ProtocolError(f"nobody said where node {node} listens"))
                    continue
                _in_thread(partial(self._call, peer, addresses[node]), f"net-call-{node}")

    def tick(self) -> None:
        """Each 100 ms: ring every writer (hazard 2), see who is missing, say who was rejected."""
        for peer in self._peers.values():
            peer.bell.ring()
        with self._lock:
            count, reason, self._rejected = self._rejected, self._rejected_for, 0
        if count:
            self._say(Rejected(count, reason))
        if self._deadline_ns is not None and self._clock.monotonic_ns() > self._deadline_ns:
            self._deadline_ns = None
            for peer in self._peers.values():
                if peer.connection is None:
                    late = f"node {peer.node} did not connect within {CONNECT_S:g} s"
                    self._fail(peer, ConnectionLost(late))

    def close(self) -> None:
        """End all connections now; channels that had not ended are aborted."""
        with self._lock:
            # From here on no connection is made that the loop below does not see.
            self._closing.set()
        try:
            # Closing alone would leave the thread in accept().
            self._listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._listener.close()
        for peer in self._peers.values():
            if peer.connection is None:
                peer.abort()
            else:
                peer.connection.close()
                peer.connection.join(JOIN_S)

    # Calling ----------------------------------------------------------------------------------

    def _call(self, peer: Peer, address: tuple[str, int]) -> None:
        why: EngineError = ConnectionLost("it was not called")
        end_ns = self._clock.monotonic_ns() + int(CONNECT_S * 1e9)
        hung_up = 0
        while self._clock.monotonic_ns() < end_ns and not self._closing.is_set():
            try:
                sock = socket.create_connection(address, DIAL_S)
                try:
                    self._credentials.check_address(sock.getpeername()[0])
                except PenstockError:
                    sock.close()
                    raise
                stream, theirs = connect(sock, self._credentials, peer.hello)
            except (OSError, ConnectionLost) as error:
                why = ConnectionLost(f"node {peer.node} at {address[0]}:{address[1]}: {error}")
                hung_up += isinstance(error, ConnectionLost)
                if hung_up == HANDSHAKE_TRIES:
                    break
            except PenstockError as error:
                self._fail(peer, EngineError(f"node {peer.node} at {address[0]}: {error}"))
                return
            else:
                self._adopt(peer, stream, theirs)
                return
            self._closing.wait(RETRY_S)
        self._fail(peer, why)

    # Being called -----------------------------------------------------------------------------

    def _listen(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError as error:
                if self._closing.is_set():
                    return
                # Out of descriptors, or the caller is gone already: neither ends the service.
                self._reject(f"accepting failed: {error}")
                self._closing.wait(RETRY_S)
                continue
            if not self._handshakes.acquire(blocking=False):
                sock.close()
                self._reject(f"more than {HANDSHAKES_MAX} callers at once")
                continue
            _in_thread(partial(self._answer, sock), "net-answer")

    def _answer(self, sock: socket.socket) -> None:
        try:
            stream, theirs = accept(sock, self._credentials, self._hello_for)
        except EngineError as error:
            self._reject(str(error))
        else:
            self._adopt(self._peers[theirs.node], stream, theirs)
        finally:
            self._handshakes.release()

    def _hello_for(self, theirs: Hello) -> Hello:
        peer = self._peers.get(theirs.node)
        if peer is None or not theirs.node < self._node:
            raise ProtocolError(f"node {self._node} expects no call from {theirs.node!r}")
        if peer.connection is not None or peer.failed:
            raise ProtocolError(f"node {theirs.node} has called already")
        return peer.hello

    def _reject(self, reason: str) -> None:
        with self._lock:
            self._rejected += 1
            self._rejected_for = reason

    # Either -----------------------------------------------------------------------------------

    def _adopt(self, peer: Peer, stream: Stream, theirs: Hello) -> None:
        def ended(error: EngineError | None) -> None:
            if error is None:
                self._say(PeerFinished(peer.node))
            else:
                self._say(PeerLost(peer.node, str(error)))

        with self._lock:
            taken = peer.connection is not None or peer.failed or self._closing.is_set()
            if not taken:
                peer.connection = Connection(
                    stream,
                    peer.outbound,
                    peer.inbound,
                    remote_slots(theirs),
                    peer.bell,
                    self._clock,
                    self._compression,
                    ended,
                )
                # Under the lock: READY comes before LOST, and `close` finds it started.
                self._say(PeerReady(peer.node))
                peer.connection.start()
        if taken:
            stream.cut()
            stream.close()
            self._reject(f"node {peer.node} called twice")

    def _fail(self, peer: Peer, error: EngineError) -> None:
        with self._lock:
            if peer.failed or peer.connection is not None:
                return
            peer.failed = True
        peer.abort()
        self._say(PeerLost(peer.node, str(error)))


def _resolve(host: str) -> tuple[int, str]:
    """(family, address) of a host that may be given by name."""
    try:
        family, _, _, _, place = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise EngineError(f"{host} is not the address of this node: {error}") from error
    return family, str(place[0])


def _in_thread(target: Callable[[], None], name: str) -> None:
    threading.Thread(target=target, name=name, daemon=True).start()
