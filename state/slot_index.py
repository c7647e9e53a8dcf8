"""An open-addressing index from (hash, key) to slot, probed for a whole batch at a time.

Promises: keys of equal hash are told apart by `KeyColumns.equal` (hazard 54). It is indexed by
the low bits of the hash, because all keys of a subtask share the high ones; "empty" is the slot
-1 and never a value of the hash (hazard 31). Slots are dense, in order of insertion.
Not: deletion. Its owner marks slots as dead and rebuilds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from .columns import Column, Mask, Slots, column_for

Hashes = npt.NDArray[np.uint64]

INDEX_CELLS_MIN = 1024
"""The smallest index; it is doubled to keep at least half of its cells empty."""
SLOTS_MAX = 1 << 31
"""Cells are int32."""


class KeyColumns:
    """The key columns of slots: stored once, compared in bulk."""

    def __init__(self, schema: pa.Schema) -> None:
        self.columns: list[Column] = [column_for(field.type) for field in schema]

    def equal(self, slots: Slots, keys: Sequence[pa.Array], rows: Slots) -> Mask:
        """Whether slot i holds the key of row `rows[i]`."""
        same = np.ones(len(slots), np.bool_)
        for column, array in zip(self.columns, keys, strict=True):
            same &= column.equal(slots, array, rows)
        return same

    def write(self, slots: Slots, keys: Sequence[pa.Array], rows: Slots) -> None:
        """Store the keys of `rows`."""
        indices = pa.array(rows)
        for column, array in zip(self.columns, keys, strict=True):
            column.write(slots, array.take(indices))


class SlotIndex:
    """Keys to slots 0, 1, 2, …; `capacity` is the room that other columns need."""

    def __init__(self, schema: pa.Schema) -> None:
        self.keys = KeyColumns(schema)
        self.count = 0
        self.capacity = 0
        self.hashes = np.zeros(0, np.uint64)
        self._cells = np.full(INDEX_CELLS_MIN, -1, np.int32)

    def find(self, hashes: Hashes, keys: Sequence[pa.Array]) -> Slots:
        """The slot of each key, or -1."""
        result = np.full(len(hashes), -1, np.int64)
        if self.count == 0 or len(hashes) == 0:
            return result
        rows = np.arange(len(hashes))
        cells = self.home_of(hashes)
        while len(rows):
            rows, cells, slots = self._candidates(hashes, rows, cells)
            if len(rows) == 0:
                break
            same = self.keys.equal(slots, keys, rows)
            if same.all():
                result[rows] = slots
                break
            result[rows[same]] = slots[same]
            # Another key with the same hash: go on behind it.
            other = ~same
            rows, cells = rows[other], self._next(cells[other])
        return result

    def find_or_insert(self, hashes: Hashes, keys: Sequence[pa.Array]) -> tuple[Slots, Slots]:
        """(the slot of each key, the slots that are new)."""
        result = self.find(hashes, keys)
        rows = np.flatnonzero(result < 0)
        first_new = self.count
        if len(rows):
            self._reserve(self.count + len(rows))
            self._insert(hashes, keys, rows, result)
        return result, np.arange(first_new, self.count)

    def rebuild(self, keep: Slots) -> None:
        """Forget all slots but these, which are renumbered in this order."""
        self.hashes = self.hashes[keep]
        self.count = len(keep)
        self.capacity = max(_power_of_two(self.count), INDEX_CELLS_MIN // 2)
        grown = np.zeros(self.capacity, np.uint64)
        grown[: self.count] = self.hashes
        self.hashes = grown
        for column in self.keys.columns:
            column.compact(keep, self.capacity)
        self._rehash(2 * self.capacity)

    @property
    def cell_count(self) -> int:
        """Cells of the index, a power of two."""
        return len(self._cells)

    def cells_of(self, slots: Slots) -> Slots:
        """The cell in which each slot was put."""
        at = np.full(self.count, -1, np.int64)
        used = np.flatnonzero(self._cells >= 0)
        at[self._cells[used]] = used
        return at[slots]

    def home_of(self, hashes: Hashes) -> Slots:
        """The cell at which the search for a hash begins."""
        return (hashes & np.uint64(len(self._cells) - 1)).astype(np.int64)

    def _next(self, cells: Slots) -> Slots:
        return (cells + 1) & (len(self._cells) - 1)

    def _candidates(self, hashes: Hashes, rows: Slots, cells: Slots) -> tuple[Slots, Slots, Slots]:
        """Walk each row to the first slot of equal hash: (rows that have one, cells, slots)."""
        found: list[tuple[Slots, Slots, Slots]] = []
        wanted = hashes[rows]
        while len(rows):
            slots = np.take(self._cells, cells).astype(np.int64)
            match = np.take(self.hashes, slots) == wanted  # slot -1 reads the last; masked below
            occupied = slots >= 0
            match &= occupied
            found.append((rows[match], cells[match], slots[match]))
            onward = np.flatnonzero(occupied & ~match)
            rows, wanted = rows[onward], wanted[onward]
            cells = self._next(cells[onward])
        if len(found) == 1:
            return found[0]
        parts = [np.concatenate(part) for part in zip(*found, strict=True)]
        return parts[0], parts[1], parts[2]

    def _insert(self, hashes: Hashes, keys: Sequence[pa.Array], rows: Slots, result: Slots) -> None:
        """Claim cells in rounds: of the rows that want one empty cell, one gets it."""
        cells = self.home_of(hashes[rows])
        while len(rows):
            empty = np.flatnonzero(np.take(self._cells, cells) < 0)
            if len(empty):
                # All bidders write their number; the one that is read back has won.
                self._cells[cells[empty]] = np.arange(len(empty), dtype=np.int32)
                won = empty[np.take(self._cells, cells[empty]) == np.arange(len(empty))]
                slots = np.arange(self.count, self.count + len(won))
                self._cells[cells[won]] = slots.astype(np.int32)
                self.hashes[slots] = hashes[rows[won]]
                self.keys.write(slots, keys, rows[won])
                self.count += len(won)
            slots = np.take(self._cells, cells).astype(np.int64)
            same = np.take(self.hashes, slots) == hashes[rows]
            maybe = np.flatnonzero(same)
            same[maybe] = self.keys.equal(slots[maybe], keys, rows[maybe])
            result[rows[same]] = slots[same]
            onward = np.flatnonzero(~same)
            rows = rows[onward]
            cells = self._next(cells[onward])

    def _reserve(self, count: int) -> None:
        assert count < SLOTS_MAX
        if count > self.capacity:
            self.capacity = max(_power_of_two(count), INDEX_CELLS_MIN // 2)
            grown = np.zeros(self.capacity, np.uint64)
            grown[: self.count] = self.hashes[: self.count]
            self.hashes = grown
            for column in self.keys.columns:
                column.resize(self.capacity)
        if 2 * count > len(self._cells):
            self._rehash(max(2 * self.capacity, INDEX_CELLS_MIN))

    def _rehash(self, cells: int) -> None:
        """Build the index anew; all keys are distinct, so no key is compared."""
        self._cells = np.full(cells, -1, np.int32)
        slots = np.arange(self.count)
        at = self.home_of(self.hashes[: self.count])
        while len(slots):
            empty = np.take(self._cells, at) < 0
            bidders = slots[empty]
            self._cells[at[empty]] = bidders.astype(np.int32)
            placed = np.take(self._cells, at) == slots
            slots, at = slots[~placed], self._next(at[~placed])


def _power_of_two(count: int) -> int:
    return 1 << max(count - 1, 1).bit_length()
