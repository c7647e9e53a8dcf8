"""From SIGKILL of a subtask to rows flowing again.

    python benchmarks/recovery.py [--kills 10]

Source, stateful operator and sink at a steady rate with checkpoints each second; a random subtask
is killed, and the time to the next write in a sink is taken. The back-off is kept from growing:
kills seconds apart would double it each time.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from probe import ClockedSource, LatencySink, report

import penstock as ps


@dataclass
class Row:
    """A row of the clocked source."""

    key: int
    made_ns: int


class Count(ps.KeyedOperator[Row, Row]):
    """Counts per key."""

    seen = ps.ValueState(int, default=0)

    def process(self, key: int, row: Row, ctx: ps.Context) -> Iterator[Row]:
        """One row out per row in."""
        self.seen.value += 1
        yield row


def first_write_after(folder: str, since_ns: int, timeout_s: float) -> int:
    """When a sink first wrote after `since_ns`."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        for path in Path(folder).glob("*.trace"):
            lines = path.read_text().splitlines()
            for line in lines[-200:]:
                at_ns = int(line.split()[0]) if line.strip() else 0
                if at_ns > since_ns:
                    return at_ns
        time.sleep(0.01)
    raise SystemExit("no row within the time limit")


def main() -> None:
    """Kill, wait, report."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--kills", type=int, default=10)
    kills = arguments.parse_args().kills
    random.seed(7)
    taken = []
    with tempfile.TemporaryDirectory() as folder:
        p = ps.Pipeline("recovery")
        rows = p.source(ClockedSource(2, 10_000, kills * 10 + 30))
        counted = rows.key_by("key").process(Count())
        counted.filter("key >= 0").chain_break().sink(LatencySink(folder, trace=True))
        job = p.start(
            checkpoint_interval="1 s", parallelism=2, restart_attempts=100, restart_delay_s_max=0.05
        )
        first_write_after(folder, 0, 30)
        for _ in range(kills):
            time.sleep(2 + random.random())
            pids = [pid for title, pid in job.status().pids.items() if "[" in title]
            victim = random.choice(pids)
            killed_ns = time.monotonic_ns()
            os.kill(victim, signal.SIGKILL)
            # Neighbours may still drain what they hold; rows of the dead attempt do not count.
            gone_ns = killed_ns + 50_000_000
            taken.append((first_write_after(folder, gone_ns, 30) - killed_ns) / 1e6)
        job.stop("now")
    report(
        "recovery, SIGKILL of a subtask to the next row in a sink",
        kills=kills,
        median_ms=round(statistics.median(taken), 1),
        worst_ms=round(max(taken), 1),
    )


if __name__ == "__main__":
    main()
