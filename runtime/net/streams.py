"""Bytes between two net processes: a plain TCP socket, or TLS over one.

One thread may receive while another sends. Both calls block until all bytes have passed; `cut`,
from any thread, ends both with ConnectionLost. A receiver gets its bytes where it wants them, so a
plain stream copies nothing between the kernel and a slot.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Sequence
from typing import Protocol, cast

from penstock.elements.errors import EngineError

USER_TIMEOUT_MS = 4000
"""Bytes that the peer's machine does not acknowledge for so long end the connection."""
KEEPALIVE_S = 1
"""An idle connection is probed this often; USER_TIMEOUT_MS decides here as well."""
BUFFERS_PER_SEND_MAX = 512
"""The kernel takes 1,024 (IOV_MAX)."""
TLS_CHUNK_BYTES = 256 * 1024
"""Encrypted under the lock at a time: the other direction waits no longer than for this much."""


class ConnectionLost(EngineError):
    """The connection to another node is gone; the text says how it went."""


class Stream(Protocol):
    """What a connection needs of its transport."""

    def send(self, buffers: Sequence[memoryview | bytes]) -> None:
        """Send all of them, in order."""
        ...

    def receive(self, view: memoryview) -> None:
        """Fill all of `view`."""
        ...

    def cut(self) -> None:
        """End the connection; blocked calls raise. Harmless when repeated."""
        ...

    def close(self) -> None:
        """Release the socket. Requires: no other thread uses the stream."""
        ...


class PlainStream:
    """A connected TCP socket as it is."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        sock.settimeout(None)

    def send(self, buffers: Sequence[memoryview | bytes]) -> None:
        """Send all of them, in order."""
        for start in range(0, len(buffers), BUFFERS_PER_SEND_MAX):
            self._send_some(list(buffers[start : start + BUFFERS_PER_SEND_MAX]))

    def _send_some(self, buffers: list[memoryview | bytes]) -> None:
        while buffers:
            try:
                sent = self._sock.sendmsg(buffers, (), socket.MSG_NOSIGNAL)
            except OSError as error:
                raise ConnectionLost(f"sending failed: {error.strerror or error}") from error
            while buffers and sent >= len(buffers[0]):
                sent -= len(buffers.pop(0))
            if sent:
                buffers[0] = memoryview(buffers[0])[sent:]

    def receive(self, view: memoryview) -> None:
        """Fill all of `view`."""
        size = len(view)
        have = 0
        while have < size:
            try:
                count = self._sock.recv_into(view[have:], size - have, socket.MSG_WAITALL)
            except OSError as error:
                raise ConnectionLost(f"receiving failed: {error.strerror or error}") from error
            if not count:
                raise _hung_up(have)
            have += count

    def cut(self) -> None:
        """End the connection; blocked calls raise."""
        _shut_down(self._sock)

    def close(self) -> None:
        """Release the socket."""
        self._sock.close()


class TlsStream:
    """TLS over a connected socket. The handshake happens in the constructor.

    An SSL object is not made for two threads: it works on memory under a lock, and the socket is
    read and written outside of it, so waiting for the peer holds up nobody.
    """

    def __init__(
        self, sock: socket.socket, context: ssl.SSLContext, server: bool, name: str | None = None
    ) -> None:
        """`name` is what the peer's certificate must be made out to, if `context` checks that."""
        self._sock = sock
        sock.settimeout(None)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server, server_hostname=name
        )
        self._lock = threading.Lock()
        self._shake_hands()

    def _shake_hands(self) -> None:
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._flush(self._outgoing.read())
                self._incoming.write(self._read_socket())
                continue
            except (ssl.SSLError, ssl.CertificateError) as error:
                # The alert, if there is one, tells the peer why.
                self._flush(self._outgoing.read())
                raise ConnectionLost(f"TLS: {error}") from error
            self._flush(self._outgoing.read())
            return

    def send(self, buffers: Sequence[memoryview | bytes]) -> None:
        """Send all of them, in order. One thread only."""
        for buffer in buffers:
            view = memoryview(buffer)
            while view:
                try:
                    with self._lock:
                        count = self._tls.write(view[:TLS_CHUNK_BYTES])
                        encrypted = self._outgoing.read()
                except ssl.SSLError as error:
                    raise ConnectionLost(f"TLS: {error}") from error
                self._flush(encrypted)
                view = view[count:]

    def receive(self, view: memoryview) -> None:
        """Fill all of `view`. One thread only."""
        have = 0
        while have < len(view):
            try:
                with self._lock:
                    # With a buffer it returns the count, whatever its declared type says.
                    count = cast(int, self._tls.read(len(view) - have, view[have:]))
            except ssl.SSLWantReadError:
                encrypted = self._read_socket()
                with self._lock:
                    self._incoming.write(encrypted)
                continue
            except ssl.SSLError as error:
                raise ConnectionLost(f"TLS: {error}") from error
            if not count:
                raise _hung_up(have)
            have += count

    def _flush(self, encrypted: bytes) -> None:
        if not encrypted:
            return
        try:
            self._sock.sendall(encrypted, socket.MSG_NOSIGNAL)
        except OSError as error:
            raise ConnectionLost(f"sending failed: {error.strerror or error}") from error

    def _read_socket(self) -> bytes:
        try:
            data = self._sock.recv(TLS_CHUNK_BYTES)
        except OSError as error:
            raise ConnectionLost(f"receiving failed: {error.strerror or error}") from error
        if not data:
            raise _hung_up(0)
        return data

    def cut(self) -> None:
        """End the connection; blocked calls raise."""
        _shut_down(self._sock)

    def close(self) -> None:
        """Release the socket."""
        self._sock.close()


def tune(sock: socket.socket) -> None:
    """Options of every connection between nodes: no delay, and a dead peer is noticed."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, USER_TIMEOUT_MS // 1000)


def _hung_up(have: int) -> ConnectionLost:
    where = f" after {have:,} bytes of what was due" if have else ""
    return ConnectionLost(f"the peer hung up{where}")


def _shut_down(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        # Gone already, by either side.
        pass
