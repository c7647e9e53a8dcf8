from __future__ import annotations

from penstock.elements.signals import BarrierFlag
from penstock.runtime.alignment import Alignment, Block, Declined, TakeSnapshot, Unblock

NONE = BarrierFlag.NONE


def test_a_snapshot_is_taken_when_the_last_input_has_delivered_the_barrier() -> None:
    alignment = Alignment(3)
    assert alignment.on_barrier(1, 5, NONE) == [Block(1)]
    assert alignment.on_barrier(0, 5, NONE) == [Block(0)]
    assert alignment.is_blocked(0)
    assert alignment.is_blocked(1)
    assert not alignment.is_blocked(2)
    assert alignment.on_barrier(2, 5, NONE) == [TakeSnapshot(5, NONE), Unblock(0), Unblock(1)]
    assert not any(alignment.is_blocked(channel) for channel in range(3))


def test_one_input_never_blocks() -> None:
    alignment = Alignment(1)
    assert alignment.on_barrier(0, 1, BarrierFlag.STOP) == [TakeSnapshot(1, BarrierFlag.STOP)]


def test_end_delivers_every_barrier() -> None:
    alignment = Alignment(2)
    alignment.on_barrier(0, 1, NONE)
    assert alignment.on_end(1) == [TakeSnapshot(1, NONE), Unblock(0)]
    assert alignment.on_barrier(0, 2, NONE) == [TakeSnapshot(2, NONE)]
    assert alignment.on_end(0) == []
    assert alignment.on_trigger(3, BarrierFlag.FINAL) == [TakeSnapshot(3, BarrierFlag.FINAL)]


def test_a_newer_barrier_gives_the_older_alignment_up() -> None:
    alignment = Alignment(2)
    alignment.on_barrier(0, 1, NONE)
    commands = alignment.on_barrier(1, 2, NONE)
    assert commands == [Unblock(0), Declined(1, "superseded by checkpoint 2"), Block(1)]
    assert alignment.on_barrier(0, 2, NONE) == [TakeSnapshot(2, NONE), Unblock(1)]


def test_a_late_barrier_of_a_superseded_checkpoint_is_dropped() -> None:
    alignment = Alignment(2)
    alignment.on_barrier(0, 1, NONE)
    alignment.on_abort(1)
    alignment.on_barrier(0, 2, NONE)
    assert alignment.on_barrier(1, 1, NONE) == []
    assert alignment.aligning == 2
    assert alignment.on_barrier(1, 2, NONE) == [TakeSnapshot(2, NONE), Unblock(0)]


def test_an_abort_unblocks_at_once_and_holds_for_barriers_still_under_way() -> None:
    alignment = Alignment(2)
    alignment.on_barrier(0, 1, NONE)
    assert alignment.on_abort(1) == [Unblock(0)]
    assert alignment.on_barrier(1, 1, NONE) == []
    assert not alignment.is_blocked(1)
    assert alignment.on_abort(1) == []


def test_a_trigger_that_was_overtaken_by_its_barrier_is_dropped() -> None:
    alignment = Alignment(1)
    alignment.on_barrier(0, 4, NONE)
    alignment.on_end(0)
    assert alignment.on_trigger(4, NONE) == []
    assert alignment.on_trigger(5, NONE) == [TakeSnapshot(5, NONE)]


def test_a_source_snapshots_when_triggered_and_not_after_an_abort() -> None:
    alignment = Alignment(0)
    assert alignment.on_trigger(1, NONE) == [TakeSnapshot(1, NONE)]
    alignment.on_abort(2)
    assert alignment.on_trigger(2, NONE) == []
