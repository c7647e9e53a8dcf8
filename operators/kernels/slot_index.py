"""SlotIndex: keys of any hashable columns → small stable integers, for a whole batch at a time.

Promises: equal keys have one slot until it is removed; keys of equal hash are told apart; a slot
that was removed is given to a new key later. Nulls equal nulls, NaN equals NaN, -0.0 equals 0.0.
Owners keep their columns by slot beside it. Not: state; its owner brings what must survive there.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penstock.elements.hash import Hashes, hash_arrays
from penstock.state.slot_index import KeyColumns

from .slot_cells import Mask, Slots, new_cells

ROOM_MIN = 512
SLOTS_MAX = 1 << 30
"""Cells are int32, and half of them stay empty."""


class SlotIndex:
    """Slots below `capacity`; `rows` of them hold a key."""

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema
        self.capacity = ROOM_MIN
        """Owners' columns need this much room after each `add`."""
        self._cells = new_cells()
        self._keys = KeyColumns(schema)
        for column in self._keys.columns:
            column.resize(self.capacity)
        self._live = np.zeros(self.capacity, np.bool_)
        self._end = 0
        self._free = np.zeros(0, np.int64)

    @property
    def rows(self) -> int:
        """Keys that it holds."""
        return self._end - len(self._free)

    @property
    def live(self) -> Slots:
        """All slots that hold a key, ascending."""
        return np.flatnonzero(self._live[: self._end])

    def find(self, keys: pa.RecordBatch, hashes: Hashes | None = None) -> Slots:
        """The slot of each key, or -1."""
        hashes = _hashes(keys, hashes)
        slots = self._cells.find(hashes)
        there = np.flatnonzero(slots >= 0)
        if len(there):
            same = self._keys.equal(slots[there], keys.columns, there)
            for row in there[~same].tolist():
                slots[row] = self._another(keys, hashes, row, int(slots[row]))
        return slots

    def add(self, keys: pa.RecordBatch, hashes: Hashes | None = None) -> tuple[Slots, Mask]:
        """(the slot of each key, which rows are the first of a key that was not there)."""
        hashes = _hashes(keys, hashes)
        count = len(hashes)
        if not count:
            return np.zeros(0, np.int64), np.zeros(0, np.bool_)
        self._reserve(self._end + count)
        slots, new, given = self._cells.put(hashes, self._free, self._end)
        self._take(given)
        if given:
            self._write(keys, np.flatnonzero(new), slots)
        if given < count:
            old = np.flatnonzero(~new)
            same = self._keys.equal(slots[old], keys.columns, old)
            if not same.all():
                self._tell_apart(keys, hashes, old[~same], slots, new)
        return slots, new

    def remove(self, slots: Slots) -> None:
        """Forget these slots, each given once; they are given to other keys later."""
        if len(slots):
            assert self._live[slots].all()
            self._cells.drop(slots)
            self._live[slots] = False
            self._free = np.concatenate([self._free, slots])

    def keys_of(self, slots: Slots) -> pa.RecordBatch:
        """The keys of live slots, with the index's schema."""
        arrays = []
        for field, column in zip(self.schema, self._keys.columns, strict=True):
            taken = column.take(slots)
            arrays.append(taken if taken.type == field.type else taken.cast(field.type))
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)

    def number(self, slots: Slots) -> tuple[Slots, Slots]:
        """(a dense number per row, the distinct slots by number): groups without hashing."""
        return self._cells.number(slots)

    # Inside -----------------------------------------------------------------------------------

    def _reserve(self, slots: int) -> None:
        assert slots < SLOTS_MAX
        if slots <= self.capacity:
            return
        self.capacity = 1 << (slots - 1).bit_length()
        self._cells.reserve(self.capacity)
        for column in self._keys.columns:
            column.resize(self.capacity)
        live = np.zeros(self.capacity, np.bool_)
        live[: len(self._live)] = self._live
        self._live = live

    def _take(self, given: int) -> None:
        """So many slots were given: first the free ones, from the back."""
        reused = min(given, len(self._free))
        self._free = self._free[: len(self._free) - reused]
        self._end += given - reused

    def _write(self, keys: pa.RecordBatch, rows: Slots, slots: Slots) -> None:
        self._keys.write(slots[rows], keys.columns, rows)
        self._live[slots[rows]] = True

    def _another(self, keys: pa.RecordBatch, hashes: Hashes, row: int, slot: int) -> int:
        """The slot of a key whose hash is also that of `slot`, or -1. One in 2^64 gets here."""
        for other in self._cells.others(int(hashes[row]), slot):
            if self._keys.equal(np.array([other]), keys.columns, np.array([row]))[0]:
                return other
        return -1

    def _tell_apart(
        self, keys: pa.RecordBatch, hashes: Hashes, rows: Slots, slots: Slots, new: Mask
    ) -> None:
        for row in rows.tolist():
            other = self._another(keys, hashes, row, int(slots[row]))
            if other < 0:
                new[row] = True
                other = int(self._free[-1]) if len(self._free) else self._end
                self._take(1)
                self._cells.put_another(int(hashes[row]), other)
                slots[row] = other
                self._write(keys, np.array([row]), slots)
            slots[row] = other


def _hashes(keys: pa.RecordBatch, hashes: Hashes | None) -> npt.NDArray[np.uint64]:
    if hashes is None:
        return hash_arrays(keys.columns, keys.num_rows)
    assert len(hashes) == keys.num_rows
    return hashes
