"""Days, weeks, months, quarters and years of a time zone, as windows of unequal length.

A window begins at the first instant at which clocks there show its first date (plus the offset) or
later, so a day has 23 or 25 hours where clocks are put forward or back, and windows leave no gap
even where midnight does not exist or comes twice. Borders are computed for the dates that rows
have, once, and looked up by bisection. Weeks begin on Monday.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt

from penstock.elements.signals import WATERMARK_MAX, WATERMARK_MIN

from .assign import PaneGrid
from .descriptors import Calendar

Times = npt.NDArray[np.int64]
EPOCH = datetime.combine(date(1970, 1, 1), time())
MONDAY = date(1970, 1, 5)
SHIFT_MAX = timedelta(hours=26)
"""Farther than this no instant lies from the one at which UTC shows the same date and time."""
MICROSECOND = timedelta(microseconds=1)
FIRST_DATE, LAST_DATE = date(1677, 9, 22), date(2262, 4, 10)
"""What 64 bits of nanoseconds reach."""
_MONTHS = {"month": 1, "quarter": 3, "year": 12}


@dataclass(frozen=True)
class CalendarGrid(PaneGrid):
    """Every window is one pane. `borders` holds all that were needed so far, ascending."""

    window: Calendar = field(kw_only=True)
    borders: dict[int, int] = field(default_factory=dict, kw_only=True, compare=False)
    """Where window number n begins, in nanoseconds."""

    @classmethod
    def of(cls, window: Calendar) -> CalendarGrid:
        """Borders are found when rows come."""
        # The arithmetic of equal windows is replaced below; what is left of it sees one pane each.
        return cls(1, 1, 1, 1, 0, window=window)

    @property
    def single(self) -> bool:
        return True

    def panes(self, times_ns: Times) -> Times:
        return self._around(times_ns)[0]

    def first_ends(self, panes: Times) -> Times:
        return self._around(panes)[1]

    def last_ends(self, panes: Times) -> Times:
        return self._around(panes)[1]

    def starts(self, ends: Times) -> Times:
        return self._around(ends - 1)[0]

    def next_ends(self, panes: Times, watermark: int) -> Times:
        ends = self.first_ends(panes)
        # There is one end per pane; behind it there is none.
        return np.where(ends - 1 > watermark, ends, np.int64(WATERMARK_MAX))

    def unused_before(self, watermark: int, lateness_ns: int) -> int:
        at = watermark + 1 - lateness_ns
        if watermark == WATERMARK_MAX or at <= _nanoseconds(_midnight(FIRST_DATE)):
            return watermark if watermark == WATERMARK_MAX else WATERMARK_MIN
        return int(self._around(np.array([at], np.int64))[0][0])

    # Borders ----------------------------------------------------------------------------------

    def _around(self, times_ns: Times) -> tuple[Times, Times]:
        """(the border at or before each time, the one behind it)."""
        if not len(times_ns):
            return times_ns, times_ns
        low, high = self._number(int(times_ns.min())), self._number(int(times_ns.max())) + 1
        # Numbers go by the date in UTC, which may be off by one.
        borders = self._between(low - 1, high + 1)
        at = np.searchsorted(borders, times_ns, side="right")
        return borders[at - 1], borders[at]

    def _between(self, low: int, high: int) -> Times:
        known = self.borders
        for number in range(low, high + 1):
            if number not in known:
                known[number] = self._border(number)
        return np.array([known[number] for number in range(low, high + 1)], np.int64)

    def _number(self, time_ns: int) -> int:
        """The window whose first date comes at or before this time in UTC."""
        moment = EPOCH + timedelta(microseconds=time_ns // 1000 - self.window.offset_ns // 1000)
        day = min(max(moment.date(), FIRST_DATE), LAST_DATE)
        unit, count = self.window.unit, self.window.count
        if unit in _MONTHS:
            return ((day.year - 1970) * 12 + day.month - 1) // (count * _MONTHS[unit])
        days = (day - (MONDAY if unit == "week" else EPOCH.date())).days
        return days // (count * (7 if unit == "week" else 1))

    def _border(self, number: int) -> int:
        unit, count = self.window.unit, self.window.count
        if unit in _MONTHS:
            months = number * count * _MONTHS[unit]
            wall = _midnight(date(1970 + months // 12, months % 12 + 1, 1))
        elif unit == "week":
            wall = _midnight(MONDAY) + timedelta(weeks=number * count)
        else:
            wall = EPOCH + timedelta(days=number * count)
        wall += timedelta(microseconds=self.window.offset_ns // 1000)
        found = first_instant(wall, ZoneInfo(self.window.zone))
        return max(WATERMARK_MIN + 1, min(WATERMARK_MAX, _nanoseconds(found)))


def first_instant(wall: datetime, zone: ZoneInfo) -> datetime:
    """The first instant (naive, UTC) at which clocks in `zone` show `wall` or later.

    >>> first_instant(datetime(2024, 3, 31), ZoneInfo("Europe/Berlin"))
    datetime.datetime(2024, 3, 30, 23, 0)
    """
    guess = wall.replace(tzinfo=zone).astimezone(UTC).replace(tzinfo=None)
    if _shows(guess, zone) == wall and _shows(guess - MICROSECOND, zone) < wall:
        return guess
    # Clocks jump over this time or show it again: look for the moment at which they reach it.
    before, after = wall - SHIFT_MAX, wall + SHIFT_MAX
    while after - before > MICROSECOND:
        middle = before + (after - before) // 2
        if _shows(middle, zone) >= wall:
            after = middle
        else:
            before = middle
    return after


def _shows(moment: datetime, zone: ZoneInfo) -> datetime:
    return moment.replace(tzinfo=UTC).astimezone(zone).replace(tzinfo=None)


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time())


def _nanoseconds(moment: datetime) -> int:
    return (moment - EPOCH) // MICROSECOND * 1000
