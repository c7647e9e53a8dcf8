"""The writing end of a channel in shared memory: one copy from Arrow to the reader's slot.

A persistent IPC stream writer on a seekable memory map writes each batch straight into a free
slot; the schema was written once, at the start. Then, in this order: the state byte, the
descriptor, HEAD, the bell (docs/formats/slab.md says why that is safe on which machine).

Nothing here blocks. What has no room stays queued, WAITING says what for, and whoever makes room
rings the sender's own bell. The order among all that was offered is kept; only watermarks that
wait directly behind each other are merged.
"""

from __future__ import annotations

import hashlib
import mmap
from collections import deque

import pyarrow as pa
from pyarrow import ipc

from penstock.elements.errors import ChannelAborted, EngineError, ProtocolError
from penstock.elements.signals import Kind
from penstock.elements.wire import wire_batch, wire_schema

from .channel import ChannelStatistics
from .doorbell import Doorbell
from .fence import Fence, full_fence, order_fence
from .segment import ALLOCATED_SLOTS, Segment
from .slab import (
    ABORT,
    DESCRIPTOR_COUNT,
    DESCRIPTOR_WORDS,
    DESCRIPTORS,
    HEAD,
    JUMBO_BYTES_MAX,
    KIND_SHIFT,
    ROWS_LIMIT,
    ROWS_SENT,
    ROWS_TAKEN,
    SCHEMA,
    SLOT_SHIFT,
    STATES,
    TAIL,
    USED,
    WAITING,
    WAITS_FOR_NOTHING,
    WAITS_FOR_READ,
    WAITS_FOR_SLOT,
)

SLOT_FILL = 0.94
"""Of a slot, when a batch is cut to fit: rows differ, and each message has a head of its own."""
_WORD = (1 << 64) - 1
_FREE_STATE = b"\0"


