"""The windows that users name: `ps.tumble("1 hour")` and its kin, as plain frozen data."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from penstock.elements.durations import FOREVER, Duration, duration_ns
from penstock.elements.errors import PlanError

_CALENDAR = re.compile(r"\s*(?:(\d+)\s*)?(day|week|month|quarter|year)s?\s*")
_ROWS = re.compile(r"\s*(\d+)\s*rows?\s*")
_DAYS = {"day": 1, "week": 7, "month": 30, "quarter": 91, "year": 365}
WINDOWS_PER_ROW_MAX = 10_000
"""A hop this fine is taken for a mistake: each row would count in that many windows."""


@dataclass(frozen=True)
class Tumble:
    """Windows of one size, end to end, beginning at multiples of it plus `offset_ns`."""

    size_ns: int
    offset_ns: int = 0
    text: str = "tumble"


@dataclass(frozen=True)
class Calendar(Tumble):
    """Tumbling windows of so many days, weeks, months, quarters or years of a time zone.

    `size_ns` is about how long they are; `offset_ns` is on the clocks there.
    """

    unit: str = "day"
    count: int = 1
    zone: str = "UTC"


@dataclass(frozen=True)
class Hop:
    """Windows of one size that begin at every multiple of `every_ns` plus `offset_ns`."""

    size_ns: int
    every_ns: int
    offset_ns: int = 0
    text: str = "hop"


@dataclass(frozen=True)
class Cumulate:
    """Windows that begin together and grow by a step until they have the full size."""

    size_ns: int
    step_ns: int
    offset_ns: int = 0
    text: str = "cumulate"


@dataclass(frozen=True)
class Session:
    """Per key, rows closer together than `gap_ns`; it ends `gap_ns` after its last row."""

    gap_ns: int
    text: str = "session"


@dataclass(frozen=True)
class CountWindow:
    """Per key, each `rows` rows in order of arrival."""

    rows: int
    text: str = "count_window"


@dataclass(frozen=True)
class GlobalWindow:
    """Per key, all rows; given by number of rows or by an interval of processing time.

    `ttl_ns` None: keys are kept for ever.
    """

    trigger_rows: int | None
    trigger_ns: int | None
    ttl_ns: int | None
    text: str = "global_window"


PaneWindow = Tumble | Hop | Cumulate
Window = Tumble | Hop | Cumulate | Session | CountWindow | GlobalWindow


def tumble(size: Duration, *, offset: Duration = "0 s", timezone: str | None = None) -> Tumble:
    """Windows of `size`, end to end: `tumble("1 day", offset="2 hours")` begins days at 02:00 UTC.

    With `timezone="Europe/Berlin"` days, weeks, months, quarters and years are those of the place,
    23 or 25 hours long where its clocks change. Months and longer need none: theirs is then UTC.

    >>> tumble("1 hour").text
    'tumble 1 hour'
    """
    found = _CALENDAR.fullmatch(size.lower()) if isinstance(size, str) else None
    if isinstance(size, timedelta) and timezone is not None and not size % timedelta(days=1):
        found = _CALENDAR.fullmatch(f"{size.days} days")
    if found and (timezone is not None or found[2] in ("month", "quarter", "year")):
        return _calendar(int(found[1] or 1), found[2], size, offset, timezone or "UTC")
    if timezone is not None:
        raise PlanError(
            f"tumble({size!r}, timezone={timezone!r}): time zones are for windows of days, weeks,"
            " months, quarters and years\n"
            '  Shorter windows can be moved:  offset="30 min"'
        )
    return Tumble(_positive(size, "tumble(size)"), _offset(offset, "tumble"), f"tumble {size}")


def hop(size: Duration, *, every: Duration, offset: Duration = "0 s") -> Hop:
    """Windows of `size` that begin `every` so often; they overlap, so a row counts in several."""
    size_ns, every_ns = _positive(size, "hop(size)"), _positive(every, "hop(every)")
    if size_ns > every_ns * WINDOWS_PER_ROW_MAX:
        raise PlanError(
            f"hop({size!r}, every={every!r}): each row would be in {size_ns // every_ns} windows\n"
            f"  At most {WINDOWS_PER_ROW_MAX} are allowed; choose a longer  every=."
        )
    return Hop(size_ns, every_ns, _offset(offset, "hop"), f"hop {size} every {every}")


def cumulate(size: Duration, *, step: Duration, offset: Duration = "0 s") -> Cumulate:
    """Windows that begin together every `size` and end one `step` later each: totals of the day
    so far, by the hour."""
    size_ns, step_ns = _positive(size, "cumulate(size)"), _positive(step, "cumulate(step)")
    if size_ns % step_ns:
        raise PlanError(f"cumulate({size!r}, step={step!r}): the size must be a multiple of step")
    if size_ns > step_ns * WINDOWS_PER_ROW_MAX:
        raise PlanError(
            f"cumulate({size!r}, step={step!r}): more than {WINDOWS_PER_ROW_MAX} steps in a window"
        )
    return Cumulate(size_ns, step_ns, _offset(offset, "cumulate"), f"cumulate {size} step {step}")


def session(gap: Duration) -> Session:
    """Per key, rows closer together than `gap`; a gap of exactly `gap` begins a new session."""
    return Session(_positive(gap, "session(gap)"), f"session {gap}")


def count_window(rows: int) -> CountWindow:
    """Per key, each `rows` rows in order of arrival. What order that is can differ from run to
    run, and so can the results; rows that never fill a window give none."""
    if isinstance(rows, bool) or not isinstance(rows, int) or rows < 1:
        raise PlanError(f"count_window({rows!r}): give a number of rows, 1 or more")
    return CountWindow(rows, f"count_window {rows}")


def global_window(*, trigger: Duration, ttl: Duration) -> GlobalWindow:
    """Per key, all rows so far, given whenever the trigger fires: `trigger="100 rows"` with each
    100th row of a key, `trigger="10 seconds"` in that interval of the wall clock if it has changed.

    Keys that had no row for `ttl` begin anew; ps.FOREVER keeps them. Which rows come first can
    differ from run to run, and so can what is given on the way.
    """
    ttl_ns = None if ttl == FOREVER else _positive(ttl, "global_window(ttl)")
    rows = _ROWS.fullmatch(trigger) if isinstance(trigger, str) else None
    text = f"global_window every {trigger}"
    if rows is None:
        interval_ns = _positive(trigger, 'global_window(trigger="100 rows" or an interval)')
        return GlobalWindow(None, interval_ns, ttl_ns, text)
    if int(rows[1]) < 1:
        raise PlanError(f"global_window(trigger={trigger!r}): give a number of rows, 1 or more")
    return GlobalWindow(int(rows[1]), None, ttl_ns, text)


def _calendar(count: int, unit: str, size: Duration, offset: Duration, zone: str) -> Calendar:
    try:
        ZoneInfo(zone)
    except (ZoneInfoNotFoundError, TypeError, ValueError, OSError) as error:
        raise PlanError(
            f"tumble(timezone={zone!r}): there is no such time zone here\n"
            '  Names are those of the IANA database, such as "Europe/Berlin"; where a machine has'
            " none,\n  install the package tzdata."
        ) from error
    day_ns = 86_400 * 10**9
    size_ns = count * _DAYS[unit] * day_ns
    offset_ns = _offset(offset, "tumble")
    if count < 1 or not 0 <= offset_ns < size_ns or offset_ns % 1000:
        raise PlanError(
            f"tumble({size!r}, offset={offset!r}): the offset lies within the window, in whole"
            " microseconds, and the window has a length"
        )
    text = f"tumble {size} in {zone}" + (f" from {offset}" if offset_ns else "")
    return Calendar(size_ns, offset_ns, text, unit, count, zone)


def _positive(value: Duration, what: str) -> int:
    found = duration_ns(value, what)
    if found <= 0:
        raise PlanError(f"{what}: {value!r} must be longer than nothing")
    return found


def _offset(value: Duration, what: str) -> int:
    return duration_ns(value, f"{what}(offset=)")
