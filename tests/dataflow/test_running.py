from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest
from plan_fixtures import Feed, Keep, flights

import penstock as ps
from penstock.dataflow.launcher import JobStatus, StopMode, Summary, use_launcher
from penstock.dataflow.overrides import CommandLine, use_command_line
from penstock.dataflow.plan import Plan
from penstock.dataflow.settings import JobSettings


class Handle:
    """A job that does what the test says."""

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher

    def status(self) -> JobStatus:
        return JobStatus("p", "RUNNING", 1, 0, 0, 0, 0, 0, 0, None, None)

    def stop(self, mode: StopMode = "checkpoint") -> Summary:
        self._launcher.stops.append(mode)
        if mode == "checkpoint" and self._launcher.impatient:
            raise KeyboardInterrupt
        return Summary("p", "stopped", epoch=4)

    def wait(self, timeout_s: float | None = None) -> Summary:
        if self._launcher.interrupted:
            raise KeyboardInterrupt
        if timeout_s is not None and not self._launcher.stops and self._launcher.slow:
            raise TimeoutError
        return Summary("p", "finished", rows_in=2, late=self._launcher.late)


class Launcher:
    """Runs nothing; lets a test play the sink."""

    def __init__(self) -> None:
        self.started: list[tuple[Plan, JobSettings]] = []
        self.stops: list[str] = []
        self.interrupted = self.impatient = self.slow = False
        self.late = 0
        self.rows: pa.RecordBatch | None = None

    def start(self, plan: Plan, settings: JobSettings) -> Any:
        self.started.append((plan, settings))
        if self.rows is not None:
            self._write(plan, self.rows)
        return Handle(self)

    def _write(self, plan: Plan, rows: pa.RecordBatch) -> None:
        (sink,) = [s.processor.sink for v in plan.vertices for s in v.operators if s.is_sink]
        path = f"{sink.directory}/0-0.arrow"
        with pa.OSFile(path, "wb") as file, pa.ipc.new_file(file, rows.schema) as out:
            out.write_batch(rows)


@pytest.fixture
def launcher() -> Iterator[Launcher]:
    fake = Launcher()
    before = use_launcher(fake)
    yield fake
    use_launcher(before)


@pytest.fixture
def pipeline() -> ps.Pipeline:
    p = ps.Pipeline("p")
    flights(p).sink(Keep())
    return p


def test_run_hands_the_plan_and_its_settings_to_the_launcher(
    launcher: Launcher, pipeline: ps.Pipeline
) -> None:
    summary = pipeline.run(
        state_dir="state/", parallelism=3, checkpoint_interval="250 ms", linger_ms=1.5
    )
    assert summary.rows_in == 2
    ((plan, settings),) = launcher.started
    assert plan.vertices[0].parallelism == 3
    assert settings.state_dir == "state/"
    assert (settings.checkpoint_interval_s, settings.linger_ms) == (0.25, 1.5)


def test_start_comes_back_with_a_handle(launcher: Launcher, pipeline: ps.Pipeline) -> None:
    assert pipeline.start().status().state == "RUNNING"


def test_without_a_state_directory_it_says_what_that_means(
    launcher: Launcher, pipeline: ps.Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "penstock"):
        pipeline.run()
    assert "survives crashes of its processes, not of this one" in caplog.text


def test_what_is_not_exactly_once_is_said_at_the_start(
    launcher: Launcher, caplog: pytest.LogCaptureFixture
) -> None:
    p = ps.Pipeline("p")
    flights(p, feed=Feed(replay=False)).sink(Keep())
    with caplog.at_level(logging.WARNING, "penstock"):
        p.run(state_dir="s")
    assert "at most once" in caplog.text


