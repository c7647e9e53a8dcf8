"""A job process runs a bundle over several nodes: outcomes, losses, fresh starts, orphans."""

from __future__ import annotations

import json
import os
import signal
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from counting_program import KEYS, SPLITS, Count, Numbers, Row
from toy_cluster import ToyCluster, pause

import penstock as ps
from penstock.cluster.bundle import Bundle, make_bundle
from penstock.cluster.job_messages import NeedSlots, StopJob
from penstock.cluster.job_process import open_store
from penstock.dataflow.launcher import JobStatus
from penstock.dataflow.program import Program
from penstock.dataflow.settings import JobSettings
from penstock.elements.errors import SettingsError

ROWS = 2000


def bundle(rows: int | None, out: Path, name: str = "counting") -> Bundle:
    pipeline = ps.Pipeline(name)
    counted = pipeline.source(Numbers(rows)).key_by("k").process(Count(), name="count")
    counted.sink(ps.FileSink(out, format="jsonl", roll_interval="0 s"))
    return make_bundle(
        Program(name, tuple(pipeline._ends), pipeline.functions), [str(Path(__file__).parent)]
    )


def settings(tmp_path: Path, **more: Any) -> JobSettings:
    return JobSettings(
        state_dir=str(tmp_path / "state"), parallelism=4, checkpoint_interval_s=0.1, **more
    )


def counts(out: Path) -> dict[str, list[int]]:
    found: dict[str, list[int]] = defaultdict(list)
    for path in out.glob("*.jsonl"):
        for line in path.read_text().splitlines():
            row = json.loads(line)
            found[row["k"]].append(row["v"])
    return {key: sorted(values) for key, values in found.items()}


def require_exactly_once(out: Path) -> None:
    """Every key was counted from one upwards without a gap or a repetition."""
    found = counts(out)
    assert len(found) == KEYS
    assert all(values == list(range(1, len(values) + 1)) for values in found.values())


def running(status: JobStatus) -> bool:
    return status.state == "running"


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[ToyCluster]:
    made = ToyCluster(tmp_path)
    yield made
    made.close()


