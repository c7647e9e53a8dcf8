"""At most N rows per key in each span of event time; and samples of keys.

1. Spans are aligned: "1 second" begins at whole seconds. In each, the N earliest rows of a key (by
   time_order) are given once the watermark has passed them, the others go to EXCESS.
2. A row that is late on arrival goes to LATE as it came, and is counted.
A sample keeps all rows of a key or none, by the hash of the key: the same keys in every run.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from penstock.elements.buffers import fixed_values, grown
from penstock.elements.hash import hash_columns
from penstock.elements.signals import WATERMARK_MAX, WATERMARK_MIN

from .event_times import times_of
from .key_slots import Keys, KeySlots
from .pending_rows import PendingRows
from .processor import LATE, MAIN, Processor, ProcessorContext
from .row_order import Numbers, run_starts, time_order

EXCESS = "excess"
"""The side output for rows beyond the limit."""
FORGET_SLOTS_MIN = 4096
"""Keys whose span is over are forgotten when there are this many, and they are half of all."""
STATE = pa.schema([("span", pa.int64()), ("rows", pa.int64())])
_MIX = (np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53))


class RateLimitProcessor(Processor):
    """Input, MAIN, EXCESS and LATE: rows of `in_schema`, which has `_time`."""

    def __init__(self, keys: Sequence[str], count: int, span_ns: int, in_schema: pa.Schema) -> None:
        self.in_schema = self.out_schema = in_schema
        self._keys = Keys(in_schema, keys)
        self._count, self._span_ns = count, span_ns

    @property
    def outputs(self) -> dict[str, pa.Schema]:
        """Rows within the limit, rows beyond it, late rows."""
        return dict.fromkeys((MAIN, EXCESS, LATE), self.in_schema)

    def open(self, ctx: ProcessorContext) -> None:
        """Find the counts and the waiting rows of the checkpoint."""
        self._ctx = ctx
        self._table = ctx.state.table("spans", self._keys.schema, STATE)
        self._slots = KeySlots(self._keys)
        self._span = np.zeros(0, np.int64)
        self._rows = np.zeros(0, np.int64)
        self._dirty = np.zeros(0, np.bool_)
        for batch in self._table.scan():
            slots = self._added(batch.columns[: len(self._keys.schema)])
            self._span[slots] = fixed_values(batch.column("span"))
            self._rows[slots] = fixed_values(batch.column("rows"))
        self._waiting = PendingRows(self.in_schema, self._keys, ctx.state, "waiting")

    def _added(self, columns: Sequence[pa.Array]) -> Numbers:
        slots = self._slots.add(columns)
        room, before = self._slots.capacity, len(self._span)
        if room > before:
            self._span, self._rows = grown(self._span, room), grown(self._rows, room)
            self._dirty = grown(self._dirty, room)
            self._span[before:] = WATERMARK_MIN
        return slots

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """Rows wait for the watermark."""
        self._waiting.add(without_late(batch, self._ctx))

    def on_watermark(self, watermark: int) -> None:
        """Count what is complete."""
        rows = self._waiting.release(watermark)
        if rows is None:
            return
        slots = self._added(self._keys.columns(rows))
        order = time_order(rows, [slots])
        slots, spans = slots[order], times_of(rows)[order] // self._span_ns
        nth = np.arange(len(order)) - run_starts(slots, spans)
        nth += np.where(self._span[slots] == spans, self._rows[slots], 0)
        # The last row of a key says where its count stands.
        last = np.flatnonzero(np.concatenate([slots[1:] != slots[:-1], [True]]))
        self._span[slots[last]], self._rows[slots[last]] = spans[last], nth[last] + 1
        self._dirty[slots[last]] = True
        within = np.zeros(rows.num_rows, np.bool_)
        within[order] = nth < self._count
        self._ctx.collect(rows.filter(pa.array(within)))
        if not within.all():
            self._ctx.collect(rows.filter(pa.array(~within)), EXCESS)
        if watermark != WATERMARK_MAX:
            self._forget(watermark)

    def _forget(self, watermark: int) -> None:
        over = self._span[: self._slots.count] < (watermark + 1) // self._span_ns
        gone = np.flatnonzero(over)
        if len(gone) < FORGET_SLOTS_MIN or 2 * len(gone) < self._slots.count:
            return
        self._table.delete(self._slots.batch(gone), self._slots.hashes(gone))
        keep = np.flatnonzero(~over)
        self._slots.keep(keep)
        room = self._slots.capacity
        self._rows, self._dirty = grown(self._rows[keep], room), grown(self._dirty[keep], room)
        self._span = grown(self._span[keep], room)
        self._span[len(keep) :] = WATERMARK_MIN

    def before_snapshot(self, checkpoint_id: int) -> None:
        """Write the counts that changed, and the rows that wait."""
        slots = np.flatnonzero(self._dirty[: self._slots.count])
        if len(slots):
            columns = [pa.array(self._span[slots]), pa.array(self._rows[slots])]
            values = pa.RecordBatch.from_arrays(columns, schema=STATE)
            self._table.upsert(self._slots.batch(slots), values, self._slots.hashes(slots))
            self._dirty[:] = False
        self._waiting.store()


class KeySampleProcessor(Processor):
    """Input and MAIN: rows of `in_schema`; keeps about `fraction` of the keys, whole."""

    def __init__(
        self, keys: Sequence[str], fraction: float, seed: int, in_schema: pa.Schema
    ) -> None:
        assert 0 <= fraction <= 1
        self.in_schema = self.out_schema = in_schema
        self._keys, self._fraction, self._seed = tuple(keys), fraction, seed

    def open(self, ctx: ProcessorContext) -> None:
        """Nothing to find: the hash decides."""
        self._ctx = ctx

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """Keep the rows whose key is in the sample."""
        # Rows were routed by the same hash: mixed again, its high bits are spread anew.
        mixed = hash_columns(batch, self._keys) ^ np.uint64(self._seed)
        for factor in _MIX:
            mixed ^= mixed >> np.uint64(33)
            mixed *= factor
        mixed ^= mixed >> np.uint64(33)
        # 53 bits are what a double holds exactly.
        keep = (mixed >> np.uint64(11)).astype(np.float64) < self._fraction * 2.0**53
        self._ctx.collect(batch if keep.all() else batch.filter(pa.array(keep)))


def without_late(batch: pa.RecordBatch, ctx: ProcessorContext) -> pa.RecordBatch:
    """The rows ahead of the watermark; the others go to LATE and are counted."""
    late = times_of(batch) <= ctx.watermark
    if not late.any():
        return batch
    rows = batch.filter(pa.array(late))
    ctx.count("late", rows.num_rows)
    ctx.collect(rows, LATE)
    return batch.filter(pa.array(~late))
