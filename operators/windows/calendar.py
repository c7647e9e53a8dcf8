"""Windows by the calendar of a time zone, of unequal length: tumbling, hopping, cumulating.

Panes are the steps between which nothing begins or ends: those that a hop begins with, or those by
which a cumulating window grows. A hop lasts for so many steps that there were, so the seven days
around a date that a place left out are seven others. Where steps begin: zone_borders.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from penstock.elements.signals import WATERMARK_MAX, WATERMARK_MIN

from .assign import PaneGrid, Times
from .calendar_lengths import CalendarLength
from .descriptors import Calendar, CalendarCumulate, CalendarHop, PaneWindow
from .zone_borders import FIRST_NS, ZoneBorders, pieces_of_a_day

ONE_DAY = CalendarLength(1, "day")


@dataclass(frozen=True)
class CalendarGrid(PaneGrid):
    """Windows that begin with every step and last for `length` of them; 1: they tumble."""

    window: PaneWindow = field(kw_only=True)
    steps: ZoneBorders = field(kw_only=True, compare=False)
    length: int = field(kw_only=True)

    @classmethod
    def of(cls, window: Calendar | CalendarHop) -> CalendarGrid:
        """Borders are found when rows come."""
        step, length = (
            (window.every, window.steps) if isinstance(window, CalendarHop) else (window.length, 1)
        )
        steps = ZoneBorders(step, window.zone, window.offset_ns, reach=length)
        # The arithmetic of equal windows is replaced below; what is left of it sees one pane each.
        return cls(1, 1, 1, 1, 0, window=window, steps=steps, length=length)

    @property
    def single(self) -> bool:
        return self.length == 1

    @property
    def windows_per_pane(self) -> int:
        return self.length

    def panes(self, times_ns: Times) -> Times:
        return _at_or_before(self.steps, times_ns)

    def pane_ends(self, panes: Times) -> Times:
        return _behind(self.steps, panes)

    def first_ends(self, panes: Times) -> Times:
        return _behind(self.steps, panes)

    def last_ends(self, panes: Times) -> Times:
        return _behind(self.steps, panes, self.length)

    def starts(self, ends: Times) -> Times:
        return _behind(self.steps, ends - 1, 1 - self.length)

    def next_ends(self, panes: Times, watermark: int) -> Times:
        first = self.first_ends(panes)
        if watermark == WATERMARK_MIN or not len(panes):
            return first
        if watermark == WATERMARK_MAX:
            return np.full(len(panes), WATERMARK_MAX)
        # Every border is an end; one is complete when end - 1 <= watermark.
        least = _behind(self.steps, np.array([watermark + 1], np.int64))
        return np.maximum(first, least)

    def unused_before(self, watermark: int, lateness_ns: int) -> int:
        closed = watermark + 1 - lateness_ns
        if watermark == WATERMARK_MAX or closed <= FIRST_NS:
            return watermark if watermark == WATERMARK_MAX else WATERMARK_MIN
        return int(self._first_open(np.array([closed], np.int64))[0])

    def _first_open(self, closed: Times) -> Times:
        """The earliest pane with a window that ends behind these times."""
        return _behind(self.steps, closed, 1 - self.length)

    def count_ends(self, low: Times, high: Times) -> Times:
        if not len(low):
            return low
        borders = self.steps.near(low)
        upto = np.searchsorted(borders, high, side="right")
        counts: Times = np.maximum(0, upto - np.searchsorted(borders, low, side="left"))
        return counts

    def nth_ends(self, ends: Times, rows: Times, nth: Times) -> Times:
        if not len(rows):
            return rows
        table = self.steps.near(ends)
        return table.take(np.searchsorted(table, ends)[rows] + nth, mode="clip")


@dataclass(frozen=True)
class CumulativeCalendarGrid(CalendarGrid):
    """Windows that begin with every block of steps and end with each step of it.

    `length` is about how many steps a block has, and not fewer.
    """

    blocks: ZoneBorders = field(kw_only=True, compare=False)

    @classmethod
    def growing(cls, window: CalendarCumulate) -> CumulativeCalendarGrid:
        """Borders are found when rows come."""
        length, step, zone = window.length, window.step or ONE_DAY, window.zone
        reach = length.times(step) or length.days_max
        steps = ZoneBorders(
            step,
            zone,
            window.offset_ns,
            since_monday=length.unit == "week",
            piece_ns=0 if window.step else window.step_ns,
            reach=reach,
        )
        most = reach * (1 if window.step else pieces_of_a_day(window.step_ns))
        blocks = ZoneBorders(length, zone, window.offset_ns)
        return cls(1, 1, 1, 1, 0, window=window, steps=steps, length=most, blocks=blocks)

    def last_ends(self, panes: Times) -> Times:
        return _behind(self.blocks, panes)

    def starts(self, ends: Times) -> Times:
        return _at_or_before(self.blocks, ends - 1)

    def _first_open(self, closed: Times) -> Times:
        return _at_or_before(self.blocks, closed)


def _at_or_before(borders: ZoneBorders, times_ns: Times) -> Times:
    return _behind(borders, times_ns, 0)


def _behind(borders: ZoneBorders, times_ns: Times, nth: int = 1) -> Times:
    """The nth border behind each time; number 0 is the one at or before it."""
    if not len(times_ns):
        return times_ns
    table = borders.near(times_ns)
    at = np.searchsorted(table, times_ns, side="right") - 1 + nth
    return table.take(at, mode="clip")
