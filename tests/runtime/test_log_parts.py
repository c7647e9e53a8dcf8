"""Parts of logs from acknowledgement to restore: what is named, kept, deleted and found again."""

from __future__ import annotations

import itertools
import zlib
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from penstock.dataflow.plan import OperatorSpec, Vertex
from penstock.elements.clock import ManualClock
from penstock.elements.errors import StateError
from penstock.elements.keygroup import KEY_GROUPS, KeyGroupRange, owned_groups
from penstock.elements.signals import BarrierFlag
from penstock.operators.processor import MAIN
from penstock.runtime.chain import Chain, ChainSurroundings
from penstock.runtime.checkpoint import StoreCheckpoint
from penstock.runtime.checkpoint_store import CheckpointStore, read_manifest
from penstock.runtime.manifest import (
    Manifest,
    SubtaskRecord,
    decode_manifest,
    encode_manifest,
    restored_parts,
)
from penstock.runtime.messages import Acknowledge, RunRef, SubtaskKey, decode_event, encode
from penstock.runtime.restore import restore_subtask
from penstock.state.backend import RestoredState
from penstock.state.log_history import LogPart
from penstock.state.log_parts import log_schema, log_section, put_part, read_part, store_log
from penstock.state.memory import memory_backend
from penstock.state.store import LocalStore, Store
from penstock.testing.ledger_book import BookProcessor
from penstock.testing.simulated_plan import PARALLELISM, PLAN, SETTINGS
from penstock.testing.store import DroppingStore

KEYS = [SubtaskKey(v.id, i) for v in PLAN.vertices for i in range(PARALLELISM)]
KEY = pa.schema([("k", pa.int64())])
VALUE = pa.schema([("text", pa.utf8())])
VERTEX = Vertex("v", "v", (OperatorSpec("op", "op", BookProcessor(9), {MAIN: KEY}, True),), (), 2)
_tokens = itertools.count()


def a_part(store: Store, groups: KeyGroupRange, first: int, count: int = 8) -> LogPart:
    """Rows whose time is their number, spread over `groups`."""
    schema = log_schema(KEY, VALUE)
    numbers = np.arange(first, first + count)
    spread = np.linspace(groups.start, groups.stop - 1, count).astype(np.uint16)
    text = pa.array([f"row {n}" for n in numbers], pa.large_string())
    arrays = [pa.array(spread), pa.array(numbers), text, pa.array(numbers)]
    rows = pa.RecordBatch.from_arrays(arrays, schema=schema)
    declared = {"key": [["k", "int64"]], "value": [["text", "string"]]}
    return put_part(store, log_section("op", "log", declared, [rows], schema), groups)


class Leader:
    """A checkpoint store whose first subtask has a log."""

    def __init__(self, store: DroppingStore, **settings: int) -> None:
        self.store = store
        changed = msgspec.structs.replace(SETTINGS, **settings)
        self.checkpoints = CheckpointStore(store, PLAN, changed, lambda: f"t{next(_tokens)}")
        self.checkpoints.take_over()
        self.next_id = self.checkpoints.log.first_id

    def order(self, parts: list[LogPart]) -> StoreCheckpoint:
        n, self.next_id = self.next_id, self.next_id + 1
        self.checkpoints.log.reserve(n)
        run = RunRef("", 3, zlib.crc32(b"abc"), b"abc")
        acks = {key: Acknowledge(n, run, False, 5, {}, False, 0, 0, 3) for key in KEYS}
        acks[KEYS[0]] = msgspec.structs.replace(acks[KEYS[0]], parts=parts)
        return StoreCheckpoint(n, BarrierFlag.NONE, acks)

    def complete(self, *parts: LogPart) -> Manifest:
        order = self.order(list(parts))
        for ack in order.acknowledged.values():
            self.checkpoints.announce(ack)
        manifest = self.checkpoints.complete(order, 1)
        self.checkpoints.collect_garbage(None)
        return manifest

    @property
    def left(self) -> set[str]:
        return {stored.name for stored in self.store.list("run")}


ALL = KeyGroupRange(0, KEY_GROUPS)


def test_a_part_outlives_the_checkpoint_that_wrote_it_while_later_ones_name_it() -> None:
    leader = Leader(DroppingStore(), retained_checkpoints=1)
    first = a_part(leader.store, ALL, 0)
    leader.complete(first)
    second = a_part(leader.store, ALL, 8)
    for _ in range(3):
        leader.complete(first, second)
    assert leader.left == {first.run, second.run}
    # Not at once: a checkpoint that was sealed before its subtask heard of this one may name it.
    leader.complete(second)
    assert leader.left == {first.run, second.run}
    leader.complete(second)
    assert leader.left == {second.run}


def test_a_checkpoint_that_was_sealed_before_the_last_commit_was_heard_is_complete() -> None:
    leader = Leader(DroppingStore(), retained_checkpoints=1)
    small = [a_part(leader.store, ALL, 8 * n) for n in range(4)]
    leader.complete(*small)
    leader.complete(a_part(leader.store, ALL, 0, 32))
    late = leader.complete(*small)
    assert {run.name for run in late.runs if run.name} == {part.run for part in small}
    assert Leader(leader.store).checkpoints.manifest == late


