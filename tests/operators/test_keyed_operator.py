"""KeyedOperator: state per key, timers in order, sides, late rows, restarts, rescaling, errors."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from penstock.elements.errors import PlanError, StateError, UserCodeError
from penstock.elements.hash import hash_columns
from penstock.elements.keygroup import subtask_of
from penstock.elements.rows import RowCodec
from penstock.elements.signals import TIME_COLUMN, WATERMARK_MAX
from penstock.operators.context import Context
from penstock.operators.declared import (
    Fired,
    ListState,
    MapState,
    Output,
    ReducingState,
    Side,
    Timer,
    ValueState,
)
from penstock.operators.error_policy import DEAD_SCHEMA, DeadLetter, Drop
from penstock.operators.event_time_column import with_time_field, with_times
from penstock.operators.keyed_operator import KeyedOperator
from penstock.operators.keyed_processor import KeyedProcessor
from penstock.operators.processor import DEAD, MAIN
from penstock.testing.harness import Harness

SECOND = 1_000_000_000
T0 = datetime(2024, 1, 1, tzinfo=UTC)


@dataclass
class Event:
    key: str
    n: int | None


@dataclass
class Made:
    key: str
    text: str


EVENTS = with_time_field(RowCodec(Event).schema)


def events(*rows: tuple[str, int | None, int]) -> pa.RecordBatch:
    """(key, n, second)."""
    batch = RowCodec(Event).encode([Event(key, n) for key, n, _ in rows])
    return with_times(batch, np.array([second * SECOND for *_, second in rows], np.int64))


def harness(op: KeyedOperator[Any, Any], policy: Any = None, **options: Any) -> Harness:
    processor = KeyedProcessor(op, "key", EVENTS, *([policy] if policy else []))
    return Harness(processor, [EVENTS], out_schemas=processor.outputs, **options)


def texts(driven: Harness, output: str = MAIN) -> list[str]:
    return [row["text"] for row in driven.rows(output)]


class AllKinds(KeyedOperator[Event, Made]):
    last = ValueState(int)
    seen = ListState(int)
    counts = MapState(int, int)
    total = ReducingState(int, operator.add)
    bag = ValueState(set, default=set())

    def process(self, key: str, row: Event, ctx: Context) -> Iterator[Made]:
        assert row.n is not None
        before = self.last.value
        self.last.value = row.n
        self.seen.append(row.n)
        self.counts[row.n] = self.counts.get(row.n, 0) + 1
        self.total.add(row.n)
        self.bag.value.add(row.n)
        yield Made(
            key,
            f"{before} {list(self.seen)} {dict(self.counts)} {self.total.value} "
            f"{sorted(self.bag.value)}",
        )


def test_every_kind_of_state_is_kept_by_key_and_survives_restarts() -> None:
    driven = harness(AllKinds())
    driven.send(events(("a", 1, 1), ("b", 7, 1), ("a", 1, 2)))
    assert texts(driven) == [
        "None [1] {1: 1} 1 [1]",
        "None [7] {7: 1} 7 [7]",
        "1 [1, 1] {1: 2} 2 [1]",
    ]
    driven.restart().send(events(("a", 2, 3), ("b", 7, 3)))
    assert texts(driven) == ["1 [1, 1, 2] {1: 2, 2: 1} 4 [1, 2]", "7 [7, 7] {7: 2} 14 [7]"]


def test_state_follows_its_key_when_the_parallelism_changes() -> None:
    keys = [f"k{i}" for i in range(50)]
    first = harness(AllKinds())
    first.send(events(*((key, i, 1) for i, key in enumerate(keys))))
    sections = first.cut()
    found = []
    for subtask in range(3):
        part = harness(AllKinds(), subtask=subtask, parallelism=3, restored=sections)
        owned = [key for key in keys if _owner(key, 3) == subtask]
        part.send(events(*((key, 1000, 2) for key in owned)))
        found += [text.split()[0] for text in texts(part)]
        assert owned, "every subtask has some of fifty keys"
    assert sorted(map(int, found)) == list(range(50))


def _owner(key: str, parallelism: int) -> int:
    return int(subtask_of(hash_columns(pa.record_batch({"key": [key]}), ["key"]), parallelism)[0])


def test_rows_made_by_process_inherit_the_time_of_their_row() -> None:
    driven = harness(AllKinds())
    driven.send(events(("a", 1, 5), ("b", 1, 3)))
    assert driven.taken().column(TIME_COLUMN).cast(pa.int64()).to_pylist() == [
        5 * SECOND,
        3 * SECOND,
    ]


class Alarm(KeyedOperator[Event, Made]):
    """Sets its timer to second n; tells when it fires."""

    early = Timer()
    late = Timer()

    def process(self, key: str, row: Event, ctx: Context) -> None:
        if row.n is None:
            self.early.clear()
        elif row.n % 2:
            self.early.set(row.n * SECOND)
        else:
            self.late.set(row.n * SECOND, tag="x")

    def on_timer(self, key: str, timer: Fired, ctx: Context) -> Iterator[Made]:
        assert not ctx.is_late
        yield Made(key, f"{key} {timer.name}{timer.tag} {timer.time_ns // SECOND}")


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


class Sides(KeyedOperator[Event, Made]):
    late = None
    odd = Output(Event)

    def process(self, key: str, row: Event, ctx: Context) -> Iterator[Made | Side[Event]]:
        if row.n is not None and row.n % 2:
            yield self.odd(row)
        yield Made(key, f"{ctx.is_late} {ctx.event_time:%S}")


def test_side_outputs_and_lateness() -> None:
    driven = harness(Sides()).advance(5 * SECOND)
    driven.send(events(("a", 1, 5), ("a", 2, 6)))
    assert texts(driven) == ["True 05", "False 06"]
    assert driven.rows("odd") == [{"key": "a", "n": 1}]


class Groups(KeyedOperator[Event, Made]):
    total = ValueState(int, default=0)

    def process_group(self, key: str, rows: Sequence[Event], ctx: Context) -> Iterator[Made]:
        self.total.value += sum(row.n or 0 for row in rows)
        yield Made(key, f"{key} {self.total.value} of {len(rows)}")


def test_process_group_gets_the_rows_of_a_key_together_and_the_latest_time() -> None:
    driven = harness(Groups()).send(events(("a", 1, 9), ("b", 2, 1), ("a", 3, 4)))
    table = driven.taken()
    assert table.column("text").to_pylist() == ["a 4 of 2", "b 2 of 1"]
    assert table.column(TIME_COLUMN).cast(pa.int64()).to_pylist() == [9 * SECOND, SECOND]


class Expiring(KeyedOperator[Event, Made]):
    last = ValueState(int, default=0, ttl="10 seconds")

    def process(self, key: str, row: Event, ctx: Context) -> list[Made]:
        before, self.last.value = self.last.value, row.n or 0
        return [Made(key, str(before))]


def test_a_ttl_counts_event_time_since_the_last_write() -> None:
    driven = harness(Expiring()).advance(1 * SECOND).send(events(("a", 5, 2)))
    driven.advance(11 * SECOND).send(events(("a", 6, 12)))
    driven.restart().advance(22 * SECOND).send(events(("a", 7, 23)))
    assert texts(driven) == ["0", "5", "0"]


def test_the_key_is_a_scalar_for_one_column_and_a_tuple_for_several() -> None:
    class Keys(KeyedOperator[Event, Made]):
        def process(self, key: Any, row: Event, ctx: Context) -> Iterator[Made]:
            yield Made(row.key, repr(key))

    processor = KeyedProcessor(Keys(), ("key", "n"), EVENTS)
    driven = Harness(processor, [EVENTS]).send(events(("a", 1, 1), ("b", None, 1)))
    assert texts(driven) == ["('a', 1)", "('b', None)"]
    assert texts(harness(Keys()).send(events(("a", 1, 1)))) == ["'a'"]


class Fragile(KeyedOperator[Event, Made]):
    odd = Output(Event)

    def process(self, key: str, row: Event, ctx: Context) -> Iterator[Any]:
        yield Made(key, f"{row.n}")
        yield self.odd(row)
        if row.n == 13:
            raise ValueError("unlucky")
        if row.n == 14:
            yield Event(key, 14)
        if row.n == 15:
            yield self.odd(Event(key, "?"))  # type: ignore[arg-type]

    def on_timer(self, key: str, timer: Fired, ctx: Context) -> None: ...


def test_a_row_that_raises_is_reported_with_all_that_is_known() -> None:
    driven = harness(Fragile(), operator_name="fragile", subtask=0)
    with pytest.raises(UserCodeError) as caught:
        driven.send(events(("a", 1, 1), ("b", 13, 2)))
    report = str(caught.value)
    assert report.startswith("fragile[0] failed in process() at epoch 0, key 'b'")
    assert "Event(key='b', n=13)" in report
    assert "ValueError: unlucky" in report
    assert 'raise ValueError("unlucky")' in report
    assert "keyed_processor" not in report
    assert "DeadLetter" in report
    poison = pa.ipc.open_stream(caught.value.poison).read_all()
    assert poison.column("n").to_pylist() == [13]


@pytest.mark.parametrize(("n", "cause"), [(14, "declared is Made"), (15, "column n")])
def test_a_row_that_yields_what_does_not_fit_is_reported_too(n: int, cause: str) -> None:
    with pytest.raises(UserCodeError, match=cause) as caught:
        harness(Fragile()).send(events(("a", 1, 1), ("b", n, 2), ("c", 3, 2)))
    assert caught.value.key == "'b'"


@pytest.mark.parametrize("n", [13, 14, 15])
def test_dropped_rows_leave_nothing_in_any_output_and_are_counted(n: int) -> None:
    driven = harness(Fragile(), Drop())
    driven.send(events(("a", 1, 1), ("b", n, 2), ("c", n, 2), ("d", 3, 3)))
    assert texts(driven) == ["1", "3"]
    assert [row["n"] for row in driven.rows("odd")] == [1, 3]
    assert driven.counters["dropped"] == 2


def test_dead_letters_hold_the_row_and_the_error() -> None:
    driven = harness(Fragile(), DeadLetter("bad/"))
    driven.send(events(("a", 13, 1), ("b", 2, 2)))
    letters = driven.taken(DEAD)
    assert letters.schema.equals(DEAD_SCHEMA)
    assert '"key": "a", "n": 13' in letters.column("raw")[0].as_py()
    assert letters.column("error").to_pylist() == ["ValueError: unlucky"]
    assert driven.counters["dead_lettered"] == 1


def test_a_null_in_a_field_that_is_not_optional_follows_the_policy() -> None:
    @dataclass
    class Strict:
        key: str
        n: int

    class Op(KeyedOperator[Strict, Made]):
        def process(self, key: str, row: Strict, ctx: Context) -> Iterator[Made]:
            yield Made(key, str(row.n))

    batch = events(("a", None, 1), ("b", 2, 1))
    with pytest.raises(UserCodeError, match=r"column n is null, but Strict\.n is"):
        harness(Op()).send(batch)
    driven = harness(Op(), Drop()).send(batch)
    assert texts(driven) == ["2"]
    assert driven.counters["dropped"] == 1


class Careless(KeyedOperator[Event, Made]):
    kept = ValueState(int, default=0)

    def __init__(self) -> None:
        self.count = 0

    def open(self, ctx: Context) -> None:
        self.count = 1
        self._scratch = 0

    def process(self, key: str, row: Event, ctx: Context) -> None:
        self._scratch += 1
        if row.n == 1:
            self.count += 1
        if row.n == 2:
            self.kept = 5  # type: ignore[assignment]
        if row.n == 3:
            del self.count


def test_public_attributes_are_frozen_after_open_and_scratch_is_not() -> None:
    harness(Careless()).send(events(("a", 0, 1)))
    for n in (1, 3):
        with pytest.raises(StateError) as caught:
            harness(Careless(), Drop()).send(events(("a", n, 1)))
    with pytest.raises(StateError) as caught:
        harness(Careless()).send(events(("a", 1, 1)))
    assert str(caught.value) == (
        "Careless.process assigned self.count, which is not state\n"
        "  It would be lost on restart and shared by all keys on the subtask.\n"
        "  Declare  count = ps.ValueState(int, default=0)  or, for scratch, name it _count."
    )
    with pytest.raises(StateError, match=r"self.kept.value = "):
        harness(Careless()).send(events(("a", 2, 1)))


def test_state_has_no_key_outside_of_rows_and_timers() -> None:
    class Eager(KeyedOperator[Event, Made]):
        last = ValueState(int)

        def open(self, ctx: Context) -> None:
            self.last.value = 1

        def process(self, key: str, row: Event, ctx: Context) -> None: ...

    with pytest.raises(StateError, match=r"Eager.last is state, and there is none before"):
        harness(Eager())

    class AtCut(KeyedOperator[Event, Made]):
        last = ValueState(int)

        def process(self, key: str, row: Event, ctx: Context) -> None: ...

        def before_snapshot(self, ctx: Context) -> None:
            self.last.value = 1

    with pytest.raises(StateError, match="state is kept per key"):
        harness(AtCut()).cut()


def test_operator_state_of_a_keyed_operator_survives() -> None:
    class Counter(KeyedOperator[Event, Made]):
        def open(self, ctx: Context) -> None:
            self._list = ctx.operator_state("count", "list")
            self._count = sum(int(item) for item in self._list.items())

        def process(self, key: str, row: Event, ctx: Context) -> Iterator[Made]:
            self._count += 1
            yield Made(key, str(self._count))

        def before_snapshot(self, ctx: Context) -> None:
            self._list.replace([str(self._count).encode()])

    driven = harness(Counter()).send(events(("a", 1, 1)))
    driven.restart().send(events(("a", 1, 1)))
    assert texts(driven) == ["1", "2"]


def test_what_is_wrong_with_the_class_is_said_when_planning() -> None:
    class Neither(KeyedOperator[Event, Made]): ...

    class Both(KeyedOperator[Event, Made]):
        def process(self, key: str, row: Event, ctx: Context) -> None: ...
        def process_group(self, key: str, rows: Sequence[Event], ctx: Context) -> None: ...

    class NoTimer(KeyedOperator[Event, Made]):
        alarm = Timer()

        def process(self, key: str, row: Event, ctx: Context) -> None: ...

    class Untold(KeyedOperator):  # type: ignore[type-arg]
        def process(self, key: str, row: Any, ctx: Context) -> None: ...

    for op, text in (
        (Neither(), "neither process nor process_group"),
        (Both(), "both process and process_group"),
        (NoTimer(), "declares a timer but no on_timer"),
        (Untold(), "what it yields is not declared"),
    ):
        with pytest.raises(PlanError, match=text):
            KeyedProcessor(op, "key", EVENTS)
    timeless = RowCodec(Event).schema
    with pytest.raises(PlanError, match=r"Alarm.early: this timer goes by event time"):
        KeyedProcessor(Alarm(), "key", timeless)
    with pytest.raises(PlanError, match=r"Expiring.last: a ttl goes by event time"):
        KeyedProcessor(Expiring(), "key", timeless)
    with pytest.raises(PlanError, match='no column "n", which Event asks for'):
        KeyedProcessor(AllKinds(), "key", pa.schema([("key", pa.utf8())]))
    with pytest.raises(PlanError, match="name of a built-in output"):

        class Misnamed(KeyedOperator[Event, Made]):
            late = Output(Event)

    shared = ValueState(int)
    with pytest.raises(PlanError, match=r"Twice.b and Twice.a are one object"):

        class Twice(KeyedOperator[Event, Made]):
            a = shared
            b = shared


def test_without_a_row_class_rows_have_all_columns_as_attributes() -> None:
    class Loose(KeyedOperator[Any, Made]):
        def process(self, key: str, row: Any, ctx: Context) -> Iterator[Made]:
            yield Made(row.key, f"{row.n}")

    assert texts(harness(Loose()).send(events(("a", 1, 1)))) == ["1"]


def test_streams_without_event_time_have_none_on_their_rows() -> None:
    class Plain(KeyedOperator[Event, Made]):
        def process(self, key: str, row: Event, ctx: Context) -> Iterator[Made]:
            yield Made(key, f"{ctx.event_time} {ctx.is_late}")

    schema = RowCodec(Event).schema
    processor = KeyedProcessor(Plain(), "key", schema)
    assert processor.outputs[MAIN].names == ["key", "text"]
    driven = Harness(processor, [schema], out_schemas=processor.outputs)
    driven.send(RowCodec(Event).encode([Event("a", 1)]))
    assert texts(driven) == ["None False"]
    driven.advance(WATERMARK_MAX)
