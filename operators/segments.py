"""Groups of some of the rows, and lists per group: what aggregates of several values are made of.

A list column holds each group's values one behind the other. Everything is vectorised; the values
of a group keep the order of their rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.types as pt

from penstock.elements.buffers import fixed_values
from penstock.elements.hash import hash_array

from .grouping import Groups, Indices, Mask, ranks


def groups_of(codes: npt.NDArray[Any], count: int) -> tuple[Groups, Indices]:
    """(groups of rows with numbers below `count`, not all of which occur; the number of each)."""
    used = np.zeros(count, np.bool_)
    used[codes] = True
    owners = np.flatnonzero(used)
    if len(owners) == count:
        return Groups(codes, count), owners
    renumbered = np.cumsum(used) - 1
    return Groups(renumbered[codes], len(owners)), owners


def spread(column: pa.Array, owners: Indices, count: int, nothing: pa.Array) -> pa.Array:
    """`column` in rows `owners` of `count` rows; elsewhere the one value of `nothing`."""
    if len(owners) == count:
        return column
    at = np.full(count, len(column), np.int64)
    at[owners] = np.arange(len(owners))
    return pa.concat_arrays([column, nothing]).take(pa.array(at))


def list_column(values: pa.Array, lengths: npt.NDArray[Any]) -> pa.Array:
    """Lists of these lengths over `values`, none of them null."""
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    return pa.ListArray.from_arrays(pa.array(offsets), values, type=pa.list_(values.type))


def lists_of_rows(groups: Groups, keep: Mask, columns: Sequence[pa.Array]) -> list[pa.Array]:
    """One list per group and column, of the rows that are kept."""
    lengths = groups.add(keep.astype(np.int64))
    rows = pa.array(groups.order[keep[groups.order]])
    return [list_column(column.take(rows), lengths) for column in columns]


def joined_lists(groups: Groups, columns: Sequence[pa.Array]) -> list[pa.Array]:
    """The lists of each group's rows, one behind the other."""
    lengths = groups.add(list_lengths(columns[0]))
    rows = pa.array(groups.order)
    return [list_column(column.take(rows).flatten(), lengths) for column in columns]


def list_lengths(lists: pa.Array) -> Indices:
    """How many values each list has; a list is never null here."""
    if not len(lists):
        return np.zeros(0, np.int64)
    at = np.frombuffer(lists.buffers()[1], np.int32, len(lists) + 1, lists.offset * 4)
    found: Indices = np.diff(at).astype(np.int64)
    return found


def list_owners(lists: pa.Array) -> Indices:
    """Which list each of the flattened values belongs to."""
    return np.repeat(np.arange(len(lists)), list_lengths(lists))


def best_rows(
    groups: Groups, numbers: npt.NDArray[Any], values: pa.Array, *, least: bool
) -> Indices:
    """The row of each group with its least number and then the least value, or its greatest."""
    extreme = groups.reduce(np.minimum if least else np.maximum, numbers)
    rows = np.flatnonzero(numbers == extreme[groups.codes])
    codes = groups.codes[rows]
    if len(rows) > groups.count:
        order = np.lexsort((value_ranks(values.take(pa.array(rows))), codes))
        rows, codes = rows[order], codes[order]
        if least:
            rows, codes = rows[::-1], codes[::-1]
    # Of several rows the last to be written stays.
    found = np.empty(groups.count, np.int64)
    found[codes] = rows
    return found


def value_ranks(column: pa.Array) -> npt.NDArray[Any]:
    """Numbers in the order of the values, equal for equal ones; null is the greatest.

    Lists are in the order of their hashes, which is an order all the same.
    """
    kind = column.type
    if pt.is_struct(kind):
        if not len(column):
            return np.zeros(0, np.int64)
        fields = [value_ranks(field) for field in column.flatten()]
        order = np.lexsort([*reversed(fields), ~column.is_valid().to_numpy(zero_copy_only=False)])
        changes = np.zeros(len(column), np.bool_)
        for field in fields:
            changes[1:] |= np.diff(field[order]) != 0
        found = np.empty(len(column), np.int64)
        found[order] = np.cumsum(changes)
        return found
    if pt.is_nested(kind):
        return hash_array(column)
    if pt.is_integer(kind) and not column.null_count:
        return fixed_values(column)
    return ranks(column)[0]
