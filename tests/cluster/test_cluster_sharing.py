"""A job that lost a node and finds no room elsewhere goes on in what is left; none is lost."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from cluster_harness import Cluster, LedgerRun


@pytest.mark.timeout(180)
def test_a_job_shares_slots_when_a_node_dies_and_none_are_free(tmp_path: Path) -> None:
    with Cluster(tmp_path, agents=2, slots=2) as cluster:
        run = LedgerRun(cluster, rows=12_000, rate=2_000.0, parallelism=4)
        before = run.until_rows()
        at = time.monotonic()
        cluster.kill_root("n2")
        print(f"\nrecovery  kill -9 of an agent, no slots free: {run.recovery_s(at, before):.2f} s")
        info = cluster.job("ledger")
        assert (info.slots, info.nodes) == (4, ["n1"])
        (node,) = cluster.members()
        assert (node.slots, node.used) == (2, 4)
        run.prove()
