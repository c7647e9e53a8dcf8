"""Two ends of a connection on loopback in one process, and channels between them."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Sequence
from itertools import count

import pyarrow as pa

from penstock.elements.clock import SystemClock
from penstock.elements.errors import EngineError
from penstock.elements.wire import wire_schema
from penstock.runtime.doorbell import Doorbell, doorbell_name
from penstock.runtime.net.connection import Connection
from penstock.runtime.net.credentials import Credentials
from penstock.runtime.net.handshake import accept, connect
from penstock.runtime.net.hello import Hello, offers, remote_slots
from penstock.runtime.net.inbound import Inbound
from penstock.runtime.net.outbound import Outbound
from penstock.runtime.net.streams import Stream
from penstock.runtime.segment import Segment
from penstock.runtime.slab import (
    HEAD,
    ROWS_LIMIT,
    ROWS_TAKEN,
    TAIL,
    RegionSize,
)
from penstock.runtime.slab_receiver import SlabReceiver
from penstock.runtime.slab_sender import SlabSender, schema_fingerprint
from penstock.testing.channel import ChannelEnds

NUMBERS = pa.schema([("n", pa.int64())])
LOOPBACK = Credentials(open_loopback=True)
PATIENCE_S = 20.0
_ordinals = count(10_000)


def bell() -> Doorbell:
    made = Doorbell.create(doorbell_name(0, next(_ordinals)))
    made.unlink()
    return made


def eventually(true: Callable[[], bool], nudge: Callable[[], None] = lambda: None) -> None:
    """Wait for what other threads are about to do; fails after PATIENCE_S."""
    clock = SystemClock()
    end_ns = clock.monotonic_ns() + int(PATIENCE_S * 1e9)
    while not true():
        assert clock.monotonic_ns() < end_ns, "it did not happen"
        nudge()
        clock.sleep(0.0005)


def numbers(first: int, rows: int) -> pa.RecordBatch:
    return pa.record_batch([pa.array(range(first, first + rows), pa.int64())], schema=NUMBERS)


def sockets() -> tuple[socket.socket, socket.socket]:
    """A connected pair over TCP: the side that connected, the side that accepted."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    return near, far


class Wire:
    """One channel from node "a" to node "b": its slab at either end and its subtasks' bells."""

    def __init__(
        self, number: int, schema: pa.Schema, slots: int, slot_bytes: int, one_bell: bool
    ) -> None:
        self.number = number
        self.schema = schema
        # The region of the channel lies behind another one, and not the same on both nodes.
        size = RegionSize(slots, slot_bytes)
        self.here = Segment.create([size])
        self.there = Segment.create([RegionSize(2, 4096), size])
        self.writing = bell()
        self.reading = self.writing if one_bell else bell()
        self.fingerprint = schema_fingerprint(wire_schema(schema))
        self.outbound = Outbound(number, self.here, 0, self.fingerprint, self.writing)
        self.inbound = Inbound(number, self.there, 1, self.fingerprint, self.reading)

    def attach(self, near: Doorbell, far: Doorbell) -> None:
        """What the two subtasks do, each in its own mapping; the bells are those of the nets."""
        mine, theirs = (Segment.attach(os.dup(s.fd)) for s in (self.here, self.there))
        self._mapped = [mine, theirs]
        self.sender = SlabSender(mine, 0, self.schema, near, self.writing)
        self.receiver = SlabReceiver(theirs, 1, self.schema, self.reading, far)

    def close(self) -> None:
        """Descriptors only: views of the memory may be anywhere."""
        for segment in (self.here, self.there, *self._mapped):
            os.close(segment.fd)

    def at_source(self, field: int) -> int:
        return self.here.words[self.here.regions[0].word(field)]

    def at_target(self, field: int) -> int:
        return self.there.words[self.there.regions[1].word(field)]

    @property
    def settled(self) -> bool:
        """The reader's words have reached the sender's region."""
        return all(self.at_source(f) == self.at_target(f) for f in (ROWS_TAKEN, ROWS_LIMIT))

    @property
    def quiet(self) -> bool:
        """All that was published at the source has left it."""
        return self.at_source(HEAD) == self.at_source(TAIL)


