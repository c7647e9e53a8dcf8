from __future__ import annotations

from penstock.elements.signals import WATERMARK_MIN, InputStatus
from penstock.runtime.progress import Advance, Ended, Idle, Progress


def test_the_watermark_is_the_least_of_the_active_inputs() -> None:
    progress = Progress(2)
    assert progress.on_watermark(0, 10) == []
    assert progress.on_watermark(1, 4) == [Advance(4)]
    assert progress.on_watermark(1, 12) == [Advance(10)]
    assert progress.watermark == 10


def test_an_idle_input_holds_nobody_back_and_never_makes_time_regress() -> None:
    progress = Progress(2)
    progress.on_watermark(0, 10)
    progress.on_watermark(1, 4)
    assert progress.on_idle(1) == [Advance(10)]
    assert progress.on_watermark(1, 5) == []
    assert progress.watermark == 10
    assert progress.on_watermark(1, 20) == []
    assert progress.on_watermark(0, 15) == [Advance(15)]


def test_when_all_are_idle_the_watermark_is_held_and_idle_is_said_once() -> None:
    progress = Progress(2)
    progress.on_watermark(0, 7)
    progress.on_watermark(1, 7)
    assert progress.on_idle(0) == []
    assert progress.on_idle(1) == [Idle()]
    assert progress.on_idle(1) == []
    assert progress.watermark == 7


def test_waking_up_repeats_the_watermark_so_that_receivers_wait_again() -> None:
    progress = Progress(1)
    progress.on_watermark(0, 7)
    progress.on_idle(0)
    assert progress.on_active(0) == [Advance(7, again=True)]
    assert progress.on_active(0) == []
    progress.on_idle(0)
    assert progress.on_watermark(0, 9) == [Advance(9)]


def test_an_ended_input_is_left_out_and_the_last_one_ends_the_subtask() -> None:
    progress = Progress(3)
    progress.on_watermark(0, 10)
    progress.on_watermark(1, 5)
    progress.on_watermark(2, 3)
    assert progress.on_end(2) == [Advance(5)]
    assert progress.on_idle(1) == [Advance(10)]
    assert progress.on_end(0) == [Idle()]
    assert progress.on_end(1) == [Ended()]
    assert progress.status(1) is InputStatus.ENDED


def test_a_restored_watermark_stands_until_the_least_input_passes_it() -> None:
    progress = Progress(2, restored=100)
    assert progress.on_watermark(0, 150) == []
    assert progress.on_watermark(1, 90) == []
    assert progress.watermark == 100
    assert progress.on_watermark(1, 120) == [Advance(120)]


def test_a_quiet_start_keeps_the_restored_watermark() -> None:
    progress = Progress(1, restored=100)
    assert progress.on_idle(0) == [Idle()]
    assert progress.watermark == 100
    assert Progress(0).watermark == WATERMARK_MIN
