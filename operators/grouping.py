"""Groups of equal rows in a batch, and sums and extremes per group, without a loop over rows.

Nulls are one group, NaNs are one group, and -0.0 is 0.0, as in the key hash. Within a group rows
keep their order, so the same batches always give the same float sums (hazard 21).
Numbers and what needs no order are found in one compiled pass (kernels/group_numbers.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from penstock.elements.buffers import fixed_dtype, fixed_values

from .kernels.compile import uses_reference
from .kernels.group_numbers import GREATEST, LEAST, SUM, numbered, reduced

Indices = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
RADIX_GROUPS_MAX = 1 << 16
"""NumPy sorts 16-bit integers by radix, several times faster than wider ones."""


@dataclass(frozen=True)
class Groups:
    """`codes[i]` is the group of row i; `count` groups; none is empty.

    From `group_rows` they are numbered in the order of their first rows.
    """

    codes: npt.NDArray[Any]
    count: int

    @staticmethod
    def known(codes: Indices, firsts: Indices, sizes: Indices) -> Groups:
        """Groups whose first rows and sizes were found with their numbers."""
        groups = Groups(codes, len(firsts))
        vars(groups).update(firsts=firsts, sizes=sizes)
        return groups

    @cached_property
    def order(self) -> Indices:
        """Row numbers, group by group, in arrival order within a group."""
        codes = self.codes
        if self.count <= RADIX_GROUPS_MAX:
            codes = codes.astype(np.uint16)
        return np.argsort(codes, kind="stable")

    @cached_property
    def sizes(self) -> Indices:
        """Rows per group."""
        return np.bincount(self.codes, minlength=self.count).astype(np.int64, copy=False)

    @cached_property
    def starts(self) -> Indices:
        """Where each group begins in `order`."""
        starts = np.zeros(self.count, np.int64)
        np.cumsum(self.sizes[:-1], out=starts[1:])
        return starts

    @cached_property
    def firsts(self) -> Indices:
        """The first row of each group."""
        return self.order[self.starts]

    def add(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The sum of each group; integers wrap around, so bound them first."""
        if values.dtype.kind in "iu" and values.dtype.itemsize == 8:
            return self._in_one_pass(values, SUM)
        # Infinities of both signs make NaN, as they should, without a warning.
        with np.errstate(invalid="ignore", over="ignore"):
            return self._ordered(np.add, values)

    def reduce(self, function: np.ufunc, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Any binary ufunc over each group."""
        if values.dtype == np.int64 and function in _EXTREMES:
            return self._in_one_pass(values, _EXTREMES[function])
        return self._ordered(function, values)

    def _in_one_pass(self, values: npt.NDArray[Any], how: int) -> npt.NDArray[Any]:
        if self.count == 1 or uses_reference():
            return self._ordered(_FUNCTIONS[how], values)
        found = reduced(self.codes, self.count, values.view(np.int64), how)
        return found.view(values.dtype)

    def _ordered(self, function: np.ufunc, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if self.count == 1 and function in _EXTREMES:
            # Of many rows at once it is several times faster than of slices of them.
            return np.atleast_1d(function.reduce(values))
        ordered = values if self.count == 1 else values[self.order]
        found: npt.NDArray[Any] = function.reduceat(ordered, self.starts)
        return found

    def any(self, mask: Mask) -> Mask:
        """Whether any row of the group is true."""
        found = np.zeros(self.count, np.bool_)
        found[self.codes[mask]] = True
        return found


_FUNCTIONS: dict[int, np.ufunc] = {LEAST: np.minimum, GREATEST: np.maximum, SUM: np.add}
_EXTREMES: dict[np.ufunc, int] = {np.minimum: LEAST, np.maximum: GREATEST}


def group_rows(columns: Sequence[pa.Array], rows: int) -> Groups:
    """Groups of rows that are equal in all `columns`; no columns: all rows are one group."""
    assert rows > 0
    if not columns:
        return Groups.known(np.zeros(rows, np.int64), np.zeros(1, np.int64), np.array([rows]))
    return Groups.known(*numbered([_numbers(column) for column in columns]))


def _numbers(column: pa.Array) -> Indices:
    """A number per row that is equal where values are equal."""
    kind = column.type
    dtype = fixed_dtype(kind)
    if dtype is not None and dtype.kind in "iu" and column.null_count == 0:
        values = fixed_values(column)
        return values.view(np.int64) if dtype.itemsize == 8 else values.astype(np.int64)
    if pa.types.is_struct(kind):
        return _struct_numbers(column)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _list_numbers(column)
    encoded = canonical(column).dictionary_encode(null_encoding="encode")
    numbers: Indices = encoded.indices.to_numpy().astype(np.int64)
    return numbers


def _struct_numbers(column: pa.Array) -> Indices:
    # A null struct and a struct of nulls differ: validity is a field of its own.
    fields = [column.is_valid(), *column.flatten()]
    return group_rows(fields, len(column)).codes


def _list_numbers(column: pa.Array) -> Indices:
    # A list is the bytes of the numbers of its values: equal lists are equal bytes.
    values = column.flatten()
    numbers = group_rows([values], len(values)).codes if len(values) else np.zeros(0, np.int64)
    offsets = np.zeros(len(column) + 1, np.int64)
    np.cumsum(pc.list_value_length(column).fill_null(0).to_numpy(), out=offsets[1:])
    there = column.is_valid().to_numpy(zero_copy_only=False)
    valid = pa.py_buffer(np.packbits(there, bitorder="little"))
    data = pa.py_buffer(np.ascontiguousarray(numbers, np.int64))
    buffers = [valid, pa.py_buffer(offsets * 8), data]
    return _numbers(pa.Array.from_buffers(pa.large_binary(), len(column), buffers))


def canonical(column: pa.Array) -> pa.Array:
    """`column` with one zero, one NaN and one width of float: equal keys have equal bytes."""
    if pa.types.is_float16(column.type):
        column = column.cast(pa.float32())
    if not pa.types.is_floating(column.type):
        return column
    nans = pc.is_nan(column)
    if nans.true_count:
        column = pc.if_else(nans, pa.scalar(float("nan"), column.type), column)
    return pc.add(column, pa.scalar(0, column.type))


def ranks(column: pa.Array) -> tuple[Indices, Indices]:
    """(rank of each row, row of each rank) in ascending order; NaN after numbers, null last.

    Equal values have equal ranks, so that ties are visible; the second array gives one row per
    rank.
    """
    encoded = canonical(column).dictionary_encode(null_encoding="encode")
    dictionary = encoded.dictionary
    sorted_codes = pc.sort_indices(dictionary).to_numpy()
    rank_of_code = np.empty(len(dictionary), np.int64)
    rank_of_code[sorted_codes] = np.arange(len(dictionary))
    by_row = rank_of_code[encoded.indices.to_numpy()]
    row_of_rank = np.empty(len(dictionary), np.int64)
    row_of_rank[by_row] = np.arange(len(by_row))
    return by_row, row_of_rank
