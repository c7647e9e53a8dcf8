"""Numbers for groups of equal rows, in the order of their first rows; sums and extremes by group.

Promises: the compiled and the plain form give the same numbers, whatever the order of columns or
rows. One pass per column: an open table holds group numbers, and a group is known by its first
row. Not: nulls, NaNs or text; callers turn those into integers that are equal where they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from .arguments import own
from .compile import kernel, uses_reference

Numbers = npt.NDArray[np.int64]
Cells = npt.NDArray[np.int32]
CELLS_MIN = 1 << 10
CELLS_PER_ROW = 2
"""The table is at most half full, so that probes stay short."""
LEAST, GREATEST, SUM = 0, 1, 2


@kernel("int64(int64[::1], boolean, int64[::1], int32[::1], int64[::1], int64[::1], int64[::1])")
def number_rows(
    outer: Numbers,
    has_outer: bool,
    values: Numbers,
    table: Cells,
    codes: Numbers,
    firsts: Numbers,
    sizes: Numbers,
) -> int:
    """Group rows by (outer, value); gives the number of groups. `table` is zero before."""
    mask = np.uint64(len(table) - 1)
    shift = np.uint64(32)
    one = np.uint64(1)
    count = 0
    code = np.int64(-1)
    last = np.int64(0)
    last_outer = np.int64(0)
    for row in range(len(values)):
        value = values[row]
        around = outer[row] if has_outer else np.int64(0)
        if code < 0 or value != last or around != last_outer:
            last, last_outer = value, around
            word = np.uint64(value) * np.uint64(0x9E3779B97F4A7C15)
            if has_outer:
                word ^= np.uint64(around) * np.uint64(0xC2B2AE3D27D4EB4F)
            word ^= word >> shift
            word *= np.uint64(0xD6E8FEB86659FD93)
            cell = (word >> shift) & mask
            while True:
                known = table[cell]
                if known == 0:
                    code = np.int64(count)
                    count += 1
                    table[cell] = count
                    firsts[code] = row
                    sizes[code] = 0
                    break
                first = firsts[known - 1]
                if values[first] == value and (not has_outer or outer[first] == around):
                    code = np.int64(known - 1)
                    break
                cell = (cell + one) & mask
        codes[row] = code
        sizes[code] += 1
    return count


@kernel("void(int64[::1], int64[::1], int64, int64[::1], boolean[::1])")
def reduce_by_group(
    codes: Numbers, values: Numbers, how: int, found: Numbers, seen: npt.NDArray[np.bool_]
) -> None:
    """The least (0), the greatest (1) or the sum (2) of each group; `seen` is false before."""
    if how == 2:
        for group in range(len(found)):
            found[group] = 0
        for row in range(len(codes)):
            found[codes[row]] += values[row]
        return
    for row in range(len(codes)):
        code = codes[row]
        value = values[row]
        if not seen[code]:
            seen[code] = True
            found[code] = value
        elif how == 0:
            if value < found[code]:
                found[code] = value
        elif value > found[code]:
            found[code] = value


def numbered(columns: Sequence[Numbers]) -> tuple[Numbers, Numbers, Numbers]:
    """(group of each row, first row of each group, rows of each group).

    Requires: at least one column and one row.
    """
    if uses_reference():
        return _numbered_plainly(columns)
    rows = len(columns[0])
    cells = max(CELLS_MIN, 1 << (CELLS_PER_ROW * rows - 1).bit_length())
    outer = np.empty(0, np.int64)
    for at, column in enumerate(columns):
        codes = np.empty(rows, np.int64)
        firsts, sizes = np.empty(rows, np.int64), np.empty(rows, np.int64)
        values = own(column)
        table = np.zeros(cells, np.int32)
        count = number_rows(outer, at > 0, values, table, codes, firsts, sizes)
        outer = codes
    return outer, firsts[:count].copy(), sizes[:count].copy()


def reduced(codes: Numbers, count: int, values: Numbers, how: int) -> Numbers:
    """LEAST, GREATEST or SUM of each group; sums wrap around."""
    found = np.empty(count, np.int64)
    reduce_by_group(own(codes), own(values), how, found, np.zeros(count, np.bool_))
    return found


def _numbered_plainly(columns: Sequence[Numbers]) -> tuple[Numbers, Numbers, Numbers]:
    codes = np.zeros(len(columns[0]), np.int64)
    for column in columns:
        encoded = pa.array(np.ascontiguousarray(column)).dictionary_encode()
        pairs = codes * len(encoded.dictionary) + encoded.indices.to_numpy()
        codes = pa.array(pairs).dictionary_encode().indices.to_numpy().astype(np.int64)
    # Numbers rise where a group is first seen.
    firsts = np.flatnonzero(np.diff(np.maximum.accumulate(codes), prepend=-1))
    return codes, firsts, np.bincount(codes).astype(np.int64, copy=False)
