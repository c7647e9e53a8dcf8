"""TimedTable: a small table whose rows hold from one event time until another.

Changes wait until the watermark passes them, and are then applied in the order of time; a -1 takes
back the oldest equal row. What has been taken back goes once no row can ask for that time any more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from penstock.elements.changelog import CHANGE, weight_array, weights_of, with_change
from penstock.elements.hash import Hashes
from penstock.elements.signals import TIME_COLUMN, WATERMARK_MAX, WATERMARK_MIN

from .event_times import TIME_FIELD, time_array, times_of
from .join_rows import JoinRows, Numbers, Pairs
from .join_sides import key_hashes, without_null_keys
from .waiting_rows import split_at


class TimedTable:
    """The rows of a stream with `schema`; without `_time` they hold for all times."""

    def __init__(self, schema: pa.Schema, keys: Sequence[str]) -> None:
        plain = [f for f in schema if f.name not in (CHANGE, TIME_COLUMN)]
        self._keys = tuple(keys)
        self._full = with_change(pa.schema([*plain, TIME_FIELD]))
        self.rows = JoinRows("table", pa.schema(plain), keys, None, whole=CHANGE in schema.names)
        self.changed = False
        """Whether it differs from what was last stored; its owner resets it."""
        self._until = np.zeros(0, np.int64)
        self._ended: list[Numbers] = []
        self._coming: list[pa.RecordBatch] = []

    def add(self, batch: pa.RecordBatch, watermark: int = WATERMARK_MIN) -> int:
        """Changes to come; how many of them are late. Copies."""
        if not batch.num_rows:
            return 0
        self.changed = True
        timed = TIME_COLUMN in batch.schema.names
        times = times_of(batch) if timed else np.full(batch.num_rows, WATERMARK_MIN + 1, np.int64)
        arrays = {name: batch.column(name) for name in self.rows.schema.names}
        arrays[CHANGE] = weight_array(weights_of(batch))
        arrays[TIME_COLUMN] = time_array(times)
        whole = pa.RecordBatch.from_arrays(
            [arrays[name] for name in self._full.names], schema=self._full
        )
        usable = np.flatnonzero(without_null_keys(whole, self._keys))
        self._coming.append(whole.take(pa.array(usable)))
        return int((times <= watermark).sum()) if timed else 0

    def advance(self, watermark: int) -> None:
        """Apply the changes up to the watermark."""
        if not self._coming:
            return
        due, later = split_at(pa.concat_batches(self._coming), watermark)
        self._coming = [later] if later.num_rows else []
        if not due.num_rows:
            return
        self.changed = True
        weights, times = weights_of(due), times_of(due)
        added = np.flatnonzero(weights > 0)
        if len(added):
            rows = due.take(pa.array(added)).select(self.rows.schema.names)
            slots = self.rows.insert(rows, times[added], key_hashes(rows, self._keys))
            if len(self._until) < self.rows.capacity:
                until = np.full(self.rows.capacity, WATERMARK_MAX, np.int64)
                until[: len(self._until)] = self._until
                self._until = until
            self._until[slots] = WATERMARK_MAX
        back = np.flatnonzero(weights < 0)
        if len(back):
            back = back[np.argsort(times[back], kind="stable")]
            slots = self.rows.find(due.take(pa.array(back)).select(self.rows.schema.names))
            known = slots >= 0
            self._until[slots[known]] = times[back][known]
            self._ended.append(slots[known])

    def probe(self, batch: pa.RecordBatch, hashes: Hashes, times: Numbers) -> Iterator[Pairs]:
        """(row of `batch`, slot) of equal keys, of what holds at the row's time."""
        low = np.full(len(times), WATERMARK_MIN, np.int64)
        for index, slots in self.rows.probe(batch, hashes, low, times):
            holds = self._until[slots] > times[index]
            if holds.all():
                yield index, slots
            elif holds.any():
                yield index[holds], slots[holds]

    def forget(self) -> None:
        """Rows that were taken back are in nobody's time any more."""
        if self._ended:
            self.changed = True
            self.rows.remove(np.concatenate(self._ended))
            self._ended = []

    def content(self) -> pa.RecordBatch:
        """All there is, as the changes that lead to it."""
        assert not self._ended
        slots = self.rows.all_slots()
        held = self.rows.take(slots)
        arrays = {name: held.column(name) for name in held.schema.names}
        arrays[CHANGE] = weight_array(np.ones(len(slots), np.int8))
        arrays[TIME_COLUMN] = time_array(self.rows.times[slots])
        present = pa.RecordBatch.from_arrays(
            [arrays[name] for name in self._full.names], schema=self._full
        )
        return pa.concat_batches([present, *self._coming])
