from __future__ import annotations

import pytest

from penstock.elements.errors import Fenced, StateError
from penstock.runtime.log import (
    RESERVED_IDS,
    Checkpointed,
    History,
    JobLog,
    UncertainLog,
    decode_entry,
    entry_name,
    read_entries,
    read_history,
)
from penstock.testing.store import DroppingStore


def newest(history: History) -> Checkpointed | None:
    return history.last


def leader(store: DroppingStore, name: str, run_id: str = "r") -> JobLog:
    log = JobLog(store, name)
    assert log.take_over(run_id, newest)
    return log


def test_a_new_job_begins_with_a_takeover_and_its_run_id() -> None:
    store = DroppingStore()
    log = leader(store, "a", "run-1")
    history = read_history(store)
    assert (history.generation, history.run_id, history.last) == (1, "run-1", None)
    assert log.first_id == 1


def test_a_restart_goes_on_from_the_last_checkpoint_under_the_same_run_id() -> None:
    store = DroppingStore()
    first = leader(store, "a", "run-1")
    first.append_checkpoint(1, 1, "chk/1-1-1", owes=True)
    first.append_checkpoint(1, 2, "chk/2-1-1", owes=True)
    second = JobLog(store, "b")
    takeover = second.take_over("run-2", newest)
    assert takeover is not None
    assert takeover.run_id == "run-1"
    assert takeover.generation == 2
    assert second.history.last is not None
    assert second.history.last.id == 2


def test_an_old_leader_finds_its_slot_taken_and_is_fenced_for_good() -> None:
    store = DroppingStore()
    zombie = leader(store, "a")
    zombie.append_checkpoint(1, 1, "chk/1-1-1", owes=False)
    fresh = leader(store, "b")
    assert zombie.is_fenced()
    with pytest.raises(Fenced, match="generation 2 has taken the job over from generation 1"):
        zombie.append_checkpoint(1, 2, "chk/2-1-1", owes=True)
    fresh.append_checkpoint(1, fresh.first_id, "chk/x-2-1", owes=False)
    with pytest.raises(Fenced):
        zombie.append_checkpoint(1, 3, "chk/3-1-1", owes=True)
    assert not fresh.is_fenced()


def test_a_checkpoint_that_beats_the_takeover_is_restored_by_it() -> None:
    store = DroppingStore()
    old = leader(store, "a")

    def choose(history: History) -> Checkpointed | None:
        if history.length == 1:
            old.append_checkpoint(1, 1, "chk/1-1-1", owes=True)
        return history.last

    new = JobLog(store, "b")
    takeover = new.take_over("r", choose)
    assert takeover is not None
    assert takeover.seq == 3
    assert takeover.restores == 2


def test_ids_that_may_have_been_triggered_are_never_used_again() -> None:
    store = DroppingStore()
    first = leader(store, "a")
    for checkpoint_id in range(first.first_id, 30):
        first.reserve(checkpoint_id)
    second = leader(store, "b")
    assert second.first_id >= 30
    second.reserve(second.first_id)
    second.append_checkpoint(1, second.first_id, "chk/n", owes=False)
    third = leader(store, "c")
    assert third.first_id == second.first_id + RESERVED_IDS + 1


def test_an_append_whose_reply_was_lost_counts_once() -> None:
    store = DroppingStore()
    log = leader(store, "a")
    lost = iter([True, False])

    def lose_reply(name: str) -> None:
        if next(lost, False):
            raise StateError("timeout")

    store.fail_after = lose_reply
    assert log.append_checkpoint(1, 1, "chk/1-1-1", owes=True) == 2
    assert [e.seq for e in read_entries(store)] == [1, 2]


def test_an_append_that_cannot_be_made_is_an_error_and_not_a_fence() -> None:
    store = DroppingStore()
    log = leader(store, "a")

    def refuse(name: str) -> None:
        raise StateError("no space")

    store.fail = refuse
    with pytest.raises(StateError, match="no space"):
        log.append_checkpoint(1, 1, "chk/1-1-1", owes=True)
    assert not log.is_fenced()


def test_an_entry_that_turns_up_late_stops_the_leader_that_had_given_it_up() -> None:
    store = DroppingStore()
    log = leader(store, "a")
    kept: list[tuple[str, bytes]] = []
    put = store.put

    def swallow(name: str, body: bytes) -> bool:
        kept.append((name, body))
        raise StateError("timeout")

    store.put = swallow  # type: ignore[method-assign]
    with pytest.raises(StateError, match="timeout"):
        log.append_checkpoint(1, 1, "chk/1-1-1", owes=True)
    store.put = put  # type: ignore[method-assign]
    assert put(*kept[0])
    with pytest.raises(UncertainLog, match="exists after all"):
        log.append_checkpoint(1, 2, "chk/2-1-1", owes=True)


def test_an_entry_that_cannot_be_made_durable_is_neither_there_nor_not() -> None:
    store = DroppingStore()
    log = leader(store, "a")

    def broken() -> None:
        raise StateError("input/output error")

    store.sync = broken  # type: ignore[method-assign]
    with pytest.raises(UncertainLog, match="may or may not exist"):
        log.append_checkpoint(1, 1, "chk/1-1-1", owes=True)


def test_going_back_to_an_older_checkpoint_takes_the_later_ones_off_the_line() -> None:
    store = DroppingStore()
    first = leader(store, "a")
    for checkpoint_id in (1, 2, 3):
        first.append_checkpoint(1, checkpoint_id, f"chk/{checkpoint_id}-1-1", owes=True)
    second = JobLog(store, "b")
    second.take_over("r", lambda history: history.line[0])
    assert [c.id for c in second.history.line] == [1]
    third = leader(store, "c")
    assert [c.id for c in third.history.line] == [1]
    assert third.first_id > 3


def test_a_finished_job_is_not_taken_over() -> None:
    store = DroppingStore()
    first = leader(store, "a")
    first.append_checkpoint(1, 1, "chk/1-1-1", owes=False)
    first.append_finished(1)
    second = JobLog(store, "b")
    assert second.take_over("r", newest) is None
    assert second.history.finished is not None
    assert second.history.finished.id == 1
    assert read_history(store).length == 3


def test_a_damaged_or_missing_entry_is_named() -> None:
    store = DroppingStore()
    first = leader(store, "a")
    first.append_checkpoint(1, 1, "chk/1-1-1", owes=False)
    body = bytearray(store.get(entry_name(2)))
    body[20] ^= 1
    with pytest.raises(StateError, match="log/00000002 is damaged"):
        decode_entry(bytes(body), entry_name(2))
    with pytest.raises(StateError, match="log/00000002 is damaged"):
        decode_entry(b"", entry_name(2))
    first.append_checkpoint(1, 2, "chk/2-1-1", owes=False)
    store.delete(entry_name(2))
    with pytest.raises(StateError, match="log/00000002 is missing"):
        read_history(store)
