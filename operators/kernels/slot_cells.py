"""From hashes to slots, one cell at a time: the compiled half of the slot index.

Cells are a power of two of int32, -1 when empty, searched linearly from the low bits of the hash:
all keys of a subtask share the high ones (hazard 31). A search stops at the first slot of equal
hash; whether its key is equal too is for the caller to see. Removal closes gaps, so no tombstones.
The reference does the same with a dict of lists.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from penstock.elements.buffers import grown

from .arguments import own
from .compile import kernel, uses_reference

Hashes = npt.NDArray[np.uint64]
Slots = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

T = TypeVar("T", bound=np.generic)

CELLS_MIN = 1024


@kernel("void(uint64[::1], int32[::1], uint64[::1], int64[::1])")
def find_slots(hashes: Hashes, cells: Slots, slot_hashes: Hashes, slots: Slots) -> None:
    """The first slot of equal hash per row, or -1."""
    mask = np.uint64(len(cells) - 1)
    for row in range(len(hashes)):
        wanted = hashes[row]
        at = wanted & mask
        found = np.int64(cells[at])
        while found >= 0 and slot_hashes[found] != wanted:
            at = (at + np.uint64(1)) & mask
            found = np.int64(cells[at])
        slots[row] = found


@kernel(
    "int64(uint64[::1], int32[::1], uint64[::1], int64[::1], int64, int64, int64[::1], bool_[::1])"
)
def put_slots(
    hashes: Hashes,
    cells: Slots,
    slot_hashes: Hashes,
    free: Slots,
    free_count: int,
    end: int,
    slots: Slots,
    new: Mask,
) -> int:
    """As find_slots, but absent hashes get slots: free ones from the back, then `end` upward.

    Returns how many were given. Requires: room for every row.
    """
    mask = np.uint64(len(cells) - 1)
    given = 0
    for row in range(len(hashes)):
        wanted = hashes[row]
        at = wanted & mask
        found = np.int64(cells[at])
        while found >= 0 and slot_hashes[found] != wanted:
            at = (at + np.uint64(1)) & mask
            found = np.int64(cells[at])
        new[row] = found < 0
        if found < 0:
            if given < free_count:
                found = free[free_count - 1 - given]
            else:
                found = np.int64(end + given - free_count)
            given += 1
            cells[at] = found
            slot_hashes[found] = wanted
        slots[row] = found
    return given


@kernel("void(int64[::1], int32[::1], uint64[::1])")
def place_slots(slots: Slots, cells: Slots, slot_hashes: Hashes) -> None:
    """Enter slots that are in no cell yet, whatever their hashes."""
    mask = np.uint64(len(cells) - 1)
    for row in range(len(slots)):
        at = slot_hashes[slots[row]] & mask
        while cells[at] >= 0:
            at = (at + np.uint64(1)) & mask
        cells[at] = slots[row]


@kernel("void(int64[::1], int32[::1], uint64[::1])")
def drop_slots(slots: Slots, cells: Slots, slot_hashes: Hashes) -> None:
    """Take slots out of their cells and close the gaps."""
    mask = np.uint64(len(cells) - 1)
    for row in range(len(slots)):
        gap = slot_hashes[slots[row]] & mask
        while cells[gap] != slots[row]:
            gap = (gap + np.uint64(1)) & mask
        at = gap
        while True:
            at = (at + np.uint64(1)) & mask
            mover = cells[at]
            if mover < 0:
                break
            home = slot_hashes[mover] & mask
            # It may move back unless its home lies behind the gap, in the circle of cells.
            if ((at - home) & mask) >= ((at - gap) & mask):
                cells[gap] = mover
                gap = at
        cells[gap] = -1


@kernel("int64(int64[::1], int32[::1], int64[::1], int64[::1])")
def number_slots(slots: Slots, numbers: Slots, codes: Slots, distinct: Slots) -> int:
    """Number the distinct slots in order of appearance; how many. `numbers` is -1 throughout,
    and is again afterwards."""
    count = 0
    for row in range(len(slots)):
        slot = slots[row]
        if numbers[slot] < 0:
            numbers[slot] = count
            distinct[count] = slot
            count += 1
        codes[row] = numbers[slot]
    for at in range(count):
        numbers[distinct[at]] = -1
    return count


class Cells(Protocol):
    """The slots of each hash. A hash has several when keys of equal hash differ."""

    def find(self, hashes: Hashes) -> Slots:
        """A slot of equal hash per row, always the same one, or -1."""
        ...

    def put(self, hashes: Hashes, free: Slots, end: int) -> tuple[Slots, Mask, int]:
        """(slot per row, which rows came first for a new one, new ones in all)."""
        ...

    def others(self, hash64: int, slot: int) -> list[int]:
        """All slots of this hash but `slot`; for the rare rows whose key is not that of `slot`."""
        ...

    def put_another(self, hash64: int, slot: int) -> None:
        """One more slot of a hash that has slots."""
        ...

    def drop(self, slots: Slots) -> None:
        """Forget slots."""
        ...

    def reserve(self, slots: int) -> None:
        """Make room for slots below this number."""
        ...

    def number(self, slots: Slots) -> tuple[Slots, Slots]:
        """(a number per row, the distinct slots by number)."""
        ...


class CompiledCells:
    """Open addressing in NumPy arrays, searched by kernels."""

    def __init__(self) -> None:
        self._cells = np.full(CELLS_MIN, -1, np.int32)
        self._hashes = np.zeros(CELLS_MIN // 2, np.uint64)
        self._live = np.zeros(CELLS_MIN // 2, np.bool_)
        self._numbers = np.full(CELLS_MIN // 2, -1, np.int32)

    def find(self, hashes: Hashes) -> Slots:
        slots = np.empty(len(hashes), np.int64)
        find_slots(own(hashes), self._cells, self._hashes, slots)
        return slots

    def put(self, hashes: Hashes, free: Slots, end: int) -> tuple[Slots, Mask, int]:
        slots, new = np.empty(len(hashes), np.int64), np.empty(len(hashes), np.bool_)
        given = put_slots(own(hashes), self._cells, self._hashes, free, len(free), end, slots, new)
        self._live[slots[new]] = True
        return slots, new, int(given)

    def others(self, hash64: int, slot: int) -> list[int]:
        mask = len(self._cells) - 1
        at = hash64 & mask
        found = []
        while (there := int(self._cells[at])) >= 0:
            if there != slot and int(self._hashes[there]) == hash64:
                found.append(there)
            at = (at + 1) & mask
        return found

    def put_another(self, hash64: int, slot: int) -> None:
        self._hashes[slot] = hash64
        self._live[slot] = True
        place_slots(np.array([slot]), self._cells, self._hashes)

    def drop(self, slots: Slots) -> None:
        drop_slots(np.ascontiguousarray(slots), self._cells, self._hashes)
        self._live[slots] = False

    def reserve(self, slots: int) -> None:
        if slots <= len(self._hashes):
            return
        room = 1 << (slots - 1).bit_length()
        self._hashes = grown(self._hashes, room)
        self._live = grown(self._live, room)
        self._numbers = np.full(room, -1, np.int32)
        self._cells = np.full(2 * room, -1, np.int32)
        place_slots(np.flatnonzero(self._live), self._cells, self._hashes)

    def number(self, slots: Slots) -> tuple[Slots, Slots]:
        codes, distinct = np.empty(len(slots), np.int64), np.empty(len(slots), np.int64)
        count = number_slots(np.ascontiguousarray(slots), self._numbers, codes, distinct)
        return codes, distinct[:count].copy()


class ReferenceCells:
    """The same by a dict: oracle and fallback."""

    def __init__(self) -> None:
        self._slots: dict[int, list[int]] = {}
        self._hash_of: dict[int, int] = {}

    def find(self, hashes: Hashes) -> Slots:
        nothing = [-1]
        found = [self._slots.get(each, nothing)[0] for each in hashes.tolist()]
        return np.array(found, np.int64)

    def put(self, hashes: Hashes, free: Slots, end: int) -> tuple[Slots, Mask, int]:
        unused = free.tolist()
        slots, new, given = [], [], 0
        for each in hashes.tolist():
            known = self._slots.get(each)
            new.append(known is None)
            if known is None:
                slot = unused.pop() if unused else end + given - len(free)
                given += 1
                self._slots[each] = known = [slot]
                self._hash_of[slot] = each
            slots.append(known[0])
        return np.array(slots, np.int64), np.array(new, np.bool_), given

    def others(self, hash64: int, slot: int) -> list[int]:
        return [each for each in self._slots.get(hash64, []) if each != slot]

    def put_another(self, hash64: int, slot: int) -> None:
        self._slots.setdefault(hash64, []).append(slot)
        self._hash_of[slot] = hash64

    def drop(self, slots: Slots) -> None:
        for slot in slots.tolist():
            hash64 = self._hash_of.pop(slot)
            self._slots[hash64].remove(slot)
            if not self._slots[hash64]:
                del self._slots[hash64]

    def reserve(self, slots: int) -> None:
        pass

    def number(self, slots: Slots) -> tuple[Slots, Slots]:
        distinct, firsts, inverse = np.unique(slots, return_index=True, return_inverse=True)
        order = np.argsort(firsts)
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        return place[inverse], distinct[order]


def new_cells() -> Cells:
    """Compiled, unless the reference was asked for."""
    return ReferenceCells() if uses_reference() else CompiledCells()
