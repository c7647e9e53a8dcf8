from __future__ import annotations

import itertools
import zlib
from typing import Any

import msgspec
import pytest

from penstock.elements.errors import Fenced, StateError
from penstock.elements.signals import BarrierFlag
from penstock.runtime import manifest as manifests
from penstock.runtime.checkpoint import StoreCheckpoint
from penstock.runtime.checkpoint_store import CheckpointStore
from penstock.runtime.log import UncertainLog
from penstock.runtime.manifest import (
    Manifest,
    decode_manifest,
    encode_manifest,
    finished_vertices,
    refuse_changed_end,
)
from penstock.runtime.messages import Acknowledge, RunRef, SubtaskKey
from penstock.runtime.retention import AGE_NS_MIN, Listing, dead_objects, retired_manifests
from penstock.state.store import Stored
from penstock.testing.simulated_plan import PARALLELISM, PLAN, SETTINGS
from penstock.testing.store import DroppingStore

KEYS = [SubtaskKey(v.id, i) for v in PLAN.vertices for i in range(PARALLELISM)]
_tokens = itertools.count()


def token() -> str:
    return f"t{next(_tokens)}"


def acknowledge(
    store: DroppingStore, checkpoint_id: int, body: bytes, owes: bool, inline: bool
) -> Acknowledge:
    name = "" if inline else f"run/{token()}"
    if not inline:
        store.put(name, body)
    run = RunRef(name, len(body), zlib.crc32(body), body if inline else b"")
    return Acknowledge(checkpoint_id, run, False, 5, {}, owes, 0, 0, len(body))


class Leader:
    """A checkpoint store that has taken the job over."""

    def __init__(self, store: DroppingStore, **settings: Any) -> None:
        self.store = store
        changed = msgspec.structs.replace(SETTINGS, **settings)
        self.checkpoints = CheckpointStore(store, PLAN, changed, token)
        self.takeover = self.checkpoints.take_over()
        self.next_id = self.checkpoints.log.first_id

    def order(self, owes: bool = False, inline: bool = False, size: int = 10) -> StoreCheckpoint:
        checkpoint_id, self.next_id = self.next_id, self.next_id + 1
        self.checkpoints.log.reserve(checkpoint_id)
        acks = {
            key: acknowledge(self.store, checkpoint_id, bytes([n]) * size, owes, inline)
            for n, key in enumerate(KEYS)
        }
        return StoreCheckpoint(checkpoint_id, BarrierFlag.NONE, acks)

    def complete(self, **how: Any) -> int:
        order = self.order(**how)
        self.checkpoints.complete(order, 1)
        return order.checkpoint_id

    @property
    def restored(self) -> int:
        assert self.checkpoints.manifest is not None
        return self.checkpoints.manifest.id

    def runs(self) -> list[str]:
        assert self.checkpoints.manifest is not None
        return [run.name for run in self.checkpoints.manifest.runs]


def test_a_checkpoint_survives_power_loss_as_soon_as_it_counts() -> None:
    for seed in range(30):
        store = DroppingStore(seed)
        leader = Leader(store)
        leader.complete()
        last = leader.complete()
        leader.order()
        store.lose_power()
        assert Leader(store).restored == last


def test_a_manifest_round_trips_and_damage_is_named() -> None:
    leader = Leader(DroppingStore())
    leader.complete(inline=True)
    manifest = leader.checkpoints.manifest
    assert manifest is not None
    data = encode_manifest(manifest)
    assert decode_manifest(data, "chk/x") == manifest
    for damaged in (b"", data[:20], data[:-1], data[:-1] + b"?", b"PSTKMAN9" + data[8:]):
        with pytest.raises(StateError, match="chk/x"):
            decode_manifest(damaged, "chk/x")


