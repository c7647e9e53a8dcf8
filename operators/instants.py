"""Instants between users and the engine: datetime (naive is UTC) or int ↔ nanoseconds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from penstock.elements.signals import WATERMARK_MAX, WATERMARK_MIN

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NAIVE_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - the zone of naive times is UTC by definition
_LAST = datetime.max.replace(tzinfo=UTC)

Instant = datetime | int
"""A datetime, or an int of nanoseconds since the epoch."""


def instant_ns(when: Instant, what: str) -> int:
    """Nanoseconds since the epoch, within the range of watermarks.

    >>> instant_ns(datetime(1970, 1, 1, 0, 0, 1), "t")
    1000000000
    """
    if isinstance(when, datetime):
        since = when - (_NAIVE_EPOCH if when.tzinfo is None else _EPOCH)
        ns = ((since.days * 86400 + since.seconds) * 1_000_000 + since.microseconds) * 1000
    elif isinstance(when, int) and not isinstance(when, bool):
        ns = when
    else:
        raise TypeError(
            f"{what}: {when!r} is not an instant; give a datetime or an int of nanoseconds"
        )
    if not WATERMARK_MIN < ns < WATERMARK_MAX:
        raise ValueError(f"{what}: {when!r} is outside the years 1677 to 2262")
    return ns


def instant(ns: int) -> datetime:
    """The aware datetime, floored to microseconds; the far ends of time are datetime.max.

    >>> instant(1500)
    datetime.datetime(1970, 1, 1, 0, 0, 0, 1, tzinfo=datetime.timezone.utc)
    """
    if ns == WATERMARK_MAX:
        return _LAST
    return _EPOCH + timedelta(0, 0, ns // 1000)
