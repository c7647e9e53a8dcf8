"""What a source is: splits that can be read again from a position.

The enumerator side (`splits`) runs in the coordinator and must be pure of the subtasks'
processes; the reader side runs in source subtasks. A position is JSON-able and says where to
resume after the rows handed out so far.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import pyarrow as pa

from .processor import Processor

T_co = TypeVar("T_co", covariant=True)
Position = Any
"""JSON-able; None means the beginning of the split."""


@dataclass(frozen=True)
class Split:
    """A resumable piece of a source. `id` is stable for ever: it is what a restart looks for."""

    id: str
    size: int = 1
    """Relative size, for dealing splits out evenly."""
    detail: dict[str, Any] = field(default_factory=dict)
    """JSON-able facts for the reader: path, offsets, row groups."""


@dataclass(frozen=True)
class Chunk:
    """Rows read from one split: `position` is where to resume after them.

    `first` is the position of the first row, as text for error reports ("row 88214").
    """

    batch: pa.RecordBatch
    position: Position
    first: str | None = None


class SplitReader(ABC):
    """Reads one split. Owned by one thread."""

    @abstractmethod
    def poll(self, limit_rows: int) -> Chunk | None:
        """The next rows, or None if nothing is ready. Blocks for at most 10 ms.

        Raises EndOfSplit when there will be no more.
        """

    def close(self) -> None:  # noqa: B027
        """Release files and threads."""


class EndOfSplit(Exception):
    """The split has no further rows."""


class SourceConnector(ABC, Generic[T_co]):
    """The low-level source that the runtime reads; `ps.Source` and `@ps.source` adapt to it."""

    name: str = "source"
    bounded: bool = True
    replay: bool = True
    """False: the feed cannot seek, so the job is at-most-once here, and says so at start."""
    identity: str = ""
    """What tells it from others of its class and name, across edits of the program: its paths, its
    url. Positions are found by it; two sources that are alike must be named."""
    discovery_interval_ns: int | None = None
    """Call `splits` again this often (a watched directory); None: once."""

    @property
    @abstractmethod
    def schema(self) -> pa.Schema:
        """The columns, without `_time`; known when planning."""

    @abstractmethod
    def splits(self) -> Sequence[Split]:
        """All splits that exist now, in a stable order. Called in the coordinator."""

    @abstractmethod
    def reader(self, split: Split, position: Position, ctx: ReaderContext) -> SplitReader:
        """Open `split` at `position`. Called in the subtask."""

    def with_columns_read(self, columns: Sequence[str]) -> SourceConnector[T_co]:
        """A source that reads only `columns` (projection push-down); itself when it cannot."""
        return self

    def with_predicate(self, predicate: str) -> SourceConnector[T_co]:
        """A source that may skip rows for which the SQL `predicate` is not true.

        The filter itself stays in the plan: skipping is an optimisation, never a promise.
        """
        return self


@dataclass(frozen=True)
class ReaderContext:
    """What a reader gets from its subtask: `wake` rings the mailbox from any thread.

    `reject(raw, error, position)` hands a record that could not be decoded to the error policy.
    """

    subtask: int
    wake: Any
    reject: Any


class SourceProcessor(Processor):
    """The head of a source chain: owns splits, event time, watermarks. Driven by `poll`.

    Split positions are operator state ("list"), taken at the cut from rows already collected.
    """

    reading: str | None = None
    """Where the rows now being collected begin, as text; None between polls."""

    @abstractmethod
    def assign(self, splits: Sequence[Split]) -> None:
        """Take these splits, from the coordinator; splits restored from state are already here."""

    @abstractmethod
    def no_more_splits(self) -> None:
        """The enumerator is done: when the last split ends, this source has ended."""

    @abstractmethod
    def poll(self, limit_rows: int) -> bool:
        """Read and collect up to `limit_rows`; True if rows were collected. Blocks <= 10 ms."""

    @abstractmethod
    def drain(self) -> None:
        """Stop reading as if the data ended here; positions stay where they are."""

    @property
    @abstractmethod
    def ended(self) -> bool:
        """All splits are read and no more will come."""

    @property
    @abstractmethod
    def seen_splits(self) -> list[str]:
        """Ids of all splits ever taken, ended ones too; goes into the manifest (hazard 28)."""

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """A source has no input."""
        raise AssertionError("a source has no input")
