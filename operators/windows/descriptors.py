"""The windows that users name: `ps.tumble("1 hour")` and its kin, as plain frozen data."""

from __future__ import annotations

from dataclasses import dataclass

from penstock.elements.durations import Duration, duration_ns
from penstock.elements.errors import PlanError

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
class Session:
    """Per key, rows closer together than `gap_ns`; it ends `gap_ns` after its last row."""

    gap_ns: int
    text: str = "session"


@dataclass(frozen=True)
class CountWindow:
    """Per key, each `rows` rows in order of arrival."""

    rows: int
    text: str = "count_window"


PaneWindow = Tumble | Hop | Cumulate
Window = Tumble | Hop | Cumulate | Session | CountWindow


def tumble(size: Duration, *, offset: Duration = "0 s") -> Tumble:
    """Windows of `size`, end to end: `tumble("1 day", offset="2 hours")` begins days at 02:00 UTC.

    >>> tumble("1 hour").text
    'tumble 1 hour'
    """
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


def _positive(value: Duration, what: str) -> int:
    found = duration_ns(value, what)
    if found <= 0:
        raise PlanError(f"{what}: {value!r} must be longer than nothing")
    return found


def _offset(value: Duration, what: str) -> int:
    return duration_ns(value, f"{what}(offset=)")
