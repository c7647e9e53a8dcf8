"""NexmarkSource: the auction benchmark's events, deterministic by seed, resumable anywhere.

Promises: the rows are the same at every number of splits and after every restart; each table
alone is what the mixed stream holds of it, so three sources with one seed can be joined.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from penstock.elements.clock import Clock
from penstock.elements.errors import PlanError
from penstock.operators.source import (
    Chunk,
    EndOfSplit,
    Position,
    ReaderContext,
    SourceConnector,
    Split,
    SplitReader,
)

from .file_readers import Throttle
from .nexmark_events import (
    EPOCH_EVENTS,
    FIRST_OFFSET,
    PER_EPOCH,
    SCHEMAS,
    EventClock,
    Kind,
    flat_batch,
    mixed_batch,
    mixed_schema,
)
from .nexmark_strings import Words

Table = Literal["person", "auction", "bid", "all"]

SPLITS = 16
"""Pieces that may be read in parallel, if the program does not say."""
SPLITS_MAX = 4096
START = datetime(2015, 7, 15, tzinfo=UTC)
EVENTS_PER_SECOND = 10_000


class NexmarkSource(SourceConnector[Any]):
    """Events of the Nexmark benchmark; `event_time="datetime"` fits all tables but "all".

    `table` is "bid", "auction", "person", or "all" with a struct column for each. `events` counts
    persons, auctions and bids together; without it there is no end. `rate` slows the source down
    to so many events a second (again of all kinds); `events_per_second` is how densely they
    follow each other in event time, by default as `rate`, else 10,000.
    """

    name = "nexmark"

    def __init__(
        self,
        table: Table = "bid",
        *,
        events: int | None = None,
        rate: float | None = None,
        events_per_second: int | None = None,
        seed: int = 0,
        start: datetime = START,
        splits: int = SPLITS,
        clock: Clock | None = None,
    ) -> None:
        if table != "all" and table not in SCHEMAS:
            raise PlanError(
                f"NexmarkSource: no table {table!r}\n  tables: bid, auction, person, all"
            )
        if events is not None and events < 0:
            raise PlanError(f"NexmarkSource: events={events} is less than none")
        if rate is not None and not rate > 0:
            raise PlanError(f"NexmarkSource: rate={rate} events a second would never begin")
        if not 1 <= splits <= SPLITS_MAX:
            raise PlanError(f"NexmarkSource: splits={splits}; possible are 1 to {SPLITS_MAX}")
        density = events_per_second or (max(1, round(rate)) if rate else EVENTS_PER_SECOND)
        if density <= 0:
            raise PlanError(f"NexmarkSource: events_per_second={density} must be positive")
        moment = start if start.tzinfo else start.replace(tzinfo=UTC)
        self.identity = table
        self.bounded = events is not None
        self._kinds: tuple[Kind, ...] = ("person", "auction", "bid") if table == "all" else (table,)
        self._mixed = table == "all"
        self._columns: tuple[str, ...] = tuple(self._kinds if self._mixed else SCHEMAS[table].names)  # type: ignore[index]
        self._events = events
        self._rate = rate
        self._seed = seed
        self._event_clock = EventClock(round(moment.timestamp() * 1_000_000), density)
        self._splits = splits
        self._clock = clock

    @property
    def schema(self) -> pa.Schema:
        """The columns that are read."""
        if self._mixed:
            return mixed_schema([kind for kind in self._kinds if kind in self._columns])
        known = SCHEMAS[self._kinds[0]]
        return pa.schema([known.field(name) for name in self._columns])

    def splits(self) -> Sequence[Split]:
        """Every n-th group of 50 events each."""
        return [
            Split(f"{at} of {self._splits}", detail={"at": at, "of": self._splits})
            for at in range(self._splits)
        ]

    def reader(self, split: Split, position: Position, ctx: ReaderContext) -> SplitReader:
        """Continue at row `position` of the split."""
        share = None if self._rate is None else self._rate * self._rows / EPOCH_EVENTS
        rate = None if share is None else share / split.detail["of"]
        return _NexmarkReader(
            self, split.detail["at"], split.detail["of"], position or 0, Throttle(rate, self._clock)
        )

    def with_columns_read(self, columns: Sequence[str]) -> NexmarkSource:
        """Make only these columns; one at least, which carries the number of rows."""
        wanted = tuple(name for name in self._columns if name in set(columns))
        pruned = copy.copy(self)
        pruned._columns = wanted or self._columns[:1]
        return pruned

    # -- for readers

    @property
    def _rows(self) -> int:
        """Rows of the table in 50 events."""
        return EPOCH_EVENTS if self._mixed else PER_EPOCH[self._kinds[0]]

    def _rows_of_split(self, at: int, of: int) -> int | None:
        """Rows that a split has in all; None if it has no end."""
        if self._events is None:
            return None
        first = 0 if self._mixed else FIRST_OFFSET[self._kinds[0]]
        whole, rest = divmod(self._events, EPOCH_EVENTS)
        groups = whole // of + (at < whole % of)
        partial = min(max(rest - first, 0), self._rows) if whole % of == at else 0
        return groups * self._rows + partial

    def _batch(self, at: int, of: int, row: int, count: int) -> pa.RecordBatch:
        """Rows [row, row + count) of a split."""
        numbers = self._numbers(at, of, row, count)
        if self._mixed:
            kinds = [kind for kind in self._kinds if kind in self._columns]
            return mixed_batch(kinds, numbers, self._seed, self._event_clock)
        return flat_batch(self._kinds[0], self._columns, numbers, self._seed, self._event_clock)

    def _numbers(self, at: int, of: int, row: int, count: int) -> Words:
        per = np.uint64(self._rows)
        first = 0 if self._mixed else FIRST_OFFSET[self._kinds[0]]
        rows = np.arange(row, row + count, dtype=np.uint64)
        groups = rows // per
        offsets = rows - groups * per + np.uint64(first)
        return (groups * np.uint64(of) + np.uint64(at)) * np.uint64(EPOCH_EVENTS) + offsets


class _NexmarkReader(SplitReader):
    def __init__(
        self, source: NexmarkSource, at: int, of: int, row: int, throttle: Throttle
    ) -> None:
        self._source = source
        self._at = at
        self._of = of
        self._row = row
        self._stop = source._rows_of_split(at, of)
        self._throttle = throttle

    def poll(self, limit_rows: int) -> Chunk | None:
        if self._stop is not None:
            limit_rows = min(limit_rows, self._stop - self._row)
            if limit_rows <= 0:
                raise EndOfSplit
        count = self._throttle.allowed(limit_rows)
        if count <= 0:
            return None
        first = self._row
        batch = self._source._batch(self._at, self._of, first, count)
        self._throttle.gave(count)
        self._row = first + count
        return Chunk(batch, self._row, f"row {first} of split {self._at}")
