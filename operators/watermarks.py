"""Event time at a source: how rows promise a watermark, per split, and what silence means.

Pure: time enters as numbers. A watermark W promises that every later row has `_time` > W.
1. The watermark of a split never goes back, nor does the combined one.
2. The combined watermark is the least over splits that are neither idle nor ended.
3. A split is idle only after it was asked and had nothing for `idle_ns`; a source that was held up
   by its consumers asks nobody, so back-pressure never makes a split idle (hazard 5).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from penstock.elements.durations import Duration, duration_ns
from penstock.elements.errors import PlanError
from penstock.elements.signals import WATERMARK_MAX, WATERMARK_MIN

IDLE_NS = 10 * 10**9
"""A split of an unbounded source that gives nothing for this long no longer holds time back."""
QUIET_STEP_NS_MAX = 10**9
"""Silence between two polls counts at most this much: the poller itself may have been held up."""


@dataclass(frozen=True)
class BoundedDisorder:
    """Rows come at most `bound_ns` behind the newest one seen in their split; 0: in order."""

    bound_ns: int

    def promise(self, newest_ns: int) -> int:
        """The watermark that follows from the newest event time.

        >>> BoundedDisorder(10).promise(100)
        89
        """
        return saturated(newest_ns - self.bound_ns - 1)


@dataclass(frozen=True)
class ExpressionWatermark:
    """A SQL expression over the row says which time may no longer be undercut.

    Rows at exactly the greatest value so far are still in time, as with a bound.
    """

    sql: str

    def promise(self, newest_ns: int) -> int:
        """The watermark that follows from the expression's greatest value."""
        return saturated(newest_ns - 1)


Strategy = BoundedDisorder | ExpressionWatermark


@dataclass(frozen=True)
class EventTime:
    """Where a source's event time comes from and how far it may be out of order.

    `time` is a column or a SQL expression. `idle_ns` is None for the default: 10 seconds, and
    never for bounded sources.
    """

    time: str
    strategy: Strategy
    idle_ns: int | None = None

    def idle_after_ns(self, bounded: bool) -> int | None:
        """How long a split may be silent; None: for ever."""
        if self.idle_ns is not None:
            return self.idle_ns
        return None if bounded else IDLE_NS


def event_time(
    time: str,
    *,
    out_of_order: Duration | None = None,
    monotone: bool = False,
    watermark: str | None = None,
    idle: Duration | None = None,
) -> EventTime:
    """The event time that a user asked for; disorder is said, never guessed."""
    given = [out_of_order is not None, monotone, watermark is not None]
    if sum(given) != 1:
        raise PlanError(
            f'source(event_time="{time}"): say how far rows may be out of order, one of\n'
            '  out_of_order="5 seconds"   rows come at most that much behind the newest one\n'
            "  monotone=True              event times never go back within a split\n"
            "  watermark=\"ts - INTERVAL '5 seconds'\"   an expression over the row"
        )
    idle_ns = None if idle is None else duration_ns(idle, "source(idle=)")
    if idle_ns is not None and idle_ns <= 0:
        raise PlanError(f"source(idle=): {idle!r} must be longer than nothing")
    if watermark is not None:
        return EventTime(time, ExpressionWatermark(watermark), idle_ns)
    bound_ns = 0 if out_of_order is None else duration_ns(out_of_order, "source(out_of_order=)")
    if bound_ns < 0:
        raise PlanError(f"source(out_of_order=): {out_of_order!r} must not be negative")
    return EventTime(time, BoundedDisorder(bound_ns), idle_ns)


def saturated(time_ns: int) -> int:
    """`time_ns` kept inside what an int64 watermark may be; MAX is kept for the end of data."""
    return max(WATERMARK_MIN, min(WATERMARK_MAX - 1, time_ns))


def with_lateness(time_ns: int, lateness_ns: int) -> int:
    """`time_ns + lateness_ns` without wrapping around (hazard 44).

    >>> with_lateness(WATERMARK_MAX, 5) == WATERMARK_MAX
    True
    """
    return max(WATERMARK_MIN, min(WATERMARK_MAX, time_ns + lateness_ns))


@dataclass
class SplitProgress:
    """One split's generator state; `watermark` is stored with the split."""

    watermark: int
    quiet_ns: int = 0
    asked_ns: int | None = None
    """When it was last asked and had nothing; None after rows."""


class SplitWatermarks:
    """The watermark of a source subtask from those of its splits."""

    def __init__(self, idle_ns: int | None) -> None:
        self._idle_ns = idle_ns
        self._splits: dict[str, SplitProgress] = {}
        self._combined = WATERMARK_MIN

    def add(self, split: str, watermark: int = WATERMARK_MIN) -> None:
        """A split is read from now on; `watermark` is what a checkpoint kept of it."""
        self._splits[split] = SplitProgress(watermark)

    def remove(self, split: str) -> None:
        """The split has ended: it holds nothing back."""
        self._splits.pop(split, None)

    def on_rows(self, split: str, promise: int | None) -> None:
        """Rows came; `promise` follows from them, None if none of them had a time."""
        progress = self._splits[split]
        progress.quiet_ns, progress.asked_ns = 0, None
        if promise is not None:
            progress.watermark = max(progress.watermark, promise)

    def on_nothing(self, split: str, now_ns: int) -> None:
        """The split was asked and had nothing."""
        progress = self._splits[split]
        if progress.asked_ns is not None:
            progress.quiet_ns += min(QUIET_STEP_NS_MAX, max(0, now_ns - progress.asked_ns))
        progress.asked_ns = now_ns

    def is_idle(self, split: str) -> bool:
        """Whether the split has been silent for too long."""
        return self._idle_ns is not None and self._splits[split].quiet_ns >= self._idle_ns

    def watermark_of(self, split: str) -> int:
        """What this split alone promises."""
        return self._splits[split].watermark

    @property
    def all_idle(self) -> bool:
        """No split holds time back, since there is none or all are idle."""
        return all(self.is_idle(split) for split in self._splits)

    def combined(self, waiting: Iterable[int] = ()) -> int:
        """The subtask's watermark now; `waiting` are those of splits not opened yet."""
        active = [p.watermark for name, p in self._splits.items() if not self.is_idle(name)]
        active.extend(waiting)
        if active:
            self._combined = max(self._combined, min(active))
        return self._combined
