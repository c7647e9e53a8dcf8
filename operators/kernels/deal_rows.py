"""Rows dealt out by the key group of their hash: which rows go to which target, in two passes.

Promises: rows of one target keep their order; targets are those of elements/keygroup.py, and the
hash of whole numbers is the frozen one of elements/hash.py, which lies here a second time so that
it needs no pass of its own. The plain form is that of these two modules.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from penstock.elements.hash import Hashes
from penstock.elements.keygroup import GROUP_SHIFT

from .arguments import own
from .compile import kernel

Numbers = npt.NDArray[np.int64]
Table = npt.NDArray[np.uint8]


@kernel("void(uint64[::1], boolean, int64, uint8[::1], uint8[::1], int64[::1], int64[::1])")
def deal(
    words: Hashes,
    hashed: bool,
    shift: int,
    table: Table,
    targets: Table,
    counts: Numbers,
    order: Numbers,
) -> None:
    """`words` are hashes, or whole numbers to be hashed; `counts` is zero before."""
    right = np.uint64(shift)
    for row in range(len(words)):
        word = words[row]
        if not hashed:
            word += np.uint64(0x9E3779B97F4A7C15)
            word ^= word >> np.uint64(30)
            word *= np.uint64(0xBF58476D1CE4E5B9)
            word ^= word >> np.uint64(27)
            word *= np.uint64(0x94D049BB133111EB)
            word ^= word >> np.uint64(31)
        target = table[word >> right]
        targets[row] = target
        counts[target] += 1
    places = np.empty(len(counts), np.int64)
    place = np.int64(0)
    for target in range(len(counts)):
        places[target] = place
        place += counts[target]
    for row in range(len(words)):
        target = targets[row]
        order[places[target]] = row
        places[target] += 1


def dealt(words: Hashes, hashed: bool, table: Table, parallelism: int) -> tuple[Numbers, Numbers]:
    """(row numbers, target by target; rows per target). `table` is by key group, writable."""
    counts = np.zeros(parallelism, np.int64)
    order = np.empty(len(words), np.int64)
    deal(own(words), hashed, GROUP_SHIFT, table, np.empty(len(words), np.uint8), counts, order)
    return order, counts
