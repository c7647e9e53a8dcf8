"""GrowingArray: numbers that are only ever added to, in memory that grows without being copied.

The kernel moves pages instead of bytes (mremap), and memory that no number was written to is none
that the process holds, so doubling costs neither time nor room. Not: arrays that others may hold;
a view of `values` that outlives the caller's statement makes growing raise BufferError.
"""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
import numpy.typing as npt

BYTES_MIN = 1 << 16
"""The smallest array. A map is whole pages, and each costs the kernel an entry."""
HUGE_BYTES_MIN = 1 << 23
"""From here on huge pages are asked for: fewer faults, and fewer misses of random reads."""

SHRINK_FACTOR = 4
"""Memory is given back where it is this many times what is asked for."""


class GrowingArray:
    """`values`: zero where nothing was written, at least as long as was last reserved."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._dtype = dtype
        self._map: mmap.mmap | None = None
        self._size = 0  # bytes
        self.values: npt.NDArray[Any] = np.zeros(0, dtype)

    def reserve(self, count: int) -> None:
        """Make room for this many values."""
        if count <= len(self.values):
            return
        size = max(BYTES_MIN, self._size)
        while size < count * self._dtype.itemsize:
            size *= 2
        self._resize(size)

    def shrink(self, count: int) -> None:
        """Give memory back if it holds many times more; values behind twice as many are lost."""
        size = BYTES_MIN
        while size < 2 * count * self._dtype.itemsize:
            size *= 2
        # Not at once: who drops rows now and then would grow again each time.
        if SHRINK_FACTOR * size <= self._size:
            self._resize(size)

    def _resize(self, size: int) -> None:
        if self._map is None:
            # Private: a shared map has its first size for ever.
            self._map = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        else:
            self.values = np.zeros(0, self._dtype)  # nobody may look while it moves
            self._map.resize(size)
        if size >= HUGE_BYTES_MIN:
            self._map.madvise(mmap.MADV_HUGEPAGE)
        self._size = size
        self.values = np.frombuffer(self._map, self._dtype, size // self._dtype.itemsize)
