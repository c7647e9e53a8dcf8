"""Timers of keyed operators: in order, past restarts, at the end of data."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest
from keyed_events import (
    SECOND,
    Alarm,
    Event,
    Made,
    events,
    harness,
    texts,
)

from penstock.elements.errors import StateError
from penstock.operators.context import Context
from penstock.operators.declared import (
    Fired,
    Timer,
)
from penstock.operators.keyed_operator import KeyedOperator


def test_event_timers_fire_in_order_of_time_once_the_watermark_has_passed() -> None:
    driven = harness(Alarm())
    driven.send(events(("a", 9, 1), ("b", 5, 1), ("a", 4, 1), ("c", 5, 1)))
    driven.advance(3 * SECOND)
    assert texts(driven) == []
    driven.restart().advance(5 * SECOND)
    fired = texts(driven)
    assert fired[0] == "a latex 4"
    assert sorted(fired[1:]) == ["b early 5", "c early 5"]
    driven.advance(9 * SECOND)
    assert texts(driven) == ["a early 9"]
    assert driven.rows_behind_watermark == 0


def test_setting_a_timer_again_moves_it_and_clear_disarms_it() -> None:
    driven = harness(Alarm())
    driven.send(events(("a", 5, 1), ("a", 7, 1), ("b", 5, 1), ("b", None, 1)))
    driven.advance(6 * SECOND)
    assert texts(driven) == []
    driven.advance(7 * SECOND)
    assert texts(driven) == ["a early 7"]


def test_a_timer_at_or_before_the_watermark_fires_after_the_batch_and_its_rows_are_not_late() -> (
    None
):
    driven = harness(Alarm()).advance(10 * SECOND)
    driven.send(events(("a", 3, 11), ("b", 5, 12)))
    table = driven.taken()
    assert table.column("text").to_pylist() == ["a early 3", "b early 5"]
    assert driven.rows_behind_watermark == 0, "their own time has passed; they get the earliest"


class Chained(KeyedOperator[Event, Made]):
    """Re-arms `tick` every second, cancels `other` from `tick`, arms `next` from `tick`."""

    other = Timer()
    step = Timer()
    tick = Timer()

    def process(self, key: str, row: Event, ctx: Context) -> None:
        self.tick.set(1 * SECOND)
        self.other.set(2 * SECOND)

    def on_timer(self, key: str, timer: Fired, ctx: Context) -> Iterator[Made]:
        yield Made(key, f"{timer.name} {timer.time_ns // SECOND}")
        if timer.name == "tick":
            self.other.clear()
            self.step.set(timer.time_ns + SECOND // 2)
            self.tick.set(timer.time + timedelta(seconds=1))


def test_timers_set_and_cancelled_while_firing_keep_their_order() -> None:
    driven = harness(Chained()).send(events(("a", 1, 0)))
    driven.advance(3 * SECOND)
    assert texts(driven) == ["tick 1", "step 1", "tick 2", "step 2", "tick 3"]
    driven.restart().advance(4 * SECOND)
    assert texts(driven) == ["step 3", "tick 4"]


def test_at_the_end_of_data_each_timer_fires_once_at_most() -> None:
    driven = harness(Chained()).send(events(("a", 1, 0)))
    driven.end()
    assert texts(driven) == ["tick 1", "step 1"]
    assert driven.counters["timers_dropped"] == 1


class Standstill(KeyedOperator[Event, Made]):
    tick = Timer()

    def process(self, key: str, row: Event, ctx: Context) -> None:
        self.tick.set(1)

    def on_timer(self, key: str, timer: Fired, ctx: Context) -> None:
        self.tick.set(timer.time_ns)


def test_a_timer_that_re_arms_itself_at_its_own_time_is_refused_instead_of_spinning() -> None:
    driven = harness(Standstill()).send(events(("a", 1, 0)))
    with pytest.raises(StateError, match="at or before the time for which it was firing"):
        driven.advance(SECOND)


class Wall(KeyedOperator[Event, Made]):
    dropped = Timer(processing_time=True)
    kept = Timer(processing_time=True, fire_at_end=True)

    def process(self, key: str, row: Event, ctx: Context) -> None:
        timer = self.kept if row.n else self.dropped
        timer.set(ctx.now() + timedelta(seconds=10))

    def on_timer(self, key: str, timer: Fired, ctx: Context) -> Iterator[Made]:
        yield Made(key, timer.name)


def test_processing_time_timers_go_by_the_wall_clock() -> None:
    driven = harness(Wall()).send(events(("a", 0, 1)))
    assert driven.processor.next_wakeup_ns() == driven.clock.wall_ns() + 10 * SECOND
    assert texts(driven.tick(9 * SECOND)) == []
    assert texts(driven.tick(1 * SECOND)) == ["dropped"]
    assert driven.processor.next_wakeup_ns() is None


def test_processing_time_timers_past_due_at_restore_fire_before_the_first_row() -> None:
    class Order(Wall):
        def process(self, key: str, row: Event, ctx: Context) -> Iterator[Made]:
            super().process(key, row, ctx)
            yield Made(key, f"row {key}")

    driven = harness(Order()).send(events(("a", 0, 1)))
    driven.cut()
    driven.clock.advance_ns(60 * SECOND)
    driven.crash().send(events(("b", 0, 2)))
    assert texts(driven) == ["row a", "dropped", "row b"]


def test_at_the_end_processing_time_timers_are_dropped_and_counted_unless_declared() -> None:
    driven = harness(Wall()).send(events(("a", 0, 1), ("b", 1, 1)))
    driven.end()
    assert texts(driven) == ["kept"]
    assert driven.counters["timers_dropped"] == 1
