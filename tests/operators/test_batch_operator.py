"""Operator, map_batches, map, flat_map, filter and broadcast state."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from penstock.elements.errors import PlanError, StateError, UserCodeError
from penstock.elements.rows import RowCodec
from penstock.elements.signals import TIME_COLUMN
from penstock.operators.batch_processor import BatchProcessor, batch_function
from penstock.operators.broadcast import BroadcastState
from penstock.operators.context import Context
from penstock.operators.declared import Output, Side, ValueState
from penstock.operators.error_policy import DeadLetter, Drop
from penstock.operators.event_time_column import with_time_field, with_times
from penstock.operators.keyed_operator import KeyedOperator
from penstock.operators.keyed_processor import KeyedProcessor
from penstock.operators.processor import DEAD, MAIN, Processor
from penstock.operators.python_operator import Operator
from penstock.operators.row_functions import row_function
from penstock.testing.harness import Harness


@dataclass
class Order:
    id: int
    x: float | None


@dataclass
class Scored:
    id: int
    score: float


ORDERS = with_time_field(RowCodec(Order).schema)


def orders(*rows: tuple[int, float | None, int]) -> pa.RecordBatch:
    batch = RowCodec(Order).encode([Order(i, x) for i, x, _ in rows])
    return with_times(batch, np.array([t for *_, t in rows], np.int64))


def driven(processor: Processor, **options: Any) -> Harness:
    outputs = processor.outputs  # type: ignore[attr-defined]
    return Harness(processor, [ORDERS], out_schemas=outputs, **options)


def times(harness: Harness) -> list[int]:
    column = harness.taken().column(TIME_COLUMN)
    return [int(t) for t in column.cast(pa.int64()).to_pylist()]


class PolarsScore(Operator):
    returns = Scored

    def open(self, ctx: Context) -> None:
        self._factor = 2.0

    def process(self, batch: pl.DataFrame, ctx: Context) -> Iterator[pl.DataFrame]:
        assert isinstance(batch, pl.DataFrame)
        yield batch.select("id", score=pl.col("x") * self._factor)


class PandasScore(Operator):
    returns = Scored

    def process(self, batch: pd.DataFrame, ctx: Context) -> Iterator[pd.DataFrame]:
        assert isinstance(batch, pd.DataFrame)
        yield pd.DataFrame({"id": batch["id"], "score": batch["x"] * 2.0})


class ArrowScore(Operator):
    returns = Scored

    def process(self, batch: pa.RecordBatch, ctx: Context) -> Iterator[pa.RecordBatch]:
        yield pa.record_batch({"score": pc.multiply(batch["x"], 2.0), "id": batch["id"]})


@pytest.mark.parametrize("op", [PolarsScore, PandasScore, ArrowScore])
def test_the_annotation_picks_the_frame_and_rows_keep_their_time(op: type[Operator]) -> None:
    harness = driven(BatchProcessor(op(), ORDERS))
    harness.send(orders((1, 1.5, 7), (2, 2.5, 9)))
    table = harness.taken()
    assert table.drop_columns([TIME_COLUMN]).to_pylist() == [
        {"id": 1, "score": 3.0},
        {"id": 2, "score": 5.0},
    ]
    assert table.column(TIME_COLUMN).cast(pa.int64()).to_pylist() == [7, 9]


def keep_large(batch: pl.DataFrame) -> pl.DataFrame:
    return batch.filter(pl.col("x") > 1).sort("x")


def test_map_batches_may_drop_and_reorder_rows_that_keep_their_time_column() -> None:
    harness = driven(batch_function(keep_large, ORDERS))
    harness.send(orders((1, 3.0, 7), (2, 0.5, 8), (3, 2.0, 9)))
    assert times(harness) == [9, 7]


def test_rows_whose_time_is_lost_are_an_error() -> None:
    def shrink(batch: pl.DataFrame) -> pl.DataFrame:
        return batch.filter(pl.col("x") > 1).drop("_time")

    with pytest.raises(UserCodeError, match="Keep the column _time") as caught:
        driven(batch_function(shrink, ORDERS)).send(orders((1, 3.0, 7), (2, 0.5, 8)))
    assert "map_batches(shrink)" in str(caught.value)


def test_a_frame_of_another_schema_is_an_error_that_names_columns_under_any_policy() -> None:
    def renamed(batch: pa.RecordBatch) -> pa.RecordBatch:
        return batch.rename_columns(["id", "y", "_time"])

    for policy in (None, Drop()):
        processor = batch_function(renamed, ORDERS, None, *([policy] if policy else []))
        with pytest.raises(UserCodeError, match="without the declared column x and with column y"):
            driven(processor).send(orders((1, 3.0, 7), (2, 3.0, 7)))


def checked(batch: pa.RecordBatch) -> pa.RecordBatch:
    if pc.any(pc.less(batch["x"], 0)).as_py():
        raise ValueError("negative")
    return batch


def test_rows_that_make_a_batch_fail_are_found_and_the_others_go_on() -> None:
    batch = orders(*((i, -1.0 if i in (3, 700) else 1.0, i) for i in range(1000)))
    harness = driven(batch_function(checked, ORDERS, policy=DeadLetter("bad/")))
    harness.send(batch)
    assert harness.taken().num_rows == 998
    letters = harness.taken(DEAD)
    assert [text[:9] for text in letters.column("raw").to_pylist()] == ['{"id": 3,', '{"id": 70']
    assert harness.counters["dead_lettered"] == 2
    with pytest.raises(UserCodeError, match="negative") as caught:
        driven(batch_function(checked, ORDERS)).send(batch)
    assert caught.value.row is not None
    assert "'id': 3" in caught.value.row
    assert pa.ipc.open_stream(caught.value.poison).read_all().num_rows == 1


def test_a_batch_that_fails_only_as_a_whole_fails_as_a_whole() -> None:
    def small_only(batch: pa.RecordBatch) -> pa.RecordBatch:
        if batch.num_rows > 2:
            raise MemoryError("too many")
        return batch

    batch = orders(*((i, 1.0, i) for i in range(5)))
    with pytest.raises(UserCodeError, match=r"2 more of the batch"):
        driven(batch_function(small_only, ORDERS)).send(batch)
    harness = driven(batch_function(small_only, ORDERS, policy=Drop())).send(batch)
    assert harness.taken().num_rows == 5


def test_a_value_that_does_not_fit_its_column_is_an_error_of_its_row() -> None:
    def halves(batch: pa.RecordBatch) -> pa.RecordBatch:
        return pa.record_batch({"id": pc.divide(batch["x"], 2.0), "score": batch["x"]})

    processor = batch_function(halves, ORDERS, Scored, Drop())
    harness = driven(processor).send(orders((1, 2.0, 1), (2, 3.0, 1), (3, 4.0, 1)))
    assert [row["id"] for row in harness.rows()] == [1, 2]
    assert harness.counters["dropped"] == 1


class Split(Operator):
    bad = Output(Order)

    def process(self, batch: pa.RecordBatch, ctx: Context) -> Iterator[Any]:
        yield batch.filter(pc.is_valid(batch["x"]))
        yield self.bad(batch.filter(pc.is_null(batch["x"])))


def test_frames_go_to_side_outputs() -> None:
    harness = driven(BatchProcessor(Split(), ORDERS))
    harness.send(orders((1, None, 7), (2, 2.0, 8)))
    assert [row["id"] for row in harness.rows("bad")] == [1]
    assert [row["id"] for row in harness.rows()] == [2]


class Buffering(Operator):
    """Holds rows back over checkpoints."""

    def open(self, ctx: Context) -> None:
        self._list = ctx.operator_state("held")
        self._held = [pa.ipc.open_stream(item).read_all() for item in self._list.items()]

    def process(self, batch: pa.RecordBatch, ctx: Context) -> None:
        copied = pa.BufferOutputStream()
        with pa.ipc.new_stream(copied, batch.schema) as writer:
            writer.write_batch(batch)
        self._held.append(pa.ipc.open_stream(copied.getvalue()).read_all())

    def before_snapshot(self, ctx: Context) -> None:
        items = []
        for table in self._held:
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, table.schema) as writer:
                writer.write_table(table)
            items.append(bytes(sink.getvalue()))
        self._list.replace(items)

    def on_end(self, ctx: Context) -> Iterator[pa.Table]:
        yield pa.concat_tables(self._held)


def test_operator_state_and_on_end() -> None:
    harness = driven(BatchProcessor(Buffering(), ORDERS))
    harness.send(orders((1, 1.0, 7))).restart().send(orders((2, 1.0, 8))).end()
    assert times(harness) == [7, 8]


def test_what_on_end_has_yielded_is_not_dealt_to_others_by_a_later_restart() -> None:
    """A subtask ends, others of its operator still read, and all is restored at another width."""
    harness = driven(BatchProcessor(Buffering(), ORDERS))
    before = harness.send(orders((1, 1.0, 7))).cut()
    assert [s.batch.num_rows for s in before if s.name == "held"] == [1]
    harness.end()
    assert [s.batch.num_rows for s in harness.cut() if s.name == "held"] == [0]


class Hoarding(Operator):
    def open(self, ctx: Context) -> None:
        self._kept: list[Any] = []

    def process(self, batch: pa.RecordBatch, ctx: Context) -> None:
        self._kept.append(batch)


def test_the_harness_finds_operators_that_keep_their_input() -> None:
    with pytest.raises(AssertionError, match="keeps a view of its input"):
        driven(BatchProcessor(Hoarding(), ORDERS)).send(orders((1, 1.0, 7)))


def test_what_is_wrong_with_the_class_or_function_is_said_when_planning() -> None:
    class Stateful(Operator):
        count = ValueState(int)

        def process(self, batch: pa.RecordBatch, ctx: Context) -> None: ...

    with pytest.raises(PlanError, match="belong to a KeyedOperator"):
        BatchProcessor(Stateful(), ORDERS)
    with pytest.raises(PlanError, match=r"it takes Order"):
        batch_function(score, ORDERS)
    with pytest.raises(PlanError, match="is not a schema"):
        batch_function(keep_large, ORDERS, returns={"id": int})

    def to_int(row: Order) -> int:
        return row.id

    with pytest.raises(PlanError, match="it returns int, which is no row class"):
        row_function("map", to_int, ORDERS)
    with pytest.raises(PlanError, match="is not a function"):
        row_function("map", 5, ORDERS)  # type: ignore[arg-type]


class Sticky(Operator):
    def __init__(self) -> None:
        self.seen = 0

    def process(self, batch: pa.RecordBatch, ctx: Context) -> None:
        self.seen += 1


def test_public_attributes_of_an_operator_are_frozen_too() -> None:
    with pytest.raises(StateError, match=r"(?s)Sticky.process assigned self.seen.*operator_state"):
        driven(BatchProcessor(Sticky(), ORDERS)).send(orders((1, 1.0, 1)))


# Row functions -----------------------------------------------------------------------------------


def score(row: Order) -> Scored:
    return Scored(row.id, (row.x or 0.0) * 2)


def twice(row: Order, ctx: Context) -> Iterator[Scored]:
    for _ in range(row.id):
        yield Scored(row.id, float(ctx.subtask))


def large(row: Order) -> bool:
    if row.x is None:
        raise ValueError("no x")
    return row.x > 1


def test_map_makes_one_row_of_each_and_keeps_its_time() -> None:
    harness = driven(row_function("map", score, ORDERS)).send(orders((1, 1.0, 7), (2, None, 9)))
    table = harness.taken()
    assert table.column("score").to_pylist() == [2.0, 0.0]
    assert table.column(TIME_COLUMN).cast(pa.int64()).to_pylist() == [7, 9]


def test_flat_map_makes_any_number_of_rows_and_may_take_the_context() -> None:
    harness = driven(row_function("flat_map", twice, ORDERS))
    harness.send(orders((2, 1.0, 7), (0, 1.0, 8), (1, 1.0, 9)))
    assert times(harness) == [7, 7, 9]


def test_filter_keeps_rows_whole_and_bad_rows_follow_the_policy() -> None:
    harness = driven(row_function("filter", large, ORDERS, policy=Drop()))
    harness.send(orders((1, 2.0, 7), (2, None, 8), (3, 0.0, 9), (4, 5.0, 10)))
    assert times(harness) == [7, 10]
    assert harness.counters["dropped"] == 1
    with pytest.raises(UserCodeError, match=r"failed in large\(\)") as caught:
        driven(row_function("filter", large, ORDERS)).send(orders((1, 2.0, 7), (2, None, 8)))
    assert caught.value.row == "Order(id=2, x=None)"


def test_map_without_annotations_keeps_the_schema_and_takes_attribute_rows() -> None:
    def doubled(row):  # type: ignore[no-untyped-def]
        return {"id": row.id * 2, "x": row.x}

    harness = driven(row_function("map", doubled, ORDERS)).send(orders((2, None, 7)))
    assert harness.rows() == [{"id": 4, "x": None}]
    replaced = row_function("map", lambda row: row._replace(id=9), ORDERS)
    assert driven(replaced).send(orders((2, None, 7))).rows() == [{"id": 9, "x": None}]


def test_map_that_gives_nothing_is_an_error() -> None:
    with pytest.raises(UserCodeError, match="map must give a row for each"):
        driven(row_function("map", lambda row: None, ORDERS)).send(orders((2, None, 7)))


# Broadcast state ---------------------------------------------------------------------------------


@dataclass
class Rate:
    name: str
    factor: float


@dataclass
class Priced:
    id: int
    price: float


class Pricing(KeyedOperator[Order, Priced]):
    rates = BroadcastState(str, float)
    seen = ValueState(int, default=0)

    def process(self, key: int, row: Order, ctx: Context) -> Iterator[Priced]:
        self.seen.value += 1
        if row.x == -1.0:
            self.rates["eur"] = 5.0
        yield Priced(key, (row.x or 0.0) * self.rates.get("eur", 1.0))

    def process_broadcast(self, row: Rate, ctx: Context) -> None:
        if row.factor < 0:
            self.seen.value = 1
        self.rates[row.name] = row.factor


RATES = RowCodec(Rate).schema


def rates(*rows: Rate) -> pa.RecordBatch:
    return RowCodec(Rate).encode(rows)


def pricing(**options: Any) -> Harness:
    processor = KeyedProcessor(Pricing(), "id", ORDERS, broadcast_schema=RATES)
    return Harness(processor, [ORDERS, RATES], out_schemas=processor.outputs, **options)


def test_broadcast_state_is_read_by_rows_and_filled_by_the_broadcast_stream() -> None:
    harness = pricing().send(orders((1, 10.0, 1)))
    harness.send(rates(Rate("eur", 3.0)), port=1).send(orders((1, 10.0, 2)))
    harness.restart().send(orders((1, 10.0, 3)))
    assert [row["price"] for row in harness.rows()] == [10.0, 30.0, 30.0]


def test_after_a_rescale_every_subtask_has_the_broadcast_state() -> None:
    sections = []
    for subtask in range(2):
        part = pricing(subtask=subtask, parallelism=2)
        sections += part.send(rates(Rate("eur", 3.0)), port=1).cut()
    for subtask in range(3):
        part = pricing(subtask=subtask, parallelism=3, restored=sections)
        part.send(orders((1, 2.0, 1)))
        assert [row["price"] for row in part.rows()] == [6.0]


def test_broadcast_state_is_written_in_process_broadcast_only_and_keyed_state_not_there() -> None:
    with pytest.raises(StateError, match="changed outside process_broadcast"):
        pricing().send(orders((1, -1.0, 1)))
    with pytest.raises(StateError, match="no row or timer of any key"):
        pricing().send(rates(Rate("eur", -1.0)), port=1)


def test_broadcast_streams_and_states_need_each_other() -> None:
    with pytest.raises(PlanError, match="no stream is broadcast to it"):
        KeyedProcessor(Pricing(), "id", ORDERS)
    with pytest.raises(PlanError, match="declares no BroadcastState"):
        BatchProcessor(ArrowScore(), ORDERS, broadcast_schema=RATES)


class Rating(Operator):
    returns = Scored
    rates = BroadcastState(str, float)

    def process(self, batch: pa.RecordBatch, ctx: Context) -> Iterator[pa.RecordBatch]:
        factor = self.rates.get("eur", 1.0)
        yield pa.record_batch({"id": batch["id"], "score": pc.multiply(batch["x"], factor)})

    def process_broadcast(self, row: Rate, ctx: Context) -> Any:
        self.rates[row.name] = row.factor
        return Side("x", row) if row.name == "wrong" else None


def test_batch_operators_take_broadcast_rows_too_but_may_not_emit_for_them() -> None:
    processor = BatchProcessor(Rating(), ORDERS, broadcast_schema=RATES)
    harness = Harness(processor, [ORDERS, RATES], out_schemas=processor.outputs)
    harness.send(rates(Rate("eur", 3.0)), port=1).restart().send(orders((1, 2.0, 1)))
    assert [row["score"] for row in harness.rows(MAIN)] == [6.0]
    with pytest.raises(UserCodeError, match="runs on every subtask"):
        harness.send(rates(Rate("wrong", 3.0)), port=1)
