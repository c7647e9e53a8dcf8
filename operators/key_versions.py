"""KeyVersions: the newest row of each key, live in columns above the state interfaces."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penstock.elements.hash import Hashes, hash_columns
from penstock.elements.signals import TIME_COLUMN, WATERMARK_MIN
from penstock.state.backend import StateBackend
from penstock.state.columns import Column, column_for

from .event_times import time_array, times_of
from .kernels.slot_index import SlotIndex

Numbers = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
VERSION_TIME = "__time"
NO_VERSION = WATERMARK_MIN
"""The time of a slot whose key is new and has no version yet."""


class KeyVersions:
    """Rows with `schema`, which has `_time`, one per key."""

    def __init__(
        self, name: str, schema: pa.Schema, keys: Sequence[str], state: StateBackend
    ) -> None:
        self._schema = schema
        self._keys = list(keys)
        self._others = [f for f in schema if f.name not in keys and f.name != TIME_COLUMN]
        key_schema = pa.schema([schema.field(key) for key in keys])
        self._value_schema = pa.schema([*self._others, pa.field(VERSION_TIME, pa.int64())])
        self._table = state.table(name, key_schema, self._value_schema)
        self._index = SlotIndex(key_schema)
        self._columns: dict[str, Column] = {f.name: column_for(f.type) for f in self._others}
        self._times = np.zeros(0, np.int64)
        self._dirty = np.zeros(0, np.bool_)
        self._gone: list[pa.RecordBatch] = []
        self._looked = NO_VERSION
        for stored in self._table.scan():
            if stored.num_rows:
                self._load(stored)

    @property
    def rows(self) -> int:
        """Keys with a version."""
        return self._index.rows

    def slots(self, batch: pa.RecordBatch, hashes: Hashes) -> Numbers:
        """A slot for each row's key, which must get a version before anything else is done."""
        slots, new = self._index.add(batch.select(self._keys), hashes)
        self._reserve()
        self._times[slots[new]] = NO_VERSION
        return slots

    def find(self, batch: pa.RecordBatch, hashes: Hashes) -> Numbers:
        """The slot of each row's key, or -1."""
        return self._index.find(batch.select(self._keys), hashes)

    def known(self, slots: Numbers) -> Mask:
        """Whether the slots have versions; slots of -1 read any."""
        if not len(self._times):
            return np.zeros(len(slots), np.bool_)
        there: Mask = self._times[slots] != NO_VERSION
        return there

    def write(self, slots: Numbers, batch: pa.RecordBatch) -> None:
        """Replace the versions of these slots, which are distinct. Copies."""
        for name, column in self._columns.items():
            column.write(slots, batch.column(name))
        self._times[slots] = times_of(batch)
        self._dirty[slots] = True

    def take(self, slots: Numbers) -> pa.RecordBatch:
        """The versions of these slots, with the declared schema."""
        keys = self._index.keys_of(slots)
        arrays = []
        for field in self._schema:
            if field.name in self._keys:
                array = keys.column(field.name)
            elif field.name == TIME_COLUMN:
                array = time_array(np.take(self._times, slots))
            else:
                array = self._columns[field.name].take(slots)
            arrays.append(array if array.type == field.type else array.cast(field.type))
        return pa.RecordBatch.from_arrays(arrays, schema=self._schema)

    def forget(self, before: int, step_ns: int) -> None:
        """Drop versions older than `before`. Reads all of them, so once in `step_ns` only."""
        if before < self._looked + step_ns:
            return
        self._looked = before
        live = self._index.live
        old = live[self._times[live] < before]
        if len(old):
            self._gone.append(self._index.keys_of(old))
            self._dirty[old] = False
            self._index.remove(old)

    def store(self) -> None:
        """A cut comes: bring what changed into state."""
        for keys in self._gone:
            self._table.delete(keys)
        self._gone.clear()
        slots = np.flatnonzero(self._dirty)
        if len(slots):
            self._dirty[slots] = False
            rows = self.take(slots)
            arrays = [rows.column(field.name) for field in self._others]
            arrays.append(pa.array(self._times[slots]))
            values = pa.RecordBatch.from_arrays(arrays, schema=self._value_schema)
            self._table.upsert(rows.select(self._keys), values)

    def _load(self, stored: pa.RecordBatch) -> None:
        keys = stored.select(self._keys)
        slots, _ = self._index.add(keys, hash_columns(keys, self._keys))
        self._reserve()
        for name, column in self._columns.items():
            column.write(slots, stored.column(name))
        self._times[slots] = stored.column(VERSION_TIME).to_numpy()

    def _reserve(self) -> None:
        capacity = self._index.capacity
        if capacity == len(self._times):
            return
        for column in self._columns.values():
            column.resize(capacity)
        times, dirty = np.zeros(capacity, np.int64), np.zeros(capacity, np.bool_)
        times[: len(self._times)] = self._times
        dirty[: len(self._dirty)] = self._dirty
        self._times, self._dirty = times, dirty
