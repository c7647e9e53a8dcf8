"""A Link: an authenticated connection of frames between a controller and those who call it.

Both sides have proved themselves before a Link exists (runtime/net/credentials.py); from then on
TLS protects what passes, or each frame carries a seal (seals.py). The side that dialled speaks
first. `send` never blocks: what the peer does not take waits in a bounded outbox. Bodies and the
end are told from the link's reader thread, in order, the end once and last.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable

import msgspec

from penstock.elements.errors import EngineError, PenstockError, ProtocolError, SettingsError
from penstock.runtime.messages import FRAME_BYTES_MAX
from penstock.runtime.net.credentials import Credentials
from penstock.runtime.net.handshake import closing_on_error, open_stream, within_time
from penstock.runtime.net.streams import ConnectionLost, Stream

from .seals import Seals, draw_keys

log = logging.getLogger("penstock.link")

MAGIC = b"PSCTL"
FIRST_BODY_BYTES_MAX = 64 * 1024
ENVELOPE_BYTES_MAX = 4096
"""What relaying adds to a message of runtime/messages.py: names of a job and a node."""
BODY_BYTES_MAX = FRAME_BYTES_MAX + ENVELOPE_BYTES_MAX
OUTBOX_BYTES_MAX = 256 * 1024 * 1024
"""What waits for a peer that does not read; beyond it the link ends."""
GATHER_BYTES = 512 * 1024
"""Frames that go out in one call, or one frame if that is larger."""
HANDSHAKES_MAX = 32
"""Callers that have not proved themselves yet; further ones are turned away unheard."""
RETRY_S = 0.05
GOODBYE_S = 1.0
"""What was sent before `close` has this long to go out."""

_SIZE = struct.Struct("<I")

OnBody = Callable[["Link", bytes], None]
OnEnd = Callable[["Link", str], None]


class Link:
    """One connection. Made by `dial` and Listener; whoever has it from a Listener must `start` it.

    `peer` names the other end as host:port, `local_host` is this end's address.
    """

    def __init__(
        self, stream: Stream, peer: str, local_host: str, seals: tuple[Seals, Seals], dialled: bool
    ) -> None:
        """`seals`: for what is sent, and for what is received."""
        self.peer = peer
        self.local_host = local_host
        self.started = False
        self._stream = stream
        self._seals_out, self._seals_in = seals
        self._changed = threading.Condition()
        self._outbox: deque[bytes] = deque()
        self._pending_bytes = 0
        self._sent_max = FIRST_BODY_BYTES_MAX if dialled else BODY_BYTES_MAX
        self._received_max = BODY_BYTES_MAX if dialled else FIRST_BODY_BYTES_MAX
        self._first: bytes | None = None
        self._closing = False
        self._reason = ""
        self._goodbye: threading.Timer | None = None
        self._writer = threading.Thread(target=self._write, name="link-writer", daemon=True)

    def start(self, on_body: OnBody, on_end: OnEnd) -> None:
        """Begin to tell what arrives. If `on_body` raises ProtocolError or msgspec.DecodeError,
        that ends the link."""
        self.started = True
        self._on_body, self._on_end = on_body, on_end
        self._writer.start()
        threading.Thread(target=self._read, name="link-reader", daemon=True).start()

    def send(self, body: bytes) -> None:
        """Queue a body; nothing happens if the link has ended, which `on_end` tells.

        Raises ProtocolError for a body that no peer would take.
        """
        if len(body) > self._sent_max:
            raise ProtocolError(
                f"a control message of {len(body):,} bytes is larger than the limit of "
                f"{self._sent_max:,}: programs carry code, not data; let a source read large "
                "tables from files"
            )
        self._sent_max = BODY_BYTES_MAX
        with self._changed:
            if self._closing:
                return
            if self._pending_bytes + len(body) <= OUTBOX_BYTES_MAX:
                self._outbox.append(body)
                self._pending_bytes += len(body)
                self._changed.notify()
                return
        self.cut(f"the peer is too slow: more than {OUTBOX_BYTES_MAX:,} bytes wait for it")

    def close(self, reason: str = "closed by this side") -> None:
        """Send what was queued, for GOODBYE_S at most, then end. May be repeated."""
        with self._changed:
            if self._closing:
                return
            self._closing, self._reason = True, reason
            self._changed.notify()
            self._goodbye = threading.Timer(GOODBYE_S, self._stream.cut)
            self._goodbye.daemon = True
            self._goodbye.start()

    def wait_sent(self) -> None:
        """After `close`: until what was queued is out, or GOODBYE_S is over. A process that ends
        sooner takes its last words along."""
        self._writer.join(GOODBYE_S)

    def cut(self, reason: str = "cut by this side") -> None:
        """End it now; what is queued is lost. May be repeated."""
        with self._changed:
            self._closing = True
            self._reason = self._reason or reason
            self._outbox.clear()
            self._changed.notify()
        self._stream.cut()

    @property
    def over(self) -> bool:
        """It has ended, or is about to."""
        return self._closing

    def receive_first(self) -> None:
        """Wait for the first body, which `start` will tell. For the handshake's thread only."""
        self._first = self._receive()

    # The reader -------------------------------------------------------------------------------

    def _read(self) -> None:
        try:
            reason = self._read_all()
        except Exception as error:
            # A fault in whoever listens: the end must be told all the same.
            reason = f"{type(error).__name__}: {error}"
            log.exception("a message of %s could not be taken", self.peer)
        self.cut(reason)
        self._writer.join()
        if self._goodbye is not None:
            self._goodbye.cancel()
        self._stream.close()
        self._on_end(self, self._reason)

    def _read_all(self) -> str:
        try:
            while True:
                body, self._first = self._first, None
                if body is None:
                    body = self._receive()
                if not self._closing:
                    self._on_body(self, body)
        except EngineError as error:
            return str(error)
        except msgspec.DecodeError as error:
            return f"the peer says what the protocol does not know: {error}"

    def _receive(self) -> bytes:
        (size,) = _SIZE.unpack(self._receive_exactly(_SIZE.size))
        if size > self._received_max:
            raise ProtocolError(
                f"the peer announces {size:,} bytes where {self._received_max:,} are allowed"
            )
        self._received_max = BODY_BYTES_MAX
        body = self._receive_exactly(size)
        if not self._seals_in.fits(body, self._receive_exactly(self._seals_in.size)):
            raise ProtocolError("a frame was changed, repeated or left out on its way")
        return bytes(body)

    def _receive_exactly(self, size: int) -> bytearray:
        data = bytearray(size)
        self._stream.receive(memoryview(data))
        return data

    # The writer -------------------------------------------------------------------------------

    def _write(self) -> None:
        try:
            while bodies := self._take():
                buffers: list[memoryview | bytes] = []
                for body in bodies:
                    seal = self._seals_out.next_seal(body)
                    buffers += filter(None, (_SIZE.pack(len(body)), body, seal))
                self._stream.send(buffers)
                with self._changed:
                    self._pending_bytes -= sum(map(len, bodies))
        except EngineError as error:
            self.cut(str(error))
            return
        # Closed, and all is out.
        self._stream.cut()

    def _take(self) -> list[bytes]:
        """The next bodies, in order; none when the link is closed and nothing is left."""
        with self._changed:
            self._changed.wait_for(lambda: self._outbox or self._closing)
            taken: list[bytes] = []
            size = 0
            while self._outbox and (not taken or size + len(self._outbox[0]) <= GATHER_BYTES):
                taken.append(self._outbox.popleft())
                size += len(taken[-1])
            return taken


