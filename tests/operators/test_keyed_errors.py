"""What is wrong with a keyed operator or its rows, and what is said of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pytest
from keyed_events import (
    EVENTS,
    Alarm,
    AllKinds,
    Event,
    Expiring,
    Made,
    events,
    harness,
    texts,
)

from penstock.elements.errors import PlanError, StateError, UserCodeError
from penstock.elements.rows import RowCodec
from penstock.elements.signals import WATERMARK_MAX
from penstock.operators.context import Context
from penstock.operators.declared import (
    Fired,
    Output,
    Timer,
    ValueState,
)
from penstock.operators.error_policy import DEAD_SCHEMA, DeadLetter, Drop
from penstock.operators.keyed_operator import KeyedOperator
from penstock.operators.keyed_processor import KeyedProcessor
from penstock.operators.processor import DEAD, MAIN
from penstock.testing.harness import Harness


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
