"""WaitingRows: rows that wait until the watermark passes them, owned and kept in state.

A cut appends what came since the last one and drops what has gone on; rows that come and go
between two cuts never touch state.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penstock.elements.hash import hash_columns
from penstock.elements.signals import TIME_COLUMN, WATERMARK_MAX, WATERMARK_MIN
from penstock.state.backend import StateBackend

from .event_times import times_of

Times = npt.NDArray[np.int64]


class WaitingRows:
    """Rows with `schema`, which has `_time`; their keys decide where they go in a rescale."""

    def __init__(
        self, name: str, schema: pa.Schema, keys: Sequence[str], state: StateBackend
    ) -> None:
        self._schema = schema
        self._keys = list(keys)
        self._others = [n for n in schema.names if n not in keys and n != TIME_COLUMN]
        # A table holds the time of an appended row by itself; one column of the user's at least
        # is no condition, the keys are there.
        key_schema = pa.schema([schema.field(key) for key in keys])
        value_schema = pa.schema([schema.field(name) for name in self._others])
        self._table = state.table(name, key_schema, value_schema)
        found = [self._restored(rows) for rows in self._table.scan() if rows.num_rows]
        self._stored = pa.concat_batches(found) if found else self._none()
        self._fresh: list[pa.RecordBatch] = []
        self._done = WATERMARK_MIN

    @property
    def rows(self) -> int:
        """Rows that wait."""
        return sum(int(batch.num_rows) for batch in [self._stored, *self._fresh])

    def add(self, batch: pa.RecordBatch) -> None:
        """Keep rows; copies them."""
        if batch.num_rows:
            self._fresh.append(batch.take(pa.array(np.arange(batch.num_rows))))

    def due(self, watermark: int) -> pa.RecordBatch:
        """Remove and return the rows with `_time` <= `watermark`."""
        self._done = watermark
        ready = []
        if self._stored.num_rows:
            now, self._stored = split_at(self._stored, watermark)
            ready.append(now)
        if self._fresh:
            now, later = split_at(pa.concat_batches(self._fresh), watermark)
            ready.append(now)
            self._fresh = [later] if later.num_rows else []
        return pa.concat_batches(ready) if ready else self._none()

    def store(self) -> None:
        """A cut comes: bring what changed into state."""
        for _ in self._table.expire(min(self._done, WATERMARK_MAX - 1) + 1):
            pass
        if not self._fresh:
            return
        fresh = pa.concat_batches(self._fresh)
        keys, values = fresh.select(self._keys), fresh.select(self._others)
        self._table.append(keys, values, times_of(fresh), hash_columns(fresh, self._keys))
        self._stored = pa.concat_batches([self._stored, fresh])
        self._fresh = []

    def _restored(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        times = rows.column(TIME_COLUMN).cast(self._schema.field(TIME_COLUMN).type)
        arrays = [times if n == TIME_COLUMN else rows.column(n) for n in self._schema.names]
        arrays = [a.cast(f.type) for a, f in zip(arrays, self._schema, strict=True)]
        return pa.RecordBatch.from_arrays(arrays, schema=self._schema)

    def _none(self) -> pa.RecordBatch:
        return pa.RecordBatch.from_pylist([], schema=self._schema)


def split_at(batch: pa.RecordBatch, watermark: int) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    """(rows at or before the watermark, the others)."""
    now: npt.NDArray[np.bool_] = times_of(batch) <= watermark
    if now.all():
        return batch, batch.slice(0, 0)
    return batch.filter(pa.array(now)), batch.filter(pa.array(~now))
