"""Each kind of process is killed at each named point of the protocol; no row is lost or doubled.

The ledger job runs under `penstock run`. A rule of PENSTOCK_FAILPOINTS kills one process once; the
engine recovers, or, if the root itself died, the same command is started again. Then the ledger
must hold every row exactly once, and nothing may be left behind.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from penstock.dataflow.planner import make_plan
from penstock.runtime.doorbell import sweep_stale
from penstock.runtime.failpoint import (
    AGENT_FAILPOINTS,
    CONTROLLER_FAILPOINTS,
    FAILPOINTS,
    SUBTASK_FAILPOINTS,
)
from penstock.testing.ledger import check_ledger, ledger

ROOT = Path(__file__).resolve().parents[2]
SPLITS, ROWS, RATE, PARALLELISM = 4, 4000, 1500, 2
STARTS_MAX = 4
TIMEOUT_S = 90
ONCE_ONLY = ("takeover", "deploy", "finished")
"""Points that a healthy job reaches once; all others are hit at their second time."""


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


def cases() -> list[tuple[str, str]]:
    """(crash point, kind of process)."""
    commits = ("before-commit", "after-commit")  # only sinks owe commits
    of_subtasks = [
        (point, kind)
        for point in SUBTASK_FAILPOINTS
        for kind in ("source", "middle", "sink")
        if point not in commits or kind == "sink"
    ]
    agents = [(point, "agent") for point in AGENT_FAILPOINTS]
    return of_subtasks + agents + [(point, "controller") for point in CONTROLLER_FAILPOINTS]


def test_every_documented_crash_point_is_in_the_matrix() -> None:
    assert {point for point, _ in cases()} == set(FAILPOINTS)
    assert set(subtasks()) == {"source", "middle", "sink"}


def test_rows_arrive_once_when_nothing_is_killed(tmp_path: Path) -> None:
    run_under(tmp_path, "")


@pytest.mark.parametrize(("point", "kind"), cases(), ids=lambda value: value)
def test_rows_arrive_once_although_a_process_dies(point: str, kind: str, tmp_path: Path) -> None:
    where = "" if kind == "agent" else "@" + subtasks().get(kind, kind)
    times = 1 if any(word in point for word in ONCE_ONLY) else 2
    run_under(tmp_path, f"{point}{where}#{times}=kill")
    hit = list((tmp_path / "once").iterdir())
    assert len(hit) == 1, f"{point} was not reached by {kind}"


def run_under(folder: Path, rule: str) -> None:
    """Run the ledger to its end under one rule, and check everything that must hold."""
    (folder / "once").mkdir()
    environment = {
        **os.environ, "PENSTOCK_FAILPOINTS": rule, "PENSTOCK_FAILPOINTS_ONCE": str(folder / "once"),
        "LEDGER_OUT": str(folder / "out"), "LEDGER_SPLITS": str(SPLITS),
        "LEDGER_ROWS": str(ROWS), "LEDGER_RATE": str(RATE),
    }  # fmt: skip
    command = [
        sys.executable, "-m", "penstock", "run", str(ROOT / "examples" / "ledger.py"),
        "--state-dir", str(folder / "state"), "--checkpoint-interval", "150 ms",
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
