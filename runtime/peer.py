"""One end of a control connection inside the agent's loop: never blocks, keeps order both ways."""

from __future__ import annotations

import os
import selectors
import socket
from collections.abc import Callable, Sequence

from penstock.elements.errors import ProtocolError

from .framing import FrameDecoder, Outbox

READ_BYTES = 256 * 1024
READS_PER_TURN_MAX = 8
"""A peer that always has more may not starve the others."""


class Peer:
    """A framed, non-blocking socket registered with a selector. Owns the socket."""

    def __init__(
        self,
        selector: selectors.BaseSelector,
        sock: socket.socket,
        on_body: Callable[[bytes, list[int]], None],
        on_end: Callable[[], None],
    ) -> None:
        """`on_body` gets each frame and the descriptors that came with it, which it owns."""
        sock.setblocking(False)
        self._selector = selector
        self._sock = sock
        self._on_body = on_body
        self._on_end = on_end
        self._decoder = FrameDecoder()
        self.outbox = Outbox(sock)
        self._reading = True
        self._ended = False
        self._closed = False
        self._events = 0
        self._register()

    def send(self, data: bytes, descriptors: Sequence[int] = ()) -> None:
        """Queue a frame and send what goes now. To a peer that is gone: nothing happens."""
        if self._closed:
            return
        self.outbox.put(data, descriptors)
        self.flush()

    def flush(self) -> None:
        """Send what the socket takes; the selector does the rest."""
        if self._closed:
            return
        try:
            self.outbox.flush()
        except OSError:
            # The reading side sees the end, or a pidfd does: nothing to report here.
            self.outbox = Outbox(self._sock)
        self._register()

    def move_to(self, selector: selectors.BaseSelector) -> None:
        """Be served by another selector, for writing only: the last words of a process."""
        self._reading = False
        if self._events:
            self._selector.unregister(self._sock)
        self._events = 0
        self._selector = selector
        self._register()

    def pause(self, paused: bool) -> None:
        """Stop or go on reading: back-pressure for a peer whose words cannot be passed on."""
        self._reading = not paused
        self._register()

    def drain(self) -> None:
        """Read all that has arrived; used when the process at the other end is dead."""
        while not self._ended and not self._closed and self._read():
            pass

    def close(self) -> None:
        """Unregister and close; harmless when repeated."""
        if self._closed:
            return
        self._closed = True
        self._register()
        self._sock.close()

    def _register(self) -> None:
        wanted = 0
        if not self._closed:
            if self._reading and not self._ended:
                wanted |= selectors.EVENT_READ
            if self.outbox.pending_bytes:
                wanted |= selectors.EVENT_WRITE
        if wanted == self._events:
            return
        if not self._events:
            self._selector.register(self._sock, wanted, self._ready)
        elif not wanted:
            self._selector.unregister(self._sock)
        else:
            self._selector.modify(self._sock, wanted, self._ready)
        self._events = wanted

    def _ready(self, mask: int) -> None:
        if mask & selectors.EVENT_WRITE:
            self.flush()
        if mask & selectors.EVENT_READ:
            for _ in range(READS_PER_TURN_MAX):
                if self._closed or self._ended or not self._read():
                    break

    def _read(self) -> bool:
        """One read; False when there is nothing more now, or for ever."""
        try:
            data, descriptors, _, _ = socket.recv_fds(self._sock, READ_BYTES, 1)
        except BlockingIOError:
            return False
        except OSError:
            data, descriptors = b"", []
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        if not data:
            self._end()
            return False
        try:
            bodies = self._decoder.feed(data)
        except ProtocolError:
            self._end()
            return False
        for body in bodies:
            self._on_body(body, descriptors)
            descriptors = []
        return True

    def _end(self) -> None:
        self._ended = True
        self._register()
        self._on_end()
