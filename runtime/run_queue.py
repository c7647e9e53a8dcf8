"""How long this thread was ready to run while others had the processor.

On a machine with more work than cores that is not what rows cost: taken for their cost, it would
make slices small and rows dear. Time asleep, such as in a user's call, is not counted.
Promises: a number that never falls; always 0 where the kernel does not say.
"""

from __future__ import annotations

import os

STATISTICS = "/proc/thread-self/schedstat"
"""Nanoseconds on a processor, nanoseconds ready and waiting for one, and how often."""
BYTES_MAX = 128


class RunQueue:
    """For the thread that asks first, and only for it."""

    def __init__(self) -> None:
        self._file: int | None = None
        self._missing = False

    def waited_ns(self) -> int:
        """So far, since the thread began."""
        if self._file is None:
            if self._missing:
                return 0
            try:
                self._file = os.open(STATISTICS, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                self._missing = True
                return 0
        try:
            fields = os.pread(self._file, BYTES_MAX, 0).split()
        except OSError:
            return 0
        return int(fields[1]) if len(fields) > 1 else 0

    def __del__(self) -> None:
        if self._file is not None:
            os.close(self._file)
