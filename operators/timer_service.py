"""TimerService: fires the timers of one kind in order, while user code sets and cancels others.

Timers fire in (time, key hash, tag) order (hazard 24), also those that are set while firing. A
timer cancelled or moved by an earlier one of the same round does not fire at its old time. At the
end of data each (key, tag) fires once at most, so that a timer which re-arms itself ends too.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Hashable

from penstock.elements.errors import StateError
from penstock.state.backend import TimerEntry, Timers

Slot = tuple[Hashable, str]


class TimerService:
    """Wraps the stored timers; all sets and cancels of user code go through it."""

    def __init__(self, timers: Timers) -> None:
        self._timers = timers
        self.set = timers.set
        """Arm or move: the stored timers' own method, or `_set` while timers fire."""
        self._live: dict[Slot, TimerEntry] | None = None
        self._queue: list[TimerEntry] = []
        self._next = 0
        self._until = 0
        self._current: TimerEntry | None = None
        self._fired: set[Slot] | None = None
        self.dropped = 0
        """Timers that would have fired again at the end of data."""

    def _set(self, key: Hashable, hash64: int, tag: str, time_ns: int) -> None:
        assert self._live is not None
        self._refuse_standstill(key, tag, time_ns)
        self._live.pop((key, tag), None)
        if self._fired is not None and (key, tag) in self._fired:
            self.dropped += 1
            return
        if time_ns > self._until:
            self._timers.set(key, hash64, tag, time_ns)
            return
        self._timers.cancel(key, tag)
        entry = TimerEntry(time_ns, hash64, tag, key)
        self._live[key, tag] = entry
        insort(self._queue, entry, lo=self._next)

    def cancel(self, key: Hashable, tag: str) -> None:
        """Disarm; unknown ones are ignored."""
        if self._live is not None:
            self._live.pop((key, tag), None)
        self._timers.cancel(key, tag)

    def pending(self, key: Hashable, tag: str) -> int | None:
        """When it will fire."""
        if self._live is not None and (entry := self._live.get((key, tag))) is not None:
            return entry.time_ns
        return self._timers.pending(key, tag)

    def next_ns(self) -> int | None:
        """The earliest pending time."""
        return self._timers.next_ns()

    def fire(
        self, until_ns: int, call: Callable[[TimerEntry], None], *, at_end: bool = False
    ) -> None:
        """Call `call` for every timer with time <= `until_ns`, those set meanwhile included."""
        self._queue = self._timers.due(until_ns)
        if not self._queue:
            return
        self._live = {(entry.key, entry.tag): entry for entry in self._queue}
        self._until, self._next = until_ns, 0
        self.set = self._set
        self._fired = set() if at_end else None
        try:
            while self._next < len(self._queue):
                entry = self._queue[self._next]
                self._next += 1
                slot = (entry.key, entry.tag)
                if self._live.get(slot) is not entry:
                    continue
                del self._live[slot]
                if self._fired is not None:
                    self._fired.add(slot)
                self._current = entry
                call(entry)
        finally:
            left, self._live, self._current, self._queue = self._live, None, None, []
            self._fired = None
            self.set = self._timers.set
            for entry in left.values():  # Only after an exception.
                self._timers.set(entry.key, entry.hash64, entry.tag, entry.time_ns)

    def drain(self) -> list[TimerEntry]:
        """Remove all pending timers."""
        return self._timers.due(2**63 - 1)

    def _refuse_standstill(self, key: Hashable, tag: str, time_ns: int) -> None:
        """A timer that re-arms itself without moving on would fire for ever."""
        now = self._current
        if now is None or now.key != key or now.tag != tag or time_ns > now.time_ns:
            return
        raise StateError(
            f"on_timer re-armed timer {tag!r} at or before the time for which it was firing\n"
            "  It would fire for ever. Re-arm it at a later time, or not at all."
        )