def test_a_run_that_is_missing_or_cut_short_keeps_the_checkpoint_from_counting() -> None:
    leader = Leader(DroppingStore())
    good = leader.complete()
    order = leader.order()
    run = order.acknowledged[KEYS[0]].run
    assert run is not None
    leader.store.delete(run.name)
    with pytest.raises(StateError, match=f"{run.name} is missing"):
        leader.checkpoints.complete(order, 1)
    leader.store.put(run.name, b"short")
    with pytest.raises(StateError, match=f"{run.name} is damaged: 5 bytes, expected 10"):
        leader.checkpoints.complete(order, 1)
    assert Leader(leader.store).restored == good


def test_inline_state_beyond_the_limit_becomes_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifests, "INLINE_BYTES_MAX", 25)
    leader = Leader(DroppingStore())
    leader.complete(inline=True)
    assert sorted(map(bool, leader.runs())) == [False] * 2 + [True] * 4
    again = Leader(leader.store).checkpoints.manifest
    assert again is not None
    for n, run in enumerate(again.runs):
        assert (run.inline or leader.store.get(run.name)) == bytes([n]) * 10


def test_a_damaged_checkpoint_that_committed_nothing_is_passed_over() -> None:
    leader = Leader(DroppingStore(), retained_checkpoints=3)
    good = leader.complete()
    leader.complete()
    leader.store.delete(leader.runs()[0])
    assert Leader(leader.store).restored == good


def test_a_damaged_checkpoint_that_was_committed_stops_the_job_and_says_what_to_do() -> None:
    leader = Leader(DroppingStore(), retained_checkpoints=3)
    before = leader.complete(owes=True)
    last = leader.complete(owes=True)
    damaged = leader.runs()[2]
    leader.store.delete(damaged)
    leader.store.put(damaged, b"0123456789")
    with pytest.raises(StateError) as refused:
        Leader(leader.store)
    text = str(refused.value)
    assert f"checkpoint {last} cannot be restored: {damaged} is damaged" in text
    assert f"--set restore_from={before} --set accept_duplicates=true" in text
    with pytest.raises(StateError, match=f"checkpoint {last} was committed to sinks after it"):
        Leader(leader.store, restore_from=before)
    accepted = Leader(leader.store, restore_from=before, accept_duplicates=True)
    assert accepted.restored == before
    assert accepted.next_id > last
    assert Leader(leader.store).restored == before


def test_going_back_to_an_unknown_checkpoint_lists_those_that_are_kept() -> None:
    leader = Leader(DroppingStore(), retained_checkpoints=3)
    kept = [leader.complete(), leader.complete()]
    with pytest.raises(StateError, match=f"kept are: {kept[0]}, {kept[1]}"):
        Leader(leader.store, restore_from=99)


def test_a_leader_that_was_fenced_completes_nothing() -> None:
    leader = Leader(DroppingStore())
    leader.complete()
    order = leader.order()
    Leader(leader.store)
    with pytest.raises(Fenced):
        leader.checkpoints.complete(order, 1)


def test_a_log_that_cannot_be_synced_leaves_the_leader_uncertain() -> None:
    leader = Leader(DroppingStore())
    order = leader.order()
    syncs = iter([True])

    def sync_once() -> None:
        if not next(syncs, False):
            raise StateError("input/output error")

    leader.store.sync = sync_once  # type: ignore[method-assign]
    with pytest.raises(UncertainLog):
        leader.checkpoints.complete(order, 1)


def test_a_vertex_is_finished_only_if_all_its_subtasks_and_all_before_it_were() -> None:
    leader = Leader(DroppingStore())
    leader.complete()
    manifest = leader.checkpoints.manifest
    assert manifest is not None

    def finished(*keys: SubtaskKey) -> set[str]:
        records = [
            msgspec.structs.replace(record, finished=record.key in keys)
            for record in manifest.subtasks
        ]
        return finished_vertices(msgspec.structs.replace(manifest, subtasks=records), PLAN)

    assert finished(*KEYS) == {"source", "middle", "sink"}
    assert finished(*KEYS[:3]) == {"source"}
    assert finished(*KEYS[1:]) == set()