def test_a_checkpoint_that_names_a_part_which_is_gone_does_not_count() -> None:
    leader = Leader(DroppingStore())
    kept = leader.complete()
    gone = a_part(leader.store, ALL, 0)
    leader.store.delete(gone.run)
    with pytest.raises(StateError, match=f"{gone.run} is missing"):
        leader.checkpoints.complete(leader.order([gone]), 1)
    assert Leader(leader.store).checkpoints.manifest == kept


def test_a_part_that_was_damaged_is_named_when_a_job_starts() -> None:
    leader = Leader(DroppingStore())
    part = a_part(leader.store, ALL, 0)
    leader.complete(part)
    body = bytearray(leader.store.get(part.run))
    body[len(body) // 2] ^= 1
    leader.store.delete(part.run)
    leader.store.put(part.run, bytes(body))
    entry = leader.checkpoints.log.history.line[-1]
    with pytest.raises(StateError, match=part.run):
        read_manifest(leader.store, entry, verify=True)
    with pytest.raises(StateError, match=part.run):
        list(read_part(leader.store, part))


def test_what_an_attempt_wrote_and_completed_is_collected_while_it_goes_on() -> None:
    leader = Leader(DroppingStore(), retained_checkpoints=1)
    for n in range(6):
        leader.complete(a_part(leader.store, ALL, 8 * n))
    assert len(leader.left) == 2


def test_a_manifest_without_parts_is_of_the_old_format_and_the_other_is_not() -> None:
    leader = Leader(DroppingStore())
    without = encode_manifest(leader.complete())
    assert without[:8] == b"PSTKMAN1"
    within = leader.complete(a_part(leader.store, ALL, 0))
    data = encode_manifest(within)
    assert data[:8] == b"PSTKMAN2"
    assert decode_manifest(data, "chk/x") == within


def test_a_record_of_the_old_format_has_no_parts() -> None:
    record = {
        "key": {"vertex": "v", "index": 0}, "operators": ["op"], "parallelism": 1, "run": None,
        "finished": False, "watermark": 5, "owes": False,
    }  # fmt: skip
    assert msgspec.convert(record, SubtaskRecord).parts == []


def test_an_acknowledgement_carries_its_parts() -> None:
    part = a_part(DroppingStore(), ALL, 0)
    ack = Acknowledge(1, None, False, 5, {}, False, 0, 0, 3, [part])
    assert decode_event(encode(ack)) == ack


def test_two_subtasks_that_share_an_object_each_get_their_rows_and_it_counts_once(
    tmp_path: Path,
) -> None:
    store = LocalStore(str(tmp_path))
    whole = a_part(store, ALL, 0, 100)
    halves = [whole.clipped(owned_groups(index, 2)) for index in range(2)]
    # The lower half was merged by its owner since, without the rows that were cut off.
    lower = a_part(store, owned_groups(0, 2), 200, 5)
    parts = [lower, replace(halves[1] or whole, cut_ns=60)]
    record = SubtaskRecord(KEYS[0], ["op"], 2, None, False, 5, False, parts)
    manifest = Manifest("j", "r", 1, 1, 1, 0, KEY_GROUPS, "", [], [record, record], {})
    assert len(manifest.runs) == 2
    once = msgspec.structs.replace(manifest, subtasks=[record])
    found: list[int] = []
    for index in range(3):
        groups = owned_groups(index, 3)
        mine = restored_parts(once, VERTEX, groups)
        restored = restore_subtask(VERTEX, index, groups, [], store, memory_backend, mine)
        (backend,) = restored.backends
        assert backend.undeclared() == (["log"] if mine else [])
        for batch in backend.log("log", KEY, VALUE).restored():
            assert batch.column("text").to_pylist() == [
                f"row {n}" for n in batch.column("k").to_pylist()
            ]
            found += batch.column("_time").to_pylist()
        assert backend.undeclared() == []
    assert sorted(found) == [*range(60, 100), *range(200, 205)]


def test_a_subtask_writes_again_what_was_given_up_and_only_names_what_is_complete() -> None:
    store = DroppingStore()
    backend = memory_backend("op", RestoredState([], ALL, 0, 1))
    around = ChainSurroundings(0, 1, ALL, ManualClock(1), "r", "", lambda: None, lambda: None)
    chain = Chain(replace(VERTEX, parallelism=1), {}, {}, around, [backend])
    chain.open([0], 0)
    seen = 0
    schema = pa.schema([("key", pa.int64()), ("nth", pa.int64())])
    # A key of one row, so that the book cuts nothing off.
    chain.process(pa.record_batch([[1], [1]], schema=schema), 0)

    def checkpoint(n: int) -> list[int]:
        """300 rows more; the rows in each part that the checkpoint names."""
        nonlocal seen
        numbers = np.arange(seen + 1, seen + 301)
        seen += 300
        rows = pa.record_batch([np.zeros(300, np.int64), numbers], schema=schema)
        chain.process(rows, 0)
        ((_, snapshot),) = chain.seal(n)
        return [part.rows for log in snapshot.logs() for part in store_log(store, log, ALL)[1]]

    assert checkpoint(1) == [301]
    chain.given_up(1)
    assert checkpoint(2) == [601]
    # Commits of other checkpoints, or one that is repeated, say nothing of this one.
    chain.completed(1)
    assert checkpoint(3) == [901]
    chain.completed(3)
    chain.completed(3)
    assert checkpoint(4) == [901, 300]
