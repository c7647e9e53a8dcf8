"""What splitting keys gives under Zipf 1.5: processor time of the busiest subtask.

    python benchmarks/hot_keys.py

Prints one JSON line per case. Rows are dealt out to SUBTASKS subtasks as the runtime would, and
each subtask's operator is run in turn in this thread; its processor time is counted, so that other
work on the machine matters little. A job is no faster than its busiest subtask, so
`mrows_per_s_bound` is all rows by that time. Channels are not in it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from penstock.elements.changelog import with_change
from penstock.elements.hash import hash_columns
from penstock.elements.keygroup import subtask_of
from penstock.operators.aggregates import Aggregation
from penstock.operators.event_times import with_time
from penstock.operators.kernels import compile as kernels
from penstock.operators.split_parts import SALT, distinct_argument
from penstock.operators.split_salt import SaltProcessor
from penstock.operators.updating_aggregate import UpdatingAggregateProcessor
from penstock.operators.updating_split import UpdatingMergeProcessor, UpdatingPartsProcessor
from penstock.operators.windows.aggregate import WindowAggregateProcessor
from penstock.operators.windows.descriptors import Tumble
from penstock.operators.windows.split import WindowMergeProcessor, WindowPartsProcessor
from penstock.testing.harness import Harness

ROWS = 2_000_000
BATCH_ROWS = 8192
SUBTASKS = 4
SALTS = 16
KEYS = 1_000_000
VALUES = 1_000_000
BATCHES_PER_FLUSH = 25
"""About 200,000 rows: what a job at this pace gives changes for each second."""
NS_PER_ROW = 1000
WINDOW_NS = 500_000 * NS_PER_ROW


def batches(schema: pa.Schema) -> list[pa.RecordBatch]:
    """Zipf's keys, uniform values; of changes, every fourth row takes back the third before."""
    chance = np.random.default_rng(1)
    found = []
    for start in range(0, ROWS, BATCH_ROWS):
        keys = chance.zipf(1.5, BATCH_ROWS) % KEYS
        values = chance.integers(0, VALUES, BATCH_ROWS)
        columns = [keys, values]
        if "_change" in schema.names:
            signs = np.ones(BATCH_ROWS, np.int8)
            keys[3::4], values[3::4], signs[3::4] = keys[0::4], values[0::4], -1
            columns.append(signs)
        stamps = np.arange(start, start + BATCH_ROWS) * NS_PER_ROW
        arrays = [pa.array(column) for column in columns]
        times = pa.array(stamps).view(pa.timestamp("ns", "UTC"))
        found.append(pa.RecordBatch.from_arrays([*arrays, times], schema=schema))
    return found


class Stage:
    """The subtasks of one operator: what they cost, and what they give."""

    def __init__(self, make: Callable[[], Any], keys: Sequence[str], subtasks: int) -> None:
        self._keys = list(keys)
        self._runs = [Harness(make()) for _ in range(subtasks)]
        self.cpu_s = [0.0] * subtasks
        self.given: list[pa.RecordBatch] = []
        for run in self._runs:
            run.ctx.collect = self._collect  # type: ignore[method-assign]

    def _collect(self, batch: pa.RecordBatch, output: str = "main") -> None:
        self.given.append(batch)

    def send(self, rows: Sequence[pa.RecordBatch]) -> None:
        """Deal them out and process them."""
        for batch in rows:
            targets = subtask_of(hash_columns(batch, self._keys), len(self._runs))
            for at, run in enumerate(self._runs):
                mine = batch.filter(pa.array(targets == at))
                if mine.num_rows:
                    self._timed(at, run.processor.process, mine, 0)

    def pass_time(self, watermark: int) -> None:
        """A flush, and a watermark."""
        for at, run in enumerate(self._runs):
            self._timed(at, run.processor.on_end)
            self._timed(at, run.processor.on_watermark, watermark)

    def _timed(self, at: int, call: Callable[..., None], *given: Any) -> None:
        begun = time.process_time()
        call(*given)
        self.cpu_s[at] += time.process_time() - begun

    def taken(self) -> list[pa.RecordBatch]:
        """What was given since."""
        found, self.given = self.given, []
        return found


def run(name: str, stages: list[Stage], salt: Any, rows: list[pa.RecordBatch]) -> None:
    """All rows through all stages; one line of figures."""
    front = None if salt is None else Stage(lambda: salt, ["k"], 1)
    crossed = 0
    for at in range(0, len(rows), BATCHES_PER_FLUSH):
        given: list[pa.RecordBatch] = rows[at : at + BATCHES_PER_FLUSH]
        watermark = (at + len(given)) * BATCH_ROWS * NS_PER_ROW - 1
        if front is not None:
            front.send(given)
            given = front.taken()
        for number, stage in enumerate(stages):
            crossed += number and sum(batch.num_rows for batch in given)
            stage.send(given)
            stage.pass_time(watermark)
            given = stage.taken()
    busiest = max(max(stage.cpu_s) for stage in stages)
    total = sum(batch.num_rows for batch in rows)
    figures = {
        "case": name,
        "subtasks_s": [[round(cpu, 2) for cpu in stage.cpu_s] for stage in stages],
        "all_s": round(sum(sum(s.cpu_s) for s in stages) + sum(front.cpu_s if front else []), 2),
        "parts_crossed": crossed,
        "mrows_per_s_bound": round(total / busiest / 1e6, 2),
    }
    print(json.dumps(figures), flush=True)


def compare(
    name: str,
    items: dict[str, str],
    schema: pa.Schema,
    whole: Callable[[Aggregation], Any],
    parts: Callable[[Aggregation, pa.Schema], Any],
    merge: Callable[[Aggregation], Any],
) -> None:
    """One aggregate without and with its keys split."""
    aggregation = Aggregation(items, schema)
    rows = batches(schema)
    run(name, [Stage(lambda: whole(aggregation), ["k"], SUBTASKS)], None, rows)
    salt = SaltProcessor(aggregation, SALTS, distinct_argument(aggregation, name, ""), schema)
    salted = salt.out_schema
    stages = [
        Stage(lambda: parts(Aggregation(items, salted), salted), ["k", SALT], SUBTASKS),
        Stage(lambda: merge(aggregation), ["k"], SUBTASKS),
    ]
    run(f"{name}, split", stages, salt, rows)


def main() -> None:
    """Each case unsplit, then split."""
    kernels.load()
    plain = pa.schema([("k", pa.int64()), ("v", pa.int64())])
    rows, changes = with_time(plain), with_time(with_change(plain))
    window = Tumble(WINDOW_NS)

    def updating(name: str, items: dict[str, str], schema: pa.Schema) -> None:
        compare(
            name,
            items,
            schema,
            lambda found: UpdatingAggregateProcessor(["k"], found, schema, None, 10**9),
            lambda found, salted: UpdatingPartsProcessor(["k"], found, salted, 10**9),
            lambda found: UpdatingMergeProcessor(["k"], found, schema, 10**9),
        )

    compare(
        "count(DISTINCT v) per window",
        {"kinds": "count(DISTINCT v)"},
        rows,
        lambda found: WindowAggregateProcessor(window, ["k"], found, rows),
        lambda found, salted: WindowPartsProcessor(window, ["k"], found, salted),
        lambda found: WindowMergeProcessor(window, ["k"], found, rows),
    )
    updating("count(DISTINCT v), running", {"kinds": "count(DISTINCT v)"}, rows)
    updating("max(v) of changes", {"most": "max(v)"}, changes)


if __name__ == "__main__":
    main()
