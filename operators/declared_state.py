"""KeyedState: what all kinds of declared state per key have in common."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable
from typing import Any, ClassVar, Self

from penstock.elements.durations import Duration, ttl_ns
from penstock.elements.errors import PlanError
from penstock.state.backend import ObjectKind, ObjectState, StateBackend

from .current_row import CurrentRow
from .declaration import UNBOUND, KeyedDeclaration


class KeyedState(KeyedDeclaration):
    """A state per key, stored as one Python object."""

    kind: ClassVar[ObjectKind]
    ttl_ns: int | None
    _state: ObjectState = UNBOUND
    _get: Callable[[Hashable, Any], Any] = UNBOUND
    _put: Callable[[Hashable, int, Any], None] = UNBOUND
    _peek: Callable[[Hashable, Any], Any] = UNBOUND

    def _describe(self, ttl: Duration | None) -> None:
        self.ttl_ns = ttl_ns(ttl, f"{type(self).__name__}(ttl=)")
        if self.ttl_ns is not None and self.ttl_ns <= 0:
            raise PlanError(f"{type(self).__name__}(ttl={ttl!r}): a ttl is longer than nothing")

    def bind(self, backend: StateBackend, row: CurrentRow) -> Self:
        """The working twin on `backend`."""
        twin = self._bound_to(row)
        twin._attach(backend.objects(self.name, self.kind, ttl_ns=self.ttl_ns))
        return twin

    def _attach(self, state: ObjectState) -> None:
        self._state = state
        self._get = state.get
        self._put = state.put
        # What would be changed in place by us alone is looked at without being marked.
        direct = state.direct()
        self._peek = state.get if direct is None else direct.values.get

    def clear(self) -> None:
        """Forget it for this key."""
        self._state.remove(self._row.key)

    def view(self, key: Hashable) -> Any:
        """The content for `key` as a plain value, for tests."""
        return copy.deepcopy(self._get(key, None))

    def _store(self, value: Any) -> None:
        row = self._row
        self._put(row.key, row.hashes[row.index], value)
