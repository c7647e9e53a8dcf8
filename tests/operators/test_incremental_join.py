"""Incremental joins against nested loops: the sum of all changes is the join of what is there."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.elements.changelog import CHANGE, with_change
from penstock.elements.errors import PlanError
from penstock.operators.event_times import with_time
from penstock.operators.found_again import UNMATCHED
from penstock.operators.incremental_join import FOREVER_NS, IncrementalJoinProcessor
from penstock.operators.join_condition import JoinCondition
from penstock.operators.join_sides import LATE_RIGHT, LEFT, RIGHT
from penstock.operators.kernels import join_chains
from penstock.operators.processor import LATE
from penstock.testing.harness import Harness

LEFT_COLUMNS = pa.schema([("k", pa.float64()), ("s", pa.string()), ("l", pa.int64())])
RIGHT_COLUMNS = pa.schema([("r", pa.int64()), ("s", pa.string()), ("k", pa.float64())])
KINDS = ["inner", "left", "right", "full", "semi", "anti"]
KEYS = [["k"], ["k", "s"]]
Row = tuple[Any, ...]  # (k, s, number)

keys = st.sampled_from([0.0, -0.0, float("nan"), float("inf"), 7.0, None])
texts = st.sampled_from(["", "x", None])
numbers = st.sampled_from([-(2**63), 0, 1, 2, 2**63 - 1, None])


@st.composite
def steps(draw: Any, updating: tuple[bool, bool], times: bool) -> list[Any]:
    """Batches as (port, [(row, weight, time)]), watermarks and restarts; nothing is late."""
    present: tuple[list[Row], list[Row]] = ([], [])
    made: list[Any] = []
    now = 0
    for _ in range(draw(st.integers(0, 12))):
        what = draw(st.sampled_from(["rows", "rows", "rows", "watermark", "restart"]))
        if what != "rows":
            made.append((what, now - 6 if times else None))
            continue
        port = draw(st.sampled_from([LEFT, RIGHT]))
        rows = []
        for _ in range(draw(st.sampled_from([0, 1, 1, 3, 8]))):
            now += draw(st.sampled_from([0, 0, 1, 4]))
            back = bool(updating[port] and present[port] and draw(st.booleans()))
            if back:
                row = draw(st.sampled_from(present[port]))
                present[port].remove(row)
            else:
                row = (draw(keys), draw(texts), draw(numbers))
                present[port].append(row)
            rows.append((row, -1 if back else 1, now - draw(st.integers(0, 5))))
        made.append((port, rows))
    return made


def shown(value: Any) -> Any:
    """Equal keys print alike: NaN is NaN, and -0.0 is 0.0."""
    return repr(value + 0.0) if isinstance(value, float) else value


def batch_for(port: int, rows: list[Any], schema: pa.Schema) -> pa.RecordBatch:
    order = {"k": 0, "s": 1, "l": 2, "r": 2}
    arrays = []
    for field in schema:
        if field.name == CHANGE:
            values = [weight for _, weight, _ in rows]
        elif field.name == "_time":
            values = [time for _, _, time in rows]
        else:
            values = [row[order[field.name]] for row, _, _ in rows]
        arrays.append(pa.array(values, field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def schemas(on: list[str], updating: tuple[bool, bool], times: bool) -> tuple[pa.Schema, pa.Schema]:
    found = []
    for columns, changes in zip((LEFT_COLUMNS, RIGHT_COLUMNS), updating, strict=True):
        if "s" not in on and columns is RIGHT_COLUMNS:
            columns = columns.remove(1)
        columns = with_time(columns) if times else columns
        found.append(with_change(columns) if changes else columns)
    return found[0], found[1]


def joined(
    on: list[str],
    how: str,
    left: list[tuple[Row, int]],
    right: list[tuple[Row, int]],
    ttl: int,
    where: bool,
) -> Counter[Any]:
    """What nested loops give; rows are (row, time)."""

    def match(a: tuple[Row, int], b: tuple[Row, int]) -> bool:
        at = range(len(on))
        if any(a[0][i] is None or b[0][i] is None for i in at):
            return False
        if any(shown(a[0][i]) != shown(b[0][i]) for i in at) or abs(a[1] - b[1]) > ttl:
            return False
        return not where or (None not in (a[0][2], b[0][2]) and a[0][2] < b[0][2])

    found: Counter[Any] = Counter()
    wide = "s" in on
    for a in left:
        partners = [b for b in right if match(a, b)]
        values = tuple(map(shown, a[0]))
        if how in ("semi", "anti"):
            found[values] += bool(partners) == (how == "semi")
        else:
            for b in partners:
                found[(*values, b[0][2])] += 1
            if not partners and how in ("left", "full"):
                found[(*values, None)] += 1
    if how in ("right", "full"):
        for b in right:
            if not any(match(a, b) for a in left):
                found[(shown(b[0][0]), b[0][1] if wide else None, None, b[0][2])] += 1
    return +found


def net(table: pa.Table) -> Counter[Any]:
    """The multiset that the changes add up to."""
    found: Counter[Any] = Counter()
    for row in table.to_pylist() if table.num_rows else []:
        weight = row.pop(CHANGE, 1)
        row.pop("_time", None)
        names = [name for name in ("k", "s", "l", "r") if name in row]
        found[tuple(shown(row[name]) for name in names)] += weight
    assert all(count >= 0 for count in found.values())
    return +found


def present(made: list[Any], port: int) -> list[tuple[Row, int]]:
    """Rows that were added and not taken back, with the times at which they were added."""
    left: list[tuple[Row, int]] = []
    for step in made:
        if step[0] != port:
            continue
        for row, weight, time in step[1]:
            if weight > 0:
                left.append((row, time))
            else:
                same = next(i for i, one in enumerate(left) if key_of(one[0]) == key_of(row))
                del left[same]
    return left


def key_of(row: Row) -> Row:
    return tuple(map(shown, row))


def drive(join: IncrementalJoinProcessor, made: list[Any]) -> Harness:
    ins = list(join._in)
    driven = Harness(join, ins, out_schemas=join.outputs)
    for step in made:
        if step[0] == "watermark":
            if step[1] is not None and step[1] > driven.watermark:
                driven.advance(step[1])
        elif step[0] == "restart":
            driven.restart()
        else:
            driven.send(batch_for(step[0], step[1], ins[step[0]]), step[0])
    return driven.end()


def condition(on: list[str], ins: tuple[pa.Schema, pa.Schema]) -> JoinCondition:
    return JoinCondition("l < r", *ins, on)


@pytest.mark.parametrize("how", KINDS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_mix_of_streams_gives_what_nested_loops_give(how: str, data: st.DataObject) -> None:
    check_any_mix(how, data)


@pytest.mark.parametrize("how", KINDS)
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_pairs_that_come_in_many_steps_are_the_same(
    how: str, monkeypatch: pytest.MonkeyPatch, data: st.DataObject
) -> None:
    monkeypatch.setattr(join_chains, "PAIRS_MAX", 2)
    check_any_mix(how, data)


def check_any_mix(how: str, data: st.DataObject) -> None:
    updating = data.draw(
        st.sampled_from([(False, False), (True, False), (False, True), (True,) * 2])
    )
    on, where, times = (
        data.draw(st.sampled_from(KEYS)),
        data.draw(st.booleans()),
        data.draw(st.booleans()),
    )
    made = data.draw(steps(updating, times))
    ins = schemas(on, updating, times)
    checked = condition(on, ins) if where else None
    join = IncrementalJoinProcessor(FOREVER_NS, on, how, *ins, checked)
    driven = drive(join, made)
    expected = joined(on, how, present(made, LEFT), present(made, RIGHT), 2**60, where)
    assert net(driven.taken()) == expected
    assert driven.counters[UNMATCHED] == 0
    assert driven.rows_behind_watermark == 0


@pytest.mark.parametrize("how", KINDS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_time_to_live_is_a_distance_in_event_time(how: str, data: st.DataObject) -> None:
    on, where, ttl = (
        data.draw(st.sampled_from(KEYS)),
        data.draw(st.booleans()),
        data.draw(st.integers(0, 8)),
    )
    made = data.draw(steps((False, False), True))
    ins = schemas(on, (False, False), True)
    join = IncrementalJoinProcessor(ttl, on, how, *ins, condition(on, ins) if where else None)
    driven = drive(join, made)
    expected = joined(on, how, present(made, LEFT), present(made, RIGHT), ttl, where)
    assert net(driven.taken()) == expected
    assert driven.rows_behind_watermark == 0
    assert driven.counters["late"] == 0
    assert driven.processor.rows == [0, 0]


# What becomes of time, state and changes ----------------------------------------------------------

L_ROWS = with_time(pa.schema([("k", pa.int64()), ("l", pa.int64())]))
R_ROWS = with_time(pa.schema([("k", pa.int64()), ("r", pa.int64())]))


def rows(schema: pa.Schema, *values: tuple[Any, ...]) -> pa.RecordBatch:
    columns = list(zip(*values, strict=True))
    arrays = [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def harness(how: str, left: pa.Schema = L_ROWS, right: pa.Schema = R_ROWS, **more: Any) -> Harness:
    ttl = more.pop("ttl", FOREVER_NS)
    join = IncrementalJoinProcessor(ttl, ["k"], how, left, right)
    return Harness(join, [left, right], out_schemas=join.outputs, **more)


def test_a_row_without_a_match_is_given_at_once_and_taken_back_by_the_first_match() -> None:
    driven = harness("left")
    driven.send(rows(L_ROWS, (1, 10, 100)), LEFT)
    assert driven.taken().to_pydict()["r"] == [None]
    driven.restart()
    driven.send(rows(R_ROWS, (1, 20, 103), (1, 21, 102)), RIGHT)
    made = driven.taken()
    assert made.select(["l", "r", CHANGE]).to_pydict() == {
        "l": [10, 10, 10],
        "r": [None, 20, 21],
        CHANGE: [-1, 1, 1],
    }
    assert made.column("_time").cast(pa.int64()).to_pylist() == [103, 103, 102]
    driven.send(rows(R_ROWS, (1, 22, 104)), RIGHT)
    assert driven.rows() == [{"k": 1, "l": 10, "r": 22, CHANGE: 1}]


def test_joins_that_take_nothing_back_are_append_only() -> None:
    append = {how for how in KINDS if CHANGE not in harness(how).processor.out_schema.names}
    assert append == {"inner", "semi"}
    changed = {
        how
        for how in KINDS
        if CHANGE in harness(how, with_change(L_ROWS)).processor.out_schema.names
    }
    assert changed == set(KINDS)


def test_what_is_forgotten_leaves_its_results() -> None:
    driven = harness("full", with_change(L_ROWS), ttl=10)
    driven.send(rows(with_change(L_ROWS), (1, 10, 1, 100), (2, 11, 1, 100)), LEFT)
    driven.send(rows(R_ROWS, (1, 20, 105)), RIGHT)
    driven.taken()
    driven.advance(200)
    assert driven.processor.rows == [0, 0]
    driven.send(rows(R_ROWS, (1, 22, 205)), RIGHT)
    assert driven.rows() == [{"k": 1, "l": None, "r": 22, CHANGE: 1}]
    driven.send(rows(with_change(L_ROWS), (2, 11, -1, 206)), LEFT)
    assert driven.rows() == []
    assert driven.counters[UNMATCHED] == 1


def test_late_rows_go_to_the_output_of_their_side_but_changes_are_never_late() -> None:
    driven = harness("inner", ttl=50)
    driven.advance(100)
    driven.send(rows(L_ROWS, (1, 10, 100), (1, 11, 101)), LEFT)
    driven.send(rows(R_ROWS, (1, 20, 99), (1, 21, 105)), RIGHT)
    assert [row["l"] for row in driven.rows(LATE)] == [10]
    assert [row["r"] for row in driven.rows(LATE_RIGHT)] == [20]
    assert driven.rows() == [{"k": 1, "l": 11, "r": 21}]
    assert driven.counters["late"] == 2
    driven = harness("inner", with_change(L_ROWS), ttl=50)
    driven.send(rows(with_change(L_ROWS), (1, 10, 1, 10)), LEFT)
    driven.advance(20)
    driven.send(rows(with_change(L_ROWS), (1, 10, -1, 11)), LEFT)
    driven.send(rows(R_ROWS, (1, 20, 21)), RIGHT)
    assert driven.rows() == []


def test_without_event_time_rows_live_by_the_clock() -> None:
    left, right = L_ROWS.remove(2), R_ROWS.remove(2)
    driven = harness("left", left, right, ttl=1000)
    driven.send(rows(left, (1, 10), (2, 11)), LEFT).restart()
    driven.tick(900)
    driven.send(rows(right, (1, 20)), RIGHT)
    driven.tick(200)
    assert net(driven.taken()) == {(1, 10, 20): 1, (2, 11, None): 1}
    # The left rows are too old by now, whether they have been cleared away or not.
    driven.send(rows(right, (1, 21), (2, 22)), RIGHT)
    assert driven.rows() == []
    driven.send(rows(left, (1, 12)), LEFT)
    assert sorted(row["r"] for row in driven.rows()) == [20, 21]
    for _ in range(4):
        driven.tick(1100)
    assert driven.processor.rows == [0, 0]
    assert driven.processor.next_wakeup_ns() is None


def test_a_row_can_be_replaced_within_one_batch_and_many_times() -> None:
    changing = with_change(L_ROWS)
    driven = harness("left", changing)
    driven.send(rows(R_ROWS, (1, 20, 1)), RIGHT)
    driven.send(rows(changing, (1, 0, 1, 1)), LEFT)
    for number in range(40):
        driven.send(
            rows(
                changing, (1, number, -1, 2), (1, -1, 1, 2), (1, -1, -1, 2), (1, number + 1, 1, 2)
            ),
            LEFT,
        )
        if number % 9 == 0:
            driven.restart()
    assert net(driven.taken()) == {(1, 40, 20): 1}
    assert driven.processor._sides[LEFT].rows == 1
    assert (
        sum(
            batch.num_rows
            for batch in driven.ctx.state.table(
                "left", *_table_schemas(driven.processor._sides[LEFT])
            ).scan()
        )
        <= 1
    )


def _table_schemas(side: Any) -> tuple[pa.Schema, pa.Schema]:
    return side._stored._key_schema, side._stored._value_schema


def test_rows_and_their_matches_move_to_another_parallelism() -> None:
    single = harness("full")
    single.send(rows(L_ROWS, *((k, k, 1) for k in range(50))), LEFT)
    single.send(rows(R_ROWS, *((k, k, 1) for k in range(20, 70))), RIGHT)
    sections = single.cut()
    tables, kept = [single.taken()], 0
    for subtask in range(3):
        part = harness("full", restored=sections, subtask=subtask, parallelism=3)
        kept += sum(part.processor.rows)
        more = [k for k in range(70) if _group(k) in part.ctx.key_groups]
        part.send(rows(R_ROWS, *((k, 1000, 2) for k in more)), RIGHT)
        tables.append(part.taken())
    assert kept == 100
    # A left row without a match before has one now; what had matches keeps them.
    first = [(k, k, k) for k in range(20, 50)] + [(k, None, k) for k in range(50, 70)]
    second = [(k, k if k < 50 else None, 1000) for k in range(70)]
    assert net(pa.concat_tables(tables)) == Counter(first + second)


def _group(k: int) -> int:
    from penstock.elements.hash import hash_array

    return int(hash_array(pa.array([k]))[0] >> 52)


def test_a_hot_key_on_both_sides_is_given_in_steps() -> None:
    driven = harness("full")
    count = 700
    driven.send(rows(L_ROWS, *((1, n, 1) for n in range(count))), LEFT)
    driven.send(rows(R_ROWS, *((1, n, 1) for n in range(count))), RIGHT)
    made = driven.taken()
    assert made.num_rows == count + count + count * count
    assert pa.compute.sum(made.column(CHANGE)).as_py() == count * count


def test_what_cannot_be_joined_is_refused() -> None:
    with pytest.raises(PlanError, match="only one side has event time"):
        harness("inner", L_ROWS, R_ROWS.remove(2))
    strange = with_change(pa.schema([("k", pa.int64()), ("m", pa.map_(pa.int64(), pa.int64()))]))
    with pytest.raises(PlanError, match=r"column 'm' of an updating stream(.|\n)*Drop it"):
        harness("inner", strange, R_ROWS.remove(2))
    with pytest.raises(PlanError, match="both sides have a column 'l'"):
        JoinCondition("l > 1", L_ROWS, L_ROWS, ["k"])
    with pytest.raises(PlanError, match="no column"):
        JoinCondition("q > 1", L_ROWS, R_ROWS, ["k"])


@pytest.mark.parametrize("how", ["left", "semi", "anti"])
def test_the_other_side_may_have_no_columns_but_its_key(how: str) -> None:
    right = with_time(pa.schema([("k", pa.int64())]))
    driven = harness(how, L_ROWS, right)
    driven.send(rows(right, (1, 100), (3, 100)), RIGHT).restart()
    driven.send(rows(L_ROWS, (1, 10, 100), (2, 20, 100)), LEFT).restart()
    expected = {"left": [10, 20], "semi": [10], "anti": [20]}
    assert [row["l"] for row in driven.rows()] == expected[how]
    assert driven.processor.rows[RIGHT] == 2
