"""The first row of each key, and no other until a TTL has passed: an append-only stream.

1. By event time: the earliest row of a key (ties: row_order) is given once the watermark has passed
   it; the rows given do not depend on the order of arrival. A row that is late is given at once if
   its key has not been, so no key is lost.
2. By arrival: the row that came first is given as it comes.
3. With a TTL a row at least that much later than the last one given of its key is given again.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from penstock.elements.buffers import fixed_values, grown
from penstock.elements.signals import TIME_COLUMN, WATERMARK_MAX, WATERMARK_MIN

from .event_times import times_of
from .grouping import Mask
from .key_slots import Keys, KeySlots
from .pending_rows import PendingRows
from .processor import Processor, ProcessorContext
from .row_order import Numbers, time_order

THIN_ROWS_MIN = 64 * 1024
"""Waiting rows that are worth looking through for those that cannot be first."""
FOR_EVER = WATERMARK_MAX


class FirstRowProcessor(Processor):
    """Input and MAIN: rows of `in_schema`. Without `_time` rows go by arrival."""

    keeps_by_key_only = True

    def __init__(
        self,
        keys: Sequence[str],
        in_schema: pa.Schema,
        by_event_time: bool,
        ttl_ns: int | None = None,
    ) -> None:
        timed = TIME_COLUMN in in_schema.names
        assert timed or not (by_event_time or ttl_ns)
        self.in_schema = self.out_schema = in_schema
        self._keys = Keys(in_schema, keys)
        self._by_event_time, self._ttl_ns, self._timed = by_event_time, ttl_ns, timed

    def open(self, ctx: ProcessorContext) -> None:
        """Find what has been given, and what waits."""
        self._ctx = ctx
        self._table = ctx.state.table(
            "given", self._keys.schema, pa.schema([("until", pa.int64())])
        )
        self._slots = KeySlots(self._keys)
        self._until = np.zeros(0, np.int64)
        """A key's rows before this are repetitions."""
        self._dirty = False
        """Whether something is not in state yet."""
        self._looked_ns = WATERMARK_MIN
        for batch in self._table.scan():
            slots = self._added(batch.columns[: len(self._keys.schema)])
            self._until[slots] = fixed_values(batch.column("until"))
        self._waiting: PendingRows | None = None
        if self._by_event_time:
            self._waiting = PendingRows(self.in_schema, self._keys, ctx.state, "waiting")
        self._thin_at = THIN_ROWS_MIN

    def _added(self, columns: Sequence[pa.Array]) -> Numbers:
        slots = self._slots.add(columns)
        room, before = self._slots.capacity, len(self._until)
        if room > before:
            self._until = grown(self._until, room)
            self._until[before:] = WATERMARK_MIN
        return slots

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """Give first rows, or keep rows that may be first until it is known."""
        slots = self._added(self._keys.columns(batch))
        times = times_of(batch) if self._timed else np.zeros(batch.num_rows, np.int64)
        maybe = times >= self._until[slots]
        if not maybe.any():
            return
        if self._waiting is None:
            self._give(batch, slots, times, np.flatnonzero(maybe))
            return
        if int(times.min()) <= self._ctx.watermark:
            late = maybe & (times <= self._ctx.watermark)
            if late.any():
                self._give_in_order(batch.filter(pa.array(late)))
                maybe &= ~late
        # Of one key and batch only the earliest can be first, if it is so for ever.
        rows = self._thinned(batch, slots, np.flatnonzero(maybe))
        every = len(rows) == batch.num_rows
        self._waiting.add(batch if every else batch.take(pa.array(rows)))
        if self._ttl_ns is None and self._waiting.rows >= self._thin_at:
            self._thin()

    def _thinned(self, batch: pa.RecordBatch, slots: Numbers, rows: Numbers) -> Numbers:
        if self._ttl_ns is not None or self._slots.distinct(slots[rows]):
            return rows
        found = batch.take(pa.array(rows))
        order = time_order(found, [slots[rows]])
        return np.sort(rows[order[_firsts(slots[rows][order])]])

    def _thin(self) -> None:
        assert self._waiting is not None
        rows = self._waiting.release(WATERMARK_MAX)
        if rows is not None:
            slots = self._added(self._keys.columns(rows))
            keep = self._thinned(rows, slots, np.arange(rows.num_rows))
            self._waiting.add(rows.take(pa.array(keep)))
        self._thin_at = THIN_ROWS_MIN + 2 * self._waiting.rows

    def _give_in_order(self, rows: pa.RecordBatch) -> None:
        slots = self._added(self._keys.columns(rows))
        self._give(rows, slots, times_of(rows), time_order(rows, [slots]))

    def _give(self, rows: pa.RecordBatch, slots: Numbers, times: Numbers, order: Numbers) -> None:
        """Give the first rows among those of `order`; a key's rows are in the order that counts."""
        given = []
        while len(order):
            order = order[times[order] >= self._until[slots[order]]]
            first = order[np.unique(slots[order], return_index=True)[1]]
            if len(first):
                given.append(first)
                ttl_ns = FOR_EVER if self._ttl_ns is None else self._ttl_ns
                # No later than what 64 bits can say: times reach to their end.
                self._until[slots[first]] = np.minimum(times[first], FOR_EVER - ttl_ns) + ttl_ns
                self._dirty = True
            if self._ttl_ns is None:
                break
        if given:
            self._ctx.collect(rows.take(pa.array(np.sort(np.concatenate(given)))))

    def on_watermark(self, watermark: int) -> None:
        """Give what has become certain; forget keys whose time is over."""
        if self._waiting is not None:
            rows = self._waiting.release(watermark)
            if rows is not None:
                self._give_in_order(rows)
        ttl_ns = self._ttl_ns
        if ttl_ns is None or watermark == WATERMARK_MAX:
            return
        if self._looked_ns == WATERMARK_MIN or watermark - self._looked_ns > ttl_ns // 8:
            self._looked_ns = watermark
            self._forget(watermark)

    def _forget(self, watermark: int) -> None:
        until = self._until[: self._slots.count]
        # Every row that is still to come lies behind the watermark, and would be given anyway;
        # by arrival also late rows come, so keys are kept for a TTL more.
        slack_ns = 0 if self._by_event_time else self._ttl_ns or 0
        over: Mask = until <= watermark - slack_ns
        if over.any():
            keep = np.flatnonzero(~over)
            until = self._until[keep]
            self._slots.keep(keep)
            self._dirty = True
            self._until = grown(until, self._slots.capacity)
            self._until[len(keep) :] = WATERMARK_MIN

    def before_snapshot(self, checkpoint_id: int) -> None:
        """Hand over the keys that were given, if there are others now, and the rows that wait."""
        if self._dirty:
            self._dirty = False
            # Keys whose first row still waits were never given.
            slots = np.flatnonzero(self._until[: self._slots.count] > WATERMARK_MIN)
            until = pa.RecordBatch.from_arrays([pa.array(self._until[slots])], ["until"])
            self._table.replace(self._slots.batch(slots), until, self._slots.hashes(slots))
        if self._waiting is not None:
            self._waiting.store()


def _firsts(words: Numbers) -> Mask:
    """Whether each row differs from the one before it."""
    return np.concatenate([[True], words[1:] != words[:-1]])