def dial(
    address: str, credentials: Credentials, on_body: OnBody, on_end: OnEnd, timeout_s: float
) -> Link:
    """Connect to host:port; the link is started. `timeout_s` is for reaching the port.

    Raises ConnectionLost or ProtocolError, saying how it went, and SettingsError for an address
    that cannot be one.
    """
    _check(credentials)
    host, port = parse_address(address)
    try:
        sock = socket.create_connection((host, port), timeout_s)
    except OSError as error:
        raise ConnectionLost(f"{address} cannot be reached: {error.strerror or error}") from error
    with within_time(sock) as expired, closing_on_error(sock):
        try:
            stream, transcript = open_stream(sock, credentials, server=False, magic=MAGIC)
        except OSError as error:
            raise ConnectionLost(f"{address}: {error.strerror or error}") from error
        except ConnectionLost as lost:
            # Who is turned away is not told why: only members are.
            text = f"{address}: {expired(lost)}; perhaps its credentials are not those given here"
            raise ConnectionLost(text) from lost
        link = _link(sock, credentials, stream, transcript, dialled=True)
    link.start(on_body, on_end)
    return link


class Listener:
    """Takes connections until closed, and hands them out once the peer has proved itself and has
    said its first word.

    `on_link` is called in a thread of its own and must `start` the link, or else it is cut.
    """

    def __init__(
        self, address: str, credentials: Credentials, on_link: Callable[[Link], None]
    ) -> None:
        """Raises SettingsError if `address` (host:port; port 0 takes any) cannot be listened on."""
        _check(credentials)
        self._credentials = credentials
        self._on_link = on_link
        self._closing = threading.Event()
        self._handshakes = threading.Semaphore(HANDSHAKES_MAX)
        self._lock = threading.Lock()
        self._unproved: set[socket.socket] = set()
        self.rejected = 0
        """Callers turned away so far."""
        host, port = parse_address(address)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._socket = socket.create_server((host, port), family=family)
        except OSError as error:
            raise SettingsError(f"cannot listen on {address}: {error.strerror or error}") from error
        self.address: tuple[str, int] = self._socket.getsockname()[:2]
        threading.Thread(target=self._listen, name="link-listener", daemon=True).start()

    def close(self) -> None:
        """Take no more connections; links that were handed out live on. May be repeated."""
        self._closing.set()
        with contextlib.suppress(OSError):
            # Closing alone would leave the thread in accept().
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        with self._lock:
            for sock in self._unproved:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def _listen(self) -> None:
        while True:
            try:
                sock, _ = self._socket.accept()
            except OSError as error:
                if self._closing.is_set():
                    return
                # Out of descriptors, or the caller is gone already: neither ends the service.
                self._reject("a caller", f"accepting failed: {error}")
                self._closing.wait(RETRY_S)
                continue
            if not self._handshakes.acquire(blocking=False):
                sock.close()
                self._reject("a caller", f"more than {HANDSHAKES_MAX} callers at once")
                continue
            threading.Thread(
                target=self._answer, args=(sock,), name="link-answer", daemon=True
            ).start()

    def _answer(self, sock: socket.socket) -> None:
        peer = "a caller"
        link = None
        with self._lock:
            self._unproved.add(sock)
        try:
            peer = _peer(sock)
            with within_time(sock) as expired, closing_on_error(sock):
                try:
                    stream, transcript = open_stream(sock, self._credentials, True, MAGIC)
                    link = _link(sock, self._credentials, stream, transcript, dialled=False)
                    link.receive_first()
                except ConnectionLost as lost:
                    raise expired(lost) from lost
        except (OSError, PenstockError) as error:
            self._reject(peer, str(error))
            return
        finally:
            with self._lock:
                self._unproved.discard(sock)
            self._handshakes.release()
        try:
            self._on_link(link)
        finally:
            if not link.started:
                link.cut("nobody took it")
                sock.close()

    def _reject(self, peer: str, reason: str) -> None:
        with self._lock:
            self.rejected += 1
            count = self.rejected
        # The first, second, fourth, eighth…: whoever floods us does not flood the log.
        if count & (count - 1) == 0:
            log.warning("%s was turned away (%d so far): %s", peer, count, reason)