def hellos(wires: Sequence[Wire], compression: str = "") -> tuple[Hello, Hello]:
    """What "a" and "b" say."""
    near = Hello("job", 3, 1, "a", "b", compression, offers([w.outbound for w in wires]), [])
    far = Hello("job", 3, 1, "b", "a", compression, [], offers([w.inbound for w in wires]))
    return near, far


def shake_hands(
    near: Hello,
    far: Hello,
    credentials: Credentials = LOOPBACK,
    far_credentials: Credentials | None = None,
) -> tuple[object, object]:
    """Both sides' (stream, hello), or what each of them raised."""
    results: dict[str, object] = {}
    here, there = sockets()

    def listen() -> None:
        try:
            results["b"] = accept(there, far_credentials or credentials, lambda _: far)
        except EngineError as error:
            results["b"] = error

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        results["a"] = connect(here, credentials, near)
    except EngineError as error:
        results["a"] = error
    thread.join()
    return results["a"], results["b"]


class Pair:
    """A connection from "a" to "b" with channels numbered from 0."""

    def __init__(
        self,
        channels: int = 1,
        schema: pa.Schema = NUMBERS,
        slots: int = 4,
        slot_bytes: int = 65536,
        one_bell: bool = False,
        compression: str = "",
        credentials: Credentials = LOOPBACK,
    ) -> None:
        self.wires = [Wire(n, schema, slots, slot_bytes, one_bell) for n in range(channels)]
        self.near_bell, self.far_bell = bell(), bell()
        self.ends: dict[str, EngineError | None] = {}
        near, far = hellos(self.wires, compression)
        mine, theirs = shake_hands(near, far, credentials)
        assert isinstance(mine, tuple), mine
        assert isinstance(theirs, tuple), theirs
        self.near_stream: Stream = mine[0]
        self.far_stream: Stream = theirs[0]
        self.near = Connection(
            mine[0], [w.outbound for w in self.wires], [], remote_slots(mine[1]), self.near_bell,
            SystemClock(), compression, lambda e: self.ends.__setitem__("a", e),
        )  # fmt: skip
        self.far = Connection(
            theirs[0], [], [w.inbound for w in self.wires], {}, self.far_bell, SystemClock(),
            compression, lambda e: self.ends.__setitem__("b", e),
        )  # fmt: skip
        for wire in self.wires:
            wire.attach(self.near_bell, self.far_bell)
        self.near.start()
        self.far.start()

    def settle(self, wire: Wire) -> None:
        eventually(lambda: wire.settled, self.far_bell.ring)

    def abort(self, wire: Wire) -> None:
        """What the sending node's agent does, and the wait for the other node to hear of it."""
        wire.here.abort(0)
        self.near_bell.ring()
        eventually(lambda: set(self.ends) == {"a", "b"})

    def close(self) -> None:
        self.near.close()
        self.far.close()
        assert self.near.join(PATIENCE_S)
        assert self.far.join(PATIENCE_S)
        for wire in self.wires:
            wire.close()


def channel_ends(
    schema: pa.Schema, slots: int, slot_bytes: int, compression: str, credentials: Credentials
) -> ChannelEnds:
    """One channel between two of another schema, as testing/channel.py wants it.

    One thread drives both ends there, so both have one bell: a subtask's only one.
    """
    pair = Pair(3, schema, slots, slot_bytes, True, compression, credentials)
    wire = pair.wires[1]
    return ChannelEnds(
        wire.sender,
        wire.receiver,
        wire.writing,
        wire.reading,
        abort=lambda: pair.abort(wire),
        close=pair.close,
        settle=lambda: pair.settle(wire),
    )
