"""Chains: from a 64-bit hash to the rows (slots) that have it; the plain form, with a dict.

The oracle of join_chains.py, and what runs with PENSTOCK_KERNELS=reference.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]
Numbers = npt.NDArray[np.int64]


class PlainChains:
    """Slots by hash; the same interface as CompiledChains."""

    def __init__(self) -> None:
        self._slots: dict[int, dict[int, None]] = {}

    def resize(self, capacity: int) -> None:
        """Nothing: dicts grow."""

    def link(self, hashes: Hashes, slots: Numbers) -> None:
        """Add slots."""
        for hash64, slot in zip(hashes.tolist(), slots.tolist(), strict=True):
            self._slots.setdefault(hash64, {})[slot] = None

    def unlink(self, hashes: Hashes, slots: Numbers) -> None:
        """Remove slots."""
        for hash64, slot in zip(hashes.tolist(), slots.tolist(), strict=True):
            chain = self._slots[hash64]
            del chain[slot]
            if not chain:
                del self._slots[hash64]

    def probe(
        self, hashes: Hashes, low: Numbers, high: Numbers, times: Numbers
    ) -> Iterator[tuple[Numbers, Numbers]]:
        """(row of `hashes`, slot) where the hash is equal and low <= times[slot] <= high."""
        rows: list[int] = []
        slots: list[int] = []
        for row, hash64 in enumerate(hashes.tolist()):
            for slot in self._slots.get(hash64, ()):
                if low[row] <= times[slot] <= high[row]:
                    rows.append(row)
                    slots.append(slot)
        if rows:
            yield np.array(rows, np.int64), np.array(slots, np.int64)