def _check(credentials: Credentials) -> None:
    if credentials.open_loopback:
        raise SettingsError(
            "the control plane carries code, so it needs a shared secret or TLS certificates, on "
            "loopback as well"
        )


def _link(
    sock: socket.socket, credentials: Credentials, stream: Stream, transcript: bytes, dialled: bool
) -> Link:
    from_caller = from_listener = b""
    if credentials.secret:
        from_caller, from_listener = draw_keys(credentials.secret, transcript)
    ours, theirs = (from_caller, from_listener) if dialled else (from_listener, from_caller)
    try:
        peer, local_host = _peer(sock), str(sock.getsockname()[0])
    except OSError as error:
        raise ConnectionLost(f"the peer hung up: {error.strerror or error}") from error
    return Link(stream, peer, local_host, (Seals(ours), Seals(theirs)), dialled)


def _peer(sock: socket.socket) -> str:
    host, port = sock.getpeername()[:2]
    return format_address(host, port)


def format_address(host: str, port: int) -> str:
    """host:port, as `parse_address` reads it.

    >>> format_address("::1", 7077)
    '[::1]:7077'
    """
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_address(address: str) -> tuple[str, int]:
    """Host and port of host:port or [host]:port; raises SettingsError for anything else.

    >>> parse_address("[::1]:7077")
    ('::1', 7077)
    """
    host, _, port = address.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        host = host[1:-1]
    if not host or (":" in host and not bracketed) or not port.isdecimal() or int(port) > 65535:
        raise SettingsError(f"an address is written host:port, not {address!r}")
    return host, int(port)
