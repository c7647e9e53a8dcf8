"""The state interfaces: what an operator may remember, and how a barrier seals it.

One StateBackend serves one operator in one subtask. Everything that must survive lives behind
these interfaces; nothing else does. The memory backend implements them with full snapshots; the
conformance kit in penstock.testing holds for every backend.

Keyed state is addressed by (hash, key): equal hashes are not equal keys (hazard 54).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Literal, NamedTuple, Protocol
from uuid import UUID

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penstock.elements.keygroup import KeyGroupRange

from .log_history import LogPart
from .store import Store

Hashes = npt.NDArray[np.uint64]
ObjectKind = Literal["value", "list", "map"]
Redistribution = Literal["list", "union", "broadcast"]
MergeFunction = Literal["sum", "min", "max", "replace"]


@dataclass(frozen=True)
class Section:
    """One piece of sealed state, as it lies in a run.

    `kind` is table, objects, timers, operator or log. Keyed sections hold a uint64 column `_hash`,
    sorted, so that a range of key groups is one contiguous slice; logs a uint16 column `_group`.
    `batch` is owned memory; the rows of a log go on in `more`.
    `declared` is what a restore must match: key schema, value schema, object kind, and so on.
    """

    operator_id: str
    name: str
    kind: Literal["table", "objects", "timers", "operator", "log"]
    batch: pa.RecordBatch
    declared: dict[str, Any] = field(default_factory=dict)
    more: Sequence[pa.RecordBatch] = ()

    @property
    def rows(self) -> int:
        """Rows of all batches."""
        return sum(batch.num_rows for batch in (self.batch, *self.more))


class SealedLog(Protocol):
    """One log at a cut. What a checkpoint holds of it is `section()` and `parts`, or what the one
    who writes the checkpoint makes of these and tells `stored`."""

    operator_id: str
    name: str
    parts: Sequence[LogPart]
    """Earlier rows, oldest first: immutable objects that a complete checkpoint names."""
    merge: range
    """Places in `parts` that are to be written anew as one part."""

    def section(self) -> Section:
        """All rows that are not in `parts`, younger than those."""
        ...

    def stored(self, parts: Sequence[LogPart], written: bool) -> None:
        """The checkpoint names these parts; `written`: the section's rows are among them."""
        ...

    def confirm(self) -> None:
        """The checkpoint is complete. In the operator's thread, as all that follows."""
        ...

    def discard(self) -> None:
        """The checkpoint was given up."""
        ...


class Snapshot(Protocol):
    """A consistent view sealed at one barrier; later writes do not show in it."""

    def sections(self) -> Sequence[Section]:
        """Build all sections but those of `logs()`. Safe in another thread; runs no per-row Python
        (GIL convoy)."""
        ...

    def lists(self) -> Sequence[Section]:
        """The operator lists of `sections()`: all that a job which has ended may still need."""
        ...

    def logs(self) -> Sequence[SealedLog]:
        """The logs. They build their sections one by one, since these are large."""
        ...


def whole_sections(snapshot: Snapshot) -> list[Section]:
    """Everything, for a snapshot whose logs have no parts."""
    assert not any(log.parts for log in snapshot.logs())
    return [*snapshot.sections(), *(log.section() for log in snapshot.logs())]


