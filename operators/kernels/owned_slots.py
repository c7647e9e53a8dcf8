"""Which slots of one index belong to a slot of another: the values of a group, found in bulk.

Compiled, the slots of an owner are a doubly linked list, so what a look costs is what it finds. The
reference keeps an owner per slot and looks at all of them. The order within an owner is not said.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from .compile import kernel, uses_reference

Slots = npt.NDArray[np.int64]


@kernel("void(int64[::1], int64[::1], int64[::1], int64[::1], int64[::1])")
def link_slots(slots: Slots, owners: Slots, heads: Slots, following: Slots, before: Slots) -> None:
    """Put each slot at the head of its owner's list."""
    for row in range(len(slots)):
        slot, owner = slots[row], owners[row]
        head = heads[owner]
        following[slot] = head
        before[slot] = -1
        if head >= 0:
            before[head] = slot
        heads[owner] = slot


@kernel("void(int64[::1], int64[::1], int64[::1], int64[::1], int64[::1])")
def unlink_slots(
    slots: Slots, owners: Slots, heads: Slots, following: Slots, before: Slots
) -> None:
    """Take each slot out of its owner's list."""
    for row in range(len(slots)):
        slot = slots[row]
        left, right = before[slot], following[slot]
        if left >= 0:
            following[left] = right
        else:
            heads[owners[slot]] = right
        if right >= 0:
            before[right] = left


@kernel("int64(int64[::1], int64[::1], int64[::1])")
def count_owned(groups: Slots, heads: Slots, following: Slots) -> int:
    """How many slots these owners have."""
    total = 0
    for row in range(len(groups)):
        slot = heads[groups[row]]
        while slot >= 0:
            total += 1
            slot = following[slot]
    return total


@kernel("void(int64[::1], int64[::1], int64[::1], int64[::1], int64[::1])")
def gather_owned(
    groups: Slots, heads: Slots, following: Slots, numbers: Slots, slots: Slots
) -> None:
    """(row of `groups`, slot) for every slot that one of them owns."""
    at = 0
    for row in range(len(groups)):
        slot = heads[groups[row]]
        while slot >= 0:
            numbers[at] = row
            slots[at] = slot
            at += 1
            slot = following[slot]


class OwnedSlots(Protocol):
    """Slots by owner. Requires room for both before use."""

    def reserve(self, owners: int, slots: int) -> None:
        """Make room for owners and slots below these numbers."""
        ...

    def link(self, slots: Slots, owners: Slots) -> None:
        """Slots that have no owner get one."""
        ...

    def unlink(self, slots: Slots) -> None:
        """They have none any more."""
        ...

    def of(self, groups: Slots) -> tuple[Slots, Slots]:
        """(row of `groups`, slot), by row. Requires: no group twice."""
        ...


class LinkedSlots:
    """Lists through arrays."""

    def __init__(self) -> None:
        self._heads = np.zeros(0, np.int64)
        self._following = np.zeros(0, np.int64)
        self._before = np.zeros(0, np.int64)
        self._owners = np.zeros(0, np.int64)

    def reserve(self, owners: int, slots: int) -> None:
        self._heads = _widened(self._heads, owners)
        self._following = _widened(self._following, slots)
        self._before = _widened(self._before, slots)
        self._owners = _widened(self._owners, slots)

    def link(self, slots: Slots, owners: Slots) -> None:
        self._owners[slots] = owners
        slots, owners = np.ascontiguousarray(slots), np.ascontiguousarray(owners)
        link_slots(slots, owners, self._heads, self._following, self._before)

    def unlink(self, slots: Slots) -> None:
        slots = np.ascontiguousarray(slots)
        unlink_slots(slots, self._owners, self._heads, self._following, self._before)

    def of(self, groups: Slots) -> tuple[Slots, Slots]:
        groups = np.ascontiguousarray(groups)
        count = int(count_owned(groups, self._heads, self._following))
        numbers, slots = np.empty(count, np.int64), np.empty(count, np.int64)
        gather_owned(groups, self._heads, self._following, numbers, slots)
        return numbers, slots


class ScannedSlots:
    """An owner per slot: oracle and fallback."""

    def __init__(self) -> None:
        self._numbers = np.zeros(0, np.int64)
        self._owners = np.zeros(0, np.int64)

    def reserve(self, owners: int, slots: int) -> None:
        self._numbers = _widened(self._numbers, owners)
        self._owners = _widened(self._owners, slots)

    def link(self, slots: Slots, owners: Slots) -> None:
        self._owners[slots] = owners

    def unlink(self, slots: Slots) -> None:
        self._owners[slots] = -1

    def of(self, groups: Slots) -> tuple[Slots, Slots]:
        self._numbers[groups] = np.arange(len(groups))
        slots = np.flatnonzero(self._owners >= 0)
        numbers = self._numbers[self._owners[slots]]
        self._numbers[groups] = -1
        slots, numbers = slots[numbers >= 0], numbers[numbers >= 0]
        order = np.argsort(numbers, kind="stable")
        return numbers[order], slots[order]


def new_owned_slots() -> OwnedSlots:
    """Compiled, unless the reference was asked for."""
    return ScannedSlots() if uses_reference() else LinkedSlots()


def _widened(values: Slots, room: int) -> Slots:
    """`values` with -1 behind them: no owner, no slot."""
    if len(values) >= room:
        return values
    wider = np.full(room, -1, np.int64)
    wider[: len(values)] = values
    return wider