def test_what_ended_does_not_go_on_with_another_program() -> None:
    leader = Leader(DroppingStore())
    leader.complete()
    kept = leader.checkpoints.manifest
    assert kept is not None

    def ended(*keys: SubtaskKey, flag: BarrierFlag) -> Manifest:
        records = [msgspec.structs.replace(r, finished=r.key in keys) for r in kept.subtasks]
        return msgspec.structs.replace(kept, subtasks=records, flags=int(flag))

    refuse_changed_end(ended(*KEYS, flag=BarrierFlag.FINAL), PLAN)
    refuse_changed_end(ended(*KEYS[:3], flag=BarrierFlag.STOP), PLAN)
    with pytest.raises(StateError, match=r"the program has changed and would run on: .*sink"):
        refuse_changed_end(ended(*KEYS[:4], flag=BarrierFlag.FINAL), PLAN)


def test_old_checkpoints_go_with_the_runs_that_only_they_name() -> None:
    leader = Leader(DroppingStore(), retained_checkpoints=2)
    named = []
    for _ in range(4):
        leader.complete()
        named.append(leader.runs())
        leader.checkpoints.collect_garbage(None)
    assert len(leader.store.list("chk")) == 2
    left = {stored.name for stored in leader.store.list("run")}
    assert left == set(named[2]) | set(named[3])
    assert len(leader.store.list("log")) == 5


def test_checkpoints_with_commits_that_are_owed_stay() -> None:
    leader = Leader(DroppingStore(), retained_checkpoints=1)
    ids = [leader.complete(owes=True) for _ in range(5)]
    leader.checkpoints.collect_garbage(owed_since=ids[1])
    assert len(leader.store.list("chk")) == 4
    leader.checkpoints.collect_garbage(owed_since=None)
    assert len(leader.store.list("chk")) == 1


def test_an_announced_run_outlives_its_aborted_checkpoint_until_the_attempt_is_over() -> None:
    leader = Leader(DroppingStore())
    leader.complete()
    aborted = leader.order()
    for ack in aborted.acknowledged.values():
        leader.checkpoints.announce(ack)
    leader.store.advance_ns(2 * AGE_NS_MIN)
    leader.checkpoints.collect_garbage(None)
    leader.checkpoints.complete(aborted, 1)
    stale = leader.order()
    leader.checkpoints.attempt_over()
    leader.store.advance_ns(2 * AGE_NS_MIN)
    leader.checkpoints.collect_garbage(None)
    left = {stored.name for stored in leader.store.list("run")}
    assert left == set(leader.runs())
    assert stale.acknowledged[KEYS[0]].run is not None


def test_a_young_run_that_nobody_names_stays() -> None:
    leader = Leader(DroppingStore())
    leader.complete()
    leader.order()
    leader.checkpoints.collect_garbage(None)
    assert len(leader.store.list("run")) == 2 * len(KEYS)


def test_a_fenced_leader_collects_nothing() -> None:
    leader = Leader(DroppingStore())
    leader.complete()
    leader.complete()
    leader.store.advance_ns(2 * AGE_NS_MIN)
    heir = Leader(leader.store)
    heir.complete()
    before = leader.store.list("run"), leader.store.list("chk")
    leader.checkpoints.collect_garbage(None)
    assert (leader.store.list("run"), leader.store.list("chk")) == before


def test_what_a_newer_generation_made_is_never_picked() -> None:
    manifest = [Stored("chk/9-3-1", 1, 0), Stored("chk/2-2-1", 1, 0), Stored("chk/3-2-1", 1, 0)]
    listing = Listing(manifest, [], [], 10 * AGE_NS_MIN)
    assert retired_manifests(listing, {"chk/3-2-1"}, generation=2) == ["chk/2-2-1"]


def test_half_written_objects_go_by_age() -> None:
    old, young = Stored(".staging/a", 1, 0), Stored(".staging/b", 1, 9 * AGE_NS_MIN)
    listing = Listing([], [], [old, young], 10 * AGE_NS_MIN - 1)
    assert dead_objects(listing, set(), set(), AGE_NS_MIN) == [".staging/a"]
