"""PairedRows: the rows of both sides of an inner join whose rows are never taken back.

They are kept once: here, live, in columns that grow without being copied. State is a log, which
holds rows only until a complete checkpoint has them. Rows leave by time alone: those below the cut
match nothing any more, and go together once they are as many as the others.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penstock.elements.buffers import fixed_array, fixed_dtype
from penstock.elements.hash import Hashes
from penstock.state.backend import StateBackend

from .event_times import TIME_TYPE
from .join_condition import JoinCondition
from .join_side_rows import OneSide, rows_of
from .join_sides import LEFT, RIGHT, Numbers, Side
from .kernels.join_cell_choice import new_cells

DROPPED_ROWS_MIN = 1 << 16
"""Rows below the cut that are not worth the work of dropping them."""

SomePairs = tuple[npt.NDArray[np.int64] | None, Numbers]
"""(row of a batch, slot) of pairs; no rows: slot i goes with row i."""


class PairedRows:
    """Rows of both sides by key, for results of `schema`.

    `bounded`: they match by their times, and `cut` forgets the old ones.
    """

    def __init__(
        self,
        sides: tuple[Side, Side],
        schema: pa.Schema,
        state: StateBackend,
        condition: JoinCondition | None,
        *,
        bounded: bool,
    ) -> None:
        self._schema, self._condition = schema, condition
        self._cells = new_cells()
        kinds = [side.schema.field(name).type for side in sides for name in side.keys]
        # Equal hashes of one word are equal keys.
        self._exact = len(kinds) == 2 and fixed_dtype(kinds[0]) is not None
        # Then, but for -0.0 and the like, the key of a match is that of the row that found it.
        same = self._exact and not pa.types.is_floating(kinds[0])
        left, right = (OneSide(side, state, bounded=bounded) for side in sides)
        self.sides = (left, right)
        self._columns = tuple(self._sources(port, same) for port in (LEFT, RIGHT))
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
        other = self.sides[1 - port]
        arrays = []
        rows = None if index is None else pa.array(index)
        for name, ours in self._columns[port]:
            if not ours:
                arrays.append(other.array(name, slots))
            elif rows is None:
                arrays.append(batch.column(name))
            else:
                arrays.append(batch.column(name).take(rows))
        if times is not None:
            arrays.append(fixed_array(TIME_TYPE, times, None))
        return pa.RecordBatch.from_arrays(arrays, schema=self._schema)

    def _sources(self, port: int, same: bool) -> list[tuple[str, bool]]:
        """For each column of results but the time: is it in a batch of `port`, or kept?"""
        left, right = self.sides
        # Equal keys may differ in their bits; those of results are the left row's.
        found = [(name, port == LEFT or same) for name in left.keys]
        found += [(name, port == LEFT) for name in left.values]
        return found + [(name, port == RIGHT) for name in right.values]

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


def chosen(
    index: Numbers | None, slots: Numbers, pairs: npt.NDArray[np.bool_]
) -> tuple[Numbers, Numbers]:
    """The pairs for which `pairs` is true."""
    return rows_of(index, slots)[pairs], slots[pairs]
