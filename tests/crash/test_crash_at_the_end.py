"""A process dies around the last checkpoint of a job that has ended; its rows arrive once.

That checkpoint holds nothing by key: what goes on from it may only commit and end. No other
checkpoint is taken, so each point is reached for it alone.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from crash_run import assert_hit, run_under, subtasks

CASES = {
    "source": ("before-snapshot", "after-acknowledge"),
    "middle": (
        "before-snapshot",
        "after-snapshot",
        "before-upload",
        "after-upload",
        "before-acknowledge",
        "after-acknowledge",
    ),
    "sink": ("after-snapshot", "before-acknowledge", "before-commit", "after-commit"),
    "controller": (
        "after-trigger",
        "before-manifest",
        "after-manifest",
        "before-log",
        "after-log",
        "before-commit-send",
        "after-commit-send",
    ),
}
"""Kinds of processes, and where each dies."""


@pytest.mark.parametrize(
    ("kind", "point"), [(kind, point) for kind, points in CASES.items() for point in points]
)
def test_rows_arrive_once_although_a_process_dies_at_the_end(
    kind: str, point: str, tmp_path: Path
) -> None:
    rule = f"{point}@{subtasks().get(kind, kind)}=kill"
    run_under(tmp_path, rule, interval="1 h", rate=None)
    assert_hit(tmp_path, point, kind)
