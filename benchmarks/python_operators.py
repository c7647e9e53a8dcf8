"""Rows per second of Python operators in one process: state, timers, groups, functions, batches.

    python benchmarks/python_operators.py [--rows 400000] [--keys 20000]

Batches of 8,192 rows of three columns; about one row in ten is emitted. One JSON line; rates are
rows per second of one core, the best of three rounds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
from probe import report

from penstock.operators.batch_processor import batch_function
from penstock.operators.context import Context
from penstock.operators.declared import Fired, MapState, Timer, ValueState
from penstock.operators.event_time_column import with_times
from penstock.operators.keyed_operator import KeyedOperator
from penstock.operators.keyed_processor import KeyedProcessor
from penstock.operators.processor import Processor
from penstock.operators.row_functions import row_function
from penstock.testing.harness import Harness, HarnessContext

BATCH_ROWS = 8192
SECOND_NS = 1_000_000_000


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


class Counting(KeyedOperator[Bid, High]):
    """A MapState changed at every row."""

    seen = MapState(int, int)

    def process(self, key: int, row: Bid, ctx: Context) -> None:
        bucket = int(row.price) // 10
        self.seen[bucket] = self.seen.get(bucket, 0) + 1


class Grouped(KeyedOperator[Bid, High]):
    """process_group: state is read and written once per key and batch."""

    total = ValueState(float, default=0.0)

    def process_group(self, key: int, rows: Sequence[Bid], ctx: Context) -> list[High] | None:
        total = self.total.value + sum(row.price for row in rows)
        self.total.value = total
        return [High(key, total)] if rows[0].price > 90.0 else None


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


def rate(make: Callable[[pa.Schema], Processor], data: list[pa.RecordBatch]) -> float:
    """Rows per second, best of three fresh instances."""
    best = 0.0
    for _ in range(3):
        harness = Harness(make(data[0].schema))
        context = _Null(harness, harness.ctx.state, harness.ctx.scratch_dir, 0)
        harness.processor.open(context)
        process = harness.processor.process
        began = time.perf_counter()
        for batch in data:
            process(batch, 0)
        best = max(best, sum(b.num_rows for b in data) / (time.perf_counter() - began))
    return best


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=400_000)
    parser.add_argument("--keys", type=int, default=20_000)
    given = parser.parse_args()
    data = batches(given.rows, given.keys)
    keyed: dict[str, KeyedOperator[Any, Any]] = {
        "value_state_rare_write": Running(),
        "value_state_read_write": ReadWrite(),
        "value_state_generator": ReadWriteGenerator(),
        "value_state_datetime_timer": Dated(),
        "map_state": Counting(),
        "process_group": Grouped(),
    }
    rates = {
        name: round(rate(lambda schema, op=op: KeyedProcessor(op, "auction", schema), data))
        for name, op in keyed.items()
    }
    rates["map"] = round(rate(lambda schema: row_function("map", taxed, schema), data))
    rates["filter"] = round(rate(lambda schema: row_function("filter", dear, schema), data))
    rates["map_batches"] = round(rate(lambda schema: batch_function(passed, schema), data))
    report("python_operators", rows=given.rows, keys=given.keys, rows_per_second=rates)


if __name__ == "__main__":
    main()