class Table(ABC):
    """Columnar keyed state of built-in operators; every call is vectorised.

    `keys` and `values` are batches with the declared schemas, equally long. `hashes` are the
    frozen hashes of the keys; computed when not given.
    """

    @abstractmethod
    def upsert(
        self, keys: pa.RecordBatch, values: pa.RecordBatch, hashes: Hashes | None = None
    ) -> None:
        """Insert or replace; within the batch the last row of a key wins. Copies."""

    @abstractmethod
    def get(
        self, keys: pa.RecordBatch, hashes: Hashes | None = None
    ) -> tuple[npt.NDArray[np.bool_], pa.RecordBatch]:
        """(found mask, values aligned with `keys`; rows not found are null)."""

    @abstractmethod
    def accumulate(
        self, keys: pa.RecordBatch, values: pa.RecordBatch, hashes: Hashes | None = None
    ) -> None:
        """Merge into what is stored by the declared merge per value column.

        Integer sums that overflow raise StateError naming the column.
        """

    @abstractmethod
    def delete(self, keys: pa.RecordBatch, hashes: Hashes | None = None) -> None:
        """Forget these keys; unknown ones are ignored."""

    @abstractmethod
    def replace(
        self, keys: pa.RecordBatch, values: pa.RecordBatch, hashes: Hashes | None = None
    ) -> None:
        """Forget all rows and hold these, no key twice: for owners that keep their rows themselves
        and hand them over at cuts. Does not copy: owned memory, never written again. No TTL."""

    @abstractmethod
    def append(
        self,
        keys: pa.RecordBatch,
        values: pa.RecordBatch,
        times_ns: npt.NDArray[np.int64],
        hashes: Hashes | None = None,
    ) -> None:
        """Add rows without replacing (a multimap by key and time). Copies.

        A table is used either by upsert/accumulate or by append, never both.
        """

    @abstractmethod
    def probe(
        self,
        keys: pa.RecordBatch,
        low_ns: npt.NDArray[np.int64] | int,
        high_ns: npt.NDArray[np.int64] | int,
        hashes: Hashes | None = None,
    ) -> tuple[npt.NDArray[np.int64], pa.RecordBatch]:
        """Appended rows with an equal key and low <= time <= high, both per probe row.

        Returns (index into `keys`, matching rows as key + value columns), by index, then in the
        order of insertion. Null keys match nothing.
        """

    @abstractmethod
    def expire(self, before_ns: int) -> Iterator[pa.RecordBatch]:
        """Drop appended rows with time < before, yielding them as key + value + `_time` int64.

        Dropped when called, not when iterated. `_time` is left out where the declared columns
        hold one of that name.
        """

    @abstractmethod
    def scan(self) -> Iterator[pa.RecordBatch]:
        """All live rows as key + value columns (and `_time` int64 for appended tables)."""

    @abstractmethod
    def advance(self, time_ns: int) -> None:
        """Event time for the TTL: rows written (or appended with a time) before time - ttl are
        absent from now on. Without a TTL nothing happens."""

    @property
    @abstractmethod
    def rows(self) -> int:
        """Live rows."""


class AppendLog(ABC):
    """Rows that an operator keeps itself and only wants back after a restore.

    A checkpoint writes the rows that came since the last one, not all. Rows are never changed or
    taken back one by one; they are forgotten by time.
    """

    @abstractmethod
    def append(
        self,
        keys: pa.RecordBatch,
        values: pa.RecordBatch,
        times_ns: npt.NDArray[np.int64],
        hashes: Hashes | None = None,
        *,
        owned: bool = False,
    ) -> None:
        """Add rows. They are held in memory until a complete checkpoint has them.

        Copies, unless they are `owned`: nobody writes to their memory again, and it is no part of
        a larger piece. Append in `before_snapshot` what came since: then memory holds little.
        """

    @abstractmethod
    def restored(self) -> Iterator[pa.RecordBatch]:
        """The rows of the restored checkpoint as key + value + `_time` int64 columns, a batch at a
        time; those of one key in the order in which they were appended. Once, in open().

        `_time` is left out where the declared columns hold one of that name: declaring none of
        that name saves writing it twice.
        """

    @abstractmethod
    def cut(self, before_ns: int) -> None:
        """Rows appended until now with a time below this are absent from now on."""

    @property
    @abstractmethod
    def pending_rows(self) -> int:
        """Rows in memory: those that no complete checkpoint is known to have."""


IMMUTABLE_TYPES = frozenset(
    {
        *(type(None), bool, int, float, complex, str, bytes),
        *(date, datetime, time, timedelta, Decimal, UUID),
        *(np.int64, np.float64, np.bool_, np.str_),
    }
)
"""Values of these types cannot change in place; all others count as changed when read."""


class DirectObjects(NamedTuple):
    """What is behind an ObjectState, for whom a call per row is too much.

    Whoever replaces the value of a key that is in `values`, or hands out one of a type that is not
    in IMMUTABLE_TYPES, sets `dirty[hash >> dirty_shift]` to 1. New keys and removals are left to
    `put` and `remove`.
    """

    values: dict[Hashable, Any]
    dirty: bytearray
    dirty_shift: int