def test_ctrl_c_stops_with_a_checkpoint_and_says_how_to_go_on(
    launcher: Launcher, pipeline: ps.Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    launcher.interrupted = True
    with caplog.at_level(logging.WARNING, "penstock"):
        summary = pipeline.run(state_dir="state/")
    assert (summary.outcome, launcher.stops) == ("stopped", ["checkpoint"])
    assert "state_dir='state/'" in caplog.text


def test_a_second_ctrl_c_stops_at_once(launcher: Launcher, pipeline: ps.Pipeline) -> None:
    launcher.interrupted = launcher.impatient = True
    pipeline.run()
    assert launcher.stops == ["checkpoint", "now"]


def test_under_a_command_line_a_run_is_honoured_once_with_its_settings(
    launcher: Launcher, pipeline: ps.Pipeline
) -> None:
    seen: list[Any] = []

    def watch(handle: Any, settings: JobSettings) -> Summary:
        seen.append(settings.parallelism)
        summary: Summary = handle.wait()
        return summary

    command_line = CommandLine({"parallelism": 5}, watch=watch)
    before = use_command_line(command_line)
    try:
        first = pipeline.run(parallelism=2)
        second = pipeline.run(parallelism=2)
    finally:
        use_command_line(before)
    assert first is second
    assert (len(launcher.started), seen) == (1, [5])
    assert launcher.started[0][1].parallelism == 5
    assert command_line.ran == {"p": first}


def test_collect_gives_the_rows_and_leaves_the_pipelines_sinks_alone(
    launcher: Launcher, pipeline: ps.Pipeline
) -> None:
    launcher.rows = pa.record_batch({"carrier": ["AA", "UA"]})
    table = flights(pipeline).select("carrier").collect()
    assert table.to_pydict() == {"carrier": ["AA", "UA"]}
    ((plan, settings),) = launcher.started
    assert settings.state_dir is None
    names = [spec.name for vertex in plan.vertices for spec in vertex.operators]
    assert names == ["feed", "select", "memory_sink"]


def test_collect_of_nothing_has_the_streams_columns(launcher: Launcher) -> None:
    table = flights(ps.Pipeline("p")).select("carrier").collect()
    assert table.schema.names == ["carrier"]
    assert table.num_rows == 0


def test_collect_raises_if_late_rows_were_dropped(launcher: Launcher) -> None:
    launcher.late = 3
    s = flights(ps.Pipeline("p"))
    hot = s.key_by("carrier").window(ps.tumble("1 hour")).aggregate(n="count(*)")
    with pytest.raises(ps.JobFailed, match="3 rows came too late and were dropped"):
        hot.collect()
    hot.late.collect()


def test_head_stops_the_job_when_there_are_enough_rows(launcher: Launcher) -> None:
    launcher.slow = True
    launcher.rows = pa.record_batch({"carrier": ["AA", "UA", "B6"]})
    table = flights(ps.Pipeline("p"), feed=Feed(bounded=False)).select("carrier").head(2)
    assert table.num_rows == 2
    assert launcher.stops == ["now"]


def test_explain_shows_what_is_read_pushed_and_run_where(pipeline: ps.Pipeline) -> None:
    s = flights(pipeline, feed=Feed(name="more")).filter("distance > 100")
    s.key_by("carrier").window(ps.tumble("1 hour")).aggregate(n="count(*)").sink(Keep("b"))
    text = pipeline.explain(parallelism=2)
    assert 'reads carrier, dep_time, distance; event time dep_time; skips unless ("dist' in text
    assert "tumble 1 hour by carrier: n = count(*)" in text
    assert "fold for tumble 1 hour by carrier" in text
    assert "hash(carrier): carrier, __pane, __rows" in text
    assert "memory: 6 subtask processes; channels at most 128 MiB" in text
    assert "test_running.py:" in text


@pytest.mark.parametrize("look", ["collect", "head"])
def test_looking_leaves_no_folder_behind_when_it_cannot_be_planned(
    launcher: Launcher, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, look: str
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("PENSTOCK_PARALLELISM", "5000")
    rows = flights(ps.Pipeline("p")).select("carrier")
    with pytest.raises(ps.PlanError, match="5000"):
        rows.collect() if look == "collect" else rows.head(1)
    assert list(tmp_path.iterdir()) == []
