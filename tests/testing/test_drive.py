"""drive is the documentation's example, and finds what tests usually miss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from penstock.elements.errors import PlanError, StateError, UserCodeError
from penstock.operators.broadcast import BroadcastState
from penstock.operators.context import Context
from penstock.operators.declared import Fired, MapState, Output, Side, Timer, ValueState
from penstock.operators.error_policy import Drop
from penstock.operators.keyed_operator import KeyedOperator
from penstock.operators.python_operator import Operator
from penstock.testing.drive import drive

T0 = datetime(2024, 1, 1, tzinfo=UTC)
T1 = T0 + timedelta(hours=1)


@dataclass
class Flight:
    tail: str
    dep_time: datetime
    dep_delay: float | None


@dataclass
class Knock:
    tail: str
    minutes: float


class LateInbound(KeyedOperator[Flight, Knock]):
    last = ValueState(float, default=0.0, ttl="2 days")
    seen = MapState(str, int)
    expire = Timer()
    unknown = Output(Flight)

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold

    def process(self, key: str, row: Flight, ctx: Context) -> Iterator[Knock | Side[Flight]]:
        if row.dep_delay is None:
            yield self.unknown(row)
            return
        if min(self.last.value, row.dep_delay) > self.threshold:
            yield Knock(key, row.dep_delay)
        self.last.value = row.dep_delay
        self.expire.set(row.dep_time + timedelta(hours=12))

    def on_timer(self, key: str, timer: Fired, ctx: Context) -> None:
        self.last.clear()


def test_two_late_flights_make_a_knock() -> None:
    op = drive(LateInbound(30), key="tail")
    assert op.send(Flight("N1", T0, 45.0)) == []
    op.restart()
    assert op.send(Flight("N1", T1, 50.0)) == [Knock("N1", 50.0)]
    assert op.state("N1").expire == T1 + timedelta(hours=12)
    assert op.advance(T1 + timedelta(hours=12)) == []
    assert op.state("N1").last == 0.0
    assert op.state("N1").expire is None
    assert op.side("unknown") == []


def test_lists_of_rows_side_outputs_and_unknown_names() -> None:
    op = drive(LateInbound(30), key="tail")
    rows = [Flight("N1", T0, 40.0), Flight("N2", T0, None), Flight("N1", T1, 31.0)]
    assert op.send(rows) == [Knock("N1", 31.0)]
    assert op.side("unknown") == [rows[1]]
    assert op.side("unknown") == []
    with pytest.raises(AttributeError, match="no side output 'unkown'"):
        op.side("unkown")
    with pytest.raises(AttributeError, match="declares last, seen, expire, unknown; not lats"):
        _ = op.state("N1").lats


class Hidden(KeyedOperator[Flight, Knock]):
    """Keeps what is not declared, in four ways."""

    shared: dict[str, float] = {}
    bag = ValueState(list, default=[])

    def __init__(self, how: str) -> None:
        self.how = how
        self.config: dict[str, int] = {}

    def process(self, key: str, row: Flight, ctx: Context) -> None:
        if self.how == "instance":
            self.config[key] = 1
        if self.how == "class":
            self.shared[key] = 1.0
        if self.how == "scratch":
            self._memo = key
        if self.how == "reference":
            if not hasattr(self, "_kept"):
                self._kept = self.bag.value
            self._kept.append(row.tail)


@pytest.mark.parametrize(("how", "name"), [("instance", "config"), ("class", "shared")])
def test_undeclared_state_is_found_also_when_it_changes_in_place(how: str, name: str) -> None:
    op = drive(Hidden(how), key="tail")
    with pytest.raises(StateError, match=f"Hidden.process changed self.{name}, which is not state"):
        op.send(Flight("N1", T0, 1.0))
    assert drive(Hidden("scratch"), key="tail").send(Flight("N1", T0, 1.0)) == []


def test_state_changed_through_an_old_reference_is_found() -> None:
    op = drive(Hidden("reference"), key="tail")
    op.send(Flight("N1", T0, 1.0))
    with pytest.raises(StateError, match="state bag of key 'N1' was changed in place, but not"):
        op.send(Flight("N1", T0, 1.0))


class Borders(Operator):
    """Emits one row per batch: its result depends on how rows happen to arrive."""

    def process(self, batch: pl.DataFrame, ctx: Context) -> Iterator[pl.DataFrame]:
        yield batch.head(1)


def test_an_operator_that_depends_on_batch_borders_is_found() -> None:
    rows = [Flight("N1", T0, 1.0), Flight("N2", T0, 1.0)]
    with pytest.raises(AssertionError, match="depends on where batches end"):
        drive(Borders(), schema=Flight).send(rows)
    assert len(drive(Borders(), schema=Flight, check_borders=False).send(rows)) == 1


class Doubled(Operator):
    returns = Knock

    def process(self, batch: pl.DataFrame, ctx: Context) -> Iterator[pl.DataFrame]:
        yield batch.select("tail", minutes=pl.col("dep_delay") * 2)


def test_batch_operators_are_driven_with_rows_or_batches() -> None:
    op = drive(Doubled(), schema=Flight)
    assert op.send(Flight("N1", T0, 2.0), Flight("N2", T1, 3.0)) == [
        Knock("N1", 4.0),
        Knock("N2", 6.0),
    ]
    op.restart()
    batch = pa.record_batch(
        {
            "tail": ["N3"],
            "dep_time": pa.array([T0], pa.timestamp("us", "UTC")),
            "dep_delay": [1.0],
        }
    )
    assert op.send(batch) == [Knock("N3", 2.0)]
    assert drive(Doubled()).send(batch) == [Knock("N3", 2.0)], "a batch tells its schema"
    frame = pl.DataFrame({"tail": ["N4"], "dep_time": [T0], "dep_delay": [5.0]})
    assert op.send(frame) == [Knock("N4", 10.0)]


class Waiting(KeyedOperator[Flight, Knock]):
    wake = Timer(processing_time=True)

    def process(self, key: str, row: Flight, ctx: Context) -> None:
        self.wake.set(ctx.now() + timedelta(seconds=5))

    def on_timer(self, key: str, timer: Fired, ctx: Context) -> Iterator[Knock]:
        yield Knock(key, (ctx.now() - timer.time).total_seconds())


def test_processing_time_goes_by_a_mock_clock() -> None:
    op = drive(Waiting(), key="tail")
    op.send(Flight("N1", T0, 1.0))
    assert op.tick("4 seconds") == []
    assert op.tick(timedelta(seconds=3)) == [Knock("N1", 2.0)]
    op.send(Flight("N2", T0, 1.0))
    assert op.end() == []
    assert op.counters == {"timers_dropped": 1}


class Failing(KeyedOperator[Flight, Knock]):
    def process(self, key: str, row: Flight, ctx: Context) -> Iterator[Knock]:
        if row.dep_delay == 13.0:
            raise ValueError("unlucky")
        yield Knock(key, row.dep_delay or 0.0)


def test_errors_and_policies_are_those_of_a_real_run() -> None:
    op = drive(Failing(), key="tail")
    with pytest.raises(UserCodeError, match=r"Failing\[0\] failed in process\(\)"):
        op.send(Flight("N1", T0, 13.0))
    lenient = drive(Failing(), key="tail", on_error=Drop())
    assert lenient.send([Flight("N1", T0, 13.0), Flight("N2", T0, 1.0)]) == [Knock("N2", 1.0)]
    assert lenient.counters["dropped"] == 1


class Timed(KeyedOperator[Any, Knock]):
    def process(self, key: str, row: Any, ctx: Context) -> Iterator[Knock]:
        assert ctx.event_time is not None
        yield Knock(key, float(ctx.event_time.hour) + (100.0 if ctx.is_late else 0.0))


def test_event_time_comes_from_the_only_datetime_column_or_from_at() -> None:
    op = drive(Timed(), key="tail", schema=Flight)
    assert op.send(Flight("N1", T1, 1.0)) == [Knock("N1", 1.0)]
    assert op.send(Flight("N1", T1, 1.0), at=T0 + timedelta(hours=5)) == [Knock("N1", 5.0)]
    op.advance(T0 + timedelta(hours=5))
    assert op.send(Flight("N1", T1, 1.0)) == [Knock("N1", 101.0)]
    untimed = drive(Timed(), key="tail", schema=Knock)
    untimed.advance(T0 + timedelta(hours=2))
    assert untimed.send(Knock("N1", 1.0)) == [Knock("N1", 2.0)], "never late by itself"


@dataclass
class Limit:
    tail: str
    minutes: float


class Limited(KeyedOperator[Flight, Knock]):
    limits = BroadcastState(str, float)

    def process(self, key: str, row: Flight, ctx: Context) -> Iterator[Knock]:
        if (row.dep_delay or 0.0) > self.limits.get(key, 0.0):
            yield Knock(key, row.dep_delay or 0.0)

    def process_broadcast(self, row: Limit, ctx: Context) -> None:
        self.limits[row.tail] = row.minutes


def test_broadcast_rows_are_sent_apart() -> None:
    op = drive(Limited(), key="tail", broadcast=Limit)
    op.send_broadcast(Limit("N1", 30.0))
    op.restart()
    assert op.send([Flight("N1", T0, 20.0), Flight("N2", T0, 20.0)]) == [Knock("N2", 20.0)]
    assert op.state("N1").limits == {"N1": 30.0}


def test_a_keyed_operator_needs_a_key() -> None:
    with pytest.raises(PlanError, match="say by which column"):
        drive(LateInbound(30))
