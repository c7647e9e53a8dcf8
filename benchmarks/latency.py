"""Latency through three processes at 100 rows per millisecond, with and without checkpoints.

    python benchmarks/latency.py [--seconds 10]

Source, batch operator, and a batch operator with the sink are each a process; latency is from a
row's making to its arrival in the sink. The second run checkpoints every second: the ratio of the
two p99 is what barriers cost.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator

import pyarrow as pa
from probe import SCHEMA, ClockedSource, LatencySink, percentiles_us, report

import penstock as ps


class Passing(ps.Operator):
    """A batch operator that does next to nothing."""

    returns = SCHEMA

    def process(self, batch: pa.RecordBatch, ctx: ps.Context) -> Iterator[pa.RecordBatch]:
        """Pass rows on."""
        yield batch


def run(seconds: float, checkpoint_interval: str) -> dict[str, float]:
    """Run the pipeline once and give the percentiles."""
    with tempfile.TemporaryDirectory() as folder:
        p = ps.Pipeline("latency")
        rows = p.source(ClockedSource(1, 100_000, seconds))
        middle = rows.process(Passing()).chain_break()
        middle.process(Passing()).chain_break().sink(LatencySink(folder))
        p.run(checkpoint_interval=checkpoint_interval, durability="process")
        return percentiles_us(folder)


def main() -> None:
    """Two runs, one line."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--seconds", type=float, default=10)
    seconds = arguments.parse_args().seconds
    without = run(seconds, "1 hour")
    barriers = run(seconds, "1 s")
    report(
        "latency, 3 processes, 100 rows/ms",
        without_checkpoints=without,
        checkpoints_1s=barriers,
        p99_ratio=round(barriers["p99_us"] / without["p99_us"], 2),
    )


if __name__ == "__main__":
    main()
