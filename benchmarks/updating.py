"""Aggregates without a window, operator alone: million rows per second in one thread.

    python benchmarks/updating.py

Prints one JSON line per case. Groups exist before the clock starts; changes are given each second
into nothing, so what is timed is the operator with its flushes, without channels.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from penstock.elements.changelog import with_change
from penstock.operators.aggregates import Aggregation
from penstock.operators.event_times import with_time
from penstock.operators.kernels import compile as kernels
from penstock.operators.updating_aggregate import UpdatingAggregateProcessor
from penstock.testing.harness import Harness

ROWS = 4_000_000
FLUSH_S = 1.0
COUNT = {"n": "count(*)"}
THREE = {"n": "count(*)", "s": "sum(v)", "m": "max(v)"}


def batches(schema: pa.Schema, keys: int, size: int, hot: bool) -> Iterator[pa.RecordBatch]:
    """Rows with uniform keys, or with Zipf's of 1.5."""
    chance = np.random.default_rng(1)
    for start in range(0, ROWS, size):
        drawn = chance.zipf(1.5, size) % keys if hot else chance.integers(0, keys, size)
        columns = [pa.array(drawn), pa.array(chance.integers(0, 100, size))]
        if "_change" in schema.names:
            columns.append(pa.array(np.ones(size, np.int8)))
        stamps = pa.array(np.arange(start, start + size)).view(pa.timestamp("ns", "UTC"))
        yield pa.RecordBatch.from_arrays([*columns, stamps], schema=schema)


def run(
    name: str,
    items: dict[str, str],
    keys: int,
    size: int,
    *,
    hot: bool = False,
    changes: bool = False,
) -> None:
    """One case."""
    plain = pa.schema([("k", pa.int64()), ("v", pa.int64())])
    schema = with_time(with_change(plain) if changes else plain)
    made = UpdatingAggregateProcessor(["k"], Aggregation(items, schema), schema, None, 10**9)
    harness = Harness(made, [schema])
    processor: Any = harness.processor
    harness.ctx.collect = lambda batch, output="main": None  # type: ignore[method-assign]
    rows = list(batches(schema, keys, size, hot))
    for batch in rows:
        processor.process(batch, 0)
    processor.on_end()
    begun = time.perf_counter()
    due = begun + FLUSH_S
    for batch in rows:
        processor.process(batch, 0)
        if time.perf_counter() >= due:
            processor.on_end()
            due += FLUSH_S
    took = time.perf_counter() - begun
    saving = time.perf_counter()
    processor.before_snapshot(1)
    figures = {
        "case": name,
        "keys": keys,
        "batch": size,
        "mrows_per_s": round(ROWS / took / 1e6, 2),
        "first_cut_ms": round((time.perf_counter() - saving) * 1000),
    }
    print(json.dumps(figures), flush=True)


def main() -> None:
    kernels.load()
    for size in (1024, 8192, 32768):
        run("running count", COUNT, 10_000, size)
        run("running count", COUNT, 1_000_000, size)
    run("running count, Zipf 1.5", COUNT, 1_000_000, 8192, hot=True)
    run("count, sum, max", THREE, 10_000, 8192)
    run("changelog: count, sum", {"n": "count(*)", "s": "sum(v)"}, 10_000, 8192, changes=True)
    run("changelog: count, max", {"n": "count(*)", "m": "max(v)"}, 10_000, 8192, changes=True)


if __name__ == "__main__":
    main()
