"""Rows per second through a P x P hash shuffle, all rows changing process.

python benchmarks/shuffle.py [--seconds 5]
"""

from __future__ import annotations

import argparse

from probe import ClockedSource, report

import penstock as ps


def run(parallelism: int, seconds: float) -> float:
    """Million rows per second from sources to blackholes at parallelism P."""
    p = ps.Pipeline("shuffle")
    rows = p.source(ClockedSource(parallelism, None, seconds))
    rows.key_by("key").filter("key >= 0").sink(ps.BlackholeSink())
    summary = p.run(parallelism=parallelism, checkpoint_interval="1 hour")
    return summary.rows_out / seconds / 1e6


def main() -> None:
    """One line for P = 1, 2, 4."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--seconds", type=float, default=5)
    seconds = arguments.parse_args().seconds
    report(
        "shuffle, two int64 columns, M rows/s",
        **{f"{p}x{p}": round(run(p, seconds), 2) for p in (1, 2, 4)},
    )


if __name__ == "__main__":
    main()
