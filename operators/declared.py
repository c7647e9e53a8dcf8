"""What outlives a row is declared on the operator's class: state, timers, side outputs.

A declaration on the class is a description; `bind` makes its working twin, which the processor
puts on the instance when it opens. State is that of the key being processed; mutable contents
(lists, dicts) may be changed in place within one call of user code (hazard 27).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterable, Iterator, MutableMapping
from typing import Any, Generic, TypeVar, cast, overload

import pyarrow as pa

from penstock.elements.durations import Duration
from penstock.elements.errors import PlanError
from penstock.elements.row_schema import is_row_class, row_schema
from penstock.state.backend import IMMUTABLE_TYPES

from .declaration import Declared, KeyedDeclaration
from .declared_state import KeyedState
from .declared_timer import Fired, Timer, fired, timer_tag
from .declared_value import ValueState
from .processor import DEAD, LATE, MAIN

__all__ = [
    "Declared",
    "Fired",
    "KeyedDeclaration",
    "KeyedState",
    "ListState",
    "MapState",
    "Output",
    "ReducingState",
    "Side",
    "Timer",
    "ValueState",
    "check_declarations",
    "declarations",
    "fired",
    "timer_tag",
]

T = TypeVar("T")
V = TypeVar("V")
D = TypeVar("D")
K = TypeVar("K")


class ListState(KeyedState, Generic[T]):
    """A list per key: append to it, iterate over it, clear it."""

    kind = "list"

    def __init__(self, type: type[T], *, ttl: Duration | None = None) -> None:
        self.type = type
        self._describe(ttl)

    def append(self, value: T) -> None:
        """Add at the end."""
        self.extend((value,))

    def extend(self, values: Iterable[T]) -> None:
        """Add all at the end."""
        found = self._peek(self._row.key, None)
        made = list(values) if found is None else found
        if found is not None:
            found.extend(values)
        if made:
            self._store(made)

    def replace(self, values: Iterable[T]) -> None:
        """Be these values from now on."""
        made = list(values)
        if made:
            self._store(made)
        else:
            self.clear()

    def __iter__(self) -> Iterator[T]:
        return iter(list(self._items()))

    def __len__(self) -> int:
        return len(self._items())

    def __getitem__(self, index: int) -> T:
        return self._items()[index]

    def view(self, key: Hashable) -> Any:
        """The list for `key`, for tests."""
        return copy.deepcopy(self._get(key, None)) or []

    def _items(self) -> list[T]:
        return cast("list[T]", self._get(self._row.key, None) or [])


class MapState(KeyedState, MutableMapping[K, V]):
    """A dictionary per key; everything that a MutableMapping can do."""

    kind = "map"

    def __init__(self, key: type[K], value: type[V], *, ttl: Duration | None = None) -> None:
        self.key_type, self.value_type = key, value
        self._describe(ttl)

    def __getitem__(self, key: K) -> V:
        found = self._peek(self._row.key, None)
        if found is None:
            raise KeyError(key)
        value: V = found[key]
        if type(value) not in IMMUTABLE_TYPES:
            self._get(self._row.key, None)  # Marks it: the value may be changed in place.
        return value

    @overload
    def get(self, key: K, /) -> V | None: ...
    @overload
    def get(self, key: K, default: V | D, /) -> V | D: ...
    def get(self, key: K, default: Any = None, /) -> Any:
        """The value for `key`, else `default`."""
        found = self._peek(self._row.key, None)
        if found is None:
            return default
        value = found.get(key, default)
        if type(value) not in IMMUTABLE_TYPES:
            self._get(self._row.key, None)
        return value

    def __setitem__(self, key: K, value: V) -> None:
        row = self._row
        found = self._peek(row.key, None)
        if found is None:
            found = {}
        found[key] = value
        self._put(row.key, row.hashes[row.index], found)

    def __delitem__(self, key: K) -> None:
        found = self._items()
        del found[key]
        if found:
            self._store(found)
        else:
            self.clear()

    def __iter__(self) -> Iterator[K]:
        return iter(list(self._items()))

    def __len__(self) -> int:
        return len(self._items())

    def __contains__(self, key: object) -> bool:
        return key in self._items()

    def clear(self) -> None:
        """Forget the whole dictionary of this key."""
        self._state.remove(self._row.key)

    def view(self, key: Hashable) -> Any:
        """The dictionary for `key`, for tests."""
        return copy.deepcopy(self._get(key, None)) or {}

    def _items(self) -> dict[K, V]:
        return cast("dict[K, V]", self._peek(self._row.key, None) or {})


class ReducingState(KeyedState, Generic[T]):
    """One value per key that `add` combines with: `ReducingState(int, operator.add)`.

    Give a function that workers can unpickle: one of a module, or a lambda in the class.
    """

    kind = "value"

    def __init__(
        self, type: type[T], reduce: Callable[[T, T], T], *, ttl: Duration | None = None
    ) -> None:
        self.type, self.reduce = type, reduce
        self._describe(ttl)

    def add(self, value: T) -> None:
        """Combine; the first value of a key stands for itself."""
        found = self._get(self._row.key, None)
        self._store(value if found is None else self.reduce(found, value))

    @property
    def value(self) -> T | None:
        """What has been added so far; None if nothing was."""
        return cast("T | None", self._get(self._row.key, None))


class Side(Generic[T]):
    """A row on its way to a side output; made by calling an Output, yielded by user code."""

    __slots__ = ("output", "row")

    def __init__(self, output: str, row: T) -> None:
        self.output, self.row = output, row

    def __repr__(self) -> str:
        return f"Side({self.output!r}, {self.row!r})"


class Output(Declared, Generic[T]):
    """A side output: `yield self.unknown(row)`; `stream.output(LateInbound.unknown)` reads it."""

    @overload
    def __init__(self, schema: type[T]) -> None: ...
    @overload
    def __init__(self: Output[Any], schema: pa.Schema) -> None: ...
    def __init__(self, schema: Any) -> None:
        if not isinstance(schema, pa.Schema) and not is_row_class(schema):
            raise PlanError(f"Output({schema!r}): a schema is a row class or a pa.Schema")
        self.row_class: type[T] | None = None if isinstance(schema, pa.Schema) else schema
        self.schema: pa.Schema = schema if isinstance(schema, pa.Schema) else row_schema(schema)

    def __call__(self, row: T) -> Side[T]:
        return Side(self.name, row)


def declarations(cls: type[Any]) -> dict[str, Declared]:
    """All declarations of an operator's class, inherited ones first, by name."""
    found: dict[str, Declared] = {}
    for base in reversed(cls.__mro__):
        for name, value in vars(base).items():
            if isinstance(value, Declared):
                found[name] = value
            else:
                found.pop(name, None)
    return found


def check_declarations(cls: type[Any]) -> None:
    """Refuse names that are taken, and one object under two names; raises PlanError."""
    for name, declared in vars(cls).items():
        if not isinstance(declared, Declared):
            continue
        if isinstance(declared, Output) and name in (MAIN, LATE, DEAD):
            raise PlanError(f"{cls.__name__}.{name}: {name} is the name of a built-in output")
        if declared.name != name:
            raise PlanError(
                f"{cls.__name__}.{name} and {declared.owner}.{declared.name} are one object\n"
                "  Declare each state, timer and output by a call of its own."
            )
