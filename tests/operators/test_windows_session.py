"""Sessions and count windows against plain loops: disorder, merging, late rows, restarts."""

from __future__ import annotations

import random
from collections import defaultdict
from typing import Any

import pyarrow as pa
import pytest

from penstock.elements.errors import PlanError
from penstock.operators.aggregates import Aggregation
from penstock.operators.event_times import with_time
from penstock.operators.processor import LATE
from penstock.operators.windows import count_window, session
from penstock.operators.windows.count import CountAggregateProcessor
from penstock.operators.windows.descriptors import CountWindow, Session
from penstock.operators.windows.sessions import SessionAggregateProcessor
from penstock.testing.harness import Harness, batch_of

COLUMNS = pa.schema([("k", pa.string()), ("n", pa.int64())])
ROWS = with_time(COLUMNS)
ITEMS = {"rows": "count(*)", "total": "sum(n)", "kinds": "count(DISTINCT n)", "top": "max(n)"}
Row = tuple[Any, ...]
KEYS = [None, "", "a", "b", "ü"]


def batch(rows: list[Row]) -> pa.RecordBatch:
    return batch_of(COLUMNS, [row[:2] for row in rows], [row[2] for row in rows])


def driven_by(
    gap: int, lateness: int = 0, keys: tuple[str, ...] = ("k",), **options: Any
) -> Harness:
    made = SessionAggregateProcessor(
        Session(gap), list(keys), Aggregation(ITEMS, ROWS), ROWS, lateness
    )
    schemas = {"main": made.out_schema, LATE: ROWS}
    return Harness(made, [ROWS], out_schemas=schemas, **options)


def result_of(rows: list[Row]) -> tuple[Any, ...]:
    numbers = [row[1] for row in rows if row[1] is not None]
    return (
        len(rows),
        sum(numbers) if numbers else None,
        len(set(numbers)),
        max(numbers, default=None),
    )


def expected(rows: list[Row], gap: int) -> list[tuple[Any, ...]]:
    by_key: dict[Any, list[Row]] = defaultdict(list)
    for row in rows:
        by_key[row[0]].append(row)
    found = []
    for key, members in by_key.items():
        members.sort(key=lambda row: row[2])
        begin = 0
        for at in range(1, len(members) + 1):
            if at == len(members) or members[at][2] - members[at - 1][2] >= gap:
                part = members[begin:at]
                found.append((key, part[0][2], part[-1][2] + gap, *result_of(part)))
                begin = at
    return sorted(found, key=repr)


def given(table: pa.Table) -> list[tuple[Any, ...]]:
    names = ["window_start", "window_end"]
    times = [table.column(name).cast(pa.int64()).to_pylist() for name in names]
    columns = [table.column("k").to_pylist(), *times]
    columns += [table.column(name).to_pylist() for name in ITEMS]
    return sorted(zip(*columns), key=repr)


@pytest.mark.parametrize("seed", range(12))
def test_sessions_give_what_a_plain_loop_gives_also_through_restarts(seed: int) -> None:
    rng = random.Random(seed)
    gap, disorder = rng.choice([3, 10]), rng.choice([0, 15])
    driven = driven_by(gap)
    now, newest = -100, -(2**60)
    everything: list[Row] = []
    results = []
    for _ in range(30):
        rows = []
        for _ in range(rng.choice([1, 3, 30])):
            now += rng.choice([0, 1, 1, gap - 1, 2 * gap]) if rng.random() < 0.5 else 0
            time = now - rng.randint(0, disorder)
            newest = max(newest, time)
            rows.append((rng.choice(KEYS), rng.choice([None, rng.randint(0, 5)]), time))
        everything += rows
        for piece in [[row] for row in rows] if seed % 3 == 0 else [rows]:
            driven.send(batch(piece))
        if rng.random() < 0.7:
            driven.advance(max(driven.watermark, newest - disorder - 1))
        if rng.random() < 0.3:
            driven.restart()
        results += given(driven.taken())
    driven.end()
    results += given(driven.taken())
    assert sorted(results, key=repr) == expected(everything, gap)
    assert driven.rows_behind_watermark == 0
    assert driven.counters["late"] == 0
    assert driven.processor._store.rows == 0


