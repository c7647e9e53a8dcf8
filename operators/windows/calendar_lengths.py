"""Lengths of the calendar as users write them: "7 days", "1 month"; which go into which.

Days and weeks go into one another, months, quarters and years too; months have no fixed number of
days, so days go into months only one by one. Lengths shorter than a day are no part of it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from penstock.elements.durations import DAYS_MAX, Duration, duration_ns
from penstock.elements.errors import PlanError

_TEXT = re.compile(r"\s*(?:(\d+)\s*)?(day|week|month|quarter|year)s?\s*")
_DAYS = {"day": 1, "week": 7}
_MONTHS = {"month": 1, "quarter": 3, "year": 12}
DAY_NS = 86_400 * 10**9
MONTH_DAYS_MIN, MONTH_DAYS_MAX = 28, 31
MONTHS_MAX = 1200
"""A hundred years, as DAYS_MAX."""


@dataclass(frozen=True)
class CalendarLength:
    """So many days, weeks, months, quarters or years."""

    count: int
    unit: str

    @property
    def days(self) -> int:
        """0 for months and longer."""
        return self.count * _DAYS.get(self.unit, 0)

    @property
    def months(self) -> int:
        """0 for days and weeks."""
        return self.count * _MONTHS.get(self.unit, 0)

    @property
    def days_max(self) -> int:
        """How long it may be."""
        return self.days or self.months * MONTH_DAYS_MAX

    @property
    def size_ns(self) -> int:
        """How long it is about, and at least, but for clocks that are put forward."""
        return (self.days or self.months * MONTH_DAYS_MIN) * DAY_NS

    def times(self, step: CalendarLength) -> int:
        """How many of `step` it is, 0 if that is no whole number of them.

        >>> CalendarLength(2, "week").times(CalendarLength(7, "day"))
        2
        """
        ours, theirs = (self.days, step.days) if self.days else (self.months, step.months)
        return ours // theirs if theirs and not ours % theirs else 0


def calendar_length(value: Duration) -> CalendarLength | None:
    """What `value` is in the calendar; None if it is nothing there, such as "1 hour"."""
    if isinstance(value, timedelta):
        whole = value and not value % timedelta(days=1)
        return CalendarLength(value.days, "day") if whole else None
    found = _TEXT.fullmatch(value.lower()) if isinstance(value, str) else None
    return CalendarLength(int(found[1] or 1), found[2]) if found else None


def in_calendar(lengths: tuple[Duration, ...], zone: str | None) -> bool:
    """Whether windows of these lengths need a calendar: in a time zone, or of months."""
    found = [calendar_length(each) for each in lengths]
    return zone is not None or any(each is not None and each.unit in _MONTHS for each in found)


def required_length(value: Duration, call: str) -> CalendarLength:
    """The length of a window by the calendar; PlanError if it is none, or absurd."""
    found = calendar_length(value)
    if found is None:
        raise PlanError(
            f"{call}: time zones are for windows of days, weeks, months, quarters and years,"
            f" and {value!r} is none of these\n"
            "  Hours are equally long everywhere: leave  timezone=  out, and move windows by"
            '  offset="30 min".'
        )
    if found.count < 1 or found.days > DAYS_MAX or found.months > MONTHS_MAX:
        raise PlanError(f"{call}: {value!r} is not a length between a day and a hundred years")
    return found


def required_zone(zone: str | None, who: str) -> str:
    """The name of a time zone there is; UTC where none is said."""
    if zone is None:
        return "UTC"
    try:
        ZoneInfo(zone)
    except (ZoneInfoNotFoundError, TypeError, ValueError, OSError) as error:
        raise PlanError(
            f"{who}(timezone={zone!r}): there is no such time zone here\n"
            '  Names are those of the IANA database, such as "Europe/Berlin"; where a machine has'
            " none,\n  install the package tzdata."
        ) from error
    return zone


def required_offset(offset: Duration, within: CalendarLength, call: str, what: str) -> int:
    """The nanoseconds by which windows begin later on the clocks of the place."""
    found = duration_ns(offset, f"{what}(offset=)")
    if not 0 <= found < within.size_ns or found % 1000:
        raise PlanError(
            f"{call}: offset={offset!r} must be shorter than the time from one beginning to the"
            " next, not negative, and in whole microseconds"
        )
    return found


def text_of(call: str, zone: str, offset: Duration, offset_ns: int) -> str:
    """How a window is shown, and told from others when a job is resumed."""
    return f"{call} in {zone}" + (f" from {offset}" if offset_ns else "")
