"""Checkpoints through a chain of two operators that take 1 ms per row (hazard 8, R5).

    python benchmarks/slow_operators.py [--seconds 20]

Each operator has its own process. Checkpoints follow each other with next to no pause, so the time
between two of them is what one takes, all alignment included.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from probe import ClockedSource, report

import penstock as ps


@dataclass
class Row:
    """A row of the clocked source."""

    key: int
    made_ns: int


class Slow(ps.KeyedOperator[Row, Row]):
    """A model call of 1 ms."""

    def process(self, key: int, row: Row, ctx: ps.Context) -> Iterator[Row]:
        """Spin: sleeping is too coarse."""
        end = time.perf_counter() + 0.001
        while time.perf_counter() < end:
            pass
        yield row


def main() -> None:
    """Run for a while, then read off how often a checkpoint completed."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--seconds", type=float, default=20)
    seconds = arguments.parse_args().seconds
    with tempfile.TemporaryDirectory() as state_dir:
        p = ps.Pipeline("slow")
        rows = p.source(ClockedSource(1, 20_000, seconds * 100))
        once = rows.key_by("key").process(Slow(), name="first")
        once.key_by("key").process(Slow(), name="second").sink(ps.BlackholeSink())
        job = p.start(checkpoint_interval="50 ms", state_dir=state_dir)
        completed: list[float] = []
        epoch, deadline = 0, time.monotonic() + seconds
        while time.monotonic() < deadline:
            now = job.status().epoch
            if now > epoch:
                completed.append(time.monotonic())
                epoch = now
            time.sleep(0.005)
        job.stop("now")
    gaps = sorted(b - a for a, b in pairwise(completed[1:]))
    report(
        "checkpoint through two operators of 1 ms per row, saturated",
        checkpoints=len(completed),
        median_s=round(gaps[len(gaps) // 2], 2) if gaps else None,
        worst_s=round(gaps[-1], 2) if gaps else None,
    )


if __name__ == "__main__":
    main()
