"""The progress word: what a live process is doing, readable without its help (hazard 40).

One u64 per subtask in a page shared with the agent: turn count << 8 | state. The subtask stores
it, one aligned store, so the agent never sees half of it; the agent keeps the time at which it
last saw the word change. A stopped or stuck process needs no cooperation to be noticed.
"""

from __future__ import annotations

import mmap
import os
from typing import Final

STATES: Final = (
    "starting",
    "open",
    "restore",
    "idle",
    "send",
    "poll",
    "process",
    "timer",
    "snapshot",
    "commit",
    "end",
)
"""What a subtask can be at; the position in this tuple is the byte on the page."""
_CODES: Final = {state: code for code, state in enumerate(STATES)}
WORD_BYTES = 64
"""A cache line each, so that subtasks do not slow each other down."""
_STATE_BITS = 8
_COUNT_MASK = (1 << (64 - _STATE_BITS)) - 1


class ProgressWord:
    """One subtask's word; written by it, read by the agent."""

    def __init__(self, words: memoryview, ordinal: int) -> None:
        """`words` is a page cast to u64, as `ProgressPage.words` gives it."""
        self._words = words
        self._at = ordinal * WORD_BYTES // 8
        self._count = 0

    def set(self, state: str) -> None:
        """Say what the loop turns to now; one of STATES."""
        self._count = (self._count + 1) & _COUNT_MASK
        self._words[self._at] = self._count << _STATE_BITS | _CODES[state]

    def read(self) -> tuple[int, str]:
        """(turn count, state)."""
        word = self._words[self._at]
        return word >> _STATE_BITS, STATES[word & ((1 << _STATE_BITS) - 1)]


class ProgressPage:
    """The words of one attempt, in a memfd that vanishes with its last holder."""

    def __init__(self, descriptor: int, size: int) -> None:
        """Map an existing page; the descriptor stays the caller's."""
        self._map = mmap.mmap(descriptor, size)
        self.words: memoryview = memoryview(self._map).cast("Q")

    def word(self, ordinal: int) -> ProgressWord:
        """The word of the subtask with this ordinal in the attempt."""
        return ProgressWord(self.words, ordinal)

    def close(self) -> None:
        """Unmap; words handed out before must not be used again."""
        self.words.release()
        self._map.close()


def page_bytes(subtasks: int) -> int:
    """The size of a page for this many subtasks."""
    return max(1, subtasks) * WORD_BYTES


def create_page(subtasks: int) -> int:
    """A descriptor of a fresh page."""
    descriptor = os.memfd_create("penstock-progress", os.MFD_CLOEXEC)
    os.ftruncate(descriptor, page_bytes(subtasks))
    return descriptor


class Stall:
    """How long one word has stood still, by the reader's own clock."""

    def __init__(self, now_ns: int) -> None:
        self._count = -1
        self._since_ns = now_ns

    def standing_ns(self, count: int, now_ns: int) -> int:
        """Nanoseconds since the count was last seen to change."""
        if count != self._count:
            self._count = count
            self._since_ns = now_ns
        return now_ns - self._since_ns
