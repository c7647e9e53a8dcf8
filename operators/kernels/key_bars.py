"""KeyBars: which rows may still be among the first n of their key, as far as is remembered.

Promises: a row that is turned away has n rows of its key before it, all of them let through by
this very object; equal words are let through. Rows are words that sort as the order does.
The compiled form remembers as many keys as there are cells and forgets one when another takes its
cell, so it may let more rows through than the plain one. Not: state. Nobody must restore it.
"""

from __future__ import annotations

from bisect import insort
from typing import Protocol

import numpy as np
import numpy.typing as npt

from .arguments import own
from .compile import kernel, uses_reference

Words = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

CELLS_BITS = 15
CELLS = 1 << CELLS_BITS
"""Keys that are remembered; what they need should stay in the processor's cache."""
LAST = np.int64(2**63 - 1)
"""The word of rows that are behind all others; it is never counted."""


@kernel("int64(int64[::1], int64[::1], int64[::1], int64[::1], int64, bool_[::1])")
def raise_bars(
    keys: Words, words: Words, cell_keys: Words, bars: Words, count: int, keep: Mask
) -> int:
    """Enter all rows, then say which are not behind the bar of their key; gives how many."""
    shift = np.uint64(64)
    cells = len(cell_keys)
    while cells > 1:
        shift -= np.uint64(1)
        cells >>= 1
    for row in range(len(keys)):
        key, word = keys[row], words[row]
        cell = np.int64((np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)) >> shift)
        first = cell * count
        last = first + count - 1
        if cell_keys[cell] != key:
            cell_keys[cell] = key
            for place in range(first, last + 1):
                bars[place] = np.int64(0x7FFFFFFFFFFFFFFF)
        if word < bars[last]:
            at = int(last)
            while at > first and bars[at - 1] > word:
                bars[at] = bars[at - 1]
                at -= 1
            bars[at] = word
    kept = 0
    for row in range(len(keys)):
        key = keys[row]
        cell = np.int64((np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)) >> shift)
        # Of a key that was forgotten within this batch every row is let through.
        may = cell_keys[cell] != key or words[row] <= bars[cell * count + count - 1]
        keep[row] = may
        kept += may
    return kept


class KeyBars(Protocol):
    """The n best words of keys."""

    def let_through(self, keys: Words, words: Words) -> Mask:
        """Which of these rows may be among the first, given all rows so far and these."""
        ...

    def forget(self) -> None:
        """Keys mean something else from now on."""
        ...


class CompiledBars:
    """A cell per key, found by its bits."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._keys = np.zeros(CELLS, np.int64)
        self._bars = np.full(CELLS * count, LAST, np.int64)

    def let_through(self, keys: Words, words: Words) -> Mask:
        keep = np.empty(len(keys), np.bool_)
        raise_bars(own(keys), own(words), self._keys, self._bars, self._count, keep)
        return keep

    def forget(self) -> None:
        self._bars[:] = LAST


class PlainBars:
    """The same by a dict, which is emptied when it has more keys than there are cells."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._best: dict[int, list[int]] = {}

    def let_through(self, keys: Words, words: Words) -> Mask:
        if len(self._best) > CELLS:
            self.forget()
        listed = list(zip(keys.tolist(), words.tolist(), strict=True))
        for key, word in listed:
            if word < LAST:
                best = self._best.setdefault(key, [])
                insort(best, word)
                del best[self._count :]
        none: list[int] = []
        found = [self._best.get(key, none) for key, _ in listed]
        keep = [
            len(best) < self._count or word <= best[-1]
            for best, (_, word) in zip(found, listed, strict=True)
        ]
        return np.array(keep, np.bool_)

    def forget(self) -> None:
        self._best.clear()


def new_bars(count: int) -> KeyBars:
    """Compiled, unless the reference was asked for."""
    return PlainBars(count) if uses_reference() else CompiledBars(count)