@pytest.mark.parametrize("seed", range(6))
def test_every_row_is_in_a_result_or_late(seed: int) -> None:
    rng = random.Random(seed)
    driven = driven_by(6)
    now = sent = total = 0
    for number in range(60):
        now += rng.choice([0, 1, 9])
        rows = [
            (rng.choice(["a", "b"]), number, now - rng.randint(0, 30))
            for _ in range(rng.choice([1, 4]))
        ]
        sent += len(rows)
        driven.send(batch(rows)).advance(max(driven.watermark, now - 12))
        if rng.random() < 0.2:
            driven.restart()
        total += sum(row[3] for row in given(driven.taken()))
    total += sum(row[3] for row in given(driven.end().taken()))
    late = driven.taken(LATE).num_rows
    assert driven.counters["late"] == late > 0
    assert total + late == sent


@pytest.mark.parametrize("seed", range(6))
def test_with_enough_lateness_the_last_results_are_as_if_no_row_were_late(seed: int) -> None:
    rng = random.Random(seed)
    driven = driven_by(6, lateness=30)
    now = 0
    everything: list[Row] = []
    results: list[tuple[Any, ...]] = []
    for number in range(60):
        now += rng.choice([0, 1, 9])
        rows = [
            (rng.choice(["a", "b"]), number, now - rng.randint(0, 30))
            for _ in range(rng.choice([1, 4]))
        ]
        everything += rows
        driven.send(batch(rows)).advance(max(driven.watermark, now - 1))
        if rng.random() < 0.2:
            driven.restart()
        results += given(driven.taken())
    results += given(driven.end().taken())
    assert driven.counters["late"] == 0
    # A session that was given again replaces those that it has swallowed.
    last: list[tuple[Any, ...]] = []
    for row in sorted(results, key=lambda row: row[3]):
        last = [o for o in last if not (o[0] == row[0] and o[1] >= row[1] and o[2] <= row[2])]
        last.append(row)
    assert sorted(last, key=repr) == expected(everything, 6)
    assert len(results) > len(last)


def test_a_row_between_two_sessions_makes_them_one() -> None:
    driven = driven_by(10)
    driven.send(batch([("a", 1, 0), ("a", 2, 15)])).advance(5).restart()
    driven.send(batch([("a", 4, 8)])).end()
    assert given(driven.taken()) == [("a", 0, 25, 3, 7, 3, 4)]


def test_a_gap_of_exactly_the_gap_begins_a_new_session() -> None:
    driven = driven_by(10)
    table = driven.send(batch([("a", 1, 0), ("a", 2, 9), ("a", 3, 19)])).end().taken()
    assert [row[1:4] for row in given(table)] == [(0, 19, 2), (19, 29, 1)]
    assert table.column("_time").cast(pa.int64()).to_pylist() == [18, 28]


def test_a_late_row_that_touches_an_open_session_is_not_late() -> None:
    driven = driven_by(10)
    driven.send(batch([("a", 1, 20)])).advance(25)
    driven.send(batch([("a", 1, 5), ("a", 2, 12), ("b", 3, 12)]))
    assert driven.counters["late"] == 1
    assert driven.taken(LATE).column("k").to_pylist() == ["b"]
    assert [row[1:4] for row in given(driven.end().taken())] == [(5, 30, 3)]


def test_a_late_row_that_reaches_back_to_a_forgotten_session_does_not_find_its_values() -> None:
    driven = driven_by(15)
    driven.send(batch([("a", 7, 33)])).advance(60)
    assert [row[1:] for row in given(driven.taken())] == [(33, 48, 1, 7, 1, 7)]
    driven.send(batch([("a", 8, 47), ("a", 8, 33)])).restart()
    assert [row[1:] for row in given(driven.end().taken())] == [(33, 62, 2, 16, 1, 8)]


def test_a_late_row_within_the_lateness_gives_its_session_again() -> None:
    driven = driven_by(10, lateness=20)
    driven.send(batch([("a", 1, 0)])).advance(9)
    assert [row[1:4] for row in given(driven.taken())] == [(0, 10, 1)]
    driven.restart().send(batch([("a", 2, 5)])).advance(14)
    assert [row[1:4] for row in given(driven.taken())] == [(0, 15, 2)]
    driven.send(batch([("a", 2, 14)])).advance(20)
    assert given(driven.taken()) == [], "the merged session is open again"
    driven.advance(23)
    assert [row[1:4] for row in given(driven.taken())] == [(0, 24, 3)]
    driven.advance(60).send(batch([("a", 2, 5)]))
    assert driven.counters["late"] == 1


