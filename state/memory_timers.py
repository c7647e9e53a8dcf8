"""Timers of the memory backend: buckets by time, a heap of the bucket times, lazy deletion.

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
from .memory_pages import PageStore, SealedPages

_Slot = tuple[Hashable, str]
"""Key and tag."""

STALE_TIMERS_MIN = 4096
"""Moved or cancelled entries that are kept, at least, before the buckets are made anew."""


class MemoryTimers(Timers):
    """Pending timers, stored by (key, tag) as (time, hash)."""

    def __init__(self, operator_id: str, name: str) -> None:
        self._operator_id = operator_id
        self._name = name
        self._store = PageStore(f"{operator_id}: timers {name}")
        self._by_key = self._store.by_key
        self._buckets: dict[int, list[_Slot]] = {}
        self._times: list[int] = []
        self._entries = 0

    def set(self, key: Hashable, hash64: int, tag: str, time_ns: int) -> None:
        slot = (key, tag)
        page = self._by_key.get(slot)
        if page is not None and page.data[slot][0] == time_ns:
            return
        self._store.put(slot, hash64, (time_ns, hash64))
        self._enter(slot, time_ns)
        if self._entries > 2 * len(self._by_key) + STALE_TIMERS_MIN:
            self._enter_all()

    def cancel(self, key: Hashable, tag: str) -> None:
        self._store.remove((key, tag))

    def due(self, time_ns: int) -> list[TimerEntry]:
        fired: list[TimerEntry] = []
        while self._times and self._times[0] <= time_ns:
            at = heapq.heappop(self._times)
            bucket = self._buckets.pop(at)
            self._entries -= len(bucket)
            now: list[TimerEntry] = []
            for slot in bucket:
                page = self._by_key.get(slot)
                if page is None:
                    continue
                pending_ns, hash64 = page.data[slot]
                if pending_ns == at:
                    self._store.remove(slot)
                    now.append(TimerEntry(at, hash64, slot[1], slot[0]))
            if len(now) > 1:
                now.sort(key=_by_hash_and_tag)
            fired += now
        return fired

    def next_ns(self) -> int | None:
        while self._times:
            at = self._times[0]
            bucket = self._buckets[at]
            while bucket and self.pending(*bucket[-1]) != at:
                bucket.pop()
                self._entries -= 1
            if bucket:
                return at
            heapq.heappop(self._times)
            del self._buckets[at]
        return None

    def pending(self, key: Hashable, tag: str) -> int | None:
        slot = (key, tag)
        page = self._by_key.get(slot)
        if page is None:
            return None
        at: int = page.data[slot][0]
        return at

    def restore(self, section: Section, groups: KeyGroupRange) -> None:
        """Take the timers of a section that belong to `groups`."""
        self._store.restore_pages(section.batch, groups, _canonical_slot)
        self._enter_all()

    def seal(self) -> SealedTimers:
        """Pickle what changed."""
        return SealedTimers(self._operator_id, self._name, self._store.seal_pages())

    def _enter(self, slot: _Slot, time_ns: int) -> None:
        bucket = self._buckets.get(time_ns)
        if bucket is None:
            bucket = self._buckets[time_ns] = []
            heapq.heappush(self._times, time_ns)
        bucket.append(slot)
        self._entries += 1

    def _enter_all(self) -> None:
        """Make the buckets anew, without what was moved or cancelled."""
        self._buckets = {}
        self._times = []
        self._entries = 0
        for slot, (time_ns, _) in self._store.items():
            assert isinstance(slot, tuple)
            self._enter(slot, time_ns)


class SealedTimers:
    """Timers at a cut."""

    def __init__(self, operator_id: str, name: str, pages: SealedPages) -> None:
        self._operator_id = operator_id
        self._name = name
        self._pages = pages

    def section(self) -> Section:
        """One row per page of timers."""
        return Section(self._operator_id, self._name, "timers", self._pages.batch())


def _by_hash_and_tag(entry: TimerEntry) -> tuple[int, str]:
    return entry.hash64, entry.tag


def _canonical_slot(slot: Any) -> Any:
    return canonical_key(slot[0]), slot[1]
