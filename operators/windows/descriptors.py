"""The windows that users name: `ps.tumble("1 hour")` and its kin, as plain frozen data."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from penstock.elements.durations import FOREVER, Duration, duration_ns
from penstock.elements.errors import PlanError

from .calendar_lengths import (
    DAY_NS,
    CalendarLength,
    calendar_length,
    in_calendar,
    required_length,
    required_offset,
    required_zone,
    text_of,
)

_ROWS = re.compile(r"\s*(\d+)\s*rows?\s*")
WINDOWS_PER_ROW_MAX = 10_000
"""A hop this fine is taken for a mistake: each row would count in that many windows."""


@dataclass(frozen=True)
class Tumble:
    """Windows of one size, end to end, beginning at multiples of it plus `offset_ns`."""

    size_ns: int
    offset_ns: int = 0
    text: str = "tumble"


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
class Calendar(Tumble):
    """Tumbling windows of so many days, weeks, months, quarters or years of a time zone.

    Here and below `size_ns` and its like are about how long they are; `offset_ns` is on the clocks
    of the place.
    """

    length: CalendarLength = field(kw_only=True)
    zone: str = field(kw_only=True)


@dataclass(frozen=True)
class CalendarHop(Hop):
    """Windows that begin with each `every` of a time zone and last for `steps` of them."""

    every: CalendarLength = field(kw_only=True)
    steps: int = field(kw_only=True)
    zone: str = field(kw_only=True)


@dataclass(frozen=True)
class CalendarCumulate(Cumulate):
    """Windows that begin with each `length` of a time zone and grow until it ends.

    `step` None: by `step_ns` of elapsed time within each day.
    """

    length: CalendarLength = field(kw_only=True)
    step: CalendarLength | None = field(kw_only=True)
    zone: str = field(kw_only=True)


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
    if not in_calendar((size,), timezone):
        size_ns, offset_ns = _positive(size, "tumble(size)"), _offset(offset, "tumble")
        return Tumble(size_ns, offset_ns, _moved(f"tumble {size}", offset, offset_ns))
    call = f"tumble({size!r}, timezone={timezone!r})"
    length, zone = required_length(size, call), required_zone(timezone, "tumble")
    offset_ns = required_offset(offset, length, call, "tumble")
    text = text_of(f"tumble {size}", zone, offset, offset_ns)
    return Calendar(length.size_ns, offset_ns, text, length=length, zone=zone)


def hop(
    size: Duration, *, every: Duration, offset: Duration = "0 s", timezone: str | None = None
) -> Hop:
    """Windows of `size` that begin `every` so often; they overlap, so a row counts in several.

    With `timezone="Europe/Berlin"` they begin with the days, weeks, months, quarters or years of
    the place and last for a whole number of them: `hop("7 days", every="1 day", timezone=...)`.
    """
    if in_calendar((size, every), timezone):
        return _calendar_hop(size, every, offset, timezone)
    size_ns, every_ns = _positive(size, "hop(size)"), _positive(every, "hop(every)")
    _check_count(size_ns / every_ns, f"hop({size!r}, every={every!r})", "every")
    offset_ns = _offset(offset, "hop")
    return Hop(size_ns, every_ns, offset_ns, _moved(f"hop {size} every {every}", offset, offset_ns))


def _calendar_hop(size: Duration, every: Duration, offset: Duration, timezone: str | None) -> Hop:
    call = f"hop({size!r}, every={every!r}, timezone={timezone!r})"
    length, step = required_length(size, call), required_length(every, call)
    zone = required_zone(timezone, "hop")
    steps = length.times(step)
    if not steps:
        raise PlanError(
            f"{call}: the size must be a whole number of  every=\n"
            "  Days and weeks go into one another, as in 7 days every 1 day; months, quarters and"
            ' years too.\n  Months have no fixed number of days: say  hop("30 days",'
            ' every="1 day")  or  hop("3 months", every="1 month").'
        )
    _check_count(steps, call, "every")
    offset_ns = required_offset(offset, step, call, "hop")
    text = text_of(f"hop {size} every {every}", zone, offset, offset_ns)
    return CalendarHop(
        length.size_ns, step.size_ns, offset_ns, text, every=step, steps=steps, zone=zone
    )


def cumulate(
    size: Duration, *, step: Duration, offset: Duration = "0 s", timezone: str | None = None
) -> Cumulate:
    """Windows that begin together every `size` and end one `step` later each: totals of the day
    so far, by the hour.

    With `timezone="Europe/Berlin"` the size is days, weeks, months, quarters or years of the place,
    and the step goes into it: `cumulate("1 month", step="1 day", timezone=...)`. Steps shorter than
    a day are of elapsed time from each day's beginning; the last one of a day ends with it.
    """
    if in_calendar((size, step), timezone):
        return _calendar_cumulate(size, step, offset, timezone)
    size_ns, step_ns = _positive(size, "cumulate(size)"), _positive(step, "cumulate(step)")
    call = f"cumulate({size!r}, step={step!r})"
    if size_ns % step_ns:
        raise PlanError(f"{call}: the size must be a multiple of step")
    _check_count(size_ns // step_ns, call, "step")
    offset_ns = _offset(offset, "cumulate")
    text = _moved(f"cumulate {size} step {step}", offset, offset_ns)
    return Cumulate(size_ns, step_ns, offset_ns, text)


def _calendar_cumulate(
    size: Duration, step: Duration, offset: Duration, timezone: str | None
) -> Cumulate:
    call = f"cumulate({size!r}, step={step!r}, timezone={timezone!r})"
    length, zone = required_length(size, call), required_zone(timezone, "cumulate")
    found = calendar_length(step)
    if found is None:
        step_ns = _positive(step, "cumulate(step)")
        goes_in = step_ns < DAY_NS and not DAY_NS % step_ns
        count = length.days_max * DAY_NS // step_ns
    else:
        step_ns = required_length(step, call).size_ns
        count = length.times(found) or (length.days_max if found.days == 1 else 0)
        goes_in = count > 0
    if not goes_in:
        raise PlanError(
            f"{call}: windows grow by a step that goes into the size\n"
            "  Into days go the steps that go into 24 hours, such as 1 hour or 15 min; into weeks"
            " also days;\n  into months days one by one, and into quarters and years also months."
        )
    _check_count(count, call, "step")
    offset_ns = required_offset(offset, length, call, "cumulate")
    text = text_of(f"cumulate {size} step {step}", zone, offset, offset_ns)
    return CalendarCumulate(
        length.size_ns, step_ns, offset_ns, text, length=length, step=found, zone=zone
    )


def _check_count(count: float, call: str, step: str) -> None:
    if count > WINDOWS_PER_ROW_MAX:
        raise PlanError(
            f"{call}: each row would be in {int(count)} windows\n"
            f"  At most {WINDOWS_PER_ROW_MAX} are allowed; choose a longer  {step}=."
        )


def _moved(text: str, offset: Duration, offset_ns: int) -> str:
    return text + (f" from {offset}" if offset_ns else "")


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


def _positive(value: Duration, what: str) -> int:
    found = duration_ns(value, what)
    if found <= 0:
        raise PlanError(f"{what}: {value!r} must be longer than nothing")
    return found


def _offset(value: Duration, what: str) -> int:
    return duration_ns(value, f"{what}(offset=)")
