from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from toy_agent import Published, ToyAgent

from penstock.dataflow.launcher import JobHandle
from penstock.dataflow.settings import JobSettings
from penstock.elements.errors import ConnectorError, JobFailed, PlanError, StateError
from penstock.runtime import messages
from penstock.runtime.checkpoint_store import CheckpointStore
from penstock.runtime.embedded import EmbeddedLauncher
from penstock.runtime.log import Attempted, read_entries, read_history
from penstock.runtime.messages import NotResponding, SubtaskExited, SubtaskKey
from penstock.state.store import LocalStore
from penstock.testing import simulated_subtask
from penstock.testing.simulated_plan import PARALLELISM, PLAN, SPLITS
from penstock.testing.simulated_subtask import SPLIT_ROWS

WAIT_S = 30.0
ROWS = [100 * split + j for split in range(SPLITS) for j in range(SPLIT_ROWS)]
MIDDLE = SubtaskKey("middle", 0)


class Bench:
    """Starts jobs over toy agents in one state directory."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self.published: Published = {}
        self.held = threading.Event()
        self.agents: list[ToyAgent] = []
        self.handles: list[JobHandle] = []
        self.settings = JobSettings(
            state_dir=str(state_dir),
            checkpoint_interval_s=0.02,
            restart_delay_s=0.001,
            durability="process",
        )

    def start(self, plan: Any = PLAN, **changes: Any) -> JobHandle:
        settings = msgspec.structs.replace(self.settings, **changes)
        handle = EmbeddedLauncher(self._agent).start(plan, settings)
        self.handles.append(handle)
        return handle

    def _agent(self) -> ToyAgent:
        self.agents.append(ToyAgent(self.published, self.held))
        return self.agents[-1]

    def rows(self) -> list[int]:
        rows = [row for published in self.published.values() for row in published]
        return sorted(row[0] for row in rows if row[0] != "total")

    def until(self, holds: Callable[[], bool]) -> None:
        pause = threading.Event()
        for _ in range(int(WAIT_S / 0.005)):
            if holds():
                return
            pause.wait(0.005)
        raise AssertionError("it did not come about")

    def store(self) -> LocalStore:
        return LocalStore(str(self.state_dir / PLAN.name), "process")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path / "state")
    yield made
    made.held.clear()
    for handle in made.handles:
        try:
            handle.stop("now")
        except JobFailed:
            pass
    for agent in made.agents:
        agent.close()


def test_a_job_runs_to_its_end_and_everything_is_published_once(bench: Bench) -> None:
    summary = bench.start().wait(WAIT_S)
    assert summary.outcome == "finished"
    assert summary.checkpoints >= 1
    assert bench.rows() == ROWS
    assert summary.rows_in > 0
    assert summary.rows_out > 0
    assert summary.late > 0


def test_a_finished_job_is_not_run_again_unless_fresh(bench: Bench) -> None:
    epoch = bench.start().wait(WAIT_S).epoch
    again = bench.start()
    assert again.wait().outcome == "already finished"
    assert again.status().state == f"finished at epoch {epoch}; --fresh runs it again"
    assert len(bench.agents) == 1
    bench.published.clear()
    assert bench.start(fresh=True).wait(WAIT_S).outcome == "finished"
    assert bench.rows() == ROWS
    assert (bench.state_dir / f"{PLAN.name}.old-1" / "log" / "00000001").exists()


def test_stop_takes_a_checkpoint_and_the_same_command_resumes(bench: Bench) -> None:
    bench.held.set()
    handle = bench.start(checkpoint_interval_s=60.0)
    bench.until(lambda: handle.status().state == "running")
    summary = handle.stop()
    assert summary.outcome == "stopped"
    assert summary.epoch == 1
    bench.held.clear()
    resumed = bench.start().wait(WAIT_S)
    assert resumed.outcome == "finished"
    assert resumed.epoch > summary.epoch
    assert bench.rows() == ROWS
    deploy = bench.agents[1].deployed[0]
    assert (deploy.generation, deploy.attempt) == (2, 1)
    assert deploy.run_id == bench.agents[0].deployed[0].run_id
    assert all(told.commit_up_to == 1 for told in deploy.subtasks)
    assert all(len(told.restored) == PARALLELISM for told in deploy.subtasks)


def test_splits_are_dealt_evenly_and_only_once(bench: Bench) -> None:
    bench.held.set()
    handle = bench.start()
    bench.until(lambda: handle.status().epoch > 0)
    first = [told.splits for told in bench.agents[0].deployed[0].subtasks[:PARALLELISM]]
    assert [len(splits["source"]) for splits in first] == [2, 2]
    bench.agents[0].fail(MIDDLE, "a|b|1")
    bench.until(lambda: len(bench.agents[0].deployed) == 2)
    second = bench.agents[0].deployed[1].subtasks[:PARALLELISM]
    assert [told.splits for told in second] == [{"source": []}, {"source": []}]
    bench.held.clear()
    handle.wait(WAIT_S)
    assert bench.rows() == ROWS


def test_a_failed_attempt_and_a_lost_agent_are_restarted_from_the_last_checkpoint(
    bench: Bench,
) -> None:
    bench.held.set()
    handle = bench.start()
    bench.until(lambda: handle.status().epoch > 0)
    bench.agents[0].events.put(SubtaskExited(1, 1, MIDDLE, 5, -9))
    bench.until(lambda: handle.status().restarts == 1)
    bench.until(lambda: handle.status().state == "running")
    bench.agents[0].kill()
    bench.until(lambda: handle.status().restarts == 2)
    bench.held.clear()
    assert handle.wait(WAIT_S).restarts == 2
    assert bench.rows() == ROWS
    store = bench.store()
    attempts = [entry for entry in read_entries(store) if isinstance(entry, Attempted)]
    store.close()
    assert [entry.attempt for entry in attempts] == [1, 2, 3]
    assert attempts[0].restores == 0
    assert attempts[2].restores >= attempts[1].restores > 0


def test_a_job_that_keeps_failing_gives_up_with_every_cause(bench: Bench) -> None:
    bench.held.set()
    handle = bench.start(restart_attempts=2)
    for number in range(3):
        bench.until(lambda number=number: len(bench.agents[0].deployed) == number + 1)
        bench.until(lambda: MIDDLE in bench.agents[0].subtasks)
        bench.agents[0].fail(MIDDLE, f"op|ValueError|row {number}")
    with pytest.raises(JobFailed, match="3 times in a row") as failed:
        handle.wait(WAIT_S)
    assert [f"row {n}" in a.cause for n, a in enumerate(failed.value.attempts)] == [True] * 3
    assert handle.status().state == "failed"


def test_the_same_failure_twice_stops_the_job_with_the_rows_set_aside(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poisoned(kind: str, text: str, operator: str, identity: str) -> messages.Failure:
        return messages.Failure(kind, text, operator, identity, b"the rows")

    monkeypatch.setattr(simulated_subtask, "Failure", poisoned)
    bench.held.set()
    handle = bench.start()
    for number in range(2):
        bench.until(lambda number=number: len(bench.agents[0].deployed) == number + 1)
        bench.until(lambda: MIDDLE in bench.agents[0].subtasks)
        bench.agents[0].fail(MIDDLE, "op|ValueError|row 7")
    with pytest.raises(JobFailed, match="failed twice in op") as failed:
        handle.wait(WAIT_S)
    (kept,) = (bench.state_dir / PLAN.name / "poison").iterdir()
    assert str(kept) in str(failed.value)
    assert kept.read_bytes() == b"the rows"


def test_a_newer_leader_fences_the_old_one(bench: Bench) -> None:
    bench.held.set()
    handle = bench.start()
    bench.until(lambda: handle.status().epoch > 0)
    store = bench.store()
    rival = CheckpointStore(store, PLAN, bench.settings)
    assert rival.take_over()
    with pytest.raises(JobFailed, match="generation 2 has taken the job over"):
        handle.wait(WAIT_S)
    assert rival.manifest is not None
    line = read_history(store).line
    assert line[-1].id == rival.manifest.id
    store.close()


def test_a_bug_in_the_controller_fails_the_job_with_its_text(bench: Bench) -> None:
    bench.held.set()
    handle = bench.start()
    bench.until(lambda: handle.status().state == "running")
    bench.agents[0].send_error = RuntimeError("a bug of ours")
    with pytest.raises(JobFailed, match="a bug of ours"):
        handle.wait(WAIT_S)
    bench.agents[0].send_error = None


def test_stop_now_ends_without_a_checkpoint(bench: Bench) -> None:
    bench.held.set()
    handle = bench.start(checkpoint_interval_s=60.0)
    bench.until(lambda: handle.status().state == "running")
    assert handle.stop("now").epoch == 0


def test_drain_ends_the_data_and_finishes_the_job(bench: Bench) -> None:
    bench.held.set()
    handle = bench.start(checkpoint_interval_s=60.0)
    bench.until(lambda: handle.status().state == "running")
    bench.held.clear()
    assert handle.stop("drain").outcome == "finished"
    assert bench.start().wait().outcome == "already finished"


def test_status_names_processes_and_those_that_do_not_respond(bench: Bench) -> None:
    bench.held.set()
    handle = bench.start()
    bench.until(lambda: handle.status().epoch > 0)
    status = handle.status()
    assert status.pids["agent"] == 4711
    assert status.pids["fork server"] == 4712
    assert "middle[1]" in status.pids
    assert [operator.parallelism for operator in status.operators] == [2, 2, 2]
    assert status.last_checkpoint_s is not None
    bench.agents[0].events.put(NotResponding(1, 1, MIDDLE, "process", 12.0))
    bench.until(lambda: "middle[0] not responding for 12 s in process" in handle.status().state)
    bench.agents[0].events.put(NotResponding(1, 1, MIDDLE, "process", 0))
    bench.until(lambda: handle.status().state == "running")


def test_waiting_with_a_timeout_leaves_the_job_running(bench: Bench) -> None:
    bench.held.set()
    handle = bench.start()
    with pytest.raises(TimeoutError, match="still runs"):
        handle.wait(0.01)
    assert handle.stop().outcome == "stopped"


def test_without_a_state_directory_nothing_is_left(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    bench.start(state_dir=None).wait(WAIT_S)
    assert list(tmp_path.glob("penstock-*")) == []


def test_a_source_that_cannot_be_listed_fails_at_the_start_and_leaves_no_log(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: object) -> None:
        raise OSError("no such host")

    monkeypatch.setattr(type(PLAN.vertices[0].operators[0].processor.connector), "splits", broken)  # type: ignore[attr-defined]
    with pytest.raises(ConnectorError, match="its splits cannot be listed: OSError: no such host"):
        bench.start()
    store = bench.store()
    assert read_history(store).length == 0
    store.close()


def test_state_without_an_owner_stops_a_resume_and_lists_both_sides(bench: Bench) -> None:
    bench.held.set()
    handle = bench.start()
    bench.until(lambda: handle.status().epoch > 0)
    handle.stop()
    middle = PLAN.vertices[1]
    operator = replace(middle.operators[0], id="other", name="renamed")
    vertices = (PLAN.vertices[0], replace(middle, operators=(operator,)), PLAN.vertices[2])
    changed = replace(PLAN, vertices=vertices)
    with pytest.raises(StateError) as refused:
        bench.start(changed)
    assert "in the checkpoint only: middle (middle)" in str(refused.value)
    assert "in the program only:    renamed (other)" in str(refused.value)


def test_a_name_that_is_no_directory_is_refused(bench: Bench) -> None:
    with pytest.raises(PlanError, match="cannot name a directory"):
        bench.start(replace(PLAN, name="a/b"))
