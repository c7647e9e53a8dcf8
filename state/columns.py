"""Growable columns addressed by slot: what tables of the memory backend keep their rows in.

Promises: `write` copies (hazard 4); when a slot is written twice in one call the last row wins;
`freeze` gives a view that later writes do not change. Fixed-width values are written in place;
bytes and nested values are appended and repointed, the garbage is dropped when it prevails.
Not thread-safe, except that a frozen column may be read in another thread.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.types as pt

from penstock.elements.buffers import (
    fixed_array,
    fixed_dtype,
    fixed_values,
    validity,
    wide_bytes,
    wide_values,
)
from penstock.elements.equality import equal_fixed, equal_values, equal_with_nulls

from .arenas import Arena, ByteArena, ChunkArena

Slots = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

GARBAGE_ROWS_MIN = 4096
"""Replaced rows that an arena may hold before it is worth copying what is alive."""
GARBAGE_BYTES_MIN = 16 * 1024 * 1024
"""The same in bytes, for columns of few large values."""


class Column(ABC):
    """One column; slots below the capacity are null until they are written."""

    def __init__(self, kind: pa.DataType) -> None:
        self.kind = kind

    @property
    def run_kind(self) -> pa.DataType:
        """The type in runs: large offsets, so that one section may exceed 2 GiB."""
        return self.kind

    @abstractmethod
    def resize(self, capacity: int) -> None:
        """Make room for this many slots."""

    @abstractmethod
    def write(self, slots: Slots, array: pa.Array) -> None:
        """Store row i of `array` in slot i."""

    @abstractmethod
    def clear(self, slots: Slots) -> None:
        """Make these slots null."""

    @abstractmethod
    def take(self, slots: Slots) -> pa.Array:
        """The values of these slots, in `run_kind`."""

    @abstractmethod
    def equal(self, slots: Slots, array: pa.Array, rows: Slots) -> Mask:
        """Whether slot i holds the same key value as row `rows[i]` of `array`."""

    @abstractmethod
    def compact(self, slots: Slots, capacity: int) -> None:
        """Keep only these slots, renumbered in this order."""

    @abstractmethod
    def freeze(self, count: int, shared: bool) -> Column:
        """The first `count` slots as they are. `shared`: none of them is ever written again."""


def column_for(kind: pa.DataType) -> Column:
    """The column that stores values of `kind`."""
    if fixed_dtype(kind) is not None or wide_bytes(kind) is not None:
        return FixedColumn(kind)
    return ArenaColumn(kind)


def stored_values(array: pa.Array) -> npt.NDArray[Any]:
    """The stored values of a fixed-width array: words, or rows of bytes."""
    return fixed_values(array) if fixed_dtype(array.type) is not None else wide_values(array)


class FixedColumn(Column):
    """Values of one width, in place: numbers, times, bool, decimals, fixed-size binary."""

    def __init__(self, kind: pa.DataType) -> None:
        super().__init__(kind)
        dtype = fixed_dtype(kind)
        self._width = 0 if dtype is not None else wide_bytes(kind) or 0
        self._is_word = dtype is not None
        self.values = self._zeros(0, dtype if dtype is not None else np.dtype(np.uint8))
        self.valid = np.zeros(0, np.bool_)

    def _zeros(self, count: int, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        return np.zeros(count if self._is_word else (count, self._width), dtype)

    def resize(self, capacity: int) -> None:
        grown = self._zeros(capacity, self.values.dtype)
        grown[: len(self.values)] = self.values
        self.values = grown
        valid = np.zeros(capacity, np.bool_)
        valid[: len(self.valid)] = self.valid
        self.valid = valid

    def write(self, slots: Slots, array: pa.Array) -> None:
        self.values[slots] = stored_values(array)
        valid = validity(array)
        self.valid[slots] = True if valid is None else valid

    def clear(self, slots: Slots) -> None:
        self.valid[slots] = False

    def take(self, slots: Slots) -> pa.Array:
        values = np.take(self.values, slots, axis=0)
        valid = np.take(self.valid, slots)
        return _array_of(self.kind, values, None if valid.all() else valid, len(slots))

    def equal(self, slots: Slots, array: pa.Array, rows: Slots) -> Mask:
        mine = np.take(self.values, slots, axis=0)
        theirs = np.take(stored_values(array), rows, axis=0)
        if self._is_word:
            same = equal_fixed(mine, theirs)
        else:
            same = np.asarray((mine == theirs).all(axis=1))
        valid = validity(array)
        return equal_with_nulls(
            same, np.take(self.valid, slots), None if valid is None else valid[rows]
        )

    def compact(self, slots: Slots, capacity: int) -> None:
        values, valid = np.take(self.values, slots, axis=0), np.take(self.valid, slots)
        self.values = self._zeros(capacity, self.values.dtype)
        self.values[: len(slots)] = values
        self.valid = np.zeros(capacity, np.bool_)
        self.valid[: len(slots)] = valid

    def freeze(self, count: int, shared: bool) -> FixedColumn:
        frozen = FixedColumn(self.kind)
        values, valid = self.values[:count], self.valid[:count]
        frozen.values = values if shared else values.copy()
        frozen.valid = valid if shared else valid.copy()
        return frozen


def _array_of(
    kind: pa.DataType, values: npt.NDArray[Any], valid: Mask | None, count: int
) -> pa.Array:
    if fixed_dtype(kind) is not None:
        return fixed_array(kind, values, valid)
    bitmap = None if valid is None else pa.py_buffer(np.packbits(valid, bitorder="little"))
    data = pa.py_buffer(np.ascontiguousarray(values).reshape(-1))
    return pa.Array.from_buffers(kind, count, [bitmap, data])


class ArenaColumn(Column):
    """Bytes and nested values: an append-only arena, and per slot the row in it (-1: null)."""

    def __init__(self, kind: pa.DataType) -> None:
        super().__init__(kind)
        self._arena = _arena_for(kind)
        self._at = np.full(0, -1, np.int64)
        self._used = 0  # one past the highest slot ever written
        self._bytes_alive = 0  # right after the last vacuum

    @property
    def run_kind(self) -> pa.DataType:
        return self._arena.kind

    def resize(self, capacity: int) -> None:
        grown = np.full(capacity, -1, np.int64)
        grown[: len(self._at)] = self._at
        self._at = grown

    def write(self, slots: Slots, array: pa.Array) -> None:
        if len(slots) == 0:
            return
        first = self._arena.append(array)
        rows = np.arange(first, first + len(array))
        valid = validity(array)
        if valid is not None:
            rows[~valid] = -1
        self._at[slots] = rows
        self._used = max(self._used, int(slots.max()) + 1)
        if self._is_mostly_garbage():
            self._vacuum()

    def clear(self, slots: Slots) -> None:
        self._at[slots] = -1

    def take(self, slots: Slots) -> pa.Array:
        rows = np.take(self._at, slots)
        return self._arena.take(rows)

    def equal(self, slots: Slots, array: pa.Array, rows: Slots) -> Mask:
        theirs = array.take(pa.array(rows))
        if theirs.type != self.run_kind:
            theirs = theirs.cast(self.run_kind)
        return equal_values(self.take(slots), theirs)

    def compact(self, slots: Slots, capacity: int) -> None:
        at = np.take(self._at, slots)
        self._at = np.full(capacity, -1, np.int64)
        self._at[: len(slots)] = at
        self._used = len(slots)
        self._vacuum()

    def freeze(self, count: int, shared: bool) -> ArenaColumn:
        frozen = ArenaColumn(self.kind)
        frozen._at = self._at[:count] if shared else self._at[:count].copy()
        frozen._arena = self._arena.freeze()
        return frozen

    def _is_mostly_garbage(self) -> bool:
        rows = self._arena.rows
        if rows > 2 * self._used + GARBAGE_ROWS_MIN:
            return True
        size = self._arena.size_bytes
        many = rows > self._used + self._used // 4
        return many and size > GARBAGE_BYTES_MIN and size > 2 * self._bytes_alive

    def _vacuum(self) -> None:
        self._at = self._at.copy()  # frozen columns may share the old one
        at = self._at[: self._used]
        alive = np.flatnonzero(at >= 0)
        values = self._arena.take(at[alive])
        self._arena = _arena_for(self.kind)
        first = self._arena.append(values)
        at[alive] = np.arange(first, first + len(alive))
        self._bytes_alive = self._arena.size_bytes


def _arena_for(kind: pa.DataType) -> Arena:
    if pt.is_string(kind) or pt.is_large_string(kind) or pt.is_string_view(kind):
        return ByteArena(pa.large_string())
    if pt.is_binary(kind) or pt.is_large_binary(kind) or pt.is_binary_view(kind):
        return ByteArena(pa.large_binary())
    return ChunkArena(kind)
