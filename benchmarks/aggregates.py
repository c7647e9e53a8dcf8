"""Aggregates by themselves, in one thread: million rows per second of its time, as one JSON line.

Per aggregate: folding batches of `--batch` rows over `--keys` keys, merging such partials 16 at a
time, and the result; a quotient of time per input row over all three. User classes are the last.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from typing import Any

import numpy as np
import pyarrow as pa

import penstock as ps
from penstock.operators.aggregates import Aggregation
from penstock.operators.event_times import time_array, with_time
from penstock.operators.windows.partials import Folding, concat

SCHEMA = with_time(
    pa.schema([("k", pa.int64()), ("n", pa.int64()), ("f", pa.float64()), ("s", pa.string())])
)
MERGED_BATCHES = 16


class Width(ps.SegmentAggregate):
    """max - min, over columns."""

    returns = pa.float64()
    state = (pa.float64(), pa.float64())

    def fold(self, columns: list[pa.Array], starts: Any) -> list[Any]:
        return self.merge([columns[0], columns[0]], starts)

    def merge(self, state: list[pa.Array], starts: Any) -> list[Any]:
        low, high = (part.to_numpy() for part in state)
        return [np.minimum.reduceat(low, starts), np.maximum.reduceat(high, starts)]

    def finish(self, state: list[pa.Array]) -> Any:
        return state[1].to_numpy() - state[0].to_numpy()


class Total(ps.Aggregate):
    """A sum, row by row."""

    returns = float

    def create(self) -> float:
        return 0.0

    def add(self, state: float, value: float) -> float:
        return state + value

    def merge(self, state: float, other: float) -> float:
        return state + other

    def result(self, state: float) -> float:
        return state


ITEMS: dict[str, Any] = {
    text: text
    for text in (
        "count(*)", "sum(n)", "avg(f)", "max(n)", "min(s)", "last(n)", "stddev(f)", "min_by(n, f)",
        "max_by(s, n)", "bit_xor(n)", "corr(f, n)", "approx_count_distinct(n)",
        "approx_quantile(f, 0.99)", "array_agg(n)", "string_agg(s, ',')",
    )
} | {"SegmentAggregate": Width("f"), "Aggregate": Total("f")}  # fmt: skip


def batches(rows: int, size: int, keys: int) -> list[pa.RecordBatch]:
    """Rows in order of time, keys uniform."""
    rng = np.random.default_rng(1)
    words = pa.array([f"word{at}" for at in range(1000)])
    made = []
    for start in range(0, rows, size):
        columns = [
            pa.array(rng.integers(0, keys, size)),
            pa.array(rng.integers(0, 1 << 40, size)),
            pa.array(rng.lognormal(3, 2, size)),
            words.take(pa.array(rng.integers(0, 1000, size))),
            time_array(np.arange(start, start + size)),
        ]
        made.append(pa.RecordBatch.from_arrays(columns, schema=SCHEMA))
    return made


def measured(item: Any, rows: list[pa.RecordBatch]) -> float:
    """Million rows per second; planning and arguments are not counted."""
    aggregation = Aggregation({"x": item}, SCHEMA)
    folding = Folding(aggregation, [SCHEMA.field("k")])
    inputs = [(batch, aggregation.argument_columns(batch)) for batch in rows]
    begun = time.process_time()
    for first in range(0, len(inputs), MERGED_BATCHES):
        partials = []
        for batch, arguments in inputs[first : first + MERGED_BATCHES]:
            panes = np.zeros(batch.num_rows, np.int64)
            keys = folding.keys_of(batch)
            times = np.asarray(batch.column("_time").cast(pa.int64()))
            groups = folding.groups(keys, panes)
            partials.append(folding.from_rows(keys, groups, panes, arguments, times))
        folding.results(folding.merge(concat(partials)), [])
    return sum(batch.num_rows for batch in rows) / (time.process_time() - begun) / 1e6


def main() -> None:
    """Print one line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1 << 20)
    parser.add_argument("--batch", type=int, default=8192)
    parser.add_argument("--keys", type=int, default=1000)
    options = parser.parse_args()
    rows = batches(options.rows, options.batch, options.keys)
    found = {name: round(measured(item, rows), 2) for name, item in ITEMS.items()}
    print(json.dumps({**vars(options), "machine": platform.machine(), "M_rows_per_s": found}))


if __name__ == "__main__":
    main()
