"""A lease holds one slot while any view of its message lives.

Arrow keeps the base of a foreign buffer alive through every slice, NumPy view and C export. When
the last one dies, in whatever thread, the slot is free: hence `__del__` uses nothing but what was
bound before, takes no lock, and does no more than store two bytes and post a semaphore (hazard 41).
"""

from __future__ import annotations

from collections.abc import Callable

from .fence import Fence
from .slab import FREE, WAITS_FOR_SLOT


class Lease:
    """One taken message; dies with the last view of it."""

    __slots__ = ("_held", "_ring", "_slot", "_states", "_waiting_at", "_words")

    def __init__(
        self,
        slot: int,
        held: bytearray,
        states: memoryview,
        words: memoryview,
        waiting_at: int,
        ring: Callable[[], None],
    ) -> None:
        """`held` is the receiver's own note of the slots that are leased (hazard 3)."""
        self._slot = slot
        self._held = held
        self._states = states
        self._words = words
        self._waiting_at = waiting_at
        self._ring = ring
        held[slot] = 1

    def __del__(self, free: int = FREE, waits: int = WAITS_FOR_SLOT) -> None:
        self._held[self._slot] = 0
        self._states[self._slot] = free
        if self._words[self._waiting_at] == waits:
            self._ring()


def fenced_lease(fence: Fence) -> type[Lease]:
    """The lease for machines that reorder: reads of the slot end before it is seen to be free."""

    class FencedLease(Lease):
        __slots__ = ()

        def __del__(self, free: int = FREE, waits: int = WAITS_FOR_SLOT) -> None:
            fence()
            self._held[self._slot] = 0
            self._states[self._slot] = free
            fence()
            if self._words[self._waiting_at] == waits:
                self._ring()

    return FencedLease