class ObjectState(ABC):
    """Python objects by key, for user code; one current key at a time.

    Mutable values are valid within one call of user code; a `get` of one marks it dirty, so a
    change in place is not lost (hazard 27).
    """

    @abstractmethod
    def get(self, key: Hashable, default: Any = None) -> Any:
        """The stored object, or `default`; expired entries count as absent."""

    @abstractmethod
    def put(self, key: Hashable, hash64: int, value: Any) -> None:
        """Store `value` under `key`; `hash64` is the frozen hash of the key columns."""

    @abstractmethod
    def remove(self, key: Hashable) -> None:
        """Forget `key`."""

    @abstractmethod
    def keys(self) -> Iterator[Hashable]:
        """All live keys."""

    def direct(self) -> DirectObjects | None:
        """The dicts behind it, the same as long as the state lives; None: all goes by calls."""
        return None

    @abstractmethod
    def advance(self, time_ns: int) -> None:
        """Event time for the TTL: entries written before time - ttl are absent from now on."""


@dataclass(frozen=True, order=True)
class TimerEntry:
    """One pending timer, in the order in which timers fire."""

    time_ns: int
    hash64: int
    tag: str
    key: Any = field(compare=False)


class Timers(ABC):
    """One pending timer per (key, tag); setting it again moves it (hazard 24)."""

    @abstractmethod
    def set(self, key: Hashable, hash64: int, tag: str, time_ns: int) -> None:
        """Arm or move."""

    @abstractmethod
    def cancel(self, key: Hashable, tag: str) -> None:
        """Disarm; unknown ones are ignored."""

    @abstractmethod
    def due(self, time_ns: int) -> list[TimerEntry]:
        """Remove and return all timers with time <= `time_ns`, by (time, key hash, tag)."""

    @abstractmethod
    def next_ns(self) -> int | None:
        """The earliest pending time."""

    @abstractmethod
    def pending(self, key: Hashable, tag: str) -> int | None:
        """When this timer will fire."""


class OperatorList(ABC):
    """Non-keyed state as a list of small items, each `bytes`; split positions, pending commits.

    After a rescale "list" items are dealt out round-robin in a fixed order, "union" gives all to
    everyone, "broadcast" keeps one copy of what all hold alike.
    """

    @abstractmethod
    def items(self) -> list[bytes]:
        """The items of this subtask."""

    @abstractmethod
    def replace(self, items: Sequence[bytes]) -> None:
        """Set the items; what a snapshot seals is the last call before it."""


class StateBackend(ABC):
    """The state of one operator in one subtask. Declaring a state twice gives the same object.

    Declaring a state whose restored section has another schema or kind raises StateError that
    names operator, state and both declarations.
    """

    @abstractmethod
    def table(
        self,
        name: str,
        key: pa.Schema,
        value: pa.Schema,
        *,
        merge: dict[str, MergeFunction] | None = None,
        ttl_ns: int | None = None,
    ) -> Table:
        """A columnar keyed table; `merge` per value column for `accumulate`."""

    @abstractmethod
    def objects(self, name: str, kind: ObjectKind, *, ttl_ns: int | None = None) -> ObjectState:
        """Python objects by key, pickled into snapshots."""

    @abstractmethod
    def timers(self, name: str) -> Timers:
        """Timers by key and tag."""

    @abstractmethod
    def operator_list(self, name: str, redistribute: Redistribution) -> OperatorList:
        """Non-keyed state."""

    @abstractmethod
    def log(self, name: str, key: pa.Schema, value: pa.Schema) -> AppendLog:
        """Keyed rows that are written once; they move with their key as those of a table do."""

    @abstractmethod
    def seal(self) -> Snapshot:
        """Freeze the present content; the only part that runs in the barrier's turn."""

    @abstractmethod
    def undeclared(self) -> list[str]:
        """Names of restored states that nobody has declared; asked after open() (hazard 29)."""


@dataclass(frozen=True)
class RestoredState:
    """What a subtask finds when it starts: the sections of its operator from all old subtasks.

    Keyed sections may hold rows of foreign key groups: the backend clips them to `key_groups`.
    `operator_sections` are ordered by old subtask index; the backend deals list items out:
    item i of the whole sequence goes to subtask i % parallelism. `parts` are those of its logs,
    to be clipped as well and read from `store`; rows in sections are younger.
    """

    sections: Sequence[Section]
    key_groups: KeyGroupRange
    subtask: int
    parallelism: int
    parts: Sequence[LogPart] = ()
    store: Store | None = None


class BackendFactory(Protocol):
    """Makes the backend of one operator in one subtask."""

    def __call__(self, operator_id: str, restored: RestoredState) -> StateBackend: ...
