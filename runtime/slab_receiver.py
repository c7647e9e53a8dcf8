"""The reading end of a channel in shared memory: batches are views of the sender's slots.

A message is decoded in place; its slot is free again when the last view of it dies, in any order
and in any thread (lease.py). Operators need not know. Once more than half of the slots are held
that way, further messages are copied out, so that a reader that keeps rows never stops its sender
(hazards 3, 4): held are leased slots only, not those that wait to be taken.
"""

from __future__ import annotations

import pyarrow as pa
from pyarrow import ipc

from penstock.elements.errors import ChannelAborted, ProtocolError
from penstock.elements.signals import Kind
from penstock.elements.wire import wire_schema

from .channel import ChannelStatistics, Message
from .doorbell import Doorbell
from .fence import Fence, no_fence, order_fence
from .lease import Lease, fenced_lease
from .segment import Segment
from .slab import (
    ABORT,
    DESCRIPTOR_COUNT,
    DESCRIPTOR_WORDS,
    DESCRIPTORS,
    FREE,
    HEAD,
    JUMBO_BYTES_MAX,
    KIND_SHIFT,
    ROWS_LIMIT,
    ROWS_SENT,
    ROWS_TAKEN,
    SCHEMA,
    SIZE_MASK,
    SLOT_MASK,
    SLOT_SHIFT,
    TAIL,
    USED,
    WAITING,
    WAITS_FOR_READ,
    WAITS_FOR_SLOT,
)
from .slab_sender import schema_fingerprint

_KINDS = {int(kind): kind for kind in Kind}


class SlabReceiver:
    """A Receiver. Requires: one thread, one receiver per region and attempt.

    `bell` is the one its owner waits on when there is nothing to poll.
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
        """Yields batches of `wire_schema(schema)`."""
        place = segment.regions[region]
        self.bell = receiver_bell
        self._ring = sender_bell.ring
        self._place = place
        self._slots = place.size.slots
        self._address = segment.address()
        self._bytes = segment.bytes
        self._states = segment.states(region)
        self._words = segment.words
        self._signed = segment.signed_words
        self._head_at = place.word(HEAD)
        self._rows_sent_at = place.word(ROWS_SENT)
        self._tail_at = place.word(TAIL)
        self._rows_taken_at = place.word(ROWS_TAKEN)
        self._rows_limit_at = place.word(ROWS_LIMIT)
        self._waiting_at = place.word(WAITING)
        self._abort_at = place.word(ABORT)
        self._schema_at = place.word(SCHEMA)
        self._descriptors_at = place.word(DESCRIPTORS)
        self._order = order_fence() if fence is None else fence
        self._lease = Lease if self._order is no_fence else fenced_lease(self._order)
        self._schema = wire_schema(schema)
        self._held = bytearray(self._slots)
        self._held_max = self._slots // 2
        self._tail = 0
        self._jumbo: pa.Buffer | None = None
        self._jumbo_taken = 0
        self._rows = 0
        self._bytes_taken = 0
        self._copies = 0

    def poll(self) -> Message | None:
        """The next message, or None when there is none now."""
        words = self._words
        if words[self._abort_at]:
            raise ChannelAborted("the sender of a channel is gone, or the attempt was cancelled")
        while words[self._head_at] != self._tail:
            self._order()
            at = self._descriptors_at + DESCRIPTOR_WORDS * (self._tail & (DESCRIPTOR_COUNT - 1))
            descriptor = words[at]
            kind = _KINDS.get(descriptor >> KIND_SHIFT)
            size = descriptor & SIZE_MASK
            slot = descriptor >> SLOT_SHIFT & SLOT_MASK
            if kind is Kind.BATCH:
                rows = words[at + 1]
                if not self._tail:
                    self._check_schema()
                batch = self._take_slot(slot, size)
                self._taken(rows, size)
                return Message(Kind.BATCH, batch=batch)
            if kind is Kind.JUMBO:
                whole = self._take_chunk(slot, size, words[at + 1])
                self._taken(0 if whole is None else whole.num_rows, size)
                if whole is None:
                    continue
                return Message(Kind.BATCH, batch=whole)
            if kind is None or kind is Kind.SCHEMA:
                raise ProtocolError(f"a channel carries a message of unknown kind: {descriptor:#x}")
            value = self._signed[at + 1] if kind is Kind.WATERMARK else words[at + 1]
            self._taken(0, 0)
            return Message(kind, value)
        return None

    def limit_rows(self, rows: int) -> None:
        """Let at most `rows` lie unread; the sender cuts batches to fit (hazard 8)."""
        self._words[self._rows_limit_at] = max(1, rows)
        self._order()
        if self._words[self._waiting_at] == WAITS_FOR_READ:
            self._ring()

    @property
    def held_slots(self) -> int:
        """Slots whose message some view still holds; `process()` should leave it as it was."""
        return self._held.count(1)

    def statistics(self) -> ChannelStatistics:
        """`queued_rows` counts what is published and not taken."""
        return ChannelStatistics(
            messages=self._tail,
            rows=self._rows,
            bytes=self._bytes_taken,
            copies=self._copies,
            waits=0,
            queued_rows=self._words[self._rows_sent_at] - self._rows,
        )

    def _taken(self, rows: int, size: int) -> None:
        """The descriptor is read: its place in the ring and its rows are the sender's again."""
        words = self._words
        self._tail += 1
        self._bytes_taken += size
        if rows:
            self._rows += rows
            words[self._rows_taken_at] = self._rows
        self._order()
        words[self._tail_at] = self._tail
        self._order()
        if words[self._waiting_at] == WAITS_FOR_READ:
            self._ring()

    def _take_slot(self, slot: int, size: int) -> pa.RecordBatch:
        begin = self._place.slot_offset(slot)
        if self._held.count(1) < self._held_max:
            lease = self._lease(
                slot, self._held, self._states, self._words, self._waiting_at, self._ring
            )
            body = pa.foreign_buffer(self._address + begin, size, base=lease)
        else:
            body = pa.allocate_buffer(size)
            memoryview(body).cast("B")[:] = self._bytes[begin : begin + size]
            self._copies += 1
            self._free(slot)
        return ipc.read_record_batch(body, self._schema)

    def _take_chunk(self, slot: int, size: int, total: int) -> pa.RecordBatch | None:
        """Copy a chunk to its place; the row, once it is whole."""
        if self._jumbo is None:
            if total > JUMBO_BYTES_MAX:
                raise ProtocolError(f"a channel announces a row of {total:,} bytes")
            self._jumbo = pa.allocate_buffer(total)
            self._jumbo_taken = 0
        begin, taken = self._place.slot_offset(slot), self._jumbo_taken
        memoryview(self._jumbo).cast("B")[taken : taken + size] = self._bytes[begin : begin + size]
        self._jumbo_taken = taken + size
        self._free(slot)
        if self._jumbo_taken < total:
            return None
        whole, self._jumbo = self._jumbo, None
        return ipc.read_record_batch(whole, self._schema)

    def _free(self, slot: int) -> None:
        """What a lease's death does, for a slot that needed none."""
        assert self._states[slot] == USED
        self._order()
        self._states[slot] = FREE
        self._order()
        if self._words[self._waiting_at] == WAITS_FOR_SLOT:
            self._ring()

    def _check_schema(self) -> None:
        written = self._words[self._schema_at]
        expected = schema_fingerprint(self._schema)
        if written != expected:
            raise ProtocolError(
                f"the two ends of a channel disagree on its schema ({written:#x}, not "
                f"{expected:#x}); this end expects:\n{self._schema.to_string()}"
            )
