"""ValueState: one value per key; and the two faster forms of it that bound operators use.

A ValueCell holds the value of the current key itself: the loop over rows fills it before a row and
stores it behind the row if it was changed. Any other state on a dict is read and written there.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable
from typing import Any, Generic, NoReturn, Self, TypeVar, overload

from penstock.elements.durations import Duration
from penstock.state.backend import IMMUTABLE_TYPES, DirectObjects, StateBackend

from .current_row import CurrentRow, refuse_without_key
from .declared_state import KeyedState

T = TypeVar("T")
V = TypeVar("V")


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

    def bind(self, backend: StateBackend, row: CurrentRow) -> Self:
        """The working twin on `backend`: a cell if `row` has room for one."""
        twin = super().bind(backend, row)
        direct = twin._state.direct()
        if self._copied:
            twin.__class__ = _CopyingValueState  # type: ignore[assignment]  # not Self
        elif direct is None or type(self.default) not in IMMUTABLE_TYPES:
            return twin
        elif len(row.cells) < row.cells_max and self.type in IMMUTABLE_TYPES:
            return ValueCell.of(twin, direct)  # type: ignore[return-value]
        else:
            made = _direct_value_state(direct, row, self.default, twin._put)
            twin.__class__ = made  # type: ignore[assignment]  # not Self
        return twin

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


def _direct_value_state(
    direct: DirectObjects, row: CurrentRow, default: Any, put: Callable[[Hashable, int, Any], None]
) -> type[ValueState[Any]]:
    """The class of one bound ValueState on a dict.

    It is read and written for every row, so it makes no call of ours, and what it needs are
    variables of these functions, which Python finds faster than attributes.
    """
    values, dirty, shift = direct
    find, usual = values.get, type(default)

    def read(_: Any) -> Any:
        """The stored value, else the default."""
        found = find(row.key, default)
        if type(found) is not usual and type(found) not in IMMUTABLE_TYPES:
            dirty[row.hashes[row.index] >> shift] = 1
        return found

    def write(_: Any, value: Any) -> None:
        key = row.key
        if key in values:
            values[key] = value
            dirty[row.hashes[row.index] >> shift] = 1
        else:
            put(key, row.hashes[row.index], value)

    return type("ValueState", (ValueState,), {"value": property(read, write)})


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


class ValueCell(ValueState[T]):
    """A bound ValueState that holds the current key's value, in a slot that costs next to nothing.

    `before` is what the store has. A value that is the same object as before is not stored: so a
    key whose value never was anything but the default has no entry. Between rows it is an
    _IdleCell, which refuses.
    """

    __slots__ = ("before", "value")
    before: Any
    direct: DirectObjects
    usual: type[Any]
    """The type that most values have: one look says that such a value is immutable."""

    @classmethod
    def of(cls, bound: ValueState[Any], direct: DirectObjects) -> ValueCell[Any]:
        """The cell that takes the place of `bound`; its row knows it from now on."""
        cell = cls.__new__(cls)
        cell.__dict__.update(bound.__dict__)
        cell.direct = direct
        cell.usual = type(bound.default) if bound.default is not None else bound.type
        cell._row.cells.append(cell)
        cell.leave()
        return cell

    def enter(self) -> None:
        """Rows or a timer come next: the value can be read and assigned."""
        self.__class__ = ValueCell

    def load(self, key: Hashable, hash64: int) -> None:
        """`key` is the current one. The loop over rows does the same, written out."""
        values, dirty, shift = self.direct
        self.value = self.before = found = values.get(key, self.default)
        if type(found) is not self.usual and type(found) not in IMMUTABLE_TYPES:
            dirty[hash64 >> shift] = 1

    def store(self, key: Hashable, hash64: int) -> None:
        """Keep what user code made of the value of `key`."""
        if self.value is not self.before:
            self._put(key, hash64, self.value)
            self.before = self.value

    def leave(self) -> None:
        """There is no current key any more."""
        self.value = self.before = self.default
        self.__class__ = _IdleCell

    def clear(self) -> None:
        """Forget it for this key."""
        super().clear()
        self.value = self.before = self.default


class _IdleCell(ValueCell[T]):
    """A ValueCell while there is no key."""

    __slots__ = ()

    @property
    def value(self) -> NoReturn:
        """Raises StateError."""
        refuse_without_key()

    @value.setter
    def value(self, value: T) -> None:
        refuse_without_key()
