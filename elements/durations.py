"""Durations as users write them: a timedelta or "5 seconds"; a bare number is refused."""

from __future__ import annotations

import re
from datetime import timedelta

from .errors import PlanError

Duration = timedelta | str
FOREVER = timedelta.max
"""Said where state would otherwise be bounded: `ttl=ps.FOREVER`. Not a number of nanoseconds."""
DAYS_MAX = 36_525
"""A hundred years: event times and their sums with durations have to fit 64 bits, 1677 to 2262."""

_UNITS_NS = {
    "ns": 1,
    "nanosecond": 1,
    "us": 1_000,
    "microsecond": 1_000,
    "ms": 1_000_000,
    "millisecond": 1_000_000,
    "s": 10**9,
    "sec": 10**9,
    "second": 10**9,
    "m": 60 * 10**9,
    "min": 60 * 10**9,
    "minute": 60 * 10**9,
    "h": 3600 * 10**9,
    "hour": 3600 * 10**9,
    "d": 86400 * 10**9,
    "day": 86400 * 10**9,
    "w": 7 * 86400 * 10**9,
    "week": 7 * 86400 * 10**9,
}
_PART = re.compile(r"\s*([+-]?\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*")


def duration_ns(value: Duration, what: str = "duration") -> int:
    """Nanoseconds of `value`; raises PlanError that names `what` for anything else.

    >>> duration_ns("5 seconds"), duration_ns("1 hour 30 min"), duration_ns("-5 min")
    (5000000000, 5400000000000, -300000000000)
    """
    if isinstance(value, timedelta):
        micros = (value.days * 86400 + value.seconds) * 1_000_000 + value.microseconds
        return _in_range(micros * 1000, value, what)
    if isinstance(value, str):
        total = 0
        at = 0
        while at < len(value):
            part = _PART.match(value, at)
            if part is None:
                break
            unit = part.group(2).lower()
            scale = _UNITS_NS.get(unit) or _UNITS_NS.get(unit.removesuffix("s"))
            if scale is None:
                break
            number = part.group(1)
            total += round(float(number) * scale) if "." in number else int(number) * scale
            at = part.end()
        if at == len(value) and value.strip():
            return _in_range(total, value, what)
    raise PlanError(
        f"{what}: {value!r} is not a duration\n"
        '  Write a timedelta or a number with its unit, such as "5 seconds", "1 hour", "200 ms".'
    )


def ttl_ns(value: Duration | None, what: str = "ttl") -> int | None:
    """Nanoseconds of a bound that may be none at all: None and FOREVER have no number."""
    return None if value is None or value == FOREVER else duration_ns(value, what)


def _in_range(found: int, value: Duration, what: str) -> int:
    if abs(found) > DAYS_MAX * _UNITS_NS["day"]:
        text = "ps.FOREVER" if value == FOREVER else repr(value)
        raise PlanError(
            f"{what}: {text} is longer than a hundred years\n"
            "  For state that is never forgotten say  ttl=ps.FOREVER ; other durations have an end."
        )
    return found
