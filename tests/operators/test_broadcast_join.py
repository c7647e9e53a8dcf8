"""Broadcast joins against loops: the table as it was at each row's time, whatever came when."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.elements.changelog import CHANGE, with_change
from penstock.elements.errors import PlanError
from penstock.operators.broadcast_join import BroadcastJoinProcessor
from penstock.operators.event_times import with_time
from penstock.operators.join_condition import JoinCondition
from penstock.operators.join_sides import LEFT, RIGHT
from penstock.operators.processor import LATE
from penstock.testing.harness import Harness

STREAM = with_time(pa.schema([("l", pa.int64()), ("k", pa.float64())]))
TABLE = pa.schema([("k", pa.float64()), ("r", pa.int64())])
Row = tuple[Any, ...]

keys = st.sampled_from([0.0, -0.0, float("nan"), 7.0, None])
numbers = st.integers(0, 2)


def rows(schema: pa.Schema, *values: Row) -> pa.RecordBatch:
    columns = list(zip(*values, strict=True)) if values else [()] * len(schema)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def table_schema(timed: bool, updating: bool) -> pa.Schema:
    schema = with_time(TABLE) if timed else TABLE
    return with_change(schema) if updating else schema


def harness(how: str, table: pa.Schema, where: bool = False, **more: Any) -> Harness:
    condition = JoinCondition("l < r", STREAM, table, ["k"]) if where else None
    made = BroadcastJoinProcessor(["k"], how, STREAM, table, condition)
    return Harness(made, [STREAM, table], out_schemas=made.outputs, **more)


def shown(value: Any) -> Any:
    return repr(value + 0.0) if isinstance(value, float) else value


def expected(how: str, stream: list[Row], changes: list[Row], where: bool) -> Counter[Any]:
    """Stream rows are (l, k, time), changes (k, r, weight, time)."""
    found: Counter[Any] = Counter()
    for number, key, time in stream:
        table: Counter[Any] = Counter()
        for k, r, weight, at in changes:
            if at <= time and k is not None and shown(k) == shown(key):
                table[r] += weight
        partners = [r for r in (+table).elements() if not where or number < r]
        for r in partners:
            found[(shown(key), number, r, time)] += 1
        if not partners and how == "left":
            found[(shown(key), number, None, time)] += 1
    return found


def taken(driven: Harness) -> Counter[Any]:
    table = driven.taken()
    columns = [[shown(v) for v in table.column(name).to_pylist()] for name in ("k", "l", "r")]
    times = table.column("_time").cast(pa.int64()).to_pylist()
    return Counter(zip(*columns, times, strict=True))


@st.composite
def runs(draw: Any, updating: bool) -> list[Any]:
    made: list[Any] = []
    present: list[Row] = []
    now, table_now = 0, 0
    for _ in range(draw(st.integers(0, 14))):
        what = draw(st.sampled_from(["stream", "stream", "table", "table", "watermark", "restart"]))
        if what in ("watermark", "restart"):
            made.append((what, min(now - 6, table_now - 6)))
            continue
        batch = []
        for _ in range(draw(st.sampled_from([0, 1, 1, 3, 6]))):
            step, back_by = draw(st.sampled_from([0, 0, 1, 5])), draw(st.integers(0, 5))
            if what == "stream":
                now += step
                batch.append((draw(numbers), draw(keys), now - back_by))
                continue
            # What is taken back came at an earlier time, as in any changelog.
            table_now += step
            if updating and present and draw(st.booleans()):
                k, r, at = present.pop(draw(st.integers(0, len(present) - 1)))
                batch.append((k, r, -1, max(table_now - back_by, at)))
            else:
                row = (draw(keys), draw(numbers), table_now - back_by)
                present.append(row)
                batch.append((*row[:2], 1, row[2]))
        made.append((what, batch))
    return made


def drive(driven: Harness, made: list[Any], table: pa.Schema) -> Harness:
    for what, given_ in made:
        if what == "restart":
            driven.restart()
        elif what == "watermark":
            driven.advance(max(driven.watermark, given_))
        elif what == "stream":
            driven.send(rows(STREAM, *given_), LEFT)
        else:
            wanted = [
                i for i, n in ((0, "k"), (1, "r"), (2, CHANGE), (3, "_time")) if n in table.names
            ]
            driven.send(rows(table, *(tuple(row[i] for i in wanted) for row in given_)), RIGHT)
    return driven.end()


@pytest.mark.parametrize("updating", [False, True])
@pytest.mark.parametrize("how", ["inner", "left"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_rows_meet_the_table_of_their_time(how: str, updating: bool, data: st.DataObject) -> None:
    made, where = data.draw(runs(updating)), data.draw(st.booleans())
    table = table_schema(True, updating)
    driven = drive(harness(how, table, where), made, table)
    stream = [row for what, batch in made if what == "stream" for row in batch]
    changes = [row for what, batch in made if what == "table" for row in batch]
    assert taken(driven) == expected(how, stream, changes, where)
    assert driven.rows_behind_watermark == 0
    assert driven.counters["late"] == 0


def test_a_table_without_event_time_holds_for_all_times() -> None:
    table = table_schema(False, True)
    driven = harness("left", table)
    driven.send(rows(STREAM, (1, 7.0, 5), (2, 8.0, 6)), LEFT).restart()
    driven.send(rows(table, (7.0, 10, 1), (8.0, 20, 1)), RIGHT)
    driven.send(rows(table, (8.0, 20, -1), (7.0, 11, 1)), RIGHT)
    assert driven.rows() == []
    driven.advance(5).restart().end()
    assert taken(driven) == Counter([("7.0", 1, 10, 5), ("7.0", 1, 11, 5), ("8.0", 2, None, 6)])


def test_rows_that_wait_and_the_table_survive_rescaling() -> None:
    table = table_schema(True, True)
    parts = [harness("inner", table, subtask=n, parallelism=2) for n in range(2)]
    for number, part in enumerate(parts):
        part.send(rows(table, (1.0, 5, 1, 1), (2.0, 6, 1, 1)), RIGHT)
        part.send(rows(table, (1.0, 5, -1, 10)), RIGHT)
        # The two are at different times: one of them has already forgotten the row taken back.
        part.advance(12 if number else 3)
        part.send(rows(STREAM, (number, 1.0, 20 if number else 9), (number, 2.0, 21)), LEFT)
    sections = [section for part in parts for section in part.cut()]
    found: Counter[Any] = Counter()
    for subtask in range(3):
        part = harness("inner", table, restored=sections, subtask=subtask, parallelism=3)
        found += taken(part.end())
    assert found == Counter([("1.0", 0, 5, 9), ("2.0", 0, 6, 21), ("2.0", 1, 6, 21)])


def test_after_a_restart_rows_are_late_only_if_they_were_late_where_they_were_read() -> None:
    table = table_schema(True, True)
    parts = [harness("inner", table, subtask=n, parallelism=2) for n in range(2)]
    for part in parts:
        part.send(rows(table, (1.0, 5, 1, 1), (1.0, 5, -1, 10)), RIGHT)
    parts[0].advance(50)
    parts[1].advance(3)
    sections = [section for part in parts for section in part.cut()]
    # The first subtask was at 50; now it reads on what the second one read, which was at 3.
    again = harness("inner", table, restored=sections, subtask=0, parallelism=2)
    again.ctx.watermark = 50
    again.send(rows(STREAM, (7, 1.0, 4), (8, 1.0, 11), (9, 1.0, 3)), LEFT).end()
    assert [row["l"] for row in again.rows()] == [7]
    assert [row["l"] for row in again.rows(LATE)] == [9]


def test_late_rows_are_set_apart_and_late_changes_counted() -> None:
    table = table_schema(True, False)
    driven = harness("left", table).advance(10)
    driven.send(rows(STREAM, (1, 7.0, 10), (2, 7.0, 11)), LEFT)
    driven.send(rows(table, (7.0, 5, 3)), RIGHT).end()
    assert [row["l"] for row in driven.rows(LATE)] == [1]
    assert driven.rows() == [{"k": 7.0, "l": 2, "r": 5}]
    assert driven.counters["late"] == 2


def test_what_cannot_be_joined_is_refused() -> None:
    with pytest.raises(PlanError, match="how='semi'; there are inner and left"):
        harness("semi", TABLE)
    with pytest.raises(PlanError, match="the stream has no event time"):
        BroadcastJoinProcessor(["k"], "left", STREAM.remove(2), TABLE)
