"""The memory backend: all state of one operator in one subtask, with full snapshots.

Promises: what was declared in the restored checkpoint is found again by name, clipped to the key
groups of this subtask; another schema or kind under the same name raises StateError with both.
Sealing copies fixed-width columns and pickles changed pages; the rest is shared (docs/design/0005).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from penstock.elements.errors import StateError

from .backend import (
    AppendLog,
    MergeFunction,
    ObjectKind,
    ObjectState,
    OperatorList,
    Redistribution,
    RestoredState,
    Section,
    Snapshot,
    StateBackend,
    Table,
    Timers,
)
from .keyed_rows import TableShape
from .memory_lists import MemoryList, SealedList
from .memory_log import MemoryLog, SealedMemoryLog, log_declaration
from .memory_objects import ExpiringObjects, MemoryObjects, SealedObjects
from .memory_table import MemoryTable, SealedTable, refuse_keys, table_declaration
from .memory_timers import MemoryTimers, SealedTimers

_State = MemoryTable | MemoryObjects | ExpiringObjects | MemoryTimers | MemoryList
_Sealed = SealedTable | SealedObjects | SealedTimers | SealedList

_WORDS = {
    "table": "a table",
    "objects": "objects",
    "timers": "timers",
    "operator": "a list",
    "log": "a log",
}


def memory_backend(operator_id: str, restored: RestoredState) -> StateBackend:
    """A BackendFactory."""
    return MemoryBackend(operator_id, restored)


class MemoryBackend(StateBackend):
    """States by name. Names are unique across kinds."""

    def __init__(self, operator_id: str, restored: RestoredState) -> None:
        self._operator_id = operator_id
        self._restored = restored
        self._waiting: dict[str, list[Section]] = {}
        for section in restored.sections:
            assert section.operator_id == operator_id
            self._waiting.setdefault(section.name, []).append(section)
        self._states: dict[str, _State | MemoryLog] = {}
        self._declared: dict[str, tuple[str, dict[str, Any]]] = {}

    def table(
        self,
        name: str,
        key: pa.Schema,
        value: pa.Schema,
        *,
        merge: dict[str, MergeFunction] | None = None,
        ttl_ns: int | None = None,
    ) -> Table:
        title = f"{self._operator_id}: table {name}"
        shape = TableShape(title, key, value, merge or {}, ttl_ns)
        unknown = sorted(set(shape.merge) - set(value.names))
        if unknown:
            raise StateError(f"{title}: merge names no value column: {', '.join(unknown)}")

        def make(sections: Sequence[Section]) -> MemoryTable:
            table = MemoryTable(self._operator_id, name, shape)
            for section in sections:
                table.restore(section.batch, self._restored.key_groups)
            return table

        state = self._declare(name, "table", table_declaration(shape), make)
        assert isinstance(state, MemoryTable)
        return state

    def objects(self, name: str, kind: ObjectKind, *, ttl_ns: int | None = None) -> ObjectState:
        def make(sections: Sequence[Section]) -> MemoryObjects | ExpiringObjects:
            if ttl_ns is None:
                return self._plain_objects(name, kind, sections)
            expiring = ExpiringObjects(self._operator_id, name, kind, ttl_ns)
            for section in sections:
                expiring.restore(section, self._restored.key_groups)
            return expiring

        state = self._declare(name, "objects", {"object": kind}, make)
        assert isinstance(state, MemoryObjects | ExpiringObjects)
        return state

    def timers(self, name: str) -> Timers:
        def make(sections: Sequence[Section]) -> MemoryTimers:
            timers = MemoryTimers(self._operator_id, name)
            for section in sections:
                timers.restore(section, self._restored.key_groups)
            return timers

        state = self._declare(name, "timers", {}, make)
        assert isinstance(state, MemoryTimers)
        return state

    def operator_list(self, name: str, redistribute: Redistribution) -> OperatorList:
        def make(sections: Sequence[Section]) -> MemoryList:
            items = MemoryList(self._operator_id, name, redistribute)
            items.restore(sections, self._restored)
            return items

        state = self._declare(name, "operator", {"redistribute": redistribute}, make)
        assert isinstance(state, MemoryList)
        return state

    def log(self, name: str, key: pa.Schema, value: pa.Schema) -> AppendLog:
        def make(sections: Sequence[Section]) -> MemoryLog:
            parts = [part for part in self._restored.parts if part.name == name]
            mine = replace(self._restored, parts=parts)
            log = MemoryLog(self._operator_id, name, key, value, mine)
            for section in sections:
                log.restore(section)
            return log

        refuse_keys(f"{self._operator_id}: log {name}", key)
        state = self._declare(name, "log", log_declaration(key, value), make)
        assert isinstance(state, MemoryLog)
        return state

    def seal(self) -> Snapshot:
        sealed = [state.seal() for state in self._states.values()]
        logs = [each for each in sealed if isinstance(each, SealedMemoryLog)]
        others = [each for each in sealed if not isinstance(each, SealedMemoryLog)]
        return MemorySnapshot(others, logs)

    def undeclared(self) -> list[str]:
        parts = {part.name for part in self._restored.parts}
        return sorted({*self._waiting, *parts.difference(self._states)})

    def _plain_objects(
        self, name: str, kind: ObjectKind, sections: Sequence[Section]
    ) -> MemoryObjects:
        objects = MemoryObjects(self._operator_id, name, kind)
        for section in sections:
            objects.restore(section, self._restored.key_groups)
        return objects

    def _declare(
        self,
        name: str,
        kind: str,
        declared: dict[str, Any],
        make: Callable[[Sequence[Section]], _State | MemoryLog],
    ) -> _State | MemoryLog:
        before = self._declared.get(name)
        if before is not None:
            if before != (kind, declared):
                raise self._mismatch(name, kind, declared, *before, "declared before")
            return self._states[name]
        sections = self._waiting.get(name, [])
        for section in sections:
            if not _fits(section, kind, declared):
                raise self._mismatch(
                    name, kind, declared, section.kind, section.declared, "in the checkpoint"
                )
        state = make(sections)
        self._waiting.pop(name, None)
        self._declared[name] = (kind, declared)
        self._states[name] = state
        return state

    def _mismatch(
        self,
        name: str,
        kind: str,
        declared: dict[str, Any],
        other_kind: str,
        other: dict[str, Any],
        where: str,
    ) -> StateError:
        return StateError(
            f"{self._operator_id}: state {name} is declared as {_described(kind, declared)}, "
            f"{where} as {_described(other_kind, other)}\n"
            "  Give the new state another name, or start with --fresh."
        )


class MemorySnapshot:
    """All states of one operator at a cut."""

    def __init__(self, sealed: Sequence[_Sealed], logs: Sequence[SealedMemoryLog] = ()) -> None:
        self._sealed = sealed
        self._logs = logs

    def sections(self) -> Sequence[Section]:
        """Build the sections of all but the logs; safe in another thread."""
        return [sealed.section() for sealed in self._sealed]

    def lists(self) -> Sequence[Section]:
        """The sections of operator lists."""
        return [each.section() for each in self._sealed if isinstance(each, SealedList)]

    def logs(self) -> Sequence[SealedMemoryLog]:
        """Those build theirs one by one."""
        return self._logs


def _fits(section: Section, kind: str, declared: dict[str, Any]) -> bool:
    if section.kind != kind:
        return False
    return all(section.declared.get(name) == wanted for name, wanted in declared.items())


def _described(kind: str, declared: dict[str, Any]) -> str:
    if kind in ("table", "log"):
        parts = [f"{what} ({_names(declared.get(what, []))})" for what in ("key", "value")]
        merge = declared.get("merge")
        if merge:
            parts.append("merged by " + ", ".join(f"{f}({n})" for n, f in merge.items()))
        return f"{_WORDS[kind]} of " + ", ".join(parts)
    detail = declared.get("object") or declared.get("redistribute")
    return f"{_WORDS[kind]} of kind {detail}" if detail else _WORDS[kind]


def _names(columns: Sequence[Sequence[str]]) -> str:
    return ", ".join(" ".join(column) for column in columns)
