"""Frames on a unix socket: a u32 length, little endian, then that many bytes.

`frame` and `FrameDecoder` are the two halves. `Outbox` is what a process that must never block in
a write keeps per peer: bytes and descriptors, in order, sent as far as the socket takes them.
"""

from __future__ import annotations

import socket
import struct
from collections import deque
from collections.abc import Sequence

from penstock.elements.errors import ProtocolError

from .messages import FRAME_BYTES_MAX

LENGTH = struct.Struct("<I")
DESCRIPTORS_PER_SEND_MAX = 250
"""The kernel refuses more than SCM_MAX_FD = 253 in one message."""


def frame(body: bytes) -> bytes:
    """The body with its length in front.

    >>> frame(b"ab")
    b'\\x02\\x00\\x00\\x00ab'
    """
    if len(body) > FRAME_BYTES_MAX:
        raise ProtocolError(
            f"a control message of {len(body):,} bytes is larger than the limit of "
            f"{FRAME_BYTES_MAX:,}: programs carry code, not data; let a source read "
            "large tables from files"
        )
    return LENGTH.pack(len(body)) + body


class FrameDecoder:
    """Bytes in as they come, whole bodies out."""

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The bodies that `data` completes. Raises ProtocolError for an impossible length."""
        self._pending += data
        bodies: list[bytes] = []
        start = 0
        while len(self._pending) - start >= LENGTH.size:
            (size,) = LENGTH.unpack_from(self._pending, start)
            if size > FRAME_BYTES_MAX:
                raise ProtocolError(f"a peer announced a control message of {size:,} bytes")
            stop = start + LENGTH.size + size
            if len(self._pending) < stop:
                break
            bodies.append(bytes(self._pending[start + LENGTH.size : stop]))
            start = stop
        if start:
            del self._pending[:start]
        return bodies


class Outbox:
    """What waits to be written to one non-blocking socket, in order."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._queue: deque[tuple[memoryview, tuple[int, ...]]] = deque()
        self.pending_bytes = 0

    def put(self, data: bytes, descriptors: Sequence[int] = ()) -> None:
        """Queue bytes; descriptors travel with the first of them and must stay open until then."""
        assert data
        assert len(descriptors) <= DESCRIPTORS_PER_SEND_MAX
        self._queue.append((memoryview(data), tuple(descriptors)))
        self.pending_bytes += len(data)

    def flush(self) -> bool:
        """Send what the socket takes; True when nothing is left. Raises OSError if it is gone."""
        while self._queue:
            data, descriptors = self._queue[0]
            try:
                if descriptors:
                    sent = socket.send_fds(self._sock, [data], descriptors)
                else:
                    sent = self._sock.send(data, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return False
            self.pending_bytes -= sent
            if sent == len(data):
                self._queue.popleft()
            else:
                self._queue[0] = (data[sent:], ())
        return True


def receive_exactly(sock: socket.socket, size: int) -> bytes | None:
    """`size` bytes from a blocking socket, or None when the peer hangs up before them."""
    data = bytearray(size)
    view = memoryview(data)
    have = 0
    while have < size:
        count = sock.recv_into(view[have:])
        if count == 0:
            return None
        have += count
    return bytes(data)


def receive_frame(sock: socket.socket) -> bytes | None:
    """One body from a blocking socket, or None at the end. Never reads beyond it."""
    head = receive_exactly(sock, LENGTH.size)
    if head is None:
        return None
    (size,) = LENGTH.unpack(head)
    if size > FRAME_BYTES_MAX:
        raise ProtocolError(f"a peer announced a control message of {size:,} bytes")
    return receive_exactly(sock, size)
