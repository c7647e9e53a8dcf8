"""Time on the run queue is told apart from work and from sleep."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from penstock.runtime import run_queue
from penstock.runtime.run_queue import STATISTICS, RunQueue


@pytest.mark.skipif(not os.path.exists(STATISTICS), reason="the kernel keeps no such statistics")
def test_what_the_kernel_says_is_told_and_never_falls() -> None:
    queue = RunQueue()
    before = queue.waited_ns()
    for _ in range(100):
        now = queue.waited_ns()
        assert now >= before
        before = now


def test_the_second_number_is_the_wait(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said = tmp_path / "schedstat"
    said.write_text("111 222 333\n")
    monkeypatch.setattr(run_queue, "STATISTICS", str(said))
    assert RunQueue().waited_ns() == 222


def test_where_the_kernel_says_nothing_nobody_waits(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(run_queue, "STATISTICS", str(tmp_path / "missing"))
    queue = RunQueue()
    assert queue.waited_ns() == 0
    assert queue.waited_ns() == 0
    (tmp_path / "empty").write_text("")
    monkeypatch.setattr(run_queue, "STATISTICS", str(tmp_path / "empty"))
    assert RunQueue().waited_ns() == 0
