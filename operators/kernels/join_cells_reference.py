"""Cells: from a 64-bit hash to the rows of both sides of a join; the plain form, with a dict.

The oracle of join_cells.py, and what runs with PENSTOCK_KERNELS=reference.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]
Numbers = npt.NDArray[np.int64]
Links = npt.NDArray[np.int32]


class PlainCells:
    """Rows by hash; the same interface as CompiledCells."""

    def __init__(self) -> None:
        self.clear(0, 0)

    def clear(self, left: int, right: int) -> None:
        """Forget all rows."""
        # Per side the rows of a hash, and of each row those that were there before it.
        self._rows: tuple[dict[int, list[int]], dict[int, list[int]]] = ({}, {})
        self._lists: tuple[dict[int, list[int]], dict[int, list[int]]] = ({}, {})

    def link(self, port: int, hashes: Hashes, first: int) -> Links:
        """Add rows `first`, `first` + 1, …; per row the newest of the other side, or -1."""
        found = np.full(len(hashes), -1, np.int32)
        for at, hash64 in enumerate(hashes.tolist()):
            mine = self._rows[port].setdefault(hash64, [])
            mine.append(first + at)
            self._lists[port][first + at] = mine
            theirs = self._rows[1 - port].get(hash64)
            if theirs:
                found[at] = theirs[-1]
        return found

    def pairs(
        self, port: int, found: Links, within: tuple[Numbers, Numbers, Numbers] | None
    ) -> Iterator[tuple[Numbers | None, Numbers]]:
        """(index into `found`, row of the other side), newest first; see join_cells.py."""
        rows: list[int] = []
        slots: list[int] = []
        for at, newest in enumerate(found.tolist()):
            if newest < 0:
                continue
            chain = self._lists[1 - port][newest]
            for slot in reversed(chain[: chain.index(newest) + 1]):
                if within is None or within[1][at] <= within[0][slot] <= within[2][at]:
                    rows.append(at)
                    slots.append(slot)
        if rows:
            aligned = rows == list(range(len(found)))
            yield None if aligned else np.array(rows, np.int64), np.array(slots, np.int64)
