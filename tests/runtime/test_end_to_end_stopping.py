"""Whole jobs are stopped, drained, resumed and taken over at any moment; no row is lost."""

from __future__ import annotations

import itertools
from pathlib import Path

import pyarrow as pa
import pytest
from end_to_end import (
    BusyAndQuiet,
    Count,
    Hoard,
    PassOn,
    blocked,
    some_ticks,
    ticks,
    until,
    written,
)

import penstock as ps
from penstock.dataflow.launcher import JobStatus

INTERVAL = "100 ms"


def running(status: JobStatus) -> bool:
    return status.state == "running"


def numbers(folder: Path, last: int, name: str = "numbers") -> ps.Pipeline:
    """1 to `last`, one per millisecond, into files."""
    p = ps.Pipeline(name)
    p.source(some_ticks(last=last)).key_by("k").process(PassOn()).sink(
        ps.FileSink(folder, format="jsonl")
    )
    return p


def test_stops_at_any_moment_lose_nothing(tmp_path: Path) -> None:
    """Before there is a process, before there is a row, before the first checkpoint, later."""
    last = 1500
    moments = [
        lambda status: True,
        lambda status: bool(status.pids),
        running,
        lambda status: status.epoch > 0,
    ]
    pipeline = numbers(tmp_path / "out", last)
    state = str(tmp_path / "state")
    for moment in moments:
        job = pipeline.start(state_dir=state, checkpoint_interval=INTERVAL)
        until(job, moment)
        assert job.stop().outcome == "stopped"
    assert pipeline.run(state_dir=state, checkpoint_interval=INTERVAL).outcome == "finished"
    assert sorted(row["v"] for row in written(tmp_path / "out")) == list(range(1, last + 1))


def test_a_stop_counts_every_row_up_to_its_checkpoint(tmp_path: Path) -> None:
    pipeline = ps.Pipeline("counted")
    pipeline.source(ticks()).sink(
        ps.FileSink(tmp_path / "out", format="jsonl", roll_interval="0 s")
    )
    job = pipeline.start(
        state_dir=str(tmp_path / "state"), checkpoint_interval=INTERVAL, statistics_interval="1 h"
    )
    until(job, lambda status: status.epoch > 2)
    summary = job.stop()
    rows = len(written(tmp_path / "out"))
    assert rows > 0
    assert (summary.rows_in, summary.rows_out) == (rows, rows)


def test_a_drained_feed_is_published_and_finished(tmp_path: Path) -> None:
    pipeline = ps.Pipeline("drained")
    pipeline.source(ticks()).sink(ps.FileSink(tmp_path / "out", format="jsonl"))
    job = pipeline.start(state_dir=str(tmp_path / "state"), checkpoint_interval=INTERVAL)
    until(job, lambda status: status.epoch > 0)
    summary = job.stop("drain")
    values = sorted(row["v"] for row in written(tmp_path / "out"))
    assert summary.outcome == "finished"
    assert values == list(range(1, summary.rows_in + 1))


def test_a_source_that_blocks_for_ever_delays_no_barrier_and_no_stop(tmp_path: Path) -> None:
    pipeline = ps.Pipeline("blocked")
    pipeline.source(blocked()).sink(
        ps.FileSink(tmp_path / "out", format="jsonl", roll_interval="0 s")
    )
    job = pipeline.start(state_dir=str(tmp_path / "state"), checkpoint_interval=INTERVAL)
    until(job, lambda status: status.epoch > 3)
    assert job.stop().rows_in == 1
    assert written(tmp_path / "out") == [{"k": "only", "v": 1}]


def test_checkpoints_go_on_when_one_source_has_ended_and_the_other_never_does(
    tmp_path: Path,
) -> None:
    pipeline = ps.Pipeline("one-ends")
    short = pipeline.source(pa.table({"k": ["x", "y"], "v": [-1, -2]}).cast(_SCHEMA))
    short.union(pipeline.source(ticks())).sink(
        ps.FileSink(tmp_path / "out", format="jsonl", roll_interval="0 s")
    )
    state = str(tmp_path / "state")
    job = pipeline.start(state_dir=state, checkpoint_interval=INTERVAL)
    first = until(job, lambda status: status.epoch > 2).epoch
    job.stop()
    job = pipeline.start(state_dir=state, checkpoint_interval=INTERVAL)
    until(job, lambda status: status.epoch > first + 3)
    job.stop()
    values = sorted(row["v"] for row in written(tmp_path / "out"))
    assert values[:2] == [-2, -1]
    assert values[2:] == list(range(1, len(values) - 1))


