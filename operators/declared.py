"""What outlives a row is declared on the operator's class: state, timers, side outputs.

A declaration on the class is a description; `bind` makes its working twin, which the processor
puts on the instance when it opens. State is that of the key being processed; mutable contents
(lists, dicts) may be changed in place within one call of user code (hazard 27).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterable, Iterator, MutableMapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar, Generic, Self, TypeVar, cast, overload

import pyarrow as pa

from penstock.elements.durations import Duration, duration_ns
from penstock.elements.errors import PlanError, StateError
from penstock.elements.row_schema import is_row_class, row_schema
from penstock.state.backend import ObjectKind, ObjectState, StateBackend

from .current_row import CurrentRow
from .instants import Instant, instant, instant_ns
from .processor import DEAD, LATE, MAIN
from .timer_service import TimerService

T = TypeVar("T")
V = TypeVar("V")
K = TypeVar("K")


class Declared:
    """Anything declared on an operator's class; knows the name it was given."""

    name = ""
    owner = ""

    def __set_name__(self, owner: type[Any], name: str) -> None:
        # Python wraps what is raised here, so check_declarations complains instead.
        if not self.name:
            self.name, self.owner = name, owner.__name__


class KeyedDeclaration(Declared):
    """State or a timer of the current key. Unbound until the operator is open."""

    _row: CurrentRow

    def _bound_to(self, row: CurrentRow) -> Self:
        twin = copy.copy(self)
        twin._row = row
        return twin

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") and not name.startswith("__"):
            raise StateError(
                f"{self.owner}.{self.name} is state, and there is none before the operator opens\n"
                "  Use it in process, process_group and on_timer; open() only connects and loads."
            )
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")


class KeyedState(KeyedDeclaration):
    """A state per key, stored as one Python object."""

    kind: ClassVar[ObjectKind]
    ttl_ns: int | None
    _state: ObjectState

    def _describe(self, ttl: Duration | None) -> None:
        self.ttl_ns = None if ttl is None else duration_ns(ttl, f"{type(self).__name__}(ttl=)")
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

    def clear(self) -> None:
        """Forget it for this key."""
        self._state.remove(self._row.key)

    def view(self, key: Hashable) -> Any:
        """The content for `key` as a plain value, for tests."""
        return copy.deepcopy(self._get(key, None))

    def _store(self, value: Any) -> None:
        row = self._row
        self._put(row.key, row.hashes[row.index], value)


class ValueState(KeyedState, Generic[T]):
    """One value per key: `.value` reads and writes it, `default` (or None) stands in for absence.

    A mutable default is copied for each key when it is first read. `ttl` is event time since the
    last write.
    """

    kind = "value"

    @overload
    def __init__(
        self: ValueState[V | None], type: type[V], *, ttl: Duration | None = None
    ) -> None: ...
    @overload
    def __init__(
        self: ValueState[V], type: type[V], *, default: V, ttl: Duration | None = None
    ) -> None: ...
    def __init__(self, type: Any, *, default: Any = None, ttl: Duration | None = None) -> None:
        self.type = type
        self.default = default
        self._describe(ttl)
        self._copied = default is not None and getattr(default, "__hash__", None) is None

    def _attach(self, state: ObjectState) -> None:
        super()._attach(state)
        if self._copied:
            self.__class__ = _CopyingValueState

    # Read and written for every row: no call that can be left out is made here.

    @property
    def value(self) -> T:
        """The stored value, else the default."""
        return self._get(self._row.key, self.default)  # type: ignore[no-any-return]

    @value.setter
    def value(self, value: T) -> None:
        row = self._row
        self._put(row.key, row.hashes[row.index], value)

    def view(self, key: Hashable) -> Any:
        """The value for `key`, for tests."""
        return copy.deepcopy(self._get(key, self.default))


class _CopyingValueState(ValueState[T]):
    """A bound ValueState whose default is mutable: each key gets a copy of its own."""

    @property
    def value(self) -> T:
        """The stored value, else a fresh default, which is stored."""
        found = self._get(self._row.key, None)
        if found is None:
            found = copy.deepcopy(self.default)
            self._store(found)
        return found  # type: ignore[no-any-return]

    @value.setter
    def value(self, value: T) -> None:
        self._store(value)


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
        found = self._get(self._row.key, None)
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
        return self._items()[key]

    def __setitem__(self, key: K, value: V) -> None:
        found = self._get(self._row.key, None)
        made = {} if found is None else found
        made[key] = value
        self._store(made)

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
        return cast("dict[K, V]", self._get(self._row.key, None) or {})


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


@dataclass(frozen=True, slots=True)
class Fired:
    """A timer that fires: `name` is the attribute it was declared as, `time` what it was set to."""

    name: str
    time: datetime
    time_ns: int
    tag: str = ""


class Timer(KeyedDeclaration):
    """One pending timer per key (and tag): `set` arms or moves it, on_timer gets a `Fired`.

    Event time by default: it fires when the watermark has passed; at the end of data all fire.
    `processing_time=True` goes by the wall clock; such timers are dropped (and counted) at the end
    of data unless `fire_at_end=True`, and their results may differ between two runs.
    """

    _service: TimerService

    def __init__(self, *, processing_time: bool = False, fire_at_end: bool = False) -> None:
        if fire_at_end and not processing_time:
            raise PlanError("Timer(fire_at_end=True): event-time timers always fire at the end")
        self.processing_time, self.fire_at_end = processing_time, fire_at_end

    def bind(self, service: TimerService, row: CurrentRow) -> Self:
        """The working twin."""
        twin = self._bound_to(row)
        twin._service = service
        return twin

    def set(self, when: Instant, tag: str = "") -> None:
        """Arm, or move if it is pending. An instant that has passed fires after this batch."""
        row = self._row
        time_ns = instant_ns(when, f"{self.name}.set")
        self._service.set(row.key, row.hashes[row.index], timer_tag(self.name, tag), time_ns)

    def clear(self, tag: str = "") -> None:
        """Disarm."""
        self._service.cancel(self._row.key, timer_tag(self.name, tag))

    @property
    def pending(self) -> datetime | None:
        """When it will fire, if it is armed without a tag."""
        return cast("datetime | None", self.view(self._row.key))

    def view(self, key: Hashable) -> Any:
        """When it will fire for `key`, for tests."""
        time_ns = self._service.pending(key, timer_tag(self.name, ""))
        return None if time_ns is None else instant(time_ns)


def timer_tag(name: str, tag: str) -> str:
    """How a declared timer and the user's tag are stored: one text, ordered by name first."""
    return f"{name}\x1f{tag}" if tag else name


def fired(stored_tag: str, time_ns: int) -> Fired:
    """The inverse, for on_timer."""
    name, _, tag = stored_tag.partition("\x1f")
    return Fired(name, instant(time_ns), time_ns, tag)


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