class SlabSender:
    """A Sender. Requires: one thread, one sender per region and attempt.

    `bell` is the one its caller waits on after `flush` has said False.
    """

    def __init__(
        self,
        segment: Segment,
        region: int,
        schema: pa.Schema,
        receiver_bell: Doorbell,
        sender_bell: Doorbell,
        fence: Fence | None = None,
    ) -> None:
        """`schema` may have any types; the other end yields `wire_schema(schema)`."""
        place = segment.regions[region]
        self.bell = sender_bell
        self._ring = receiver_bell.ring
        self._place = place
        self._map = segment.map
        self._bytes = segment.bytes
        self._words = segment.words
        self._slots = place.size.slots
        self._slot_bytes = place.size.slot_bytes
        self._states_at = place.offset + STATES
        self._head_at = place.word(HEAD)
        self._rows_sent_at = place.word(ROWS_SENT)
        self._tail_at = place.word(TAIL)
        self._rows_taken_at = place.word(ROWS_TAKEN)
        self._rows_limit_at = place.word(ROWS_LIMIT)
        self._waiting_at = place.word(WAITING)
        self._abort_at = place.word(ABORT)
        self._descriptors_at = place.word(DESCRIPTORS)
        self._order = order_fence() if fence is None else fence
        self._full = full_fence()
        self._schema = schema
        self._wire = wire_schema(schema)
        self._is_wire = self._wire == schema
        self._file = segment.writer()
        self._writer = self._open_writer()
        self._words[place.word(SCHEMA)] = schema_fingerprint(self._wire)
        self._queue: deque[pa.RecordBatch | tuple[Kind, int]] = deque()
        self._queued_rows = 0
        self._jumbo: memoryview | None = None
        self._jumbo_sent = 0
        self._head = 0
        self._tail = 0
        self._rows_sent = 0
        self._waiting = WAITS_FOR_NOTHING
        self._touched = ALLOCATED_SLOTS
        self._bytes_sent = 0
        self._waits = 0

    def _open_writer(self) -> ipc.RecordBatchStreamWriter:
        needed = self._wire.serialize().size
        available = self._slots * self._slot_bytes
        if needed > available // 2:
            raise EngineError(
                f"a schema of {len(self._wire)} columns takes {needed:,} bytes, too many for a "
                f"channel of {available:,}; raise shuffle_memory_bytes or select fewer columns"
            )
        # The stream's head is written with the first batch; let that be an empty one, into slots
        # that are all free still. Readers know the schema from the plan.
        self._file.seek(self._place.slot_offset(0))
        writer = ipc.new_stream(self._file, self._wire)
        writer.write_batch(_empty(self._wire))
        return writer

    def offer(self, batch: pa.RecordBatch) -> None:
        """Queue rows; the memory is the caller's until it has been flushed."""
        if not self._is_wire:
            batch = wire_batch(batch, self._wire)
        self._queue.append(batch)
        self._queued_rows += batch.num_rows

    def offer_signal(self, kind: Kind, value: int = 0) -> None:
        """Queue a signal; a watermark replaces one that is the last in the queue."""
        assert kind in (Kind.WATERMARK, Kind.IDLE, Kind.BARRIER, Kind.END)
        queue = self._queue
        if queue and kind in (Kind.WATERMARK, Kind.IDLE):
            last = queue[-1]
            if isinstance(last, tuple) and last[0] is kind:
                queue.pop()
        queue.append((kind, value))

    def flush(self) -> bool:
        """Publish what has room; True when nothing is left queued."""
        words = self._words
        if words[self._abort_at]:
            raise ChannelAborted("the reader of a channel is gone, or the attempt was cancelled")
        queue = self._queue
        while queue:
            blocked = self._publish_front()
            if not blocked:
                continue
            if blocked == self._waiting:
                self._waits += 1
                return False
            # Say what is missing, make sure it is seen, look again: whoever made room before
            # the word was visible did not ring.
            words[self._waiting_at] = self._waiting = blocked
            self._full()
        if self._waiting:
            words[self._waiting_at] = self._waiting = WAITS_FOR_NOTHING
        return True

    def trim(self) -> int:
        """Give memory of free slots back to the system; how many slots. For idle channels.

        Only the sender may: a slot it sees free stays free until it fills it itself.
        """
        states, place, trimmed = self._states_at, self._place, 0
        for slot in range(ALLOCATED_SLOTS, self._touched):
            if self._bytes[states + slot] == USED:
                continue
            self._map.madvise(mmap.MADV_REMOVE, place.slot_offset(slot), self._slot_bytes)
            trimmed += 1
        if trimmed == self._touched - ALLOCATED_SLOTS:
            self._touched = ALLOCATED_SLOTS
        return trimmed

    @property
    def unread_limit(self) -> int:
        """The receiver's ROWS_LIMIT."""
        return self._words[self._rows_limit_at]

    def statistics(self) -> ChannelStatistics:
        """`queued_rows` counts what the reader has not taken, published or not; `waits`, how often
        flush found no room."""
        return ChannelStatistics(
            messages=self._head,
            rows=self._rows_sent,
            bytes=self._bytes_sent,
            copies=0,
            waits=self._waits,
            queued_rows=self._queued_rows + self._rows_sent - self._words[self._rows_taken_at],
        )

    def _publish_front(self) -> int:
        """Publish the head of the queue, or a part of it; what it waits for otherwise."""
        if self._head - self._tail >= DESCRIPTOR_COUNT:
            self._tail = self._words[self._tail_at]
            if self._head - self._tail >= DESCRIPTOR_COUNT:
                return WAITS_FOR_READ
        front = self._queue[0]
        if isinstance(front, tuple):
            self._queue.popleft()
            kind, value = front
            self._publish(kind, 0, 0, value, 0)
            return WAITS_FOR_NOTHING
        if self._jumbo is not None:
            return self._publish_chunk(self._jumbo)
        batch = self._within_limit(front)
        if batch is None:
            return WAITS_FOR_READ
        slot = self._map.find(_FREE_STATE, self._states_at, self._states_at + self._slots)
        if slot < 0:
            return WAITS_FOR_SLOT
        size: int = ipc.get_record_batch_size(batch)
        if size > self._slot_bytes and batch.num_rows > 1:
            # Equal parts rather than full slots and a crumb; rows of uneven size are halved on.
            parts = int(size / (self._slot_bytes * SLOT_FILL)) + 1
            batch = batch.slice(0, -(-batch.num_rows // parts))
            size = ipc.get_record_batch_size(batch)
        while size > self._slot_bytes and batch.num_rows > 1:
            batch = batch.slice(0, batch.num_rows // 2)
            size = ipc.get_record_batch_size(batch)
        if size > self._slot_bytes:
            self._jumbo = _encoded(batch, size)
            self._jumbo_sent = 0
            return self._publish_chunk(self._jumbo)
        self._publish_batch(batch, size, slot - self._states_at)
        self._advance(front, batch.num_rows)
        return WAITS_FOR_NOTHING

    def _within_limit(self, batch: pa.RecordBatch) -> pa.RecordBatch | None:
        """As much of the batch as ROWS_LIMIT lets lie unread; None: wait until more is read."""
        limit = self._words[self._rows_limit_at]
        if not limit:
            return batch
        room = limit - (self._rows_sent - self._words[self._rows_taken_at])
        if batch.num_rows <= room:
            return batch
        # Rather wait for half of the limit than send crumbs.
        return batch.slice(0, room) if room > 0 and room >= limit // 2 else None

    def _advance(self, front: pa.RecordBatch, rows: int) -> None:
        """The first rows of the front batch are published; keep the others in front."""
        if rows == front.num_rows:
            self._queue.popleft()
        else:
            self._queue[0] = front.slice(rows)
        self._queued_rows -= rows

    def _publish_batch(self, batch: pa.RecordBatch, size: int, slot: int) -> None:
        self._order()
        self._file.seek(self._place.slot_offset(slot))
        try:
            self._writer.write_batch(batch)
        except pa.ArrowInvalid as error:
            raise ProtocolError(
                f"rows do not have the schema of their channel: {error}\n"
                f"  channel: {self._wire.to_string(show_field_metadata=False)}\n"
                f"  rows:    {batch.schema.to_string(show_field_metadata=False)}"
            ) from error
        assert self._file.tell() - self._place.slot_offset(slot) == size
        self._use(slot)
        self._publish(Kind.BATCH, slot, size, batch.num_rows, batch.num_rows)

    def _publish_chunk(self, encoded: memoryview) -> int:
        """One slot full of a message that is larger than a slot."""
        found = self._map.find(_FREE_STATE, self._states_at, self._states_at + self._slots)
        if found < 0:
            return WAITS_FOR_SLOT
        slot, sent = found - self._states_at, self._jumbo_sent
        size = min(self._slot_bytes, len(encoded) - sent)
        self._order()
        begin = self._place.slot_offset(slot)
        self._bytes[begin : begin + size] = encoded[sent : sent + size]
        self._use(slot)
        self._jumbo_sent = sent + size
        last = self._jumbo_sent == len(encoded)
        self._publish(Kind.JUMBO, slot, size, len(encoded), 1 if last else 0)
        if last:
            self._jumbo = None
            front = self._queue[0]
            assert isinstance(front, pa.RecordBatch)
            self._advance(front, 1)
        return WAITS_FOR_NOTHING

    def _use(self, slot: int) -> None:
        self._bytes[self._states_at + slot] = USED
        if slot >= self._touched:
            self._touched = slot + 1

    def _publish(self, kind: Kind, slot: int, size: int, value: int, rows: int) -> None:
        words, head = self._words, self._head
        at = self._descriptors_at + DESCRIPTOR_WORDS * (head & (DESCRIPTOR_COUNT - 1))
        words[at] = kind << KIND_SHIFT | slot << SLOT_SHIFT | size
        words[at + 1] = value & _WORD
        self._bytes_sent += size
        if rows:
            self._rows_sent += rows
            words[self._rows_sent_at] = self._rows_sent
        self._order()
        words[self._head_at] = self._head = head + 1
        self._ring()


def schema_fingerprint(schema: pa.Schema) -> int:
    """64 bits that two ends compare: never 0, which means no sender has attached yet."""
    digest = hashlib.blake2b(schema.serialize().to_pybytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1


def _empty(schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.nulls(0, f.type) for f in schema], schema=schema)


def _encoded(row: pa.RecordBatch, size: int) -> memoryview:
    if size > JUMBO_BYTES_MAX:
        raise EngineError(
            f"one row takes {size:,} bytes; a channel carries at most {JUMBO_BYTES_MAX:,} per row: "
            "keep large objects in a store and send their names"
        )
    return memoryview(row.serialize()).cast("B")
