"""One connection between two nodes: a thread that receives, a thread that sends, all channels.

The reader never waits for anything but the peer: a frame goes into a slot that its credit
guarantees (hazard 6). The writer scans credits and channels until nothing may be sent, drains its
bell, scans once more, and only then sleeps (hazard 1); it takes one message of each channel in
turn, so a channel whose reader stalls costs the others nothing.

Whatever ends the connection before all channels have ended aborts them all, on both nodes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence

from penstock.elements.clock import Clock
from penstock.elements.errors import ChannelAborted, EngineError, ProtocolError
from penstock.runtime.doorbell import Doorbell

from .compression import Compression
from .credits import Report
from .frames import (
    COMPRESSED,
    CREDIT,
    CREDIT_BYTES_MAX,
    HEAD_BYTES,
    SIGNAL_KINDS,
    SLOT_KINDS,
    Control,
    Head,
    read_head,
    write_head,
)
from .inbound import Inbound
from .outbound import Departure, Outbound
from .streams import ConnectionLost, Stream

GATHER_BYTES = 512 * 1024
"""What one system call takes, or one message if that is larger: slots of it are not free before
it returns."""
GATHER_FRAMES = 128
CREDIT_LINGER_S = 0.001
"""Credits that nobody waits for go out after this, together."""
IDLE_WAIT_S = 0.1
"""The writer looks again after this even if nobody rings (hazard 2)."""


class Connection:
    """Both directions of one agreed stream. `start`, then `join`; `close` ends it at once.

    `on_end` is called once, from whatever thread ends it: with None when every channel had ended,
    else with what went wrong; all channels are aborted by then. `bell` is what the local
    subtasks of these channels ring; only this connection waits on it.
    """

    def __init__(
        self,
        stream: Stream,
        outbound: Sequence[Outbound],
        inbound: Sequence[Inbound],
        remote_slots: Mapping[int, int],
        bell: Doorbell,
        clock: Clock,
        compression: str,
        on_end: Callable[[EngineError | None], None],
    ) -> None:
        self._stream = stream
        self._outbound = list(outbound)
        self._inbound = {each.number: each for each in inbound}
        self._bell = bell
        self._clock = clock
        self._encoding, self._decoding = Compression(compression), Compression(compression)
        self._on_end = on_end
        self._sequence_out = self._sequence_in = 1
        self._turn = 0
        self._told_all_ns = 0
        self._over = threading.Event()
        self._end_lock = threading.Lock()
        self._by_number = {each.number: each for each in outbound}
        for each in outbound:
            each.open(remote_slots[each.number])
        self._threads = [
            threading.Thread(target=self._guard, args=(body,), name=name, daemon=True)
            for body, name in ((self._read, "net-reader"), (self._write, "net-writer"))
        ]

    def start(self) -> None:
        """Rows flow from now on."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End it now; channels that had not ended are aborted."""
        self._end(ConnectionLost("closed by this node"))

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait for both threads, then release the socket; False if they still run."""
        for thread in self._threads:
            thread.join(timeout_s)
        if any(thread.is_alive() for thread in self._threads):
            return False
        self._stream.close()
        return True

    @property
    def over(self) -> bool:
        """Whether it has ended, for whatever reason."""
        return self._over.is_set()

    def _guard(self, body: Callable[[], None]) -> None:
        try:
            body()
        except EngineError as error:
            self._end(error)
        except Exception as error:
            self._end(EngineError(f"the connection failed: {error!r}"))
            raise

    def _end(self, error: EngineError) -> None:
        with self._end_lock:
            if self._over.is_set():
                return
            finished = isinstance(error, ConnectionLost) and self._all_ended()
            if not finished:
                for departing in self._outbound:
                    departing.abort()
                for arriving in self._inbound.values():
                    arriving.abort()
            self._over.set()
        self._stream.cut()
        self._bell.ring()
        self._on_end(None if finished else error)

    def _all_ended(self) -> bool:
        return all(c.ended for c in self._outbound) and all(c.ended for c in self._inbound.values())

    # The reader -------------------------------------------------------------------------------

    def _read(self) -> None:
        data = memoryview(bytearray(HEAD_BYTES))
        receive = self._stream.receive
        while True:
            receive(data)
            head = read_head(data, self._sequence_in)
            self._sequence_in += 1
            if head.kind in SLOT_KINDS:
                channel = self._channel(head)
                target = channel.slot_for(head)
                if head.compressed:
                    encoded = memoryview(bytearray(head.wire_bytes))
                    receive(encoded)
                    self._decoding.decode(encoded, target)
                else:
                    receive(target)
                if channel.publish(head):
                    self._bell.ring()
            elif head.kind in SIGNAL_KINDS:
                if self._channel(head).signal(head):
                    self._bell.ring()
            elif head.kind == Control.CREDIT:
                self._take_credits(head.wire_bytes)
            else:
                raise ProtocolError(f"a frame of kind {head.kind} after the handshake")

    def _channel(self, head: Head) -> Inbound:
        channel = self._inbound.get(head.channel)
        if channel is None:
            raise ProtocolError(f"a frame for channel {head.channel}, which does not end here")
        return channel

    def _take_credits(self, size: int) -> None:
        if size > CREDIT.size * len(self._by_number):
            raise ProtocolError(f"a credit frame of {size:,} bytes names more channels than exist")
        body = bytearray(size)
        self._stream.receive(memoryview(body))
        for number, *figures in CREDIT.iter_unpack(body):
            channel = self._by_number.get(number)
            if channel is None:
                raise ProtocolError(f"a credit for channel {number}, which does not begin here")
            channel.credit(Report(*figures))
        self._bell.ring()

    # The writer -------------------------------------------------------------------------------

    def _write(self) -> None:
        drained = False
        while not self._over.is_set():
            if self._round():
                drained = False
            elif not drained:
                self._bell.drain()
                drained = True
            else:
                self._sleep()
                drained = False

    def _sleep(self) -> None:
        owes = any(channel.owes() for channel in self._inbound.values())
        self._bell.wait(CREDIT_LINGER_S if owes else IDLE_WAIT_S)

    def _round(self) -> bool:
        """Send what may be sent, up to one system call's worth; True if there was anything."""
        buffers: list[memoryview | bytes] = []
        changed = self._gather_credits(buffers)
        self._gather_frames(buffers)
        if buffers:
            self._stream.send(buffers)
        for channel in self._outbound:
            channel.release()
        return changed or bool(buffers)

    def _gather_credits(self, buffers: list[memoryview | bytes]) -> bool:
        """Put one CREDIT frame in front if any channel's is due; True if a bell was armed."""
        now_ns = self._clock.monotonic_ns()
        everything = now_ns - self._told_all_ns >= CREDIT_LINGER_S * 1e9
        if everything:
            self._told_all_ns = now_ns
        entries: list[bytes] = []
        armed = False
        for number, channel in self._inbound.items():
            if channel.cut_short:
                raise ChannelAborted(f"channel {number} was aborted on this node")
            report = channel.account(everything)
            if report is not None:
                entries.append(CREDIT.pack(number, *report))
            armed |= channel.arm()
        if entries:
            body = b"".join(entries)
            assert len(body) <= CREDIT_BYTES_MAX
            buffers.append(self._head(len(body), len(body), 0, Control.CREDIT, 0, 0))
            buffers.append(body)
        return armed

    def _gather_frames(self, buffers: list[memoryview | bytes]) -> None:
        """One message of each channel in turn, until all is taken or the call is full."""
        channels, size, frames = self._outbound, 0, 0
        count = len(channels)
        without = 0
        while count and without < count and size < GATHER_BYTES and frames < GATHER_FRAMES:
            channel = channels[self._turn % count]
            self._turn += 1
            departure = channel.next_frame()
            if departure is None:
                without += 1
                continue
            without = 0
            frames += 1
            size += self._append(buffers, channel.number, departure)

    def _append(self, buffers: list[memoryview | bytes], number: int, frame: Departure) -> int:
        plain = len(frame.body)
        encoded = self._encoding.encode(frame.body) if plain else None
        body = frame.body if encoded is None else encoded
        flags = 0 if encoded is None else COMPRESSED
        buffers.append(self._head(len(body), plain, number, frame.kind, frame.meta, flags))
        if plain:
            buffers.append(body)
        return len(body)

    def _head(self, wire: int, plain: int, number: int, kind: int, meta: int, flags: int) -> bytes:
        head = write_head(wire, plain, self._sequence_out, number, kind, meta, flags)
        self._sequence_out += 1
        return head
