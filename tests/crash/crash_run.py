"""A run of the ledger under rules that kill its processes, and what must hold when it has ended."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from penstock.dataflow.planner import make_plan
from penstock.runtime.doorbell import sweep_stale
from penstock.testing.ledger import check_ledger, ledger

ROOT = Path(__file__).resolve().parents[2]
SPLITS, ROWS, PARALLELISM = 4, 4000, 2
RATE = 1500.0
"""Rows a second and split, so that a run lasts for several checkpoints."""
STARTS_MAX = 4
TIMEOUT_S = 90


def subtasks() -> dict[str, str]:
    """One subtask of each kind, as `@where` names it."""
    pipeline = ledger("unused", SPLITS, ROWS, RATE)
    plan = make_plan(pipeline.name, pipeline._ends, pipeline.functions, PARALLELISM).plan
    found = {}
    for vertex in plan.vertices:
        source = any(op.is_source for op in vertex.operators)
        sink = any(op.is_sink for op in vertex.operators)
        found["source" if source else "sink" if sink else "middle"] = f"{vertex.id}[0]"
    return found


def run_under(folder: Path, rule: str, interval: str = "150 ms", rate: float | None = RATE) -> None:
    """Run the ledger to its end under one rule, and check everything that must hold."""
    (folder / "once").mkdir()
    environment = {
        **os.environ, "PENSTOCK_FAILPOINTS": rule, "PENSTOCK_FAILPOINTS_ONCE": str(folder / "once"),
        "LEDGER_OUT": str(folder / "out"), "LEDGER_SPLITS": str(SPLITS), "LEDGER_ROWS": str(ROWS),
        **({} if rate is None else {"LEDGER_RATE": str(rate)}),
    }  # fmt: skip
    command = [
        sys.executable, "-m", "penstock", "run", str(ROOT / "examples" / "ledger.py"),
        "--state-dir", str(folder / "state"), "--checkpoint-interval", interval,
        "--parallelism", str(PARALLELISM),
    ]  # fmt: skip
    for _ in range(STARTS_MAX):
        ran = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
        if ran.returncode >= 0:
            break
    assert ran.returncode == 0, ran.stderr
    report = check_ledger(folder / "out", SPLITS, ROWS)
    assert not report.problems, f"{report.problems}\n{ran.stderr}"
    sweep_stale()
    assert not sweep_stale(), "a name of a dead process came back"
    assert not (folder / "out" / ".staging").exists()


def assert_hit(folder: Path, point: str, kind: str) -> None:
    """The rule has killed one process."""
    hit = list((folder / "once").iterdir())
    assert len(hit) == 1, f"{point} was not reached by {kind}"
