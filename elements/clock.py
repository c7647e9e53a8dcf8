"""The only file that reads the time; everything else takes a Clock, so tests can mock it."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Wall, monotonic and boot time, all in nanoseconds."""

    def wall_ns(self) -> int:
        """Nanoseconds since the epoch; may jump."""
        ...

    def monotonic_ns(self) -> int:
        """Never goes back; for timers and rates."""
        ...

    def boottime_ns(self) -> int:
        """Never goes back and counts the time that the machine sleeps; for leases."""
        ...


class SystemClock:
    """The machine's clock."""

    def wall_ns(self) -> int:
        return time.time_ns()

    def monotonic_ns(self) -> int:
        return time.monotonic_ns()

    def boottime_ns(self) -> int:
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    def sleep(self, seconds: float) -> None:
        """Block the calling thread; only for threads that own no mailbox."""
        time.sleep(seconds)


class ManualClock:
    """A clock that stands still until it is told to move."""

    def __init__(self, start_ns: int = 0) -> None:
        self._now_ns = start_ns

    def wall_ns(self) -> int:
        return self._now_ns

    def monotonic_ns(self) -> int:
        return self._now_ns

    def boottime_ns(self) -> int:
        return self._now_ns

    def advance_ns(self, step_ns: int) -> None:
        """Move forward by `step_ns`; negative steps model a stepped wall clock."""
        self._now_ns += step_ns
