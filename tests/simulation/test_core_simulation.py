from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from penstock.elements.errors import StateError
from penstock.elements.signals import BarrierFlag, InputStatus
from penstock.runtime import enumerators, job, log, retention
from penstock.runtime.alignment import Alignment, Command, TakeSnapshot
from penstock.runtime.progress import Progress
from penstock.state.log_history import LogHistory, LogPart, LogSeal
from penstock.testing.simulated_cores import (
    simulate_alignment,
    simulate_log,
    simulate_progress,
)
from penstock.testing.simulated_job import simulate
from penstock.testing.store import DroppingStore

SEEDS = 1000
SEEDS_TO_CATCH = 400
CORES = [simulate_alignment, simulate_progress, simulate_log, simulate]


@pytest.mark.parametrize("core", CORES)
def test_every_schedule_keeps_the_invariants(core: Callable[[int], str]) -> None:
    for seed in range(SEEDS):
        core(seed)


@pytest.mark.parametrize("core", CORES)
def test_a_seed_replays_identically_and_another_does_not(core: Callable[[int], str]) -> None:
    told = {seed: core(seed) for seed in range(20)}
    assert {seed: core(seed) for seed in range(20)} == told
    assert len(set(told.values())) > 10


def caught(core: Callable[[int], str]) -> str:
    for seed in range(SEEDS_TO_CATCH):
        try:
            core(seed)
        except (AssertionError, StateError) as error:
            return f"caught {error}"
    return ""


def test_the_simulation_catches_barriers_that_do_not_align(monkeypatch: pytest.MonkeyPatch) -> None:
    def at_the_first(
        self: Alignment, channel: int, checkpoint_id: int, flags: BarrierFlag
    ) -> list[Command]:
        if checkpoint_id <= self._settled:
            return []
        self._settled = checkpoint_id
        return [TakeSnapshot(checkpoint_id, flags)]

    monkeypatch.setattr(Alignment, "on_barrier", at_the_first)
    assert "rows" in caught(simulate)
    assert "cut" in caught(simulate_alignment)


def test_the_simulation_catches_a_log_that_does_not_fence(monkeypatch: pytest.MonkeyPatch) -> None:
    create = log.JobLog._create
    monkeypatch.setattr(log.JobLog, "_create", lambda self, entry: create(self, entry) or True)
    assert "not in history" in caught(simulate)
    assert caught(simulate_log)


def test_the_simulation_catches_ids_that_are_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def forget(self: log.JobLog, checkpoint_id: int) -> None:
        self._reserved = checkpoint_id

    monkeypatch.setattr(log, "RESERVED_IDS", 0)
    monkeypatch.setattr(log.JobLog, "reserve", forget)
    assert "used twice" in caught(simulate)
    assert "triggered twice" in caught(simulate_log)


def test_the_simulation_catches_a_store_that_does_not_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DroppingStore, "sync", lambda self: None)
    assert caught(simulate)
    assert caught(simulate_log)


def test_the_simulation_catches_a_greedy_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "kept_checkpoints", lambda line, retained, owed_since: [])
    found = caught(simulate)
    assert "cannot be restored" in found or "no such object" in found


def test_the_simulation_catches_a_subtask_that_forgets_rows_which_no_checkpoint_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    confirm = LogHistory.confirm

    def all_of_them(
        self: LogHistory, sealed: LogSeal, parts: Sequence[LogPart], written: bool
    ) -> None:
        confirm(self, sealed, parts, written)
        self.first = self.kept = self.appends

    monkeypatch.setattr(LogHistory, "confirm", all_of_them)
    assert "rows of the log were lost" in caught(simulate)


def test_the_simulation_catches_splits_that_are_dealt_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    afresh = enumerators.Enumerators.deal_afresh
    monkeypatch.setattr(enumerators.Enumerators, "deal_afresh", lambda self, seen: afresh(self, {}))
    assert "dealt twice" in caught(simulate)


def test_the_simulation_catches_an_end_without_a_final_checkpoint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def any_checkpoint(self: job.Job) -> BarrierFlag | None:
        done = self.checkpoints.all_ended and self.checkpoints.completed
        return BarrierFlag.NONE if done else None

    monkeypatch.setattr(job.Job, "_wanted_flag", any_checkpoint)
    assert "rows" in caught(simulate) or "totals" in caught(simulate)


def test_the_simulation_catches_a_log_entry_without_a_manifest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    put = DroppingStore.put

    def forgets_manifests(self: DroppingStore, name: str, body: bytes) -> bool:
        return name.startswith("chk/") or put(self, name, body)

    monkeypatch.setattr(DroppingStore, "put", forgets_manifests)
    assert "cannot be restored" in caught(simulate)


def test_the_simulation_catches_a_watermark_that_waits_for_idle_inputs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settle = Progress._settle

    def wait_for_all(self: Progress) -> object:
        self._status = [
            InputStatus.ACTIVE if one is InputStatus.IDLE else one for one in self._status
        ]
        return settle(self)

    monkeypatch.setattr(Progress, "_settle", wait_for_all)
    assert caught(simulate_progress)
