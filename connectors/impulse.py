"""ImpulseSource: numbers and instants, for trying things out and for measuring them.

Promises: row n is a function of n alone (and of the start), so replays are exact; readers share
the numbers out, each taking every n-th.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from penstock.elements.clock import Clock, SystemClock
from penstock.elements.durations import Duration, duration_ns
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

START = datetime(2020, 1, 1, tzinfo=UTC)
INTERVAL_NS = 1_000_000
SPLITS_MAX = 4096
SCHEMA = pa.schema(
    [
        pa.field("counter", pa.int64(), nullable=False),
        pa.field("timestamp", pa.timestamp("ns", "UTC"), nullable=False),
    ]
)


class ImpulseSource(SourceConnector[Any]):
    """Rows of `counter` (0, 1, 2 …) and `timestamp`; `event_time="timestamp"` fits.

    `events` bounds it; `rate` is rows a second by the wall clock, over all readers; `interval`
    is the time from one row's timestamp to the next, by default 1 / rate, else 1 ms. `start` is
    an instant, or "now" for the moment of the first row, which is then kept with the position.
    """

    name = "impulse"

    def __init__(
        self,
        *,
        events: int | None = None,
        rate: float | None = None,
        interval: Duration | None = None,
        start: datetime | Literal["now"] = START,
        splits: int = 1,
        clock: Clock | None = None,
    ) -> None:
        if events is not None and events < 0:
            raise PlanError(f"ImpulseSource: events={events} is less than none")
        if rate is not None and not rate > 0:
            raise PlanError(f"ImpulseSource: rate={rate} rows a second would never begin")
        if not 1 <= splits <= SPLITS_MAX:
            raise PlanError(f"ImpulseSource: splits={splits}; possible are 1 to {SPLITS_MAX}")
        if interval is not None:
            self._interval_ns = duration_ns(interval, "ImpulseSource(interval=)")
        else:
            self._interval_ns = INTERVAL_NS if rate is None else max(1, round(1e9 / rate))
        if self._interval_ns < 0:
            raise PlanError("ImpulseSource: interval= is less than nothing")
        self.bounded = events is not None
        self._events = events
        self._rate = rate
        self._start_ns = None if start == "now" else _nanoseconds(start)
        self._splits = splits
        self._clock = clock
        self._schema = SCHEMA

    @property
    def schema(self) -> pa.Schema:
        """counter and timestamp, or what is read of them."""
        return self._schema

    def splits(self) -> Sequence[Split]:
        """Every n-th number each."""
        of = self._splits
        return [Split(f"{at} of {of}", detail={"at": at, "of": of}) for at in range(of)]

    def reader(self, split: Split, position: Position, ctx: ReaderContext) -> SplitReader:
        """Continue behind the rows given so far."""
        clock = self._clock or SystemClock()
        at, of = split.detail["at"], split.detail["of"]
        if position is not None:
            row, start_ns = position["row"], position["start_ns"]
        else:
            row = 0
            start_ns = clock.wall_ns() if self._start_ns is None else self._start_ns
        stop = None if self._events is None else max(0, -(-(self._events - at) // of))
        throttle = Throttle(None if self._rate is None else self._rate / of, clock)
        return _ImpulseReader(
            at, of, row, stop, start_ns, self._interval_ns, self._schema, throttle
        )

    def with_columns_read(self, columns: Sequence[str]) -> ImpulseSource:
        """Make only these columns; one at least, which carries the number of rows."""
        wanted = [field for field in SCHEMA if field.name in set(columns)]
        pruned = object.__new__(ImpulseSource)
        pruned.__dict__.update(self.__dict__)
        pruned._schema = pa.schema(wanted or [SCHEMA.field("counter")])
        return pruned


class _ImpulseReader(SplitReader):
    def __init__(
        self,
        at: int,
        of: int,
        row: int,
        stop: int | None,
        start_ns: int,
        interval_ns: int,
        schema: pa.Schema,
        throttle: Throttle,
    ) -> None:
        self._at = at
        self._of = of
        self._row = row
        self._stop = stop
        self._start_ns = start_ns
        self._interval_ns = interval_ns
        self._schema = schema
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
        numbers = np.arange(first, first + count, dtype=np.int64) * self._of + self._at
        columns = {"counter": pa.array(numbers)}
        if "timestamp" in self._schema.names:
            times = numbers * self._interval_ns + self._start_ns
            columns["timestamp"] = pa.array(times).view(pa.timestamp("ns", "UTC"))
        self._throttle.gave(count)
        self._row = first + count
        batch = pa.RecordBatch.from_arrays(
            [columns[name] for name in self._schema.names], schema=self._schema
        )
        position = {"row": self._row, "start_ns": self._start_ns}
        return Chunk(batch, position, f"counter {first * self._of + self._at}")


def _nanoseconds(instant: datetime | str) -> int:
    if not isinstance(instant, datetime):
        raise PlanError(f'ImpulseSource: start={instant!r} is neither a datetime nor "now"')
    aware = instant if instant.tzinfo else instant.replace(tzinfo=UTC)
    passed = aware - datetime(1970, 1, 1, tzinfo=UTC)
    return (passed.days * 86_400 + passed.seconds) * 10**9 + passed.microseconds * 1000
