"""TimerCalls: on_timer for each timer of a round, and what the round yields, collected together.

Rows of an overdue timer carry the earliest time that is not late, since its own has passed (hazard
22). A timer that raises, or yields what does not fit, follows the error policy alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from penstock.elements.signals import WATERMARK_MAX, WATERMARK_MIN
from penstock.state.backend import TimerEntry

from .current_row import CurrentRow
from .declared import Fired, Timer, fired
from .error_policy import Failures
from .row_outputs import RowOutputs

ITEMS_MAX = 8192
"""Items that are gathered before they are collected: at the end of data all timers fire at once."""


class TimerCalls:
    """`call(key, fired)` is user code; `timers` are the declared ones by name."""

    def __init__(
        self,
        call: Callable[[Any, Fired], Iterable[Any] | None],
        timers: Mapping[str, Timer],
        row: CurrentRow,
        out: RowOutputs,
        failures: Failures,
        timed: bool,
    ) -> None:
        self._call, self._row, self._out, self._failures = call, row, out, failures
        self._by_wall = {name: timer.processing_time for name, timer in timers.items()}
        self._timed = timed
        self.passed = WATERMARK_MIN
        """The last watermark that was sent on: what is at or behind it would be late."""
        self._items: list[Any] = []
        self._owners: list[int] = []
        self._entries: list[TimerEntry] = []
        self._times: list[int] = []

    def fire(self, entry: TimerEntry) -> None:
        """Call user code; what it yields waits for `flush`."""
        row, items = self._row, self._items
        timer = fired(entry.tag, entry.time_ns)
        row.key, row.index, row.hashes, row.timer = entry.key, 0, (entry.hash64,), True
        time_ns = self._time_of(entry.time_ns, self._by_wall.get(timer.name, False))
        row.times = (time_ns,) if self._timed else None
        had = len(items)
        row.enter()
        row.load()
        try:
            made = self._call(entry.key, timer)
            if made is not None:
                items.extend(made)
        except Exception as error:
            del items[had:]
            self._bad(entry, timer, error)
        finally:
            row.store()
            row.leave()
        if len(items) > had:
            self._owners += [len(self._entries)] * (len(items) - had)
            self._entries.append(entry)
            self._times.append(time_ns)
            if len(items) >= ITEMS_MAX:
                self.flush()

    def flush(self) -> None:
        """Collect what was yielded."""
        items, owners, entries = self._items, self._owners, self._entries
        if not items:
            return
        times = self._times if self._timed else None
        self._items, self._owners, self._entries, self._times = [], [], [], []

        def bad(owner: int, error: Exception) -> None:
            entry = entries[owner]
            self._bad(entry, fired(entry.tag, entry.time_ns), error)

        self._out.emit(items, owners, times, bad)

    def _time_of(self, time_ns: int, by_wall: bool) -> int:
        """The event time of what a timer makes: its own, unless that would be late already."""
        earliest = min(self.passed, WATERMARK_MAX - 1) + 1
        if by_wall:
            return time_ns if self.passed == WATERMARK_MIN else earliest
        return max(time_ns, earliest)

    def _bad(self, entry: TimerEntry, timer: Fired, error: Exception) -> None:
        self._failures.row("on_timer", error, None, row=timer, key=entry.key, keyed=True)
