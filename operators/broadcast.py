"""BroadcastState: a small table that every subtask holds alike, filled from a broadcast stream.

Written in process_broadcast only, read everywhere. It is non-keyed state ("broadcast"): after a
rescale every subtask gets the one copy. Rows of several upstream subtasks have no order among each
other, so a key should be written by one of them.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator, Mapping
from typing import Any, Generic, Self, TypeVar, cast

from penstock.elements.errors import StateError
from penstock.elements.row_hints import function_hints
from penstock.elements.row_schema import is_row_class, row_schema
from penstock.state.backend import OperatorList, StateBackend

from .declared import Declared

K = TypeVar("K")
V = TypeVar("V")


class BroadcastState(Declared, Mapping[K, V], Generic[K, V]):
    """A mapping for `process`, a mutable one for `process_broadcast`."""

    _items: dict[K, V] | None = None
    _list: OperatorList
    _open = False

    def __init__(self, key: type[K], value: type[V]) -> None:
        self.key_type, self.value_type = key, value

    def bind(self, backend: StateBackend) -> Self:
        """The working twin, with what was restored."""
        twin = copy.copy(self)
        twin._list = backend.operator_list(f"broadcast:{self.name}", "broadcast")
        stored = twin._list.items()
        twin._items = pickle.loads(stored[0]) if stored else {}
        twin._dirty = False
        return twin

    def writable(self, open: bool) -> None:
        """Whether assignments are taken: only while process_broadcast runs."""
        self._open = open

    def store(self) -> None:
        """Bring the content into the backend, if it changed."""
        if self._dirty:
            self._list.replace([pickle.dumps(self._items)])
            self._dirty = False

    def __getitem__(self, key: K) -> V:
        return self._content()[key]

    def __iter__(self) -> Iterator[K]:
        return iter(self._content())

    def __len__(self) -> int:
        return len(self._content())

    def __setitem__(self, key: K, value: V) -> None:
        self._writing()[key] = value

    def __delitem__(self, key: K) -> None:
        del self._writing()[key]

    def clear(self) -> None:
        """Forget everything."""
        self._writing().clear()

    def view(self, key: Any = None) -> Any:
        """A copy of the content, for tests."""
        return dict(self._content())

    _dirty = False

    def _writing(self) -> dict[K, V]:
        content = self._content()
        if not self._open:
            raise StateError(
                f"{self.owner}.{self.name} was changed outside process_broadcast\n"
                "  Every subtask must hold the same: only rows of the broadcast stream change it."
            )
        self._dirty = True
        return content

    def _content(self) -> dict[K, V]:
        if self._items is None:
            raise StateError(
                f"{self.owner}.{self.name} is state, and there is none before the operator opens"
            )
        return self._items


def broadcast_hint(method: Any) -> type[Any] | None:
    """The row class of process_broadcast's `row` parameter; None for attribute rows."""
    for name, hint in function_hints(method).items():
        if name not in ("ctx", "return"):
            if is_row_class(hint):
                row_schema(hint)
                return cast("type[Any]", hint)
            break
    return None
