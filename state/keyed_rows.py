"""Keyed tables of the memory backend: upsert, get, accumulate and delete in slot columns.

Promises: vectorised, by (hash, key); `freeze` is a copy of the fixed-width columns and references
to everything append-only. Deleted keys keep their slot until they are the majority.
Not: appended tables; those are state/appended_rows.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from penstock.elements.buffers import grown
from penstock.elements.signals import WATERMARK_MIN

from .backend import Hashes, MergeFunction
from .columns import Column, Mask, Slots, column_for
from .merges import MergeTarget, prepare_merge
from .slot_index import SlotIndex

DEAD_SLOTS_MIN = 4096
"""Dead slots that are kept, at least, before the live ones are copied together."""
SCAN_ROWS = 65_536
"""Rows per batch of a scan."""


@dataclass(frozen=True)
class TableShape:
    """What a table was declared as. `title` is operator and state, for errors."""

    title: str
    key: pa.Schema
    value: pa.Schema
    merge: dict[str, MergeFunction]
    ttl_ns: int | None

    def rows_schema(self) -> pa.Schema:
        """Key and value columns; values may be null for keys that are not there."""
        return pa.schema([*self.key, *self.value])


class KeyedRows:
    """One row of values per key."""

    def __init__(self, shape: TableShape) -> None:
        self._shape = shape
        self._index = SlotIndex(shape.key)
        self._values: list[Column] = [column_for(field.type) for field in shape.value]
        self._alive = np.zeros(0, np.bool_)
        self._written = np.zeros(0, np.int64)  # event time of the last write; only with a TTL
        self._live = 0
        self._now_ns = WATERMARK_MIN
        self._purged_ns = WATERMARK_MIN
        self._targets = [
            MergeTarget(shape.title, field.name, column, shape.merge.get(field.name, "replace"))
            for field, column in zip(shape.value, self._values, strict=True)
        ]
        for target in self._targets:
            target.refuse_type()

    @property
    def rows(self) -> int:
        """Keys that are present."""
        if self._shape.ttl_ns is None:
            return self._live
        return len(self._live_slots())

    def upsert(
        self,
        hashes: Hashes,
        keys: Sequence[pa.Array],
        values: Sequence[pa.Array],
        written: Slots | None = None,
    ) -> None:
        """Insert or replace; `written` comes with restored rows only."""
        slots = self._slots_for(hashes, keys)
        for column, array in zip(self._values, values, strict=True):
            column.write(slots, array)
        self._revive(slots, written)

    def get(self, hashes: Hashes, keys: Sequence[pa.Array]) -> tuple[Mask, list[pa.Array]]:
        """(found, values with null for those not found)."""
        slots = self._index.find(hashes, keys)
        found = slots >= 0
        found[found] = self._is_live(slots[found])
        if found.all():
            return found, self._take(slots)
        at = pa.array(np.cumsum(found) - 1, mask=~found)
        return found, [array.take(at) for array in self._take(slots[found])]

    def accumulate(
        self, hashes: Hashes, keys: Sequence[pa.Array], values: Sequence[pa.Array]
    ) -> None:
        """Merge by the declared functions; an overflow leaves everything as it was."""
        slots = self._slots_for(hashes, keys)
        dead = slots[~self._is_live(slots)]
        for column in self._values:
            column.clear(dead)
        merges = [
            prepare_merge(target, slots, array)
            for target, array in zip(self._targets, values, strict=True)
        ]
        for apply in merges:
            apply()
        self._revive(slots, None)

    def delete(self, hashes: Hashes, keys: Sequence[pa.Array]) -> None:
        """Forget these keys."""
        slots = self._index.find(hashes, keys)
        slots = slots[slots >= 0]
        # Sorted by hand: NumPy's unique goes by a hash table, far slower for many distinct numbers.
        gone = np.sort(slots[self._alive[slots]])
        self._kill(gone[np.flatnonzero(np.diff(gone, prepend=-1))])

    def advance(self, time_ns: int) -> None:
        """Event time for the TTL; the first call also dates what was written before it."""
        ttl_ns = self._shape.ttl_ns
        if ttl_ns is None or time_ns <= self._now_ns:
            return
        if self._now_ns == WATERMARK_MIN:
            self._written[self._written == WATERMARK_MIN] = time_ns
        self._now_ns = time_ns
        if self._purged_ns == WATERMARK_MIN or time_ns - self._purged_ns > max(ttl_ns // 8, 1):
            # Expired rows are hidden at once and dropped in bulk now and then.
            self._purged_ns = time_ns
            alive = np.flatnonzero(self._alive[: self._index.count])
            self._kill(alive[~self._is_live(alive)])

    def scan(self) -> list[pa.RecordBatch]:
        """All live rows, copied."""
        slots = self._live_slots()
        schema = self._shape.rows_schema()
        parts = [slots[at : at + SCAN_ROWS] for at in range(0, len(slots), SCAN_ROWS)]
        return [
            record_batch([*self._take_keys(part), *self._take(part)], schema, len(part))
            for part in parts
        ]

    def freeze(self) -> FrozenRows:
        """The live rows as of now."""
        count = self._index.count
        keys = [column.freeze(count, shared=True) for column in self._index.keys.columns]
        values = [column.freeze(count, shared=False) for column in self._values]
        written = None
        if self._shape.ttl_ns is not None:
            written = self._written[:count].copy()
        return FrozenRows(self._index.hashes[:count], self._live_slots(), keys, values, written)

    def _slots_for(self, hashes: Hashes, keys: Sequence[pa.Array]) -> Slots:
        slots, _ = self._index.find_or_insert(hashes, keys)
        capacity = self._index.capacity
        if capacity > len(self._alive):
            for column in self._values:
                column.resize(capacity)
            self._alive = grown(self._alive, capacity)
            if self._shape.ttl_ns is not None:
                self._written = grown(self._written, capacity)
        return slots

    def _revive(self, slots: Slots, written: Slots | None) -> None:
        fresh = slots[~self._alive[slots]]
        if len(fresh):
            self._alive[fresh] = True
            self._live = int(np.count_nonzero(self._alive[: self._index.count]))
        if self._shape.ttl_ns is not None:
            self._written[slots] = self._now_ns if written is None else written
        self._compact_if_mostly_dead()

    def _kill(self, slots: Slots) -> None:
        if len(slots) == 0:
            return
        self._alive[slots] = False
        self._live -= len(slots)
        for column in self._values:
            column.clear(slots)
        self._compact_if_mostly_dead()

    def _compact_if_mostly_dead(self) -> None:
        dead = self._index.count - self._live
        if dead <= max(DEAD_SLOTS_MIN, self._live):
            return
        keep = np.flatnonzero(self._alive[: self._index.count])
        self._index.rebuild(keep)
        capacity = self._index.capacity
        for column in self._values:
            column.compact(keep, capacity)
        if self._shape.ttl_ns is not None:
            self._written = grown(self._written[keep], capacity)
        self._alive = np.zeros(capacity, np.bool_)
        self._alive[: len(keep)] = True

    def _is_live(self, slots: Slots) -> Mask:
        live = np.take(self._alive, slots)
        ttl_ns = self._shape.ttl_ns
        if ttl_ns is not None and self._now_ns != WATERMARK_MIN:
            live &= np.take(self._written, slots) >= self._now_ns - ttl_ns
        return live

    def _live_slots(self) -> Slots:
        slots = np.flatnonzero(self._alive[: self._index.count])
        if self._shape.ttl_ns is not None:
            slots = slots[self._is_live(slots)]
        return slots

    def _take(self, slots: Slots) -> list[pa.Array]:
        return take_declared(self._values, self._shape.value, slots)

    def _take_keys(self, slots: Slots) -> list[pa.Array]:
        return take_declared(self._index.keys.columns, self._shape.key, slots)


@dataclass(frozen=True)
class FrozenRows:
    """Rows at a cut, to be brought into the order of a run in another thread."""

    hashes: Hashes
    slots: Slots
    keys: list[Column]
    values: list[Column]
    written: Slots | None

    def columns(self) -> tuple[Hashes, list[pa.Array], list[pa.Array], Slots | None]:
        """(sorted hashes, keys, values, written) in the order of the hashes."""
        hashes = self.hashes[self.slots]
        order = np.argsort(hashes, kind="stable")
        slots = self.slots[order]
        keys = [column.take(slots) for column in self.keys]
        values = [column.take(slots) for column in self.values]
        written = None if self.written is None else self.written[slots]
        return hashes[order], keys, values, written


def take_declared(columns: Sequence[Column], schema: pa.Schema, slots: Slots) -> list[pa.Array]:
    """The values of these slots in their declared types."""
    arrays = []
    for column, field in zip(columns, schema, strict=True):
        array = column.take(slots)
        arrays.append(array if array.type == field.type else array.cast(field.type))
    return arrays


def record_batch(arrays: list[pa.Array], schema: pa.Schema, rows: int) -> pa.RecordBatch:
    """A batch that keeps its row count without any column."""
    if not arrays:
        return pa.record_batch({"_": pa.nulls(rows)}).select([])
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
