"""Rows per second through a P x P hash shuffle, all rows changing process.

python benchmarks/shuffle.py [--seconds 5]
"""

from __future__ import annotations

import argparse
from dataclasses import replace

from probe import ClockedSource, report

import penstock as ps
from penstock.dataflow.planner import make_plan
from penstock.dataflow.settings import JobSettings
from penstock.runtime.embedded import EmbeddedLauncher


def run(parallelism: int, seconds: float) -> float:
    """Million rows per second from sources to blackholes at parallelism P.

    Every keyed operation of the API does work of its own behind the shuffle, so the plan's forward
    edge is made a hash edge by hand.
    """
    p = ps.Pipeline("shuffle")
    rows = p.source(ClockedSource(parallelism, None, seconds))
    rows.filter("key >= 0").chain_break().sink(ps.BlackholeSink())
    plan = make_plan(p.name, p._ends, p.functions, parallelism).plan
    (edge,) = plan.edges
    plan = replace(plan, edges=(replace(edge, partition="hash", keys=("key",)),))
    settings = JobSettings(parallelism=parallelism, checkpoint_interval_s=3600)
    summary = EmbeddedLauncher().start(plan, settings).wait()
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
