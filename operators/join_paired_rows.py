"""PairedRows: the rows of both sides of an inner join whose rows are never taken back.

They are kept once: here, live, in columns that grow without being copied. State is a log, which
holds rows only until a complete checkpoint has them. Rows leave by time alone: those below the cut
match nothing any more, and go together once they are as many as the others.
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

from .event_times import time_array
from .join_arrays import GrowingArray
from .join_columns import KeptColumn, keep_values, kept_column
from .join_condition import JoinCondition
from .join_sides import LEFT, Numbers, Results, Side
from .kernels.join_cell_choice import new_cells

ROWS_MAX = 2**31 - 2
"""Rows of one side in one subtask: row numbers are 32 bits wide."""
BLOCK_ROWS = 1 << 12
"""Each block knows its latest time, so that rows that are to go are counted without reading all."""
DROPPED_ROWS_MIN = 1 << 16
"""Rows below the cut that are not worth the work of dropping them."""

SomePairs = tuple[npt.NDArray[np.int64] | None, Numbers]
"""(row of a batch, slot) of pairs; no rows: slot i goes with row i."""


class PairedRows:
    """Rows of both sides by key. `bounded`: they match by time, and `cut` forgets the old ones."""

    def __init__(
        self,
        sides: tuple[Side, Side],
        results: Results,
        state: StateBackend,
        condition: JoinCondition | None,
        *,
        bounded: bool,
    ) -> None:
        self._results, self._condition, self._bounded = results, condition, bounded
        self._cells = new_cells()
        kinds = [side.schema.field(name).type for side in sides for name in side.keys]
        # Equal hashes of one word are equal keys.
        self._exact = len(kinds) == 2 and fixed_dtype(kinds[0]) is not None
        same = self._exact and not pa.types.is_floating(kinds[0])
        # Then the other side's key need not be kept: it is that of the row that finds it.
        keyed = bounded or condition is not None or not same
        left, right = (OneSide(side, state, keyed=keyed, bounded=bounded) for side in sides)
        self.sides = (left, right)
        for port, kept in enumerate(self.sides):
            for first, hashes in kept.restored():
                self._cells.link(port, hashes, first)

    def take(
        self,
        batch: pa.RecordBatch,
        times: Numbers,
        hashes: Hashes,
        port: int,
        between: tuple[Numbers, Numbers] | None,
    ) -> Iterator[SomePairs]:
        """Keep the rows, which have no null keys; their pairs with the other side.

        A bounded join pairs rows of times `between`, ends included. To be exhausted
        before the next call.
        """
        mine, other = self.sides[port], self.sides[1 - port]
        found = self._cells.link(port, hashes, mine.add(batch, times, hashes))
        if not other.count:
            return
        within = None if between is None else (other.times, *between)
        for index, slots in self._cells.pairs(port, found, within):
            true = None
            if not self._exact:
                true = other.have_keys(slots, batch, index)
            if self._condition is not None and (true is None or true.any()):
                if true is not None and not true.all():
                    index, slots = chosen(index, slots, true)
                true = self._condition.of_slots(batch, rows_of(index, slots), other, slots, port)
            if true is not None and not true.all():
                index, slots = chosen(index, slots, true)
            if len(slots):
                yield index, slots

    def pair_times(
        self, times: Numbers, index: Numbers | None, slots: Numbers, port: int
    ) -> tuple[Numbers, Numbers]:
        """The times of both rows of each pair, those of `port` first."""
        mine = times if index is None else np.take(times, index)
        return mine, np.take(self.sides[1 - port].times, slots)

    def results(
        self,
        batch: pa.RecordBatch,
        times: Numbers | None,
        index: Numbers | None,
        slots: Numbers,
        port: int,
    ) -> pa.RecordBatch:
        """The rows of `batch`, of side `port`, and of the other side as results, at `times`."""
        side, other = self.sides[port], self.sides[1 - port]
        # Keys are those of the left row, or of any where they are the same to the bit.
        found = port != LEFT and other.keyed
        mine = batch.select(side.values if found else [*side.keys, *side.values])
        if index is not None:
            mine = mine.take(pa.array(index))
        theirs = other.take(slots, [*other.keys, *other.values] if found else other.values)
        left, right = (mine, theirs) if port == LEFT else (theirs, mine)
        return self._results.beside(left, right, times, theirs if found else mine)

    def cut(self, before: tuple[int, int]) -> None:
        """Forget the rows of each side that are older; nothing asks for them any more."""
        for side, before_ns in zip(self.sides, before, strict=True):
            side.cut(before_ns)
        gone = sum(side.gone() for side in self.sides)
        held = self.held
        # Dropping moves what stays, so it waits until most is to go, or all.
        if gone and (gone == held or 2 * gone >= max(held, DROPPED_ROWS_MIN)):
            self._drop()

    @property
    def held(self) -> int:
        """Rows in memory."""
        return sum(side.count for side in self.sides)

    def _drop(self) -> None:
        for side in self.sides:
            side.drop()
        self._cells.clear(*(side.count for side in self.sides))
        for port, side in enumerate(self.sides):
            if side.count:
                self._cells.link(port, side.hashes, 0)

    def store(self) -> None:
        """A cut comes: bring what is new into state."""
        for side in self.sides:
            side.store()


class OneSide:
    """Rows in slots 0, 1, 2, …; without keys where those of the other side do as well."""

    def __init__(self, side: Side, state: StateBackend, *, keyed: bool, bounded: bool) -> None:
        self._side, self.keyed, self._bounded = side, keyed, bounded
        self._timed = TIME_COLUMN in side.schema.names
        values = pa.schema([f for f in side.value_schema if f.name != TIME_COLUMN])
        self.keys, self.values = list(side.keys), values.names
        self._columns: dict[str, KeptColumn] = {
            name: kept_column(side.schema.field(name).type)
            for name in [*(self.keys if keyed else ()), *self.values]
        }
        self._times = GrowingArray(np.dtype(np.int64)) if bounded or self._timed else None
        self._hashes = GrowingArray(np.dtype(np.uint64)) if bounded else None
        self._latest = GrowingArray(np.dtype(np.int64))  # per block
        self._before = WATERMARK_MIN
        self.count = 0
        self._value_schema = values
        self._logged = 0
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
        """Keep the rows of a batch of this side; the slot of the first."""
        first = self._put(batch, times, hashes)
        if not self._bounded:
            # Of rows that never go the log hears at once: their keys and hashes may not be kept.
            keys = batch.select(self.keys)
            self._log.append(keys, batch.select(self.values), times, hashes)
        return first

    def _put(self, batch: pa.RecordBatch, times: Numbers, hashes: Hashes) -> int:
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
        if self._bounded and batch.num_rows:
            self._note_latest(first, times)
        return first

    def take(self, slots: Numbers, names: Sequence[str]) -> pa.RecordBatch:
        """These columns of the rows, copied."""
        arrays = [
            time_array(np.take(self.times, slots))
            if name == TIME_COLUMN
            else self._columns[name].take(slots)
            for name in names
        ]
        schema = pa.schema([self._side.schema.field(name) for name in names])
        return pa.RecordBatch.from_arrays(arrays, schema=schema)

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
        if not self._bounded or self._logged == self.count:
            return
        since = self._logged + np.flatnonzero(self.times[self._logged :] >= self._before)
        if len(since):
            self._log.append(
                self.take(since, self.keys),
                self.take(since, self.values),
                self.times[since],
                self.hashes[since],
                owned=True,
            )
        self._logged = self.count

    def restored(self) -> Iterator[tuple[int, Hashes]]:
        """Keeps the rows of the checkpoint; the slot of the first and the hashes, in steps."""
        schema = pa.schema([*self._side.key_schema, *self._value_schema])
        for stored in self._log.restored():
            arrays = [stored.column(field.name) for field in schema]
            arrays = [a if a.type == f.type else a.cast(f.type) for a, f in zip(arrays, schema)]
            rows = pa.RecordBatch.from_arrays(arrays, schema=schema)
            hashes = hash_arrays([rows.column(key) for key in self.keys], rows.num_rows)
            first = self._put(rows, stored.column(TIME_COLUMN).to_numpy(), hashes)
            self._logged = self.count
            yield first, hashes


def rows_of(index: Numbers | None, slots: Numbers) -> Numbers:
    """The row of the batch of each pair."""
    return np.arange(len(slots)) if index is None else index


def chosen(
    index: Numbers | None, slots: Numbers, pairs: npt.NDArray[np.bool_]
) -> tuple[Numbers, Numbers]:
    """The pairs for which `pairs` is true."""
    return rows_of(index, slots)[pairs], slots[pairs]