def test_a_long_session_does_not_pile_up_rows_in_state() -> None:
    driven = driven_by(10)
    for time in range(0, 2000, 5):
        driven.send(batch([("a", 1, time)])).advance(time - 1)
    assert driven.processor._store.rows < 10
    assert [row[3] for row in given(driven.end().taken())] == [400]


def test_sessions_move_to_another_parallelism_with_their_keys() -> None:
    rows = [(f"k{i % 40}", i, 3 * (i % 7)) for i in range(300)]
    single = driven_by(5)
    single.send(batch(rows))
    sections = single.cut()
    results = []
    for subtask in range(3):
        part = driven_by(5, restored=sections, subtask=subtask, parallelism=3)
        results += given(part.end().taken())
    assert sorted(results, key=repr) == expected(rows, 5)


def test_sessions_without_a_key_are_of_the_whole_stream() -> None:
    driven = driven_by(10, keys=())
    table = driven.send(batch([("a", 1, 0), ("b", 2, 5)])).restart().end().taken()
    assert table.column("rows").to_pylist() == [2]


def test_values_of_ended_sessions_are_dropped(monkeypatch: Any) -> None:
    monkeypatch.setattr("penstock.operators.windows.session_store.TRIM_ROWS_MIN", 10)
    driven = driven_by(10)
    for number in range(200):
        driven.send(batch([("a", number, 100 * number)])).advance(100 * number + 50)
    assert driven.processor._store._sets[0].rows < 40
    assert driven.taken().column("kinds").to_pylist() == [1] * 200


# Count windows -------------------------------------------------------------------------------


def counting(rows: int) -> Harness:
    items = {key: text for key, text in ITEMS.items() if key != "kinds"}
    made = CountAggregateProcessor(CountWindow(rows), ["k"], Aggregation(items, ROWS), ROWS)
    return Harness(made, [ROWS], out_schemas={"main": made.out_schema})


@pytest.mark.parametrize("size", [1, 3, 7])
@pytest.mark.parametrize("seed", range(3))
def test_count_windows_hold_each_n_rows_of_a_key_in_order(size: int, seed: int) -> None:
    rng = random.Random(seed)
    driven = counting(size)
    by_key: dict[Any, list[Row]] = defaultdict(list)
    sent = 0
    for _ in range(25):
        rows = [
            (rng.choice(KEYS), rng.randint(0, 9), rng.randint(-50, 50))
            for _ in range(rng.choice([1, 40]))
        ]
        sent += len(rows)
        for row in rows:
            by_key[row[0]].append(row)
        driven.send(batch(rows))
        if rng.random() < 0.3:
            driven.restart()
    driven.end()
    wanted = []
    for key, members in by_key.items():
        for at in range(0, len(members) - size + 1, size):
            part = members[at : at + size]
            times = [row[2] for row in part]
            numbers = [row[1] for row in part]
            wanted.append((key, min(times), max(times) + 1, size, sum(numbers), max(numbers)))
    table = driven.taken()
    starts, ends = (
        table.column(n).cast(pa.int64()).to_pylist() for n in ("window_start", "window_end")
    )
    rest = [table.column(name).to_pylist() for name in ("rows", "total", "top")]
    found = list(zip(table.column("k").to_pylist(), starts, ends, *rest))
    assert sorted(found, key=repr) == sorted(wanted, key=repr)
    assert driven.counters["incomplete_rows"] == sent - len(wanted) * size


def test_what_windows_cannot_do_is_refused() -> None:
    with pytest.raises(PlanError, match="not there for count windows"):
        CountAggregateProcessor(CountWindow(2), ["k"], Aggregation(ITEMS, ROWS), ROWS)
    with pytest.raises(PlanError, match="longer than nothing"):
        session("0 s")
    with pytest.raises(PlanError, match="1 or more"):
        count_window(0)
