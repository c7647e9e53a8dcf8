"""Which panes and windows an event time belongs to: arithmetic on int64 nanoseconds.

A pane is the largest span that lies in the same windows throughout; windows are runs of panes.
Everything is floor division, so times before 1970 fall where they should. A window [start, end)
is complete when the watermark has reached end - 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from penstock.elements.signals import WATERMARK_MAX, WATERMARK_MIN

from .descriptors import Calendar, CalendarCumulate, CalendarHop, Cumulate, PaneWindow, Tumble

Times = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PaneGrid:
    """Panes of `pane_ns`; windows end at every `step_ns`; `block_ns` is how often windows begin."""

    pane_ns: int
    size_ns: int
    step_ns: int
    block_ns: int
    offset_ns: int
    cumulative: bool = False

    @property
    def single(self) -> bool:
        """Every window is exactly one pane."""
        return self.pane_ns == self.size_ns == self.block_ns

    @property
    def windows_per_pane(self) -> int:
        """About how many windows hold a pane."""
        return self.size_ns // self.step_ns

    def panes(self, times_ns: Times) -> Times:
        """The start of each time's pane."""
        return self._floor(times_ns, self.pane_ns)

    def pane_ends(self, panes: Times) -> Times:
        """The end of each pane."""
        return panes + self.pane_ns

    def first_ends(self, panes: Times) -> Times:
        """The end of the earliest window that holds each pane."""
        if self.cumulative:
            return panes + self.pane_ns
        # The earliest window begins at the first multiple that is not too early for the pane.
        begin = self._floor(
            panes + (self.pane_ns - self.size_ns + self.block_ns - 1), self.block_ns
        )
        return begin + self.size_ns

    def last_ends(self, panes: Times) -> Times:
        """The end of the latest window that holds each pane; before the first end if none does."""
        return self._floor(panes, self.block_ns) + self.size_ns

    def starts(self, ends: Times) -> Times:
        """Where the windows with these ends begin."""
        if self.cumulative:
            return self._floor(ends - 1, self.size_ns)
        return ends - self.size_ns

    def next_ends(self, panes: Times, watermark: int) -> Times:
        """The earliest end per pane that a watermark has not completed; past the last if none."""
        first = self.first_ends(panes)
        if watermark == WATERMARK_MIN:
            return first
        # An end is complete when end - 1 <= watermark; so the next is at least watermark + 2.
        least = np.int64(min(watermark + 2, WATERMARK_MAX))
        ends: Times = first + np.maximum(0, -((first - least) // self.step_ns)) * self.step_ns
        return ends

    def unused_before(self, watermark: int, lateness_ns: int) -> int:
        """Panes that start before this lie only in windows that are complete and closed."""
        at = watermark + 1 - lateness_ns - self.size_ns - self.offset_ns
        before = at // self.block_ns * self.block_ns + self.block_ns + self.offset_ns
        return max(WATERMARK_MIN, min(WATERMARK_MAX, before))

    def count_ends(self, low: Times, high: Times) -> Times:
        """How many ends there are from `low`, which is one, up to `high`."""
        counts: Times = np.maximum(0, (high - low) // self.step_ns + 1)
        return counts

    def nth_ends(self, ends: Times, rows: Times, nth: Times) -> Times:
        """The ends that come so many behind `ends[rows]`."""
        return ends[rows] + nth * self.step_ns

    def _floor(self, times: Times, width: int) -> Times:
        if self.offset_ns:
            return (times - self.offset_ns) // width * width + self.offset_ns
        return times // width * width


def grid_of(window: PaneWindow) -> PaneGrid:
    """The panes of a window."""
    if isinstance(window, (Calendar, CalendarHop, CalendarCumulate)):
        from .calendar import CalendarGrid, CumulativeCalendarGrid

        if isinstance(window, CalendarCumulate):
            return CumulativeCalendarGrid.growing(window)
        return CalendarGrid.of(window)
    if isinstance(window, Tumble):
        size = window.size_ns
        return PaneGrid(size, size, size, size, window.offset_ns % size)
    if isinstance(window, Cumulate):
        size, step = window.size_ns, window.step_ns
        return PaneGrid(step, size, step, size, window.offset_ns % size, cumulative=True)
    size, every = window.size_ns, window.every_ns
    return PaneGrid(math.gcd(size, every), size, every, every, window.offset_ns % every)


def expand(
    grid: PaneGrid, panes: Times, after: int, upto: int
) -> tuple[npt.NDArray[np.int64], Times]:
    """(row, window end) for every window of each row's pane that ends in (after, upto]."""
    low = grid.next_ends(panes, after - 1) if after > WATERMARK_MIN else grid.first_ends(panes)
    high = np.minimum(grid.last_ends(panes), np.int64(upto))
    counts = grid.count_ends(low, high)
    rows = np.repeat(np.arange(len(panes)), counts)
    within = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    return rows, grid.nth_ends(low, rows, within)
