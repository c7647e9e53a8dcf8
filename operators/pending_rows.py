"""PendingRows: rows that wait until the watermark has passed them, for work in event-time order.

What is released at a watermark is complete: every row up to it that is not late. Rows wait as
copies in memory, each batch sorted by time, so that a watermark costs what it releases; a barrier
brings them into an appended table, and a restart finds them there.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa

from penstock.elements.signals import WATERMARK_MAX
from penstock.state.backend import StateBackend

from .event_times import times_of
from .key_slots import Keys
from .row_order import Numbers

BATCHES_MAX = 256
"""More batches than this are made one, so that small ones do not add up."""


class _Held(NamedTuple):
    """Rows in the order of their times."""

    rows: pa.RecordBatch
    times: Numbers


class PendingRows:
    """Rows of `schema`, which has `_time`, by the columns of `keys`."""

    def __init__(self, schema: pa.Schema, keys: Keys, state: StateBackend, name: str) -> None:
        self._schema, self._keys = schema, keys
        self._values = pa.schema([f for f in schema if f.name not in keys.names])
        self._table = state.table(name, keys.schema, self._values)
        self._held: list[_Held] = []
        self._earliest = WATERMARK_MAX
        for batch in self._table.scan():
            self.add(batch.select(schema.names))

    @property
    def rows(self) -> int:
        """How many wait."""
        return sum(len(held.times) for held in self._held)

    def add(self, batch: pa.RecordBatch) -> None:
        """Keep a copy of the rows."""
        if not batch.num_rows:
            return
        times = times_of(batch)
        order = np.argsort(times, kind="stable")
        self._held.append(_Held(batch.take(pa.array(order)), times[order]))
        self._earliest = min(self._earliest, int(self._held[-1].times[0]))
        if len(self._held) > BATCHES_MAX:
            whole = pa.concat_batches([held.rows for held in self._held])
            self._held = []
            self.add(whole)

    def release(self, watermark: int) -> pa.RecordBatch | None:
        """Remove and return the rows up to `watermark`; rows of one time in order of arrival, as
        far as nothing else is said."""
        if watermark < self._earliest or not self._held:
            return None
        due, left = [], []
        for held in self._held:
            count = int(np.searchsorted(held.times, watermark, side="right"))
            if count:
                due.append(held.rows.slice(0, count))
            if count < len(held.times):
                left.append(_Held(held.rows.slice(count), held.times[count:]))
        self._held = left
        self._earliest = min((int(held.times[0]) for held in left), default=WATERMARK_MAX)
        return pa.concat_batches(due)

    def store(self) -> None:
        """Bring what waits into state: at a barrier."""
        for _ in self._table.expire(WATERMARK_MAX):
            pass
        for held in self._held:
            keys = self._keys.columns(held.rows)
            self._table.append(
                self._keys.batch(keys),
                held.rows.select(self._values.names),
                held.times,
                self._keys.hashes(keys),
            )
