"""Columns of rows that are only added, and dropped many at a time: what an inner join keeps.

Promises: `append` copies; `take` gives owned memory of the declared type. Numbers and bytes lie in
arrays that grow without being copied, other types in columns of the state layer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

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
from penstock.state.columns import column_for

from .join_arrays import GrowingArray

Slots = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


class KeptColumn(ABC):
    """Values in slots 0, 1, 2, …"""

    def __init__(self, kind: pa.DataType) -> None:
        self.kind = kind

    @abstractmethod
    def append(self, first: int, array: pa.Array) -> None:
        """Copy the array into slots `first`, `first` + 1, …, one behind the last one."""

    @abstractmethod
    def take(self, slots: Slots) -> pa.Array:
        """The values of these slots."""

    def slice(self, start: int, stop: int) -> pa.Array:
        """The values of the slots from `start` to `stop`, copied."""
        return self.take(np.arange(start, stop))

    @abstractmethod
    def keep(self, slots: Slots) -> None:
        """Drop all slots but these, which are ascending and become 0, 1, 2, …"""

    def equal(self, slots: Slots, array: pa.Array, rows: Slots) -> Mask:
        """Whether slot i holds the same key value as row `rows[i]` of `array`."""
        return equal_values(self.take(slots), array.take(pa.array(rows)))


def kept_column(kind: pa.DataType) -> KeptColumn:
    """The column that keeps values of `kind`."""
    if fixed_dtype(kind) is not None:
        return KeptWords(kind)
    if wide_bytes(kind):
        return KeptWide(kind)
    if pt.is_string(kind) or pt.is_binary(kind) or pt.is_large_string(kind):
        return KeptBytes(kind)
    return KeptBytes(kind) if pt.is_large_binary(kind) else KeptOthers(kind)


class Presence:
    """Which slots have a value; nothing as long as all have."""

    def __init__(self) -> None:
        self._valid: GrowingArray | None = None

    def append(self, first: int, array: pa.Array) -> None:
        """Note the nulls of `array`, which goes to slots from `first` on."""
        valid = validity(array)
        if valid is None and self._valid is None:
            return
        if self._valid is None:
            self._valid = GrowingArray(np.dtype(np.bool_))
            self._valid.reserve(first)
            self._valid.values[:first] = True
        self._valid.reserve(first + len(array))
        self._valid.values[first : first + len(array)] = True if valid is None else valid

    def take(self, slots: Slots | slice) -> Mask | None:
        """Which of these have a value; None: all."""
        if self._valid is None:
            return None
        valid = self._valid.values[slots]
        return None if valid.all() else valid

    def keep(self, slots: Slots) -> None:
        """Renumber."""
        if self._valid is not None:
            keep_values(self._valid, slots)


class KeptWords(KeptColumn):
    """Values of one machine word."""

    def __init__(self, kind: pa.DataType) -> None:
        super().__init__(kind)
        dtype = fixed_dtype(kind)
        assert dtype is not None
        self._words = GrowingArray(dtype)
        self._present = Presence()

    def append(self, first: int, array: pa.Array) -> None:
        self._words.reserve(first + len(array))
        self._words.values[first : first + len(array)] = fixed_values(array)
        self._present.append(first, array)

    def take(self, slots: Slots) -> pa.Array:
        return fixed_array(self.kind, np.take(self._words.values, slots), self._present.take(slots))

    def slice(self, start: int, stop: int) -> pa.Array:
        present = self._present.take(slice(start, stop))
        return fixed_array(self.kind, self._words.values[start:stop].copy(), present)

    def keep(self, slots: Slots) -> None:
        keep_values(self._words, slots)
        self._present.keep(slots)

    def equal(self, slots: Slots, array: pa.Array, rows: Slots) -> Mask:
        same = equal_fixed(np.take(self._words.values, slots), np.take(fixed_values(array), rows))
        valid = validity(array)
        mine = self._present.take(slots)
        if valid is None and mine is None:
            return same
        mine = np.ones(len(slots), np.bool_) if mine is None else mine
        return equal_with_nulls(same, mine, None if valid is None else valid[rows])


class KeptWide(KeptColumn):
    """Decimals and binary of a fixed size."""

    def __init__(self, kind: pa.DataType) -> None:
        super().__init__(kind)
        self._width = wide_bytes(kind) or 0
        self._rows = GrowingArray(np.dtype((np.void, self._width)))
        self._present = Presence()

    def append(self, first: int, array: pa.Array) -> None:
        self._rows.reserve(first + len(array))
        values = np.ascontiguousarray(wide_values(array)).reshape(-1)
        self._rows.values[first : first + len(array)] = values.view(self._rows.values.dtype)
        self._present.append(first, array)

    def take(self, slots: Slots) -> pa.Array:
        data = pa.py_buffer(self._rows.values[slots].view(np.uint8))
        valid = self._present.take(slots)
        bitmap = None
        if valid is not None:
            bitmap = pa.py_buffer(np.packbits(valid, bitorder="little"))
        return pa.Array.from_buffers(self.kind, len(slots), [bitmap, data])

    def keep(self, slots: Slots) -> None:
        keep_values(self._rows, slots)
        self._present.keep(slots)


class KeptBytes(KeptColumn):
    """Text and binary, as Arrow lays them out, so that `take` is Arrow's."""

    def __init__(self, kind: pa.DataType) -> None:
        super().__init__(kind)
        text = pt.is_string(kind) or pt.is_large_string(kind)
        self._wide = pa.large_string() if text else pa.large_binary()
        self._ends = GrowingArray(np.dtype(np.int64))  # offsets, the first being 0
        self._data = GrowingArray(np.dtype(np.uint8))
        self._present = Presence()
        self._rows = 0

    def append(self, first: int, array: pa.Array) -> None:
        count = len(array)
        assert first == self._rows
        if not count:
            return
        wide = pt.is_large_string(array.type) or pt.is_large_binary(array.type)
        offset = np.dtype(np.int64 if wide else np.int32)
        _, offsets_buffer, values = array.buffers()
        offsets = np.frombuffer(offsets_buffer, offset, count + 1, array.offset * offset.itemsize)
        low, high = int(offsets[0]), int(offsets[-1])
        self._ends.reserve(first + count + 1)
        start = int(self._ends.values[first])
        self._ends.values[first + 1 : first + count + 1] = offsets[1:]
        self._ends.values[first + 1 : first + count + 1] += start - low
        self._data.reserve(start + high - low)
        if high > low:
            self._data.values[start : start + high - low] = np.frombuffer(
                values, np.uint8, high - low, low
            )
        self._present.append(first, array)
        self._rows = first + count

    def take(self, slots: Slots) -> pa.Array:
        if not self._rows:
            return pa.nulls(len(slots), self.kind)
        valid = self._present.take(slots)
        taken = self._view().take(pa.array(slots, mask=None if valid is None else ~valid))
        return taken if taken.type == self.kind else taken.cast(self.kind)

    def keep(self, slots: Slots) -> None:
        self._present.keep(slots)
        kept = self._view().take(pa.array(slots)) if len(slots) else None
        bytes_kept = 0
        if kept is not None:
            ends = np.frombuffer(kept.buffers()[1], np.int64, len(slots) + 1)
            bytes_kept = int(ends[-1])
            self._ends.values[: len(slots) + 1] = ends
            if bytes_kept:
                data = np.frombuffer(kept.buffers()[2], np.uint8, bytes_kept)
                self._data.values[:bytes_kept] = data
        self._rows = len(slots)
        self._ends.shrink(len(slots) + 1)
        self._data.shrink(bytes_kept)

    def _view(self) -> pa.Array:
        """All of it, over memory that must not grow while it is looked at."""
        buffers = [None, pa.py_buffer(self._ends.values), pa.py_buffer(self._data.values)]
        return pa.Array.from_buffers(self._wide, self._rows, buffers, 0)


class KeptOthers(KeptColumn):
    """Lists, structs and whatever else there is."""

    def __init__(self, kind: pa.DataType) -> None:
        super().__init__(kind)
        self._column = column_for(kind)
        self._room = 0

    def append(self, first: int, array: pa.Array) -> None:
        if first + len(array) > self._room:
            self._room = max(first + len(array), 2 * self._room, 1024)
            self._column.resize(self._room)
        self._column.write(np.arange(first, first + len(array)), array)

    def take(self, slots: Slots) -> pa.Array:
        taken = self._column.take(slots)
        return taken if taken.type == self.kind else taken.cast(self.kind)

    def keep(self, slots: Slots) -> None:
        self._room = max(2 * len(slots), 1024)
        self._column.compact(slots, self._room)


def keep_values(array: GrowingArray, slots: Slots) -> None:
    """Move the values of these ascending slots to the front."""
    array.values[: len(slots)] = array.values[slots]
    array.shrink(len(slots))
