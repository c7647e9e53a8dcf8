"""Rows per second of Python operators in one process: state, timers, groups, functions, batches.

    python benchmarks/python_operators.py [--rows 400000] [--keys 20000]

Batches of 8,192 rows of three columns; about one row in ten is emitted. One JSON line; rates are
rows per second of processor time, the best of three rounds, and beside them the same work as a bare
loop: rows of the same class, a dict, no engine. `times_bare` is rate over bare rate.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pydantic
from probe import report

from penstock.operators.batch_processor import batch_function
from penstock.operators.context import Context
from penstock.operators.declared import Fired, MapState, Timer, ValueState
from penstock.operators.event_time_column import times_of, with_times
from penstock.operators.keyed_operator import KeyedOperator
from penstock.operators.keyed_processor import KeyedProcessor
from penstock.operators.processor import Processor
from penstock.operators.row_functions import row_function
from penstock.testing.harness import Harness, HarnessContext

BATCH_ROWS = 8192
ROWS_PER_GROUP = 10
FIRE_AFTER_NS = 60_000_000_000


@dataclass
class Bid:
    auction: int
    price: float


@dataclass
class DatedBid:
    auction: int
    price: float
    at: datetime


@dataclass
class High:
    auction: int
    price: float


class Running(KeyedOperator[Bid, High]):
    """One read and one write of a ValueState per row."""

    best = ValueState(float, default=0.0)

    def process(self, key: int, row: Bid, ctx: Context) -> Iterator[High]:
        if row.price > self.best.value:
            self.best.value = row.price
            if row.price > 90.0:
                yield High(key, row.price)


class ReadWrite(KeyedOperator[Bid, High]):
    """Reads and writes state at every row; returns a list, for one in ten."""

    total = ValueState(float, default=0.0)

    def process(self, key: int, row: Bid, ctx: Context) -> list[High] | None:
        total = self.total.value + row.price
        self.total.value = total
        return [High(key, total)] if row.price > 90.0 else None


class ReadWriteGenerator(KeyedOperator[Bid, High]):
    """The same as a generator."""

    total = ValueState(float, default=0.0)

    def process(self, key: int, row: Bid, ctx: Context) -> Iterator[High]:
        total = self.total.value + row.price
        self.total.value = total
        if row.price > 90.0:
            yield High(key, total)


class Dated(KeyedOperator[DatedBid, High]):
    """With a datetime column and a timer moved at every row."""

    total = ValueState(float, default=0.0)
    expire = Timer()

    def process(self, key: int, row: DatedBid, ctx: Context) -> list[High] | None:
        self.total.value = row.price
        self.expire.set(row.at)
        return [High(key, row.price)] if row.price > 90.0 else None

    def on_timer(self, key: int, timer: Fired, ctx: Context) -> None:
        self.total.clear()


@dataclass
class TimedBid:
    auction: int
    price: float
    at: int


class Firing(KeyedOperator[TimedBid, High]):
    """A timer per row and key, an hour ahead; it is moved often and fires in the end."""

    expire = Timer()

    def process(self, key: int, row: TimedBid, ctx: Context) -> None:
        self.expire.set(row.at + FIRE_AFTER_NS)

    def on_timer(self, key: int, timer: Fired, ctx: Context) -> list[High] | None:
        return [High(key, 1.0)] if key % 10 == 0 else None


class Counting(KeyedOperator[Bid, High]):
    """A MapState changed at every row."""

    seen = MapState(int, int)

    def process(self, key: int, row: Bid, ctx: Context) -> None:
        bucket = int(row.price) // 10
        self.seen[bucket] = self.seen.get(bucket, 0) + 1


class Grouped(KeyedOperator[Bid, High]):
    """process_group: state is read and written once per key and batch, here for few keys."""

    total = ValueState(float, default=0.0)

    def process_group(self, key: int, rows: Sequence[Bid], ctx: Context) -> list[High] | None:
        total = self.total.value + sum(row.price for row in rows)
        self.total.value = total
        return [High(key, total)] if rows[0].price > 90.0 else None


class OneForOne(KeyedOperator[Bid, High]):
    """A running sum: one row out for each row in."""

    total = ValueState(float, default=0.0)

    def process(self, key: int, row: Bid, ctx: Context) -> list[High]:
        total = self.total.value + row.price
        self.total.value = total
        return [High(key, total)]


class TupleBid(NamedTuple):
    auction: int
    price: float


@dataclass(frozen=True)
class FrozenBid:
    auction: int
    price: float


class CheckedBid(pydantic.BaseModel):
    auction: int
    price: float


def read_write(row_class: Any) -> KeyedOperator[Any, Any]:
    """ReadWrite on rows of another class: what that class costs. Any: attribute rows."""

    class Reads(KeyedOperator[row_class, High]):  # type: ignore[misc,valid-type]
        total = ValueState(float, default=0.0)

        def process(self, key: int, row: Any, ctx: Context) -> list[High] | None:
            total = self.total.value + row.price
            self.total.value = total
            return [High(key, total)] if row.price > 90.0 else None

    return Reads()


def bare_rows(batch: pa.RecordBatch, state: dict[int, float], made: list[High]) -> None:
    """What ReadWrite does, without an engine."""
    columns = batch.column("auction").to_numpy().tolist(), batch.column("price").to_numpy().tolist()
    for row in map(Bid, *columns):
        total = state.get(row.auction, 0.0) + row.price
        state[row.auction] = total
        if row.price > 90.0:
            made.append(High(row.auction, total))


def bare_groups(batch: pa.RecordBatch, state: dict[int, float], made: list[High]) -> None:
    """What Grouped does, without an engine."""
    columns = batch.column("auction").to_numpy().tolist(), batch.column("price").to_numpy().tolist()
    groups: dict[int, list[Bid]] = defaultdict(list)
    for row in map(Bid, *columns):
        groups[row.auction].append(row)
    for key, rows in groups.items():
        total = state.get(key, 0.0) + sum(row.price for row in rows)
        state[key] = total
        if rows[0].price > 90.0:
            made.append(High(key, total))


def bare_dates(batch: pa.RecordBatch, state: dict[int, float], made: list[High]) -> None:
    """What Dated does, without an engine: a dict of times instead of timers."""
    columns = batch.column("auction").to_numpy().tolist(), batch.column("price").to_numpy().tolist()
    dates = batch.column("at").cast(pa.timestamp("us", "UTC")).to_pylist()
    for row in map(DatedBid, *columns, dates):
        state[row.auction] = row.price
        state[-row.auction] = row.at.timestamp()
        if row.price > 90.0:
            made.append(High(row.auction, row.price))


def taxed(row: Bid) -> High:
    return High(row.auction, row.price * 1.2)


def dear(row: Bid) -> bool:
    return row.price > 90.0


def passed(batch: pa.RecordBatch) -> pa.RecordBatch:
    return batch


class _Null(HarnessContext):
    """Counts what is collected; keeps nothing."""

    collected_rows = 0

    def collect(self, batch: pa.RecordBatch, output: str = "main") -> None:
        self.collected_rows += batch.num_rows


def batches(rows: int, keys: int) -> list[pa.RecordBatch]:
    """Bids with event time, in order."""
    draw = np.random.default_rng(7)
    made = []
    for start in range(0, rows, BATCH_ROWS):
        times = (np.arange(start, start + BATCH_ROWS) + 1) * 1_000_000
        batch = pa.record_batch(
            {
                "auction": draw.integers(0, keys, BATCH_ROWS),
                "price": draw.random(BATCH_ROWS) * 100,
                "at": pa.array(times, pa.timestamp("ns", "UTC")),
            }
        )
        made.append(with_times(batch, times))
    return made


def rate(
    make: Callable[[pa.Schema], Processor], data: list[pa.RecordBatch], watermarks: bool = False
) -> float:
    """Rows per second, best of three fresh instances; `watermarks`: one behind each batch."""

    def run() -> Callable[[pa.RecordBatch], None]:
        harness = Harness(make(data[0].schema))
        context = _Null(harness, harness.ctx.state, harness.ctx.scratch_dir, 0)
        processor = harness.processor
        processor.open(context)
        if not watermarks:
            return lambda batch: processor.process(batch, 0)

        def process(batch: pa.RecordBatch) -> None:
            processor.process(batch, 0)
            context.watermark = int(times_of(batch)[-1])
            processor.on_watermark(context.watermark)

        return process

    return best(run, data)


def bare_rate(
    loop: Callable[[pa.RecordBatch, dict[int, float], list[High]], None], data: list[pa.RecordBatch]
) -> float:
    """Rows per second of a loop without an engine."""

    def run() -> Callable[[pa.RecordBatch], None]:
        state: dict[int, float] = {}
        made: list[High] = []
        return lambda batch: loop(batch, state, made)

    return best(run, data)


def best(run: Callable[[], Callable[[pa.RecordBatch], None]], data: list[pa.RecordBatch]) -> float:
    """The best of three runs, by processor time: the machine may be shared."""
    found = 0.0
    for _ in range(3):
        process = run()
        began = time.process_time()
        for batch in data:
            process(batch)
        found = max(found, sum(b.num_rows for b in data) / (time.process_time() - began))
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--keys", type=int, default=20_000)
    given = parser.parse_args()
    data = batches(given.rows, given.keys)
    few = batches(given.rows, BATCH_ROWS // ROWS_PER_GROUP)
    keyed: dict[str, tuple[KeyedOperator[Any, Any], list[pa.RecordBatch], Any]] = {
        "value_state_rare_write": (Running(), data, bare_rows),
        "value_state_read_write": (ReadWrite(), data, bare_rows),
        "value_state_generator": (ReadWriteGenerator(), data, bare_rows),
        "one_for_one": (OneForOne(), data, bare_rows),
        "rows_by_attribute": (read_write(Any), data, bare_rows),
        "rows_named_tuple": (read_write(TupleBid), data, bare_rows),
        "rows_frozen": (read_write(FrozenBid), data, bare_rows),
        "rows_pydantic": (read_write(CheckedBid), data, bare_rows),
        "rows_datetime": (read_write(DatedBid), data, bare_rows),
        "value_state_datetime_timer": (Dated(), data, bare_dates),
        "map_state": (Counting(), data, bare_rows),
        "process_group_of_10": (Grouped(), few, bare_groups),
        "timers_fire": (Firing(), data, bare_rows),
    }
    rates: dict[str, int] = {}
    ratios: dict[str, float] = {}
    for name, (op, rows, loop) in keyed.items():
        bare = bare_rate(loop, rows)

        def make(schema: pa.Schema, op: KeyedOperator[Any, Any] = op) -> Processor:
            return KeyedProcessor(op, "auction", schema)

        rates[name] = round(rate(make, rows, watermarks=name == "timers_fire"))
        ratios[name] = round(rates[name] / bare, 2)
    rates["bare_loop"] = round(bare_rate(bare_rows, data))
    rates["map"] = round(rate(lambda schema: row_function("map", taxed, schema), data))
    rates["filter"] = round(rate(lambda schema: row_function("filter", dear, schema), data))
    rates["map_batches"] = round(rate(lambda schema: batch_function(passed, schema), data))
    report(
        "python_operators",
        rows=given.rows,
        keys=given.keys,
        rows_per_second=rates,
        times_bare=ratios,
    )


if __name__ == "__main__":
    main()
