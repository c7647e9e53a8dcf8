"""A backend that finds objects which were changed behind the back of their state (hazard 27).

A mutable value is valid within the call of user code that read it. Code that keeps a reference and
changes it in a later call, without reading it again, changes state that no snapshot knows of.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Hashable, Iterator
from typing import Any

import pyarrow as pa

from penstock.elements.errors import StateError
from penstock.state.backend import (
    AppendLog,
    MergeFunction,
    ObjectKind,
    ObjectState,
    OperatorList,
    Redistribution,
    Snapshot,
    StateBackend,
    Table,
    Timers,
)


def fingerprint(value: Any) -> bytes | None:
    """A digest of the content; None for what cannot be pickled."""
    try:
        return hashlib.blake2b(pickle.dumps(value), digest_size=16).digest()
    except Exception:
        return None


class GuardedObjects(ObjectState):
    """Remembers what every value was like when it was last handed over."""

    def __init__(self, name: str, inner: ObjectState) -> None:
        self._name, self._inner = name, inner
        self._known: dict[Hashable, bytes | None] = {}
        self._touched: set[Hashable] = set()

    def get(self, key: Hashable, default: Any = None) -> Any:
        self._touched.add(key)
        return self._inner.get(key, default)

    def put(self, key: Hashable, hash64: int, value: Any) -> None:
        self._touched.add(key)
        self._inner.put(key, hash64, value)

    def remove(self, key: Hashable) -> None:
        self._touched.add(key)
        self._inner.remove(key)

    def keys(self) -> Iterator[Hashable]:
        return self._inner.keys()

    def advance(self, time_ns: int) -> None:
        self._inner.advance(time_ns)
        live = set(self._inner.keys())
        self._known = {key: print_ for key, print_ in self._known.items() if key in live}

    def check(self) -> None:
        """Called after each call of user code; raises StateError naming state and key."""
        for key, known in self._known.items():
            if key not in self._touched and fingerprint(self._inner.get(key)) != known:
                raise StateError(
                    f"state {self._name} of key {key!r} was changed in place, but not read in this "
                    "call\n  A reference from an earlier call was kept. What a state gives is "
                    "valid within one call: read it again."
                )
        for key in self._touched:
            self._known[key] = fingerprint(self._inner.get(key))
        self._touched.clear()


class GuardedBackend(StateBackend):
    """Delegates everything; object states are guarded."""

    def __init__(self, inner: StateBackend) -> None:
        self._inner = inner
        self._objects: dict[str, GuardedObjects] = {}

    def table(
        self,
        name: str,
        key: pa.Schema,
        value: pa.Schema,
        *,
        merge: dict[str, MergeFunction] | None = None,
        ttl_ns: int | None = None,
    ) -> Table:
        return self._inner.table(name, key, value, merge=merge, ttl_ns=ttl_ns)

    def objects(self, name: str, kind: ObjectKind, *, ttl_ns: int | None = None) -> ObjectState:
        inner = self._inner.objects(name, kind, ttl_ns=ttl_ns)
        return self._objects.setdefault(name, GuardedObjects(name, inner))

    def timers(self, name: str) -> Timers:
        return self._inner.timers(name)

    def operator_list(self, name: str, redistribute: Redistribution) -> OperatorList:
        return self._inner.operator_list(name, redistribute)

    def log(self, name: str, key: pa.Schema, value: pa.Schema) -> AppendLog:
        return self._inner.log(name, key, value)

    def seal(self) -> Snapshot:
        return self._inner.seal()

    def undeclared(self) -> list[str]:
        return self._inner.undeclared()

    def check(self) -> None:
        """See GuardedObjects.check."""
        for guarded in self._objects.values():
            guarded.check()