def test_a_second_run_takes_over_and_the_first_says_so(tmp_path: Path) -> None:
    last = 1500
    state = str(tmp_path / "state")
    older = numbers(tmp_path / "out", last).start(state_dir=state, checkpoint_interval=INTERVAL)
    until(older, lambda status: status.epoch > 0)
    newer = numbers(tmp_path / "out", last).start(state_dir=state, checkpoint_interval=INTERVAL)
    with pytest.raises(ps.JobFailed, match="has taken the job over"):
        older.wait(60)
    assert newer.wait(60).outcome == "finished"
    assert sorted(row["v"] for row in written(tmp_path / "out")) == list(range(1, last + 1))


def test_a_quiet_split_does_not_hold_windows_back() -> None:
    """Whether it shares a subtask with the busy one, has its own, or one has none at all."""
    for parallelism in (1, 3):
        rows = ps.Pipeline("idle").source(
            BusyAndQuiet(),
            event_time="at",
            out_of_order="1 second",
            idle="300 ms",
            parallelism=parallelism,
        )
        counted = rows.key_by("k").window(ps.tumble("10 seconds")).aggregate(n="count(*)").head(4)
        busy = sorted(row["n"] for row in counted.to_pylist() if row["k"] == "busy")
        assert busy == [9, 10, 10]


def test_state_goes_on_through_a_stateless_edit_and_stops_a_resume_without_its_owner(
    tmp_path: Path,
) -> None:
    state, folder = str(tmp_path / "state"), tmp_path / "out"

    def edited(edit: str) -> ps.Pipeline:
        p = ps.Pipeline("edited")
        rows = p.source(ticks())
        if edit == "stateless":
            rows = rows.filter("v > 0")
        operator = Hoard() if edit == "removed" else Count()
        rows.key_by("k").process(operator).sink(
            ps.FileSink(folder, format="jsonl", roll_interval="0 s")
        )
        return p

    for edit in ("none", "stateless"):
        job = edited(edit).start(state_dir=state, checkpoint_interval=INTERVAL)
        before = job.status().epoch
        until(job, lambda status, before=before: status.epoch > before + 2)  # type: ignore[misc]
        job.stop()
    by_key = itertools.groupby(sorted((row["k"], row["v"]) for row in written(folder)), _key)
    for _, counted in by_key:
        counts = [count for _, count in counted]
        assert counts == list(range(1, len(counts) + 1))

    with pytest.raises(ps.StateError, match=r"(?s)in the checkpoint only: count .*allow_dropped"):
        edited("removed").start(state_dir=state)
    job = edited("removed").start(state_dir=state, allow_dropped_state=True)
    until(job, running)
    assert job.stop().outcome == "stopped"


def test_a_checkpoint_below_a_commit_is_restored_only_if_duplicates_are_accepted(
    tmp_path: Path,
) -> None:
    state = str(tmp_path / "state")
    pipeline = numbers(tmp_path / "out", 100_000, "back")
    job = pipeline.start(state_dir=state, checkpoint_interval=INTERVAL)
    until(job, lambda status: status.epoch > 3)
    last = job.stop().epoch
    with pytest.raises(ps.StateError, match="accept_duplicates=true"):
        pipeline.start(state_dir=state, restore_from=last - 1)
    with pytest.raises(ps.StateError, match=f"kept are: {last - 2}, {last - 1}, {last}"):
        pipeline.start(state_dir=state, restore_from=10_000, accept_duplicates=True)
    job = pipeline.start(state_dir=state, restore_from=last - 1, accept_duplicates=True)
    assert until(job, running).epoch == last - 1
    job.stop()


def _key(pair: tuple[str, int]) -> str:
    return pair[0]


_SCHEMA = pa.schema([pa.field("k", pa.string(), False), pa.field("v", pa.int64(), False)])
