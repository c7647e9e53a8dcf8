"""Where days and months begin in a time zone, and steps of so many of them, as sorted instants.

A border is the first instant at which clocks show its date (plus the offset) or later, so borders
leave no gap where midnight does not exist or comes twice; a date that a place left out has none of
its own. Borders are computed once, near the times that are asked for, and looked up by bisection.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt

from penstock.elements.signals import WATERMARK_MAX, WATERMARK_MIN

from .calendar_lengths import CalendarLength

Times = npt.NDArray[np.int64]
EPOCH = datetime.combine(date(1970, 1, 1), time())
MONDAY = 4
"""Weeks begin so many days after the epoch."""
DAY_NS = 86_400 * 10**9
DAY_HOURS_MAX = 26
"""No date lasts longer on the clocks of a place, nor does it begin farther from that of UTC."""
MICROSECOND = timedelta(microseconds=1)
NEIGHBOURS = 4
"""Steps looked up beyond those of the dates in UTC: dates may be off by one, and left out."""
TABLE_BORDERS_MAX = 1 << 17
"""1 MiB of borders is kept sorted; times farther apart are looked up in pieces."""


def nanoseconds(moment: datetime) -> int:
    """Since the epoch, of a naive time in UTC."""
    return (moment - EPOCH) // MICROSECOND * 1000


FIRST_NS, LAST_NS = (
    nanoseconds(datetime.combine(day, time())) for day in (date(1677, 9, 22), date(2262, 4, 10))
)
"""What 64 bits of nanoseconds reach, in whole days."""


class ZoneBorders:
    """Steps of one length: number 0 begins at or behind the epoch, all end where the next begins.

    Weeks begin on Monday, and so do days that windows of weeks are made of: `since_monday`.
    `piece_ns` cuts each step into pieces of that much time; the last is what remains.
    `reach` is how many steps to both sides callers look, from the times they ask for.
    """

    def __init__(
        self,
        length: CalendarLength,
        zone: str,
        offset_ns: int,
        *,
        since_monday: bool | None = None,
        piece_ns: int = 0,
        reach: int = 1,
    ) -> None:
        self._months, self._days = length.months, length.days
        mondays = length.unit == "week" if since_monday is None else since_monday
        self._first_day = MONDAY if mondays else 0
        self._zone = ZoneInfo(zone)
        self._offset_ns = offset_ns
        self._piece_ns = piece_ns
        self._margin = reach + NEIGHBOURS
        self._numbers_max = TABLE_BORDERS_MAX // (pieces_of_a_day(piece_ns) if piece_ns else 1)
        self._known: dict[int, int] = {}
        self._low, self._high = 0, -1
        self._table: Times = np.zeros(0, np.int64)

    def near(self, times_ns: Times) -> Times:
        """Borders, ascending, each once: all within the reach of each time, maybe others."""
        bounds = self._numbers(np.array([times_ns.min(), times_ns.max()], np.int64))
        low, high = int(bounds[0]) - self._margin, int(bounds[1]) + self._margin
        if self._low <= low and high <= self._high:
            return self._table
        if high - low > self._numbers_max:
            return self._in_pieces(np.unique(self._numbers(times_ns)))
        if self._low <= self._high:
            wide = min(low, self._low), max(high, self._high)
            low, high = wide if wide[1] - wide[0] <= self._numbers_max else (low, high)
        self._low, self._high, self._table = low, high, self._between(low, high)
        return self._table

    def _in_pieces(self, numbers: Times) -> Times:
        """The borders around each of some numbers, but not those far from all."""
        breaks = np.flatnonzero(np.diff(numbers) > 2 * self._margin)
        firsts = numbers[np.concatenate([[0], breaks + 1])] - self._margin
        lasts = numbers[np.append(breaks, len(numbers) - 1)] + self._margin
        spans = zip(firsts.tolist(), lasts.tolist(), strict=True)
        return np.concatenate([self._between(low, high) for low, high in spans])

    def _between(self, low: int, high: int) -> Times:
        known = self._known
        for number in range(low, high + 1):
            if number not in known:
                known[number] = self._border(number)
        # A date that was left out begins with the next one.
        borders = np.unique(np.array([known[n] for n in range(low, high + 1)], np.int64))
        return cut(borders, self._piece_ns) if self._piece_ns else borders

    def _numbers(self, times_ns: Times) -> Times:
        """The steps whose first dates come at or before these times in UTC."""
        within = np.clip(times_ns, FIRST_NS + self._offset_ns, LAST_NS) - self._offset_ns
        if self._months:
            months = within.astype("datetime64[ns]").astype("datetime64[M]").astype(np.int64)
            return np.asarray(months // self._months, np.int64)
        return np.asarray((within // DAY_NS - self._first_day) // self._days, np.int64)

    def _border(self, number: int) -> int:
        if self._months:
            months = number * self._months
            wall = datetime.combine(date(1970 + months // 12, months % 12 + 1, 1), time())
        else:
            wall = EPOCH + timedelta(days=self._first_day + number * self._days)
        wall += timedelta(microseconds=self._offset_ns // 1000)
        found = nanoseconds(first_instant(wall, self._zone))
        return max(WATERMARK_MIN + 1, min(WATERMARK_MAX, found))


def pieces_of_a_day(piece_ns: int) -> int:
    """How many pieces of so many nanoseconds the longest day has."""
    return -(-DAY_HOURS_MAX * 3600 * 10**9 // piece_ns)


def cut(borders: Times, piece_ns: int) -> Times:
    """The borders, and between each two of them one after every `piece_ns`.

    >>> cut(np.array([0, 10, 14, 18]), 4).tolist()
    [0, 4, 8, 10, 14, 18]
    """
    counts = -(-np.diff(borders) // piece_ns)
    within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.append(np.repeat(borders[:-1], counts) + within * piece_ns, borders[-1])


def first_instant(wall: datetime, zone: ZoneInfo) -> datetime:
    """The first instant (naive, UTC) at which clocks in `zone` show `wall` or later.

    >>> first_instant(datetime(2024, 3, 31), ZoneInfo("Europe/Berlin"))
    datetime.datetime(2024, 3, 30, 23, 0)
    """
    guess = wall.replace(tzinfo=zone).astimezone(UTC).replace(tzinfo=None)
    if _shows(guess, zone) == wall and _shows(guess - MICROSECOND, zone) < wall:
        return guess
    # Clocks jump over this time or show it again: look for the moment at which they reach it.
    before, after = (wall + timedelta(hours=sign * DAY_HOURS_MAX) for sign in (-1, 1))
    while after - before > MICROSECOND:
        middle = before + (after - before) // 2
        if _shows(middle, zone) >= wall:
            after = middle
        else:
            before = middle
    return after


def _shows(moment: datetime, zone: ZoneInfo) -> datetime:
    return moment.replace(tzinfo=UTC).astimezone(zone).replace(tzinfo=None)
