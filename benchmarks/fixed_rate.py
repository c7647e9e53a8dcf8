"""Latency at a fixed rate: source, shuffle, running count per key, sink.

    python benchmarks/fixed_rate.py [--seconds 10] [--rates 50000 200000] [--parallelism 2 4]
                                    [--by aggregate]

A KeyedOperator (or an aggregate without a window) gives the new count for each row; latency is from
the moment at which the row was due in the source (not when a late source made it) to the count's
arrival in the sink. Each setting runs without and with a checkpoint each second. Prints a histogram
per run, and one JSON line for all.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from dataclasses import dataclass
from typing import Any

import numpy as np
from probe import ClockedSource, LatencySink, latencies_us, percentiles_us, report

import penstock as ps

BOUNDS_MS = (0.5, 1, 2, 3, 5, 7.5, 10, 15, 25, 50, 100, 250)
BAR_CHARS = 50


@dataclass
class Row:
    """What comes from the source."""

    key: int
    made_ns: int


@dataclass
class Counted:
    """How many rows its key had."""

    key: int
    made_ns: int
    n: int


class Count(ps.KeyedOperator[Row, Counted]):
    """One result for each row."""

    n = ps.ValueState(int, default=0)

    def process(self, key: int, row: Row, ctx: ps.Context) -> list[Counted]:
        """Count."""
        count = self.n.value + 1
        self.n.value = count
        return [Counted(key, row.made_ns, count)]


def run(
    by: str, rate: int, parallelism: int, seconds: float, checkpoint_interval: str
) -> tuple[Any, Any]:
    """One run: its percentiles, and how many rows came within each bound."""
    with tempfile.TemporaryDirectory() as folder:
        p = ps.Pipeline("fixed-rate")
        source = ClockedSource(parallelism, rate // parallelism, seconds, scheduled=True)
        keyed = p.source(source).key_by("key")
        if by == "python":
            counted = keyed.process(Count())
        else:
            items = {"n": "count(*)", "made_ns": "max(made_ns)"}
            updating = keyed.aggregate(ttl=ps.FOREVER, flush="0 s", **items)
            # What takes an older count back is no result; rows of one tick have a key each.
            counted = updating.changes().filter("change > 0")
        counted.sink(LatencySink(folder))
        p.run(
            parallelism=parallelism,
            checkpoint_interval=checkpoint_interval,
            durability="process",
        )
        edges = [0.0, *BOUNDS_MS, np.inf]
        counts, _ = np.histogram(latencies_us(folder) / 1000, edges)
        return percentiles_us(folder), counts


def show(title: str, counts: Any) -> None:
    """The histogram as text: a bar is the share of rows."""
    print(title)
    for bound, count in zip([*BOUNDS_MS, None], counts.tolist(), strict=True):
        share = count / counts.sum()
        label = "more" if bound is None else f"< {bound:g} ms"
        print(f"  {label:>10} {share:8.3%} {'#' * round(share * BAR_CHARS)}".rstrip())


def main() -> None:
    """All settings, one line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--rates", type=int, nargs="+", default=[50_000, 200_000])
    parser.add_argument("--parallelism", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--by", choices=["python", "aggregate"], default="python")
    given = parser.parse_args()
    found: dict[str, Any] = {}
    for rate in given.rates:
        for parallelism in given.parallelism:
            for name, interval in (("no checkpoints", "1 hour"), ("checkpoints 1 s", "1 s")):
                title = f"{rate} rows/s, parallelism {parallelism}, {name}"
                found[title], counts = run(given.by, rate, parallelism, given.seconds, interval)
                show(title, counts)
    report("fixed_rate", by=given.by, load=round(os.getloadavg()[0], 1), **found)


if __name__ == "__main__":
    main()
