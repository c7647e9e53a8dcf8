"""Python objects by key: the state of user code, in a dict, with an optional TTL.

Promises: a `get` of a value that could be changed in place marks it as changed (hazard 27). The
TTL counts from the last `put` in event time; what was written before time was known counts as
written when it became known, so that nothing expires early.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy as np

from penstock.elements.keygroup import KeyGroupRange
from penstock.elements.signals import WATERMARK_MIN

from .backend import ObjectKind, ObjectState, Section
from .memory_pages import PageStore, SealedPages

IMMUTABLE_TYPES = frozenset(
    {
        *(type(None), bool, int, float, complex, str, bytes),
        *(date, datetime, time, timedelta, Decimal, UUID),
        *(np.int64, np.float64, np.bool_, np.str_),
    }
)
"""Values of these types cannot change in place; all others count as changed when read."""


class MemoryObjects(PageStore, ObjectState):
    """One object per key. It is its own store, which saves user code a call per access."""

    def __init__(self, operator_id: str, name: str, kind: ObjectKind) -> None:
        super().__init__(f"{operator_id}: state {name}")
        self._operator_id = operator_id
        self._name = name
        self._kind = kind

    def get(self, key: Hashable, default: Any = None) -> Any:
        page = self.by_key.get(key)
        if page is None:
            return default
        value = page.data[key]
        if not page.dirty and type(value) not in IMMUTABLE_TYPES:
            self.touch(page)
        return value

    def keys(self) -> Iterator[Hashable]:
        return iter(list(self.by_key))

    def advance(self, time_ns: int) -> None:
        return None

    def restore(self, section: Section, groups: KeyGroupRange) -> None:
        """Take the objects of a section that belong to `groups`."""
        self.restore_pages(section.batch, groups)

    def seal(self) -> SealedObjects:
        """Pickle what changed."""
        return SealedObjects(self._operator_id, self._name, self._kind, False, self.seal_pages())


class ExpiringObjects(ObjectState):
    """Objects that are absent once their TTL has passed. Stored as (value, written at)."""

    def __init__(self, operator_id: str, name: str, kind: ObjectKind, ttl_ns: int) -> None:
        self._operator_id = operator_id
        self._name = name
        self._kind = kind
        self._ttl_ns = ttl_ns
        self._store = PageStore(f"{operator_id}: state {name}")
        self._by_key = self._store.by_key
        self._now_ns = WATERMARK_MIN
        # In order of writing, hence of time: the oldest is first.
        self._written: OrderedDict[Hashable, int] = OrderedDict()

    def get(self, key: Hashable, default: Any = None) -> Any:
        page = self._by_key.get(key)
        if page is None:
            return default
        value = page.data[key][0]
        if not page.dirty and type(value) not in IMMUTABLE_TYPES:
            self._store.touch(page)
        return value

    def put(self, key: Hashable, hash64: int, value: Any) -> None:
        self._store.put(key, hash64, (value, self._now_ns))
        self._written[key] = self._now_ns
        self._written.move_to_end(key)

    def remove(self, key: Hashable) -> None:
        self._store.remove(key)
        self._written.pop(key, None)

    def keys(self) -> Iterator[Hashable]:
        return iter(list(self._by_key))

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
            if at != WATERMARK_MIN:
                continue
            page = self._by_key[key]
            page.data[key] = (page.data[key][0], time_ns)
            self._written[key] = time_ns
            self._store.touch(page)

    def restore(self, section: Section, groups: KeyGroupRange) -> None:
        """Take the objects of a section that belong to `groups`."""
        self._store.restore_pages(section.batch, groups)
        if not section.declared.get("expires"):
            for page in {id(page): page for page in self._by_key.values()}.values():
                page.data = {key: (value, WATERMARK_MIN) for key, value in page.data.items()}
                self._store.touch(page)
        written = [(at, key) for key, (_, at) in self._store.items()]
        written.sort(key=lambda pair: pair[0])
        self._written = OrderedDict((key, at) for at, key in written)

    def seal(self) -> SealedObjects:
        """Pickle what changed."""
        return SealedObjects(
            self._operator_id, self._name, self._kind, True, self._store.seal_pages()
        )


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
