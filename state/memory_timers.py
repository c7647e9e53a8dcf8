"""Timers of the memory backend: buckets by time, a heap of the bucket numbers, lazy deletion.

Promises: one pending timer per (key, tag); they fire by (time, key hash, tag); timers that were
moved or cancelled do not fire and are dropped when they are the majority.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from typing import Any

from penstock.elements.keygroup import KeyGroupRange
from penstock.elements.keys import canonical_key

from .backend import Section, TimerEntry, Timers
from .memory_pages import PAGE_SHIFT, PageStore, SealedPages

_Slot = tuple[Hashable, str]
"""Key and tag."""

BUCKET_SHIFT = 26
"""A bucket is 2**26 ns, 67 ms: about what lies between two watermarks, so that few timers are
looked at twice and most are set without touching the heap."""
STALE_TIMERS_MIN = 4096
"""Moved or cancelled entries that are kept, at least, before the buckets are made anew."""


class MemoryTimers(PageStore, Timers):
    """Pending timers by (key, tag): stored as (time, hash), here a list that is moved in place."""

    def __init__(self, operator_id: str, name: str) -> None:
        super().__init__(f"{operator_id}: timers {name}")
        self._operator_id = operator_id
        self._name = name
        self._buckets: dict[int, list[_Slot]] = {}
        self._numbers: list[int] = []
        self._entries = 0
        self._earliest: int | None = None
        self._earliest_known = True

    def set(self, key: Hashable, hash64: int, tag: str, time_ns: int) -> None:
        slot = (key, tag)
        before = self.values.get(slot)
        number = time_ns >> BUCKET_SHIFT
        if before is None:
            entered = False
            self.put(slot, hash64, [time_ns, hash64])
        else:
            before_ns = before[0]
            if before_ns == time_ns:
                return
            entered = before_ns >> BUCKET_SHIFT == number
            if before_ns == self._earliest:
                self._earliest_known = False
            before[0] = time_ns
            self.dirty[hash64 >> PAGE_SHIFT] = 1
        if self._earliest is None or time_ns < self._earliest:
            self._earliest = time_ns
        if not entered:
            self._enter(slot, number)

    def cancel(self, key: Hashable, tag: str) -> None:
        slot = (key, tag)
        stored = self.values.get(slot)
        if stored is not None:
            self.remove(slot)
            if stored[0] == self._earliest:
                self._earliest_known = False

    def due(self, time_ns: int) -> list[TimerEntry]:
        fired: list[TimerEntry] = []
        while self._numbers and self._numbers[0] <= time_ns >> BUCKET_SHIFT:
            number = self._numbers[0]
            now, later = self._parted(number, time_ns)
            now.sort(key=_in_order)
            fired += now
            self._replace_first(number, later)
            if later:
                break
        if fired:
            self._earliest_known = False
        return fired

    def _parted(self, number: int, time_ns: int) -> tuple[list[TimerEntry], list[_Slot]]:
        """Take what is due out of a bucket; what is not stays."""
        values = self.values
        now: list[TimerEntry] = []
        later: list[_Slot] = []
        for slot in self._buckets[number]:
            stored = values.get(slot)
            if stored is None:
                continue
            at, hash64 = stored
            if at >> BUCKET_SHIFT != number:
                continue  # Moved to another bucket since.
            if at <= time_ns:
                self.remove(slot)
                now.append(TimerEntry(at, hash64, slot[1], slot[0]))
            else:
                later.append(slot)
        return now, later

    def _replace_first(self, number: int, slots: list[_Slot]) -> None:
        """Of the earliest bucket only these are left."""
        self._entries -= len(self._buckets[number])
        if slots:
            # A timer that moved away and back stands there twice.
            left = self._buckets[number] = list(dict.fromkeys(slots))
            self._entries += len(left)
        else:
            heapq.heappop(self._numbers)
            del self._buckets[number]

    def next_ns(self) -> int | None:
        if not self._earliest_known:
            self._earliest = self._find_earliest()
            self._earliest_known = True
        return self._earliest

    def _find_earliest(self) -> int | None:
        values = self.values
        while self._numbers:
            number = self._numbers[0]
            found = (values.get(slot) for slot in self._buckets[number])
            live = [s[0] for s in found if s is not None and s[0] >> BUCKET_SHIFT == number]
            if live:
                earliest: int = min(live)
                return earliest
            self._replace_first(number, [])
        return None

    def pending(self, key: Hashable, tag: str) -> int | None:
        stored = self.values.get((key, tag))
        if stored is None:
            return None
        at: int = stored[0]
        return at

    def restore(self, section: Section, groups: KeyGroupRange) -> None:
        """Take the timers of a section that belong to `groups`."""
        known = set(self.values)
        self.restore_pages(section.batch, groups, _canonical_slot)
        for slot in self.values.keys() - known:
            self.values[slot] = list(self.values[slot])
        self._enter_all()
        self._earliest_known = False

    def stored(self, key: Hashable) -> tuple[int, int]:
        """(time, hash)."""
        time_ns, hash64 = self.values[key]
        return time_ns, hash64

    def seal(self) -> SealedTimers:
        """Pickle what changed."""
        return SealedTimers(self._operator_id, self._name, self.seal_pages())

    def _enter(self, slot: _Slot, number: int) -> None:
        bucket = self._buckets.get(number)
        if bucket is None:
            bucket = self._buckets[number] = []
            heapq.heappush(self._numbers, number)
        bucket.append(slot)
        self._entries += 1
        if self._entries > 2 * len(self.values) + STALE_TIMERS_MIN:
            self._enter_all()

    def _enter_all(self) -> None:
        """Make the buckets anew, without what was moved or cancelled."""
        self._buckets = {}
        self._entries = len(self.values)
        for slot, (time_ns, _) in self.values.items():
            assert isinstance(slot, tuple)
            self._buckets.setdefault(time_ns >> BUCKET_SHIFT, []).append(slot)
        self._numbers = sorted(self._buckets)


class SealedTimers:
    """Timers at a cut."""

    def __init__(self, operator_id: str, name: str, pages: SealedPages) -> None:
        self._operator_id = operator_id
        self._name = name
        self._pages = pages

    def section(self) -> Section:
        """One row per page of timers."""
        return Section(self._operator_id, self._name, "timers", self._pages.batch())


def _in_order(entry: TimerEntry) -> tuple[int, int, str]:
    return entry.time_ns, entry.hash64, entry.tag


def _canonical_slot(slot: Any) -> Any:
    return canonical_key(slot[0]), slot[1]
