"""The Table of the memory backend: checks, hashes, and what a run holds of it.

Promises: a sealed table is immutable and builds its section in any thread; a table that has not
changed since the last seal gives the same section again.
Section columns: `_hash`, `key.<name>`…, `value.<name>`…, and `_time` (appended tables) or
`_written` (tables with a TTL).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penstock.elements.errors import StateError
from penstock.elements.hash import hash_arrays, refuse_unhashable
from penstock.elements.keygroup import KEY_GROUPS, KeyGroupRange
from penstock.elements.signals import WATERMARK_MIN

from .appended_rows import AppendedRows, FrozenAppended
from .backend import Hashes, MergeFunction, Section, Table
from .clip import clip_to_groups
from .keyed_rows import FrozenRows, KeyedRows, TableShape
from .whole_rows import WholeRows

_RESTORE_ROWS = 65_536
"""Rows per step of a restore, so that its temporaries stay small."""


class MemoryTable(Table):
    """Keyed rows or appended rows, whichever is used first."""

    def __init__(self, operator_id: str, name: str, shape: TableShape) -> None:
        self._operator_id = operator_id
        self._name = name
        self._shape = shape
        refuse_keys(shape.title, shape.key)
        self._keyed: KeyedRows | None = None
        self._appended: AppendedRows | None = None
        self._sealed: SealedTable | None = None
        self._whole: int | None = None
        """How many rows were handed over whole; they lie in `_sealed`, and nowhere else."""
        self._now_ns = WATERMARK_MIN
        KeyedRows(shape)  # refuses merges that cannot be, when declared

    def upsert(
        self, keys: pa.RecordBatch, values: pa.RecordBatch, hashes: Hashes | None = None
    ) -> None:
        rows = self._as_keyed()
        rows.upsert(*self._checked(keys, hashes), self._checked_values(keys, values))

    def get(
        self, keys: pa.RecordBatch, hashes: Hashes | None = None
    ) -> tuple[npt.NDArray[np.bool_], pa.RecordBatch]:
        found, arrays = self._as_keyed(writes=False).get(*self._checked(keys, hashes))
        nullable = pa.schema([field.with_nullable(True) for field in self._shape.value])
        if not arrays:
            return found, keys.select([])
        return found, pa.RecordBatch.from_arrays(arrays, schema=nullable)

    def accumulate(
        self, keys: pa.RecordBatch, values: pa.RecordBatch, hashes: Hashes | None = None
    ) -> None:
        rows = self._as_keyed()
        rows.accumulate(*self._checked(keys, hashes), self._checked_values(keys, values))

    def delete(self, keys: pa.RecordBatch, hashes: Hashes | None = None) -> None:
        self._as_keyed().delete(*self._checked(keys, hashes))

    def replace(
        self, keys: pa.RecordBatch, values: pa.RecordBatch, hashes: Hashes | None = None
    ) -> None:
        assert self._shape.ttl_ns is None
        assert self._appended is None
        self._check_types("key", keys, self._shape.key)
        self._check_types("value", values, self._shape.value)
        assert keys.num_rows == values.num_rows
        self._keyed, self._whole = None, keys.num_rows
        whole = WholeRows(keys, values, hashes)
        self._sealed = SealedTable(self._operator_id, self._name, self._shape, whole)

    def append(
        self,
        keys: pa.RecordBatch,
        values: pa.RecordBatch,
        times_ns: npt.NDArray[np.int64],
        hashes: Hashes | None = None,
    ) -> None:
        assert len(times_ns) == keys.num_rows
        rows = self._as_appended()
        rows.append(*self._checked(keys, hashes), self._checked_values(keys, values), times_ns)

    def probe(
        self,
        keys: pa.RecordBatch,
        low_ns: npt.NDArray[np.int64] | int,
        high_ns: npt.NDArray[np.int64] | int,
        hashes: Hashes | None = None,
    ) -> tuple[npt.NDArray[np.int64], pa.RecordBatch]:
        count = keys.num_rows
        low = np.broadcast_to(np.asarray(low_ns, np.int64), (count,))
        high = np.broadcast_to(np.asarray(high_ns, np.int64), (count,))
        usable = np.ones(count, np.bool_)
        for array in keys.columns:
            if array.null_count:
                usable &= array.is_valid().to_numpy(zero_copy_only=False)
        found, arrays = self._checked(keys, hashes)
        rows = self._as_appended(writes=False)
        return rows.probe(found, arrays, low, high, np.flatnonzero(usable))

    def expire(self, before_ns: int) -> Iterator[pa.RecordBatch]:
        if self._appended is None or not self._appended.rows:
            return iter(())
        return iter(self._as_appended().expire(before_ns))

    def scan(self) -> Iterator[pa.RecordBatch]:
        if self._appended is not None:
            return iter(self._appended.scan())
        self._read_whole()
        return iter(self._keyed.scan() if self._keyed is not None else ())

    def advance(self, time_ns: int) -> None:
        if self._shape.ttl_ns is None:
            return
        self._sealed = None
        self._now_ns = max(self._now_ns, time_ns)
        used = self._appended if self._appended is not None else self._keyed
        if used is not None:
            used.advance(self._now_ns)

    @property
    def rows(self) -> int:
        if self._whole is not None:
            return self._whole
        used = self._appended if self._appended is not None else self._keyed
        return 0 if used is None else used.rows

    def restore(self, batch: pa.RecordBatch, groups: KeyGroupRange) -> None:
        """Take the rows of a section that belong to `groups`."""
        batch = clip_to_groups(batch, groups)
        key_count = len(self._shape.key)
        stop = 1 + key_count + len(self._shape.value)
        for at in range(0, batch.num_rows, _RESTORE_ROWS):
            part = batch.slice(at, _RESTORE_ROWS)
            hashes = part.column(0).to_numpy()
            keys, values = part.columns[1 : 1 + key_count], part.columns[1 + key_count : stop]
            extra = part.schema.names[stop:]
            if extra == ["_time"]:
                self._as_appended().append(hashes, keys, values, part.column(stop).to_numpy())
            else:
                written = part.column(stop).to_numpy() if extra else _undated(part.num_rows)
                self._as_keyed().upsert(hashes, keys, values, written)

    def seal(self) -> SealedTable:
        """Freeze the present rows."""
        if self._sealed is None:
            used = self._appended if self._appended is not None else self._keyed
            frozen = None if used is None else used.freeze()
            self._sealed = SealedTable(self._operator_id, self._name, self._shape, frozen)
        return self._sealed

    def _read_whole(self) -> None:
        if self._whole is None:
            return
        assert self._sealed is not None
        sealed, self._whole = self._sealed, None
        self.restore(sealed.section().batch, KeyGroupRange(0, KEY_GROUPS))
        self._sealed = sealed

    def _as_keyed(self, writes: bool = True) -> KeyedRows:
        if self._appended is not None:
            raise StateError(f"{self._shape.title} holds appended rows; probe it instead")
        self._read_whole()
        if self._keyed is None:
            self._keyed = KeyedRows(self._shape)
            self._keyed.advance(self._now_ns)
        if writes:
            self._sealed = None
        return self._keyed

    def _as_appended(self, writes: bool = True) -> AppendedRows:
        if self._keyed is not None:
            raise StateError(f"{self._shape.title} holds one row per key; it cannot be appended to")
        if self._appended is None:
            self._appended = AppendedRows(self._shape)
            self._appended.advance(self._now_ns)
        if writes:
            self._sealed = None
        return self._appended

    def _checked(
        self, keys: pa.RecordBatch, hashes: Hashes | None
    ) -> tuple[Hashes, list[pa.Array]]:
        self._check_types("key", keys, self._shape.key)
        if hashes is None:
            hashes = hash_arrays(keys.columns, keys.num_rows)
        assert len(hashes) == keys.num_rows
        return hashes, keys.columns

    def _checked_values(self, keys: pa.RecordBatch, values: pa.RecordBatch) -> list[pa.Array]:
        assert values.num_rows == keys.num_rows
        self._check_types("value", values, self._shape.value)
        return list(values.columns)

    def _check_types(self, what: str, batch: pa.RecordBatch, schema: pa.Schema) -> None:
        if batch.schema.types != schema.types:
            given = ", ".join(f"{field.name} {field.type}" for field in batch.schema)
            wanted = ", ".join(f"{field.name} {field.type}" for field in schema)
            raise StateError(f"{self._shape.title}: {what} is ({given}), declared as ({wanted})")


class SealedTable:
    """A table at a cut."""

    def __init__(
        self,
        operator_id: str,
        name: str,
        shape: TableShape,
        frozen: FrozenRows | FrozenAppended | WholeRows | None,
    ) -> None:
        self._operator_id = operator_id
        self._name = name
        self._shape = shape
        # One attribute for both, so that two threads can at worst build the section twice.
        self._content: FrozenRows | FrozenAppended | WholeRows | Section | None = frozen

    def section(self) -> Section:
        """Sorted by hash; built once."""
        content = self._content
        if isinstance(content, Section):
            return content
        declared = table_declaration(self._shape)
        batch = self._batch(content)
        self._content = Section(self._operator_id, self._name, "table", batch, declared)
        return self._content

    def _batch(self, frozen: FrozenRows | FrozenAppended | WholeRows | None) -> pa.RecordBatch:
        names = ["_hash"]
        names += [f"key.{name}" for name in self._shape.key.names]
        names += [f"value.{name}" for name in self._shape.value.names]
        if frozen is None:
            empty = [field.type for field in self._shape.rows_schema()]
            arrays = [pa.array([], kind) for kind in [pa.uint64(), *empty]]
            return pa.RecordBatch.from_arrays(arrays, names)
        hashes, keys, values, extra = frozen.columns()
        arrays = [pa.array(hashes), *keys, *values]
        if extra is not None:
            arrays.append(pa.array(extra))
            names.append("_time" if isinstance(frozen, FrozenAppended) else "_written")
        return pa.RecordBatch.from_arrays(arrays, names)


def table_declaration(shape: TableShape) -> dict[str, Any]:
    """What a restore must match."""
    merge: dict[str, MergeFunction] = {
        name: function for name, function in shape.merge.items() if function != "replace"
    }
    return {
        "key": _columns(shape.key),
        "value": _columns(shape.value),
        "merge": dict(sorted(merge.items())),
    }


def _columns(schema: pa.Schema) -> list[list[str]]:
    return [[field.name, str(field.type)] for field in schema]


def refuse_keys(title: str, key: pa.Schema) -> None:
    """StateError for keys that cannot be hashed."""
    for field in key:
        try:
            refuse_unhashable(field.type)
        except TypeError as error:
            raise StateError(f"{title}: key column {field.name}: {error}") from error


def _undated(rows: int) -> npt.NDArray[np.int64]:
    return np.full(rows, WATERMARK_MIN, np.int64)
