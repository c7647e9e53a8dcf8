"""The ledger job on a whole cluster of real processes, and its proof."""

from __future__ import annotations

import time

from penstock.cluster.submitting import status_of
from penstock.testing.ledger import check_ledger
from penstock.testing.local_cluster import LocalCluster as Cluster
from penstock.testing.local_cluster import Process

__all__ = ["Cluster", "LedgerRun", "Process"]

LEDGER = """
import os
from penstock.testing.ledger import ledger

p = ledger({out!r}, {splits}, {rows}, {rate})
"""


class LedgerRun:
    """The ledger job on a cluster, and its proof."""

    def __init__(
        self, cluster: Cluster, *, rows: int, rate: float, splits: int = 4, parallelism: int = 3,
        placement: str = "spread", out: str = "out",
    ) -> None:  # fmt: skip
        """`out`: the folder of its rows; another one for each run that begins anew (--fresh)."""
        self.cluster, self.rows, self.splits = cluster, rows, splits
        self.out = cluster.folder / out
        program = LEDGER.format(out=str(self.out), splits=splits, rows=rows, rate=rate)
        self.info = cluster.submit(
            program, "--parallelism", str(parallelism), "--placement", placement,
            "--checkpoint-interval", "200 ms", "--set", "restart_attempts=100",
            *([] if out == "out" else ["--fresh"]),
        )  # fmt: skip

    def checkpoint(self) -> int:
        """The highest one whose rows are visible; 0 before the first."""
        numbers = (int(p.name.split("-")[3]) for p in self.out.glob("part-*.parquet"))
        return max(numbers, default=0)

    def until_rows(self) -> int:
        """Rows have become visible; of which checkpoint."""
        found: int = self.cluster.until("rows are visible", self.checkpoint)
        return found

    def recovery_s(self, since: float, before: int) -> float:
        """Seconds from `since` to rows of a checkpoint that must have been begun after it.

        `before` was visible then; the one after it may have been under way.
        """
        self.cluster.until("rows after the fault", lambda: self.checkpoint() >= before + 2)
        return time.monotonic() - since

    def prove(self) -> None:
        """It ends, and each row arrived once."""
        info = self.cluster.until_state("ledger", "finished")
        report = check_ledger(self.out, self.splits, self.rows)
        assert report.problems == [], f"{report}\n{self.cluster.story()}"
        assert report.rows == self.splits * self.rows
        assert status_of(info).job == "ledger"
