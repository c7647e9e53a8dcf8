"""Watermarks of splits: pure, monotone, held back by the slowest, idle only by silence."""

from __future__ import annotations

import random

import pytest

from penstock.elements.errors import PlanError
from penstock.elements.signals import WATERMARK_MAX, WATERMARK_MIN
from penstock.operators.watermarks import (
    IDLE_NS,
    QUIET_STEP_NS_MAX,
    BoundedDisorder,
    EventTime,
    ExpressionWatermark,
    SplitWatermarks,
    event_time,
    with_lateness,
)


def test_the_watermark_is_the_least_over_splits() -> None:
    marks = SplitWatermarks(None)
    marks.add("a")
    marks.add("b")
    marks.on_rows("a", 100)
    assert marks.combined() == WATERMARK_MIN
    marks.on_rows("b", 40)
    assert marks.combined() == 40
    marks.remove("b")
    assert marks.combined() == 100


def test_the_watermark_never_goes_back() -> None:
    rng = random.Random(5)
    marks = SplitWatermarks(3 * QUIET_STEP_NS_MAX)
    before, now = WATERMARK_MIN, 0
    for step in range(500):
        name = f"s{rng.randrange(6)}"
        now += rng.randrange(2 * QUIET_STEP_NS_MAX)
        if name not in marks._splits:
            marks.add(name, rng.randrange(100))
        elif rng.random() < 0.3:
            marks.on_nothing(name, now)
        elif rng.random() < 0.1:
            marks.remove(name)
        else:
            marks.on_rows(name, rng.randrange(step + 1))
        assert marks.combined() >= before
        before = marks.combined()


def test_a_waiting_split_holds_the_watermark_back() -> None:
    marks = SplitWatermarks(None)
    marks.add("a")
    marks.on_rows("a", 100)
    assert marks.combined([7]) == 7
    assert marks.combined() == 100


def test_a_silent_split_becomes_idle_and_rows_wake_it() -> None:
    marks = SplitWatermarks(2 * QUIET_STEP_NS_MAX)
    marks.add("a", 5)
    marks.add("b", 9)
    for second in range(3):
        marks.on_nothing("a", second * QUIET_STEP_NS_MAX)
    assert marks.is_idle("a")
    assert marks.combined() == 9
    assert not marks.all_idle
    marks.on_rows("a", 7)
    assert not marks.is_idle("a")
    assert marks.combined() == 9, "it does not go back for the one that woke up"


def test_a_source_that_is_held_up_does_not_make_its_splits_idle() -> None:
    marks = SplitWatermarks(IDLE_NS)
    marks.add("a")
    marks.on_nothing("a", 0)
    marks.on_nothing("a", 100 * IDLE_NS)
    assert not marks.is_idle("a")


def test_without_a_limit_nothing_is_ever_idle() -> None:
    assert EventTime("ts", BoundedDisorder(0)).idle_after_ns(bounded=True) is None
    assert EventTime("ts", BoundedDisorder(0)).idle_after_ns(bounded=False) == IDLE_NS
    marks = SplitWatermarks(None)
    marks.add("a")
    for second in range(1000):
        marks.on_nothing("a", second * QUIET_STEP_NS_MAX)
    assert not marks.is_idle("a")


def test_rows_at_exactly_the_bound_are_in_time() -> None:
    assert BoundedDisorder(10).promise(100) == 89
    assert BoundedDisorder(0).promise(100) == 99
    assert ExpressionWatermark("ts").promise(100) == 99


def test_watermarks_saturate_instead_of_wrapping() -> None:
    assert BoundedDisorder(10**18).promise(WATERMARK_MIN + 5) == WATERMARK_MIN
    assert with_lateness(WATERMARK_MAX, 10**18) == WATERMARK_MAX
    assert BoundedDisorder(0).promise(WATERMARK_MAX) < WATERMARK_MAX


def test_disorder_must_be_said_and_only_once() -> None:
    assert event_time("ts", out_of_order="5 seconds").strategy == BoundedDisorder(5 * 10**9)
    assert event_time("ts", monotone=True).strategy == BoundedDisorder(0)
    assert event_time("ts", watermark="ts").strategy == ExpressionWatermark("ts")
    with pytest.raises(PlanError, match="how far rows may be out of order"):
        event_time("ts")
    with pytest.raises(PlanError, match="how far"):
        event_time("ts", out_of_order="1 s", monotone=True)
    with pytest.raises(PlanError, match="negative"):
        event_time("ts", out_of_order="-1 s")
    with pytest.raises(PlanError, match="idle"):
        event_time("ts", monotone=True, idle="0 s")
