"""The control link of a subtask: commands in, events out, over one unix socket to the agent.

Promises: events leave in the order of `send`, from any thread; commands wait for the loop, which
is rung for each; when the agent hangs up, `on_hangup` is called at once, in the reader thread.
Data never travels here, only control and small state (hazard 53).
"""

from __future__ import annotations

import logging
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable

import msgspec

from penstock.elements.errors import ProtocolError

from .framing import frame, receive_frame
from .messages import Command, Event, decode_command, encode

log = logging.getLogger("penstock.control")

SEND_TIMEOUT_S = 60
"""An agent that takes no byte for this long counts as gone."""
COMMANDS_MAX = 16_384
"""Commands that may wait for a subtask held up in user code; at one checkpoint a second and a
few commands each, more than an hour of them."""


class ControlLink:
    """One subtask's line to its agent. Takes over a connected, blocking socket."""

    def __init__(
        self,
        sock: socket.socket,
        ring: Callable[[], None],
        on_hangup: Callable[[], None],
    ) -> None:
        """`ring` wakes the subtask's loop; `on_hangup` should end the process."""
        self._sock = sock
        self._ring = ring
        self._on_hangup = on_hangup
        self._commands: deque[Command] = deque()
        self._send_lock = threading.Lock()
        sock.setblocking(True)
        timeout = struct.pack("@ll", SEND_TIMEOUT_S, 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)
        self._reader = threading.Thread(target=self._read, name="control", daemon=True)
        self._reader.start()

    def receive(self) -> Command | None:
        """The next command, or None when there is none now."""
        try:
            return self._commands.popleft()
        except IndexError:
            return None

    def send(self, event: Event) -> None:
        """Hand an event to the kernel; what was sent arrives even if this process dies next.

        Blocks while the agent is behind, at most SEND_TIMEOUT_S without progress; then, as when
        the agent is gone, the link hangs up.
        """
        data = memoryview(frame(encode(event)))
        with self._send_lock:
            while data:
                try:
                    sent = self._sock.send(data, socket.MSG_NOSIGNAL)
                except OSError:
                    # Half a frame may be out: nothing further may follow it.
                    self._on_hangup()
                    return
                data = data[sent:]

    def _read(self) -> None:
        try:
            while (body := receive_frame(self._sock)) is not None:
                if len(self._commands) >= COMMANDS_MAX:
                    raise ProtocolError(f"more than {COMMANDS_MAX:,} commands wait unserved")
                self._commands.append(decode_command(body))
                self._ring()
        except OSError:
            # However the connection broke, it is over.
            pass
        except (ProtocolError, msgspec.DecodeError) as error:
            log.error("the control link broke: %s", error)
        self._on_hangup()
