"""The frozen hash of 64-bit integer keys in one pass: what `hash_array` does in ten.

Promises: the same bits as elements/hash.py, which defines it. Not: other types, and nulls.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from .compile import kernel

Hashes = npt.NDArray[np.uint64]
Words = npt.NDArray[np.int64]


@kernel("void(int64[::1], uint64[::1])")
def hash_words(words: Words, hashes: Hashes) -> None:
    """The hash of each word."""
    for row in range(len(words)):
        word = np.uint64(words[row]) + np.uint64(0x9E3779B97F4A7C15)
        word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        hashes[row] = word ^ (word >> np.uint64(31))
