"""PendingRows: rows that wait until the watermark has passed them, for work in event-time order.

What is released at a watermark is complete: every row up to it that is not late. Rows wait as
copies in memory; a barrier brings them into an appended table, a restart finds them there.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from penstock.elements.signals import WATERMARK_MAX
from penstock.state.backend import StateBackend

from .event_times import times_of
from .key_slots import Keys


class PendingRows:
    """Rows of `schema`, which has `_time`, by the columns of `keys`."""

    def __init__(self, schema: pa.Schema, keys: Keys, state: StateBackend, name: str) -> None:
        self._schema, self._keys = schema, keys
        self._values = pa.schema([f for f in schema if f.name not in keys.names])
        self._table = state.table(name, keys.schema, self._values)
        self._held = [b.select(schema.names) for b in self._table.scan() if b.num_rows]
        self._earliest = min((int(times_of(b).min()) for b in self._held), default=WATERMARK_MAX)

    @property
    def rows(self) -> int:
        """How many wait."""
        return sum(batch.num_rows for batch in self._held)

    def add(self, batch: pa.RecordBatch) -> None:
        """Keep a copy of the rows."""
        if batch.num_rows:
            self._held.append(batch.take(pa.array(np.arange(batch.num_rows))))
            self._earliest = min(self._earliest, int(times_of(batch).min()))

    def release(self, watermark: int) -> pa.RecordBatch | None:
        """Remove and return the rows up to `watermark`, in the order of their arrival."""
        if watermark < self._earliest or not self._held:
            return None
        whole = pa.concat_batches(self._held)
        due = times_of(whole) <= watermark
        if due.all():
            self._held, self._earliest = [], WATERMARK_MAX
            return whole
        self._held = [whole.filter(pa.array(~due))]
        self._earliest = int(times_of(self._held[0]).min())
        return whole.filter(pa.array(due))

    def store(self) -> None:
        """Bring what waits into state: at a barrier."""
        for _ in self._table.expire(WATERMARK_MAX):
            pass
        for batch in self._held:
            keys = self._keys.columns(batch)
            self._table.append(
                self._keys.batch(keys),
                batch.select(self._values.names),
                times_of(batch),
                self._keys.hashes(keys),
            )
