"""StoredRows: what state holds of the live rows of a join, and what it does not know yet.

Rows that neither change nor are taken back one by one are logged, and forgotten by their times;
others are upserted under numbers, several times dearer in time and memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penstock.elements.buffers import grown
from penstock.elements.hash import Hashes, hash_arrays
from penstock.elements.keygroup import GROUP_SHIFT
from penstock.elements.signals import TIME_COLUMN
from penstock.state.backend import StateBackend

Numbers = npt.NDArray[np.int64]
Scalar = TypeVar("Scalar", bound=np.generic)
ROW_NUMBER, ROW_TIME, ROW_MATCHES = "__row", "__time", "__matches"
"""Columns of the state table that are not the user's."""
_SPREAD = np.uint64(0x9E3779B97F4A7C15)
_LOW_BITS = np.uint64((1 << GROUP_SHIFT) - 1)


class LiveRows(Protocol):
    """What is asked of the rows that are kept."""

    keys: list[str]
    fields: list[pa.Field]
    schema: pa.Schema
    times: Numbers
    matches: Numbers
    hashes: Hashes

    def insert(self, batch: pa.RecordBatch, times: Numbers, hashes: Hashes) -> Numbers: ...

    def array(self, name: str, slots: Numbers) -> pa.Array: ...


class StoredRows:
    """One table row per row of the join: key and number of the row, then its other columns.

    `fixed` rows have no numbers: they are removed in no other way than all up to some time at once.

    The hash keeps the key group of the join's key in its top bits, so rows move with their key;
    below, the number is mixed in, or all rows of a hot key would meet in one cell of an index.
    """

    def __init__(
        self, live: LiveRows, name: str, state: StateBackend, counted: bool, fixed: bool
    ) -> None:
        assert not (counted and fixed)
        self._live = live
        self._counted, self._fixed = counted, fixed
        keys = [live.schema.field(key) for key in live.keys]
        self._others = [f for f in live.fields if f.name not in live.keys]
        extra = [pa.field(ROW_TIME, pa.int64())]
        extra += [pa.field(ROW_MATCHES, pa.int64())] if counted else []
        self._key_schema = pa.schema(keys if fixed else [*keys, pa.field(ROW_NUMBER, pa.int64())])
        self._value_schema = pa.schema(self._others if fixed else [*self._others, *extra])
        schemas = self._key_schema, self._value_schema
        self._log = state.log(f"{name}_rows", *schemas) if fixed else None
        self._table = None if fixed else state.table(name, *schemas)
        self._next = 0
        self._numbers = np.zeros(0, np.int64)
        self._known = np.zeros(0, np.bool_)
        self._dirty = np.zeros(0, np.bool_)
        self._gone: list[tuple[pa.RecordBatch, Hashes]] = []

    def resize(self, capacity: int) -> None:
        """Room for slots below `capacity`."""
        if not self._fixed:
            self._numbers = grown(self._numbers, capacity)
        self._known = grown(self._known, capacity)
        self._dirty = grown(self._dirty, capacity)

    def added(self, slots: Numbers) -> None:
        """Rows that state does not have."""
        if not self._fixed:
            self._numbers[slots] = np.arange(self._next, self._next + len(slots))
            self._next += len(slots)
        self._known[slots] = False
        self._dirty[slots] = True

    def changed(self, slots: Numbers) -> None:
        """Rows that state has otherwise."""
        self._dirty[slots] = True

    def removed(self, slots: Numbers) -> None:
        """Called before the rows go."""
        known = slots[self._known[slots]]
        if len(known) and self._log is not None:
            # At once: a row that comes later may be older, where time is the clock's.
            self._log.cut(int(self._live.times[known].max()) + 1)
        elif len(known):
            self._gone.append((self._keys(known), self._hashes(known)))
        self._known[slots] = False
        self._dirty[slots] = False

    def store(self) -> None:
        """Bring it up to date."""
        if self._table is not None:
            for keys, hashes in self._gone:
                self._table.delete(keys, hashes)
            self._gone.clear()
        slots = np.flatnonzero(self._dirty)
        if len(slots):
            self._dirty[slots] = False
            self._known[slots] = True
            keys, values = self._keys(slots), self._values(slots)
            if self._log is not None:
                times, hashes = self._live.times[slots], self._live.hashes[slots]
                # A batch of no columns has no rows either; a selection of none keeps them.
                values = values if self._others else keys.select([])
                self._log.append(keys, values, times, hashes, owned=True)
            elif self._table is not None:
                self._table.upsert(keys, values, self._hashes(slots))

    def load(self) -> None:
        """Read back what a cut has."""
        for stored in self._stored():
            keys = [stored.column(key) for key in self._live.keys]
            arrays = [stored.column(f.name) for f in self._live.schema if f.name != TIME_COLUMN]
            fields = [f for f in self._live.schema if f.name != TIME_COLUMN]
            arrays = [a if a.type == f.type else a.cast(f.type) for a, f in zip(arrays, fields)]
            rows = pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))
            typed = [rows.column(key) for key in self._live.keys]
            hashes = hash_arrays(typed, len(keys[0]))
            times = stored.column(TIME_COLUMN if self._fixed else ROW_TIME).to_numpy()
            slots = self._live.insert(rows, times, hashes)
            if self._counted:
                self._live.matches[slots] = stored.column(ROW_MATCHES).to_numpy()
            self._known[slots] = True
            self._dirty[slots] = False
            if not self._fixed:
                self._numbers[slots] = stored.column(ROW_NUMBER).to_numpy()
                self._next = max(self._next, int(self._numbers[slots].max(initial=-1)) + 1)

    def _stored(self) -> Iterator[pa.RecordBatch]:
        if self._table is not None:
            yield from self._table.scan()
        elif self._log is not None:
            yield from self._log.restored()

    def _keys(self, slots: Numbers) -> pa.RecordBatch:
        arrays = [self._live.array(key, slots) for key in self._live.keys]
        if not self._fixed:
            arrays.append(pa.array(np.take(self._numbers, slots)))
        return pa.RecordBatch.from_arrays(arrays, schema=self._key_schema)

    def _values(self, slots: Numbers) -> pa.RecordBatch:
        arrays = [self._live.array(field.name, slots) for field in self._others]
        if not self._fixed:
            arrays.append(pa.array(np.take(self._live.times, slots)))
        if self._counted:
            arrays.append(pa.array(np.take(self._live.matches, slots)))
        return pa.RecordBatch.from_arrays(arrays, schema=self._value_schema)

    def _hashes(self, slots: Numbers) -> Hashes:
        hashes = np.take(self._live.hashes, slots)
        numbers = np.take(self._numbers, slots).view(np.uint64)
        mixed = (hashes ^ (numbers + np.uint64(1)) * _SPREAD) * _SPREAD
        mixed ^= mixed >> np.uint64(29)
        return (hashes & ~_LOW_BITS) | (mixed & _LOW_BITS)
