"""Each kind of process is killed at each named point of the protocol; no row is lost or doubled.

The ledger job runs under `penstock run`. A rule of PENSTOCK_FAILPOINTS kills one process once; the
engine recovers, or, if the root itself died, the same command is started again. Then the ledger
must hold every row exactly once, and nothing may be left behind.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from crash_run import assert_hit, run_under, subtasks

from penstock.runtime.failpoint import (
    AGENT_FAILPOINTS,
    CONTROLLER_FAILPOINTS,
    FAILPOINTS,
    SUBTASK_FAILPOINTS,
)

ONCE_ONLY = ("takeover", "deploy", "finished")
"""Points that a healthy job reaches once; all others are hit at their second time."""


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
    assert_hit(tmp_path, point, kind)
