"""Window and join operators in one process, without channels: rows per second, as one JSON line.

q5: count and max per auction over 10 s hopping by 2 s; q7: max over 10 s; sessions of 0.1 s by
auction; a window join of bids with themselves by auction. Watermarks follow every batch.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections import defaultdict
from typing import Any

import numpy as np
import pyarrow as pa

from penstock.elements.clock import SystemClock
from penstock.elements.keygroup import ALL_GROUPS
from penstock.elements.signals import WATERMARK_MAX, WATERMARK_MIN
from penstock.operators.aggregates import Aggregation
from penstock.operators.event_times import time_array, with_time
from penstock.operators.joins import WindowJoinProcessor
from penstock.operators.processor import Processor
from penstock.operators.windows import hop, session, tumble
from penstock.operators.windows.aggregate import WindowAggregateProcessor
from penstock.operators.windows.sessions import SessionAggregateProcessor
from penstock.state.backend import RestoredState
from penstock.state.memory import memory_backend

EVENTS_PER_S = 50_000
SCHEMA = with_time(
    pa.schema([("auction", pa.int64()), ("price", pa.int64()), ("channel", pa.string())])
)
CHANNELS = np.array(["Google", "Facebook", "Baidu", "Apple"])


class Context:
    """What a processor needs; counts the rows that come out."""

    def __init__(self) -> None:
        self.operator_id = self.operator_name = "bench"
        self.subtask, self.parallelism = 0, 1
        self.key_groups = ALL_GROUPS
        self.state = memory_backend("bench", RestoredState([], ALL_GROUPS, 0, 1))
        self.clock = SystemClock()
        self.watermark = WATERMARK_MIN
        self.checkpoint_id = 0
        self.run_id = self.scratch_dir = ""
        self.rows: dict[str, int] = defaultdict(int)

    def collect(self, batch: pa.RecordBatch, output: str = "main") -> None:
        self.rows[output] += batch.num_rows

    def emit_watermark(self, watermark: int) -> None: ...
    def emit_idle(self) -> None: ...
    def wake(self) -> None: ...
    def count(self, metric: str, amount: int) -> None: ...


def bids(count: int) -> pa.RecordBatch:
    """Skewed auctions that move on with time, as Nexmark has them."""
    rng = np.random.default_rng(1)
    number = np.arange(count)
    hot = rng.random(count) < 0.5
    auction = np.where(hot, number // 1000 * 10, number // 100 + rng.integers(0, 1000, count))
    arrays = [
        pa.array(auction),
        pa.array(rng.integers(1, 10**7, count)),
        pa.array(CHANNELS[rng.integers(0, 4, count)]),
        time_array(number * (10**9 // EVENTS_PER_S)),
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def run(processor: Processor, rows: pa.RecordBatch, size: int, ports: int) -> dict[str, Any]:
    """Drive one operator through all rows."""
    context: Any = Context()
    processor.open(context)
    times = rows.column("_time").cast(pa.int64()).to_numpy()
    batches = [rows.slice(at, size) for at in range(0, rows.num_rows, size)]
    started = time.perf_counter()
    for number, batch in enumerate(batches):
        for port in range(ports):
            processor.process(batch, port)
        context.watermark = int(times[min(rows.num_rows, (number + 1) * size) - 1]) - 1
        processor.on_watermark(context.watermark)
    context.watermark = WATERMARK_MAX
    processor.on_watermark(WATERMARK_MAX)
    seconds = time.perf_counter() - started
    return {
        "mrows_per_s": round(ports * rows.num_rows / seconds / 1e6, 2),
        "rows_out": context.rows["main"],
    }


def operators() -> dict[str, tuple[Any, int]]:
    """Fresh operators by name, with their number of inputs."""
    items = {"bids": "count(*)", "top": "max(price)", "total": "sum(price)"}
    calls = Aggregation(items, SCHEMA)
    other = SCHEMA.set(1, pa.field("other", pa.int64())).remove(2)
    joined = (SCHEMA.remove(2), other, "inner")
    return {
        "q5_hop": (
            lambda: WindowAggregateProcessor(hop("10 s", every="2 s"), ["auction"], calls, SCHEMA),
            1,
        ),
        "tumble": (lambda: WindowAggregateProcessor(tumble("10 s"), ["auction"], calls, SCHEMA), 1),
        "tumble_by_text": (
            lambda: WindowAggregateProcessor(tumble("10 s"), ["channel"], calls, SCHEMA),
            1,
        ),
        "q7_max": (
            lambda: WindowAggregateProcessor(
                tumble("10 s"), [], Aggregation({"top": "max(price)"}, SCHEMA), SCHEMA
            ),
            1,
        ),
        "distinct": (
            lambda: WindowAggregateProcessor(
                tumble("10 s"), ["channel"], Aggregation({"n": "count(DISTINCT auction)"}, SCHEMA),
                SCHEMA,
            ),
            1,
        ),
        "session": (
            lambda: SessionAggregateProcessor(session("0.1 s"), ["auction"], calls, SCHEMA),
            1,
        ),
        "window_join": (
            lambda: WindowJoinProcessor(tumble("1 s"), ["auction"], "inner", *joined[:2]),
            2,
        ),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1 << 20)
    given = parser.parse_args()
    rows = bids(given.rows)
    found: dict[str, Any] = {}
    for name, (make, ports) in operators().items():
        for size in (1024, 8192):
            used = rows
            if ports == 2:
                # Two rows of each side per key, so that the output is as long as the input.
                pairs = pa.array(np.arange(rows.num_rows) // 2)
                used = rows.set_column(0, SCHEMA.field(0), pairs).select(
                    ["auction", "price", "_time"]
                )
            processor = make()
            if ports == 2:
                processor = _same_rows(processor)
            found[f"{name}_{size}"] = run(processor, used, size, ports)
    print(json.dumps({"benchmark": "windows", "machine": platform.machine(), **found}))


def _same_rows(processor: Any) -> Any:
    """Give the right side the left's rows under its own names."""
    process, schema = processor.process, processor.sides[1].schema
    processor.process = lambda batch, port: process(
        pa.RecordBatch.from_arrays(batch.columns, schema=schema) if port else batch, port
    )
    return processor


if __name__ == "__main__":
    main()
