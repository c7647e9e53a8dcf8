"""Python objects by key: the state of user code, in a dict, with an optional TTL.

Promises: a `get` of a value that could be changed in place marks it as changed (hazard 27). The
TTL counts from the last `put` in event time; what was written before time was known counts as
written when it became known, so that nothing expires early.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Any

from penstock.elements.keygroup import KeyGroupRange
from penstock.elements.signals import WATERMARK_MIN

from .backend import IMMUTABLE_TYPES, DirectObjects, ObjectKind, ObjectState, Section
from .memory_pages import PAGE_SHIFT, PageStore, SealedPages


class MemoryObjects(PageStore, ObjectState):
    """One object per key. It is its own store, which saves a call per access."""

    def __init__(self, operator_id: str, name: str, kind: ObjectKind) -> None:
        super().__init__(f"{operator_id}: state {name}")
        self._operator_id = operator_id
        self._name = name
        self._kind = kind

    def get(self, key: Hashable, default: Any = None) -> Any:
        value = self.values.get(key, default)
        if type(value) not in IMMUTABLE_TYPES:
            self.touch(key)
        return value

    def keys(self) -> Iterator[Hashable]:
        return iter(list(self.values))

    def direct(self) -> DirectObjects:
        return DirectObjects(self.values, self.dirty, PAGE_SHIFT)

    def advance(self, time_ns: int) -> None:
        return None

    def restore(self, section: Section, groups: KeyGroupRange) -> None:
        """Take the objects of a section that belong to `groups`."""
        self.restore_pages(section.batch, groups)

    def seal(self) -> SealedObjects:
        """Pickle what changed."""
        return SealedObjects(self._operator_id, self._name, self._kind, False, self.seal_pages())


class ExpiringObjects(PageStore, ObjectState):
    """Objects that are absent once their TTL has passed. Stored as (value, written at)."""

    def __init__(self, operator_id: str, name: str, kind: ObjectKind, ttl_ns: int) -> None:
        super().__init__(f"{operator_id}: state {name}")
        self._operator_id = operator_id
        self._name = name
        self._kind = kind
        self._ttl_ns = ttl_ns
        self._now_ns = WATERMARK_MIN
        # In order of writing, hence of time: the oldest is first.
        self._written: OrderedDict[Hashable, int] = OrderedDict()

    def get(self, key: Hashable, default: Any = None) -> Any:
        value = self.values.get(key, default)
        if type(value) not in IMMUTABLE_TYPES:
            self.touch(key)
        return value

    def put(self, key: Hashable, hash64: int, value: Any) -> None:
        super().put(key, hash64, value)
        self._written[key] = self._now_ns
        self._written.move_to_end(key)

    def remove(self, key: Hashable) -> None:
        super().remove(key)
        self._written.pop(key, None)

    def keys(self) -> Iterator[Hashable]:
        return iter(list(self.values))

    def stored(self, key: Hashable) -> tuple[Any, int]:
        """The value and when it was written."""
        return self.values[key], self._written[key]

    def advance(self, time_ns: int) -> None:
        if time_ns <= self._now_ns:
            return
        if self._now_ns == WATERMARK_MIN:
            self._date_undated(time_ns)
        self._now_ns = time_ns
        horizon = time_ns - self._ttl_ns
        written = self._written
        while written:
            key = next(iter(written))
            if written[key] >= horizon:
                return
            self.remove(key)

    def _date_undated(self, time_ns: int) -> None:
        for key, at in self._written.items():
            if at == WATERMARK_MIN:
                self._written[key] = time_ns
                self.touch(key)

    def restore(self, section: Section, groups: KeyGroupRange) -> None:
        """Take the objects of a section that belong to `groups`."""
        dated = bool(section.declared.get("expires"))
        before = set(self.values)
        self.restore_pages(section.batch, groups)
        written = list(self._written.items())
        for key in self.values.keys() - before:
            found = self.values[key]
            value, at = found if dated else (found, WATERMARK_MIN)
            self.values[key] = value
            written.append((key, at))
            if not dated:
                self.touch(key)
        written.sort(key=_when)
        self._written = OrderedDict(written)

    def seal(self) -> SealedObjects:
        """Pickle what changed."""
        return SealedObjects(self._operator_id, self._name, self._kind, True, self.seal_pages())


def _when(written: tuple[Hashable, int]) -> int:
    return written[1]


class SealedObjects:
    """Objects at a cut."""

    def __init__(
        self, operator_id: str, name: str, kind: ObjectKind, expires: bool, pages: SealedPages
    ) -> None:
        self._operator_id = operator_id
        self._name = name
        self._declared = {"object": kind, "expires": expires}
        self._pages = pages

    def section(self) -> Section:
        """One row per page."""
        return Section(
            self._operator_id, self._name, "objects", self._pages.batch(), self._declared
        )