def test_a_bundle_runs_over_two_nodes_to_its_end(cluster: ToyCluster, tmp_path: Path) -> None:
    out = tmp_path / "out"
    cluster.launch(bundle(ROWS, out), "counting", settings(tmp_path))
    summary = cluster.summary()
    assert (summary.outcome, summary.rows_in, summary.restarts) == ("finished", SPLITS * ROWS, 0)
    assert counts(out) == {
        f"key {k}": list(range(1, ROWS // KEYS * SPLITS + 1)) for k in range(KEYS)
    }
    hosts = {title.partition(": ")[0] for status in cluster.reports for title in status.pids}
    assert {"a", "b", "coordinator"} <= hosts
    # What has finished is not run again.
    cluster.launch(bundle(ROWS, out), "counting", settings(tmp_path))
    assert cluster.summary().outcome == "already finished"


def test_a_lost_node_costs_one_restart_that_waits_until_it_is_gone(
    cluster: ToyCluster, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    cluster.launch(bundle(None, out), "counting", settings(tmp_path))
    cluster.until(lambda status: status.epoch > 1)
    lost = cluster.lose("b")
    cluster.until(lambda status: status.state == "ending the attempt")
    pause(0.3)
    assert sum(isinstance(each, NeedSlots) for each in cluster.heard) == 1
    cluster.gone(lost)
    again = cluster.until(lambda status: status.restarts == 1 and running(status)).epoch
    cluster.until(lambda status: status.epoch > again)
    needs = [each for each in cluster.heard if isinstance(each, NeedSlots)]
    assert [need.again for need in needs] == [False, True]
    assert cluster.stop().restarts == 1
    require_exactly_once(out)


def test_a_killed_job_agent_is_opened_again(cluster: ToyCluster, tmp_path: Path) -> None:
    out = tmp_path / "out"
    cluster.launch(bundle(None, out), "counting", settings(tmp_path))
    cluster.until(lambda status: status.epoch > 1)
    os.kill(cluster.agent_pid("b"), signal.SIGKILL)
    again = cluster.until(lambda status: status.restarts == 1 and running(status)).epoch
    cluster.until(lambda status: status.epoch > again)
    assert cluster.stop().restarts == 1
    require_exactly_once(out)


def test_a_job_goes_on_at_other_widths(cluster: ToyCluster, tmp_path: Path) -> None:
    out = tmp_path / "out"
    cluster.launch(bundle(None, out), "counting", settings(tmp_path))
    cluster.until(lambda status: status.epoch > 1)
    assert cluster.stop().outcome == "stopped"
    cluster.launch(bundle(None, out), "counting", settings(tmp_path), {"count": 3, "": 2})
    status = cluster.until(running)
    assert [(each.name, each.parallelism) for each in status.operators] == [
        ("Numbers", 2),
        ("count > file_sink", 3),
    ]
    cluster.until(lambda later: later.epoch > status.epoch + 1)
    cluster.stop()
    require_exactly_once(out)


def test_a_killed_job_process_leaves_the_next_to_go_on(tmp_path: Path) -> None:
    out = tmp_path / "out"
    first, second = ToyCluster(tmp_path), ToyCluster(tmp_path)
    try:
        first.launch(bundle(None, out), "counting", settings(tmp_path))
        epoch = first.until(lambda status: status.epoch > 1).epoch
        os.kill(first.pid, signal.SIGKILL)
        first.close()
        second.launch(bundle(None, out), "counting", settings(tmp_path))
        assert second.until(running).epoch >= epoch
        (need,) = [each for each in second.heard if isinstance(each, NeedSlots)]
        assert need.again
        second.stop()
        require_exactly_once(out)
    finally:
        first.close()
        second.close()


def test_a_stop_that_comes_before_anything_runs_is_heeded(
    cluster: ToyCluster, tmp_path: Path
) -> None:
    cluster.launch(bundle(None, tmp_path / "out"), "counting", settings(tmp_path))
    cluster.tell(StopJob("now"))
    assert cluster.summary().outcome == "stopped"


def test_without_its_controller_it_ends(cluster: ToyCluster, tmp_path: Path) -> None:
    cluster.launch(bundle(None, tmp_path / "out"), "counting", settings(tmp_path))
    cluster.until(running)
    process = psutil.Process(cluster.pid)
    assert process.cmdline()[0].startswith("penstock: job counting")
    cluster.hang_up()
    assert process.wait(30) in (1, None)


@pytest.mark.parametrize(
    ("parallelism", "job", "text"),
    [
        ({"cuont": 2}, "counting", "no operator 'cuont'"),
        ({}, "other", "the bundle is of 'counting', not of 'other'"),
    ],
)
def test_what_cannot_start_says_why(
    parallelism: dict[str, int], job: str, text: str, cluster: ToyCluster, tmp_path: Path
) -> None:
    cluster.launch(bundle(1, tmp_path / "out"), job, settings(tmp_path), parallelism)
    ended = cluster.outcome()
    assert ended.outcome == "failed"
    assert text in ended.failure


def test_a_job_that_gives_up_tells_of_its_attempts(cluster: ToyCluster, tmp_path: Path) -> None:
    def broken(row: Row) -> Row:
        raise ValueError("out of cheese")

    pipeline = ps.Pipeline("broken")
    pipeline.source(Numbers(10)).map(broken).sink(ps.FileSink(tmp_path / "out"))
    made = make_bundle(
        Program("broken", tuple(pipeline._ends), pipeline.functions), [str(Path(__file__).parent)]
    )
    cluster.launch(made, "broken", settings(tmp_path, restart_attempts=0))
    ended = cluster.outcome()
    assert (ended.outcome, ended.summary) == ("failed", b"")
    assert "out of cheese" in ended.failure


# Fresh starts -------------------------------------------------------------------------------------


def test_a_fresh_start_happens_once_per_submission(tmp_path: Path) -> None:
    fresh = settings(tmp_path, fresh=True)

    def begin(submission: str, wanted: JobSettings = fresh) -> bool:
        """Whether an earlier run's object is still there; leaves one."""
        store = open_store("job", wanted, submission)
        try:
            return not store.put("run/x", b"1")
        finally:
            store.close()

    assert not begin("one")
    assert begin("one"), "the second launch of a submission began anew"
    assert begin("plain", settings(tmp_path))
    assert not begin("two")
    assert begin("two")
    assert sorted(os.listdir(tmp_path / "state")) == ["job", "job.old-1"]


def test_a_job_without_a_state_directory_is_refused() -> None:
    with pytest.raises(SettingsError, match="state_dir"):
        open_store("job", JobSettings(), "s")
