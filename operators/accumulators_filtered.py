"""FILTER for aggregates that keep nulls: the rows that are left out must not be mistaken for them.

The argument is a struct that is null where a row is left out. Other aggregates leave nulls out
anyway, so their FILTER makes the argument null and needs nothing of this.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from penstock.elements.buffers import fixed_values

from .accumulators import Accumulator, Numbers, present
from .grouping import Groups, Mask
from .segments import groups_of, spread


@dataclass(frozen=True, kw_only=True)
class Filtered(Accumulator):
    """`inner` over structs that are not null, or over their only field; of no rows it is NULL."""

    inner: Accumulator
    unwrap: bool = True

    @property
    def repeats_matter(self) -> bool:
        return self.inner.repeats_matter

    @property
    def of_values(self) -> bool:
        return self.inner.of_values

    @property
    def stored(self) -> tuple[pa.DataType, ...]:
        return (pa.bool_(), *self.inner.stored)

    @property
    def result(self) -> pa.DataType:
        return self.inner.result

    def partial(
        self, groups: Groups, argument: pa.Array | None, times_ns: Numbers
    ) -> list[pa.Array]:
        assert argument is not None
        values = argument.flatten()[0] if self.unwrap else argument
        return self._of_some(
            groups,
            present(argument),
            lambda some, rows: self.inner.partial(
                some, values.take(pa.array(rows)), times_ns[rows]
            ),
        )

    def merge(self, groups: Groups, parts: list[pa.Array]) -> list[pa.Array]:
        return self._of_some(
            groups,
            fixed_values(parts[0]),
            lambda some, rows: self.inner.merge(some, [p.take(pa.array(rows)) for p in parts[1:]]),
        )

    def _of_some(
        self, groups: Groups, keep: Mask, fold: Callable[[Groups, Numbers], list[pa.Array]]
    ) -> list[pa.Array]:
        rows = np.flatnonzero(keep)
        there = np.zeros(groups.count, np.bool_)
        if not len(rows):
            nothing = [pa.nulls(groups.count, kind) for kind in self.inner.stored]
            return [pa.array(there), *nothing]
        some, owners = groups_of(groups.codes[rows], groups.count)
        there[owners] = True
        parts = fold(some, rows)
        spreads = [spread(p, owners, groups.count, pa.nulls(1, p.type)) for p in parts]
        return [pa.array(there), *spreads]

    def final(self, parts: list[pa.Array]) -> pa.Array:
        owners = np.flatnonzero(fixed_values(parts[0]))
        count = len(parts[0])
        if not len(owners):
            return pa.nulls(count, self.result)
        at = pa.array(owners)
        found = self.inner.final([part.take(at) for part in parts[1:]])
        return spread(found, owners, count, self.nothing())
