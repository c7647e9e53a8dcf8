"""Chains: from a 64-bit hash to the rows (slots) that have it, for joins; the compiled form.

Promises: rows of one hash are a doubly linked list behind one cell of an open-addressing index,
so a row is linked and unlinked in constant time however many share its hash. The index goes by
the low bits; "empty" is a head of its own and never a hash (hazard 31). Results are those of
join_chains_reference.py, up to the order within a chain. Not: equality of keys, which its owner
checks.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from .arguments import own
from .compile import kernel

Hashes = npt.NDArray[np.uint64]
Numbers = npt.NDArray[np.int64]
Links = npt.NDArray[np.int32]

CELLS_MIN = 1024
"""The smallest index; at least half of its cells are empty."""
PAIRS_MAX = 1 << 17
"""Pairs per step of a probe: a hot key on both sides fills memory otherwise."""
EMPTY = -2
"""The head of a cell that no hash has taken; -1 is that of a hash whose rows are all gone."""


@kernel("int64(uint64[::1], int32[::1], int32[::1], int32[::1], uint64[::1], int64[::1])")
def link_slots(
    cell_hash: Hashes,
    cell_head: Links,
    following: Links,
    preceding: Links,
    hashes: Hashes,
    slots: Numbers,
) -> int:
    """Put slots in front of their chains; gives how many cells were taken."""
    mask = np.uint64(len(cell_head) - 1)
    taken = 0
    for row in range(len(slots)):
        hash64 = hashes[row]
        at = np.int64(hash64 & mask)
        while cell_head[at] != -2 and cell_hash[at] != hash64:
            at = np.int64(np.uint64(at + 1) & mask)
        head = cell_head[at]
        if head == -2:
            cell_hash[at] = hash64
            taken += 1
            head = -1
        slot = np.int32(slots[row])
        following[slot] = head
        preceding[slot] = -1
        if head >= 0:
            preceding[head] = slot
        cell_head[at] = slot
    return taken


@kernel("int64(uint64[::1], int32[::1], int32[::1], int32[::1], uint64[::1], int64[::1])")
def unlink_slots(
    cell_hash: Hashes,
    cell_head: Links,
    following: Links,
    preceding: Links,
    hashes: Hashes,
    slots: Numbers,
) -> int:
    """Take slots, whose hashes are `hashes`, out of their chains."""
    mask = np.uint64(len(cell_head) - 1)
    for row in range(len(slots)):
        slot = slots[row]
        before, behind = preceding[slot], following[slot]
        if behind >= 0:
            preceding[behind] = before
        if before >= 0:
            following[before] = behind
        else:
            hash64 = hashes[row]
            at = np.int64(hash64 & mask)
            while cell_head[at] != slot:
                at = np.int64(np.uint64(at + 1) & mask)
            cell_head[at] = behind
    return 0


@kernel("int64(uint64[::1], int32[::1], uint64[::1], int32[::1])")
def move_chains(old_hash: Hashes, old_head: Links, cell_hash: Hashes, cell_head: Links) -> int:
    """Move the chains that have rows into a new index; gives how many cells were taken."""
    mask = np.uint64(len(cell_head) - 1)
    taken = 0
    for cell in range(len(old_head)):
        if old_head[cell] < 0:
            continue
        at = np.int64(old_hash[cell] & mask)
        while cell_head[at] != -2:
            at = np.int64(np.uint64(at + 1) & mask)
        cell_hash[at] = old_hash[cell]
        cell_head[at] = old_head[cell]
        taken += 1
    return taken


@kernel(
    "int64(uint64[::1], int32[::1], int32[::1], int64[::1], uint64[::1], int64[::1], int64[::1],"
    " int64[::1], int64[::1], int64[::1])"
)
def pair_slots(
    cell_hash: Hashes,
    cell_head: Links,
    following: Links,
    times: Numbers,
    hashes: Hashes,
    low: Numbers,
    high: Numbers,
    cursor: Numbers,
    out_row: Numbers,
    out_slot: Numbers,
) -> int:
    """Fill pairs from where `cursor` (row, slot) stands; gives how many, and moves the cursor."""
    mask = np.uint64(len(cell_head) - 1)
    row, slot = cursor[0], cursor[1]
    filled, room = 0, len(out_row)
    while row < len(hashes):
        if slot < 0:
            hash64 = hashes[row]
            at = np.int64(hash64 & mask)
            while cell_head[at] != -2 and cell_hash[at] != hash64:
                at = np.int64(np.uint64(at + 1) & mask)
            slot = np.int64(cell_head[at])
        first, last = low[row], high[row]
        while slot >= 0:
            if first <= times[slot] <= last:
                if filled == room:
                    cursor[0], cursor[1] = row, slot
                    return filled
                out_row[filled] = row
                out_slot[filled] = slot
                filled += 1
            slot = np.int64(following[slot])
        row += 1
        slot = -1
    cursor[0], cursor[1] = row, -1
    return filled


class CompiledChains:
    """Slots 0, 1, 2, … by hash; `resize` first, then link."""

    def __init__(self) -> None:
        self._cell_hash = np.zeros(CELLS_MIN, np.uint64)
        self._cell_head = np.full(CELLS_MIN, EMPTY, np.int32)
        self._following = np.zeros(0, np.int32)
        self._preceding = np.zeros(0, np.int32)
        self._taken = 0
        self._guess = CELLS_MIN

    def resize(self, capacity: int) -> None:
        """Room for slots below `capacity`."""
        self._following = _grown(self._following, capacity)
        self._preceding = _grown(self._preceding, capacity)

    def link(self, hashes: Hashes, slots: Numbers) -> None:
        """Add slots that are in no chain."""
        self._reserve(len(slots))
        self._taken += link_slots(
            self._cell_hash, self._cell_head, self._following, self._preceding, hashes, slots
        )

    def unlink(self, hashes: Hashes, slots: Numbers) -> None:
        """Remove slots that are in the chains of `hashes`."""
        unlink_slots(
            self._cell_hash, self._cell_head, self._following, self._preceding, hashes, slots
        )

    def probe(
        self, hashes: Hashes, low: Numbers, high: Numbers, times: Numbers
    ) -> Iterator[tuple[Numbers, Numbers]]:
        """(row of `hashes`, slot) where the hash is equal and low <= times[slot] <= high.

        By row, at most PAIRS_MAX pairs at a time.
        """
        hashes, low, high = own(hashes), own(low), own(high)
        cursor = np.array([0, -1], np.int64)
        while cursor[0] < len(hashes):
            room = min(PAIRS_MAX, max(self._guess, len(hashes)))
            rows, slots = np.empty(room, np.int64), np.empty(room, np.int64)
            filled = pair_slots(
                self._cell_hash,
                self._cell_head,
                self._following,
                times,
                hashes,
                low,
                high,
                cursor,
                rows,
                slots,
            )
            if cursor[0] < len(hashes):
                self._guess = 2 * room
            if filled:
                yield rows[:filled], slots[:filled]

    def _reserve(self, more: int) -> None:
        cells = len(self._cell_head)
        if 2 * (self._taken + more) <= cells:
            return
        # Cells of hashes without rows are dropped on the way, so it may stay as large as it was.
        alive = int(np.count_nonzero(self._cell_head >= 0))
        while 2 * (alive + more) > cells // 2:
            cells *= 2
        hashes, heads = np.zeros(cells, np.uint64), np.full(cells, EMPTY, np.int32)
        self._taken = move_chains(self._cell_hash, self._cell_head, hashes, heads)
        self._cell_hash, self._cell_head = hashes, heads


def _grown(links: Links, capacity: int) -> Links:
    grown = np.full(capacity, -1, np.int32)
    grown[: len(links)] = links
    return grown
