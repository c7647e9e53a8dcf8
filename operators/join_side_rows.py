"""OneSide: the rows of one side of an inner join, live in columns and logged in state.

Promises: `store`, called before a cut, logs what came since the last one, so that the live rows are
the only ones between checkpoints; opening reads them back. Rows below the cut stay until `drop`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penstock.elements.buffers import fixed_dtype
from penstock.elements.errors import StateError
from penstock.elements.hash import Hashes, hash_arrays
from penstock.elements.signals import TIME_COLUMN, WATERMARK_MIN
from penstock.state.backend import AppendLog, StateBackend

from .join_arrays import GrowingArray
from .join_columns import KeptColumn, keep_values, kept_column
from .join_sides import LEFT, Numbers, Side

ROWS_MAX = 2**31 - 2
"""Rows of one side in one subtask: row numbers are 32 bits wide."""
BLOCK_ROWS = 1 << 12
"""Each block knows its latest time, so that rows that are to go are counted without reading all."""
LOG_ROWS = 1 << 20
"""Rows that are logged at a time: arrays of this size lie in huge pages, a fifth of the cost."""
LOG_TEXT_ROWS = 1 << 14
"""The same where values have no fixed size: no array may come near the 2 GiB that Arrow takes."""


class OneSide:
    """Rows in slots 0, 1, 2, …, and the log that is their state."""

    def __init__(self, side: Side, state: StateBackend, *, bounded: bool) -> None:
        self._side, self._bounded = side, bounded
        self._timed = TIME_COLUMN in side.schema.names
        values = pa.schema([f for f in side.value_schema if f.name != TIME_COLUMN])
        self.keys, self.values = list(side.keys), values.names
        self._columns: dict[str, KeptColumn] = {
            name: kept_column(side.schema.field(name).type) for name in [*self.keys, *self.values]
        }
        self._times = GrowingArray(np.dtype(np.int64)) if bounded or self._timed else None
        self._hashes = GrowingArray(np.dtype(np.uint64)) if bounded else None
        self._latest = GrowingArray(np.dtype(np.int64))  # per block
        self._before = WATERMARK_MIN
        self.count = 0
        self._log_schema = pa.schema([*side.key_schema, *values])
        self._fixed = all(fixed_dtype(field.type) is not None for field in self._log_schema)
        self._logged = 0
        self._unlogged: list[Hashes] = []  # of rows that never go; of others all are kept
        name = "left" if side.port == LEFT else "right"
        self._log: AppendLog = state.log(f"{name}_rows", side.key_schema, values)

    @property
    def rows(self) -> int:
        """Rows that are not forgotten."""
        if not self._bounded:
            return self.count
        return int(np.count_nonzero(self.times >= self._before))

    @property
    def times(self) -> Numbers:
        """The time of each slot."""
        assert self._times is not None
        times: Numbers = self._times.values[: self.count]
        return times

    @property
    def hashes(self) -> Hashes:
        """The hash of each slot's key."""
        assert self._hashes is not None
        hashes: Hashes = self._hashes.values[: self.count]
        return hashes

    def add(self, batch: pa.RecordBatch, times: Numbers, hashes: Hashes) -> int:
        """Keep the rows of a batch of this side; the slot of the first. Copies, but for hashes."""
        first, self.count = self.count, self.count + batch.num_rows
        if self.count > ROWS_MAX:
            raise StateError(
                f"join: the {('left', 'right')[self._side.port]} side has more than {ROWS_MAX} "
                "rows in one subtask. Give the join a smaller ttl=, or the job more parallelism."
            )
        for name, column in self._columns.items():
            column.append(first, batch.column(name))
        if self._times is not None:
            self._times.reserve(self.count)
            self._times.values[first : self.count] = times
        if self._hashes is not None:
            self._hashes.reserve(self.count)
            self._hashes.values[first : self.count] = hashes
            if batch.num_rows:
                self._note_latest(first, times)
        else:
            self._unlogged.append(hashes)
        return first

    def take(self, slots: Numbers, names: Sequence[str]) -> pa.RecordBatch:
        """These columns of the rows, copied."""
        arrays = [self.array(name, slots) for name in names]
        schema = pa.schema([self._side.schema.field(name) for name in names])
        return pa.RecordBatch.from_arrays(arrays, schema=schema)

    def array(self, name: str, slots: Numbers) -> pa.Array:
        """One column of the rows, copied."""
        return self._columns[name].take(slots)

    def have_keys(
        self, slots: Numbers, batch: pa.RecordBatch, index: Numbers | None
    ) -> npt.NDArray[np.bool_]:
        """Whether slot i has the key of its row of `batch`."""
        rows = rows_of(index, slots)
        same = np.ones(len(slots), np.bool_)
        for name in self.keys:
            same &= self._columns[name].equal(slots, batch.column(name), rows)
        return same

    # Forgetting -------------------------------------------------------------------------------

    def cut(self, before_ns: int) -> None:
        """Rows that are older match nothing any more."""
        if before_ns > self._before:
            self._before = before_ns
            self._log.cut(before_ns)

    def gone(self) -> int:
        """How many rows are below the cut, at least."""
        if not self.count or not self._bounded:
            return 0
        blocks = -(-self.count // BLOCK_ROWS)
        below = self._latest.values[:blocks] < self._before
        gone = int(np.count_nonzero(below)) * BLOCK_ROWS
        return gone - (-self.count % BLOCK_ROWS if below[-1] else 0)

    def drop(self) -> None:
        """Keep only rows that are not below the cut."""
        keep = np.flatnonzero(self.times >= self._before)
        self._logged = int(np.searchsorted(keep, self._logged))
        if len(keep) == self.count:
            return
        for column in self._columns.values():
            column.keep(keep)
        assert self._times is not None
        assert self._hashes is not None
        keep_values(self._times, keep)
        keep_values(self._hashes, keep)
        self.count = len(keep)
        if self.count:
            self._note_latest(0, self.times)

    def _note_latest(self, first: int, times: Numbers) -> None:
        block, end = first // BLOCK_ROWS, -(-(first + len(times)) // BLOCK_ROWS)
        self._latest.reserve(end)
        starts = np.arange(block, end) * BLOCK_ROWS - first
        starts[0] = 0
        latest = np.maximum.reduceat(times, starts)
        if first % BLOCK_ROWS:
            latest[0] = max(int(latest[0]), int(self._latest.values[block]))
        self._latest.values[block:end] = latest

    # State ------------------------------------------------------------------------------------

    def store(self) -> None:
        """Log what came since the last cut and has not been forgotten since."""
        hashes = all_of(self._unlogged) if self._hashes is None else self.hashes[self._logged :]
        step = LOG_ROWS if self._fixed else LOG_TEXT_ROWS
        for start in range(self._logged, self.count, step):
            stop = min(start + step, self.count)
            some = hashes[start - self._logged : stop - self._logged]
            self._store(start, stop, some)
        self._logged = self.count
        self._unlogged = []

    def _store(self, start: int, stop: int, hashes: Hashes) -> None:
        times = np.zeros(stop - start, np.int64)
        if self._times is not None:
            times[:] = self.times[start:stop]
        stays = times >= self._before
        if not self._bounded or stays.all():
            arrays = {name: each.slice(start, stop) for name, each in self._columns.items()}
        else:
            slots = start + np.flatnonzero(stays)
            arrays = {name: each.take(slots) for name, each in self._columns.items()}
            times, hashes = times[stays], hashes[stays]
        rows = pa.RecordBatch.from_arrays(list(arrays.values()), schema=self._log_schema)
        # Of one batch, since a side may have no columns but its keys.
        keys, values = rows.select(self.keys), rows.select(self.values)
        self._log.append(keys, values, times, hashes, owned=True)

    def restored(self) -> Iterator[tuple[int, Hashes]]:
        """Keeps the rows of the checkpoint; the slot of the first and the hashes, in steps."""
        for stored in self._log.restored():
            arrays = [stored.column(field.name) for field in self._log_schema]
            arrays = [
                array if array.type == field.type else array.cast(field.type)
                for array, field in zip(arrays, self._log_schema, strict=True)
            ]
            rows = pa.RecordBatch.from_arrays(arrays, schema=self._log_schema)
            hashes = hash_arrays([rows.column(key) for key in self.keys], rows.num_rows)
            first = self.add(rows, stored.column(TIME_COLUMN).to_numpy(), hashes)
            self._logged, self._unlogged = self.count, []
            yield first, hashes


def all_of(parts: list[Hashes]) -> Hashes:
    """One array of them."""
    return np.concatenate(parts) if parts else np.zeros(0, np.uint64)


def rows_of(index: Numbers | None, slots: Numbers) -> Numbers:
    """The row of the batch of each pair."""
    return np.arange(len(slots)) if index is None else index
