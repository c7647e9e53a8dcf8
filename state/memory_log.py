"""AppendLog of the memory backend: pending rows as they came, and parts by name only.

Appending copies; filtering and encoding happen in the snapshot thread. What is named, written and
merged when is decided in state/log_history.py.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penstock.elements.errors import StateError
from penstock.elements.hash import hash_arrays
from penstock.elements.keygroup import GROUP_SHIFT

from .backend import AppendLog, Hashes, RestoredState, Section
from .clip import clip_to_groups
from .log_history import LogHistory, LogPart, LogSeal
from .log_parts import TIME, group_array, log_schema, log_section, not_cut, read_part

RESTORE_ROWS = 65_536
"""Rows per batch of a restore."""


class _Appended(NamedTuple):
    rows: pa.RecordBatch
    high_ns: int


class MemoryLog(AppendLog):
    """One log of one subtask."""

    def __init__(
        self, operator_id: str, name: str, key: pa.Schema, value: pa.Schema, restored: RestoredState
    ) -> None:
        """Requires: the parts of `restored` are of this log."""
        self.operator_id, self.name = operator_id, name
        self._key, self._value = key, value
        self._schema = log_schema(key, value)
        self._groups = restored.key_groups
        clipped = [part.clipped(restored.key_groups) for part in restored.parts]
        self._parts = [part for part in clipped if part is not None]
        self._store = restored.store
        assert self._store is not None or not self._parts
        self._history = LogHistory(self._parts)
        self._kept: deque[_Appended] = deque()
        self._young: list[pa.RecordBatch] = []
        self._is_read = False

    def restore(self, section: Section) -> None:
        """Rows of a section are in no part, so they stay pending."""
        for batch in (section.batch, *section.more):
            rows = clip_to_groups(batch, self._groups).cast(self._schema)
            if rows.num_rows:
                self._add(rows, owned=False)
                self._young.append(self._kept[-1].rows)

    def append(
        self,
        keys: pa.RecordBatch,
        values: pa.RecordBatch,
        times_ns: npt.NDArray[np.int64],
        hashes: Hashes | None = None,
        *,
        owned: bool = False,
    ) -> None:
        count = keys.num_rows
        assert values.num_rows == len(times_ns) == count
        self._check("key", keys, self._key)
        self._check("value", values, self._value)
        if count == 0:
            return
        if hashes is None:
            hashes = hash_arrays(keys.columns, count)
        times = pa.array(times_ns if owned else times_ns.copy())
        arrays = [group_array(hashes, GROUP_SHIFT), *keys.columns, *values.columns, times]
        arrays = [
            array if array.type == field.type else array.cast(field.type)
            for array, field in zip(arrays, self._schema, strict=True)
        ]
        self._add(pa.RecordBatch.from_arrays(arrays, schema=self._schema), owned)

    def restored(self) -> Iterator[pa.RecordBatch]:
        assert not self._is_read, "restored rows are given once"
        self._is_read = True
        for part in self._parts:
            assert self._store is not None
            for rows in read_part(self._store, part):
                yield from self._as_declared(rows)
        young, self._young = self._young, []
        for rows in young:
            yield from self._as_declared(rows)

    def cut(self, before_ns: int) -> None:
        history = self._history
        history.cut(before_ns)
        while self._kept and self._kept[0].high_ns < history.cut_of(history.kept):
            self._kept.popleft()
            history.forget(history.kept)

    @property
    def pending_rows(self) -> int:
        return sum(chunk.rows.num_rows for chunk in self._kept)

    def seal(self) -> SealedMemoryLog:
        """Freeze what there is."""
        history = self._history
        pending = [
            (chunk.rows, history.cut_of(number))
            for number, chunk in enumerate(self._kept, history.kept)
            if number >= history.first
        ]
        return SealedMemoryLog(self, history.seal(), pending)

    def section_of(self, pending: Sequence[tuple[pa.RecordBatch, int]]) -> Section:
        """Pending rows as they came; in any thread."""
        declared = log_declaration(self._key, self._value)
        pieces = (not_cut(*chunk) for chunk in pending)
        return log_section(self.operator_id, self.name, declared, pieces, self._schema)

    def confirm(self, sealed: LogSeal, parts: Sequence[LogPart], written: bool) -> None:
        """A checkpoint that names `parts` is complete."""
        kept = self._history.kept
        self._history.confirm(sealed, parts, written)
        for _ in range(self._history.kept - kept):
            self._kept.popleft()

    def discard(self, sealed: LogSeal) -> None:
        """A checkpoint was given up."""
        self._history.discard(sealed)

    def _add(self, rows: pa.RecordBatch, owned: bool) -> None:
        if not owned:
            copies = [pa.concat_arrays([column]) for column in rows.columns]
            rows = pa.RecordBatch.from_arrays(copies, schema=rows.schema)
        self._kept.append(_Appended(rows, int(rows.column(TIME).to_numpy().max())))
        self._history.append()

    def _as_declared(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        schema = pa.schema([*self._key, *self._value])
        columns = batch.columns[1:-1]
        if TIME not in schema.names:
            schema = schema.append(pa.field(TIME, pa.int64()))
            columns = batch.columns[1:]
        rows = pa.RecordBatch.from_arrays(columns, names=schema.names)
        for at in range(0, rows.num_rows, RESTORE_ROWS):
            part = rows.slice(at, RESTORE_ROWS)
            arrays = [a.cast(f.type) for a, f in zip(part.columns, schema, strict=True)]
            yield pa.RecordBatch.from_arrays(arrays, schema=schema)

    def _check(self, what: str, batch: pa.RecordBatch, schema: pa.Schema) -> None:
        if batch.schema.types != schema.types:
            given = ", ".join(f"{field.name} {field.type}" for field in batch.schema)
            wanted = ", ".join(f"{field.name} {field.type}" for field in schema)
            raise StateError(
                f"{self.operator_id}: log {self.name}: {what} is ({given}), declared as ({wanted})"
            )


class SealedMemoryLog:
    """A log at a cut: a SealedLog."""

    def __init__(
        self, log: MemoryLog, sealed: LogSeal, pending: list[tuple[pa.RecordBatch, int]]
    ) -> None:
        self.operator_id, self.name = log.operator_id, log.name
        self.parts: Sequence[LogPart] = sealed.parts
        self.merge = sealed.merge
        self._log, self._sealed = log, sealed
        self._pending = pending
        self._outcome: tuple[list[LogPart], bool] | None = None

    def section(self) -> Section:
        """Built each time: it is large, and asked for once."""
        return self._log.section_of(self._pending)

    def stored(self, parts: Sequence[LogPart], written: bool) -> None:
        """In the snapshot thread, before the acknowledgement: `confirm` can only come later."""
        self._outcome = list(parts), written
        self._pending = []

    def confirm(self) -> None:
        """Nothing is known of a checkpoint that somebody else wrote without telling."""
        if self._outcome is not None:
            self._log.confirm(self._sealed, *self._outcome)

    def discard(self) -> None:
        """What it wrote is forgotten; collected by age. The thread may still be at work on it."""
        self._log.discard(self._sealed)


def log_declaration(key: pa.Schema, value: pa.Schema) -> dict[str, Any]:
    """What a restore must match."""
    return {
        "key": [[field.name, str(field.type)] for field in key],
        "value": [[field.name, str(field.type)] for field in value],
    }
