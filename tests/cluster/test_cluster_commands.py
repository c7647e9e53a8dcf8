"""What people do with a running cluster: look, read, scale, stop, and see why a job gave up."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster_harness import Cluster, LedgerRun

TIMEOUT_S = 180
HELPED = """
import pyarrow as pa
import penstock as ps
from helper import doubled

p = ps.Pipeline("helped")
p.source(pa.table({"n": list(range(10))})).map_batches(doubled).sink(
    ps.FileSink("helped/", format="jsonl"))
if __name__ == "__main__":
    print(p.run(parallelism=2))
"""
HELPER = """
import os
import pyarrow as pa
import pyarrow.compute as pc


def doubled(batch: pa.RecordBatch) -> pa.RecordBatch:
    print("a batch of", batch.num_rows, "in", os.environ["WHERE"], flush=True)
    return batch.set_column(0, "n", pc.multiply(batch["n"], 2))
"""
BROKEN = """
import pyarrow as pa
import penstock as ps


def broken(batch: pa.RecordBatch) -> pa.RecordBatch:
    raise ValueError("no such luck")


p = ps.Pipeline("broken")
p.source(pa.table({"n": [1]})).map_batches(broken).sink(ps.FileSink("broken/"))
"""


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path, agents=2) as cluster:
        yield cluster


@pytest.mark.timeout(TIMEOUT_S)
def test_a_program_and_its_modules_run_there_as_they_run_here(cluster: Cluster) -> None:
    (cluster.folder / "helped.py").write_text(HELPED)
    (cluster.folder / "helper.py").write_text(HELPER)
    done = cluster.penstock("submit", "helped.py", "--wait", "--env", "WHERE=there")
    assert done.returncode == 0, done.stderr + cluster.story()
    assert "helped: finished" in done.stdout
    texts = [path.read_text() for path in (cluster.folder / "helped").rglob("*.jsonl")]
    rows = [json.loads(line)["n"] for text in texts for line in text.splitlines()]
    assert sorted(rows) == list(range(0, 20, 2))
    logs = json.loads(cluster.penstock("logs", "helped", "--json").stdout)["logs"]
    lines = {part["where"]: "\n".join(part["lines"]) for part in logs}
    assert "checkpoint" in lines.pop("coordinator")
    assert "a batch of" in "".join(lines.values())
    assert "in there" in "".join(lines.values())
    again = cluster.penstock("submit", "helped.py", "--wait", "--env", "WHERE=there")
    assert again.returncode == 0
    assert "--fresh runs it again" in again.stderr


@pytest.mark.timeout(TIMEOUT_S)
def test_a_job_that_gives_up_says_why_and_exits_with_one(cluster: Cluster) -> None:
    (cluster.folder / "broken.py").write_text(BROKEN)
    done = cluster.penstock("submit", "broken.py", "--wait", "--set", "restart_attempts=1")
    assert done.returncode == 1, done.stderr
    assert "ValueError: no such luck" in done.stderr
    shown = json.loads(cluster.penstock("ps", "broken", "--json").stdout)["jobs"][0]
    assert shown["state"] == "failed"
    assert "no such luck" in shown["note"]


@pytest.mark.timeout(TIMEOUT_S)
def test_a_running_job_is_seen_scaled_and_drained(cluster: Cluster) -> None:
    run = LedgerRun(cluster, rows=100_000, rate=500.0, parallelism=1)
    run.until_rows()
    twice = cluster.penstock("submit", "program.py")
    assert twice.returncode == 2
    assert "stop it first" in twice.stderr
    wider = cluster.penstock("scale", "ledger", "count_per_key=3")
    assert wider.returncode == 0, wider.stderr
    cluster.until(
        "the third subtask works",
        lambda: [p for p in cluster.processes("subtask") if p.title.endswith("[2]")],
    )
    cluster.until_state("ledger", "running")
    wrong = cluster.penstock("scale", "ledger", "nonsense=2")
    assert wrong.returncode == 0
    cluster.until("it says so", lambda: "no operator 'nonsense'" in cluster.job("ledger").note)
    cluster.until_state("ledger", "running")
    nodes = json.loads(cluster.penstock("ps", "--nodes", "--json").stdout)["nodes"]
    assert sum(node["used"] for node in nodes) == 3
    drained = cluster.penstock("stop", "ledger", "--drain", "--wait")
    assert drained.returncode == 0, drained.stderr
    assert "ledger: finished" in drained.stderr
    assert not cluster.processes("subtask")


@pytest.mark.timeout(TIMEOUT_S)
def test_control_and_data_pass_through_tls_as_well(tmp_path: Path) -> None:
    with Cluster(tmp_path, agents=2, tls=True) as cluster:
        run = LedgerRun(cluster, rows=2_000, rate=1_000.0, parallelism=2)
        run.until_rows()
        assert {process.node for process in cluster.processes("net")} == set(cluster.agents)
        run.prove()
