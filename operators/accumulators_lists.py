"""Accumulators of whole lists: array_agg and string_agg.

Values are in the order of event time, and among rows of one instant by value, so that a result
does not depend on the order of arrival (hazard 21); a stream without event time is in the order of
values alone. array_agg keeps nulls; string_agg leaves them out. Nothing to list is NULL.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from penstock.elements.buffers import fixed_values

from .accumulators import Accumulator, Numbers, present
from .grouping import Groups
from .segments import (
    joined_lists,
    list_column,
    list_lengths,
    list_owners,
    lists_of_rows,
    value_ranks,
)


@dataclass(frozen=True, kw_only=True)
class ListOf(Accumulator):
    """array_agg over structs of one field; a null struct is a row that FILTER left out."""

    kind: pa.DataType
    timed: bool = True

    @property
    def stored(self) -> tuple[pa.DataType, ...]:
        return (pa.list_(self.kind), pa.list_(pa.int64()))

    @property
    def result(self) -> pa.DataType:
        return pa.list_(self.kind)

    def partial(
        self, groups: Groups, argument: pa.Array | None, times_ns: Numbers
    ) -> list[pa.Array]:
        assert argument is not None
        return self._listed(groups, argument, argument.flatten()[0], times_ns)

    def _listed(
        self, groups: Groups, rows: pa.Array, values: pa.Array, times_ns: Numbers
    ) -> list[pa.Array]:
        times = times_ns if self.timed else np.zeros(len(rows), np.int64)
        return lists_of_rows(groups, present(rows), [values, pa.array(times, pa.int64())])

    def merge(self, groups: Groups, parts: list[pa.Array]) -> list[pa.Array]:
        return joined_lists(groups, parts)

    def final(self, parts: list[pa.Array]) -> pa.Array:
        lists, times = parts
        values, at = lists.flatten(), fixed_values(times.flatten())
        owners, lengths = list_owners(lists), list_lengths(lists)
        within = owners[1:] == owners[:-1]
        if not (within & (at[1:] <= at[:-1])).any():
            return _null_where(lengths == 0, lists)
        order = np.lexsort((at, owners))
        if (within & (at[order][1:] == at[order][:-1])).any():
            order = np.lexsort((value_ranks(values), at, owners))
        return _null_where(lengths == 0, list_column(values.take(pa.array(order)), lengths))


@dataclass(frozen=True, kw_only=True)
class Joined(ListOf):
    """string_agg: the texts of a list with a separator between them."""

    separator: str = ","

    @property
    def result(self) -> pa.DataType:
        return pa.string()

    def partial(
        self, groups: Groups, argument: pa.Array | None, times_ns: Numbers
    ) -> list[pa.Array]:
        assert argument is not None
        return self._listed(groups, argument, argument, times_ns)

    def final(self, parts: list[pa.Array]) -> pa.Array:
        return pc.binary_join(super().final(parts), self.separator).cast(pa.string())


def _null_where(mask: Numbers, lists: pa.Array) -> pa.Array:
    if not mask.any():
        return lists
    return pc.if_else(pa.array(mask), pa.scalar(None, lists.type), lists)
