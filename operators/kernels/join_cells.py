"""Cells: from a 64-bit hash to the rows of both sides of a join; the compiled form.

Promises: one look at one cell links a row on its own side and finds the rows of the other, since a
cell is two words side by side: the hash, and the newest row of either side. Older rows of the hash
follow in a list through `following`. Rows are numbered from 0 per side and never leave one by one:
`clear`, then link again what is kept. "Empty" is a second word of 0, never a hash (hazard 31).
Results are those of join_cells_reference.py. Not: equality of keys, which its owner checks.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from penstock.operators.join_arrays import GrowingArray

from .arguments import own
from .compile import kernel

Hashes = npt.NDArray[np.uint64]
Numbers = npt.NDArray[np.int64]
Links = npt.NDArray[np.int32]

CELLS_MIN = 1024
"""The smallest index; at least half of its cells are empty."""
CELLS_SPARE = 8
"""An index this many times too large is given back when it is cleared, not filled again."""
PAIRS_MAX = 1 << 17
"""Pairs per step: a hot key on both sides fills memory otherwise."""


@kernel("int64(uint64[::1], int32[::1], int32[::1], uint64[::1], int64, int64)")
def link_rows(
    cells: Hashes, following: Links, found: Links, hashes: Hashes, first: int, port: int
) -> int:
    """Put rows `first`, `first` + 1, … in front of the lists of their side; gives cells taken.

    `found` gets the newest row of the other side, or -1.
    """
    mask = np.uint64((len(cells) >> 1) - 1)
    one, low = np.uint64(1), np.uint64(0xFFFFFFFF)
    mine = np.uint64(32 * port)
    theirs = np.uint64(32) - mine
    keep = low << theirs
    taken = 0
    for row in range(len(hashes)):
        hash64 = hashes[row]
        at = (hash64 & mask) << one
        newest = cells[at + one]
        while newest != 0 and cells[at] != hash64:
            at = (((at >> one) + one) & mask) << one
            newest = cells[at + one]
        if newest == 0:
            cells[at] = hash64
            taken += 1
        found[row] = np.int32(np.int64((newest >> theirs) & low) - 1)
        following[first + row] = np.int32(np.int64((newest >> mine) & low) - 1)
        cells[at + one] = (newest & keep) | (np.uint64(first + row + 1) << mine)
    return taken


@kernel("int64(uint64[::1], uint64[::1])")
def move_cells(old: Hashes, cells: Hashes) -> int:
    """Move what is there into more cells, all of them empty; gives how many were taken."""
    mask = np.uint64((len(cells) >> 1) - 1)
    one = np.uint64(1)
    taken = 0
    for cell in range(0, len(old), 2):
        if old[cell + 1] == 0:
            continue
        at = (old[cell] & mask) << one
        while cells[at + one] != 0:
            at = (((at >> one) + one) & mask) << one
        cells[at] = old[cell]
        cells[at + one] = old[cell + 1]
        taken += 1
    return taken


@kernel("int64(int32[::1], int32[::1], int64[::1], int64[::1], int64[::1])")
def pair_rows(
    following: Links, found: Links, cursor: Numbers, out_row: Numbers, out_slot: Numbers
) -> int:
    """Fill pairs from where `cursor` (row, slot or -1) stands; gives how many, and moves it.

    cursor[2] becomes 0 unless pair i is of row i, for all of this call.
    """
    row, slot = cursor[0], cursor[1]
    filled, room, aligned = 0, len(out_row), row == 0
    while row < len(found):
        if slot < 0:
            slot = np.int64(found[row])
        while slot >= 0:
            if filled == room:
                cursor[0], cursor[1], cursor[2] = row, slot, 0
                return filled
            aligned = aligned and filled == row
            out_row[filled] = row
            out_slot[filled] = slot
            filled += 1
            slot = np.int64(following[slot])
        row += 1
        slot = -1
    cursor[0], cursor[1], cursor[2] = row, -1, np.int64(aligned and filled == row)
    return filled


@kernel(
    "int64(int32[::1], int32[::1], int64[::1], int64[::1], int64[::1], int64[::1], int64[::1],"
    " int64[::1])"
)
def pair_rows_between(
    following: Links,
    found: Links,
    times: Numbers,
    low: Numbers,
    high: Numbers,
    cursor: Numbers,
    out_row: Numbers,
    out_slot: Numbers,
) -> int:
    """As pair_rows, of slots with low <= time <= high, both per row."""
    row, slot = cursor[0], cursor[1]
    filled, room, aligned = 0, len(out_row), row == 0
    while row < len(found):
        if slot < 0:
            slot = np.int64(found[row])
        first, last = low[row], high[row]
        while slot >= 0:
            if first <= times[slot] <= last:
                if filled == room:
                    cursor[0], cursor[1], cursor[2] = row, slot, 0
                    return filled
                aligned = aligned and filled == row
                out_row[filled] = row
                out_slot[filled] = slot
                filled += 1
            slot = np.int64(following[slot])
        row += 1
        slot = -1
    cursor[0], cursor[1], cursor[2] = row, -1, np.int64(aligned and filled == row)
    return filled


class CompiledCells:
    """Rows 0, 1, 2, … of LEFT and of RIGHT by hash."""

    def __init__(self) -> None:
        self._cells = np.zeros(2 * CELLS_MIN, np.uint64)
        self._following = (GrowingArray(np.dtype(np.int32)), GrowingArray(np.dtype(np.int32)))
        self._taken = 0
        self._guess = CELLS_MIN

    def clear(self, left: int, right: int) -> None:
        """Forget all rows. About so many of either side will be linked again."""
        cells = CELLS_MIN
        while cells < 4 * (left + right):
            cells *= 2
        if CELLS_SPARE * cells < len(self._cells) // 2:
            self._cells = np.zeros(2 * cells, np.uint64)
        else:
            self._cells[:] = 0
        for following, rows in zip(self._following, (left, right), strict=True):
            following.shrink(rows)
        self._taken = 0

    def link(self, port: int, hashes: Hashes, first: int) -> Links:
        """Add rows `first`, `first` + 1, …; per row the newest of the other side, or -1."""
        count = len(hashes)
        found = np.empty(count, np.int32)
        self._reserve(count)
        self._following[port].reserve(first + count)
        following = self._following[port].values
        self._taken += link_rows(self._cells, following, found, own(hashes), first, port)
        return found

    def pairs(
        self, port: int, found: Links, within: tuple[Numbers, Numbers, Numbers] | None
    ) -> Iterator[tuple[Numbers | None, Numbers]]:
        """(index into `found`, row of the other side) as long as it is followed, in steps.

        `found` is what `link` gave for `port`; `within` has the times of the other side and per
        row the first and last time that counts. An index of None stands for 0, 1, 2, …, each once.
        """
        cursor = np.array([0, -1, 0], np.int64)
        if within is not None:
            times, low, high = within[0], own(within[1]), own(within[2])
        while cursor[0] < len(found):
            room = min(PAIRS_MAX, max(self._guess, len(found)))
            rows, slots = np.empty(room, np.int64), np.empty(room, np.int64)
            following = self._following[1 - port].values
            if within is None:
                filled = pair_rows(following, found, cursor, rows, slots)
            else:
                filled = pair_rows_between(following, found, times, low, high, cursor, rows, slots)
            if cursor[0] < len(found):
                self._guess = 2 * room
            if filled:
                yield None if cursor[2] else rows[:filled], slots[:filled]

    def _reserve(self, more: int) -> None:
        cells = len(self._cells) // 2
        if 2 * (self._taken + more) <= cells:
            return
        while 2 * (self._taken + more) > cells:
            cells *= 2
        larger = np.zeros(2 * cells, np.uint64)
        self._taken = move_cells(self._cells, larger)
        self._cells = larger
