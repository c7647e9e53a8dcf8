"""Joins against nested loops: every way to join, disorder, null keys, late rows, restarts."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pyarrow as pa
import pytest

from penstock.elements.errors import PlanError
from penstock.operators import join_paired_rows, join_side_rows
from penstock.operators.event_times import with_time
from penstock.operators.joins import (
    LATE_RIGHT,
    LEFT,
    RIGHT,
    IntervalJoinProcessor,
    JoinCondition,
    JoinProcessor,
    WindowJoinProcessor,
)
from penstock.operators.processor import LATE
from penstock.operators.windows.descriptors import Cumulate, Hop, Tumble
from penstock.testing.harness import Harness, batch_of

L_COLUMNS = pa.schema([("k", pa.int64()), ("s", pa.string()), ("l", pa.int64())])
R_COLUMNS = pa.schema([("r", pa.int64()), ("s", pa.string()), ("k", pa.int64())])
L_ROWS, R_ROWS = with_time(L_COLUMNS), with_time(R_COLUMNS)
KEYS = ["k", "s"]
Row = tuple[Any, ...]  # (k, s, number, time) on both sides


@pytest.fixture(autouse=True)
def _rows_are_dropped_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(join_side_rows, "BLOCK_ROWS", 4)
    monkeypatch.setattr(join_paired_rows, "DROPPED_ROWS_MIN", 8)


def batch(rows: list[Row], port: int) -> pa.RecordBatch:
    order = (0, 1, 2) if port == LEFT else (2, 1, 0)
    columns = L_COLUMNS if port == LEFT else R_COLUMNS
    return batch_of(columns, [tuple(row[i] for i in order) for row in rows], [r[3] for r in rows])


def harness_of(made: JoinProcessor, **options: Any) -> Harness:
    schemas = made.outputs
    return Harness(made, [L_ROWS, R_ROWS], out_schemas=schemas, **options)


def given(table: pa.Table) -> Counter[Any]:
    """(k, s, l, r) or (k, s, l) with `_time`."""
    names = [name for name in ("k", "s", "l", "r") if name in table.column_names]
    columns = [table.column(name).to_pylist() for name in names]
    times = table.column("_time").cast(pa.int64()).to_pylist() if table.num_rows else []
    return Counter(zip(*columns, times)) if table.num_rows else Counter()


def keyed(left: Row, right: Row) -> bool:
    return None not in (left[0], left[1]) and left[:2] == right[:2]


def windows_of(window: Any, time: int) -> set[tuple[int, int]]:
    if isinstance(window, Cumulate):
        start = time // window.size_ns * window.size_ns
        ends = range(start + window.step_ns, start + window.size_ns + 1, window.step_ns)
        return {(start, end) for end in ends if time < end}
    every = window.every_ns if isinstance(window, Hop) else window.size_ns
    starts = [
        k * every for k in range(time // every - window.size_ns // every - 1, time // every + 1)
    ]
    return {(s, s + window.size_ns) for s in starts if s <= time < s + window.size_ns}


def expected_window(
    window: Any, left: list[Row], right: list[Row], how: str, where: bool = False
) -> Counter[Any]:
    found: Counter[Any] = Counter()
    lefts = [(row, w) for row in left for w in windows_of(window, row[3])]
    rights = [(row, w) for row in right for w in windows_of(window, row[3])]
    matched: set[Any] = set()
    for i, (a, wa) in enumerate(lefts):
        for j, (b, wb) in enumerate(rights):
            if wa == wb and keyed(a, b) and (not where or a[2] < b[2]):
                matched |= {("l", i), ("r", j)}
                if how not in ("semi", "anti"):
                    found[(*a[:3], b[2], max(a[3], b[3]))] += 1
    for i, (a, w) in enumerate(lefts):
        there = ("l", i) in matched
        if (how == "semi" and there) or (how == "anti" and not there):
            found[(*a[:3], w[1] - 1)] += 1
        if how in ("left", "full") and not there:
            found[(*a[:3], None, w[1] - 1)] += 1
    for j, (b, w) in enumerate(rights):
        if how in ("right", "full") and ("r", j) not in matched:
            found[(*b[:2], None, b[2], w[1] - 1)] += 1
    return found


def expected_interval(
    low: int, high: int, left: list[Row], right: list[Row], how: str, where: bool = False
) -> Counter[Any]:
    found: Counter[Any] = Counter()
    matched: set[Any] = set()
    for i, a in enumerate(left):
        for j, b in enumerate(right):
            if keyed(a, b) and low <= b[3] - a[3] <= high and (not where or a[2] < b[2]):
                matched |= {("l", i), ("r", j)}
                if how in ("semi", "anti"):
                    continue
                found[(*a[:3], b[2], max(a[3], b[3]))] += 1
    for i, a in enumerate(left):
        if how in ("left", "full") and ("l", i) not in matched:
            found[(*a[:3], None, max(a[3], a[3] + high))] += 1
        if how in ("semi", "anti") and (("l", i) in matched) == (how == "semi"):
            found[(*a[:3], max(a[3], a[3] + high))] += 1
    for j, b in enumerate(right):
        if how in ("right", "full") and ("r", j) not in matched:
            found[(*b[:2], None, b[2], max(b[3], b[3] - low))] += 1
    return found


def drive(driven: Harness, rng: random.Random, disorder: int = 8) -> tuple[list[Row], list[Row]]:
    """Random rows to both sides, in batches of any size, with restarts; nothing is late."""
    sent: tuple[list[Row], list[Row]] = ([], [])
    now, newest = -60, [-(2**60)] * 2
    for number in range(40):
        port = rng.choice([LEFT, RIGHT])
        rows = []
        for _ in range(rng.choice([1, 1, 3, 15])):
            now += rng.choice([0, 0, 1])
            time = now - rng.randint(0, disorder)
            newest[port] = max(newest[port], time)
            rows.append((rng.choice([0, 1, 2, None]), rng.choice(["", "x", None]), number, time))
        sent[port].extend(rows)
        driven.send(batch(rows, port), port)
        if rng.random() < 0.5:
            # The least over both inputs, as the runtime combines them.
            driven.advance(max(driven.watermark, min(newest) - disorder - 1))
        if rng.random() < 0.2:
            driven.restart()
    driven.end()
    return sent


WINDOWS = [Tumble(10), Hop(10, 5), Hop(4, 10), Cumulate(9, 3)]
KINDS = ["inner", "left", "right", "full", "semi", "anti"]
WHERE = JoinCondition("l < r", L_ROWS, R_ROWS, KEYS)


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("how", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_window_joins_give_what_nested_loops_give(window: Any, how: str, seed: int) -> None:
    where = seed > 0
    made = WindowJoinProcessor(window, KEYS, how, L_ROWS, R_ROWS, WHERE if where else None)
    driven = harness_of(made)
    left, right = drive(driven, random.Random(seed))
    assert given(driven.taken()) == expected_window(window, left, right, how, where)
    assert driven.rows_behind_watermark == 0
    assert driven.counters["late"] == 0
    assert driven.processor.rows == [0, 0]


@pytest.mark.parametrize("bounds", [(-5, 10), (0, 0), (3, 7), (-9, -2), (0, 30)])
@pytest.mark.parametrize("how", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_interval_joins_give_what_nested_loops_give(
    bounds: tuple[int, int], how: str, seed: int
) -> None:
    where = seed > 0
    made = IntervalJoinProcessor(bounds, KEYS, how, L_ROWS, R_ROWS, WHERE if where else None)
    driven = harness_of(made)
    left, right = drive(driven, random.Random(seed))
    assert given(driven.taken()) == expected_interval(*bounds, left, right, how, where)
    assert driven.rows_behind_watermark == 0
    assert driven.counters["late"] == 0
    assert driven.processor.rows == [0, 0]


def test_late_rows_go_to_the_output_of_their_side() -> None:
    for made in (
        IntervalJoinProcessor((-5, 5), KEYS, "inner", L_ROWS, R_ROWS),
        WindowJoinProcessor(Tumble(10), KEYS, "inner", L_ROWS, R_ROWS),
    ):
        driven = harness_of(made)
        driven.send(batch([(1, "a", 1, 15)], LEFT), LEFT).advance(9)
        driven.send(batch([(1, "a", 2, 9), (1, "a", 3, 16)], RIGHT), RIGHT)
        driven.send(batch([(1, "a", 4, 8)], LEFT), LEFT).end()
        assert sum(given(driven.taken()).values()) == 1
        assert driven.taken(LATE).column("l").to_pylist() == [4]
        assert driven.taken(LATE_RIGHT).column("r").to_pylist() == [2]
        assert driven.counters["late"] == 2


def test_state_is_forgotten_as_soon_as_nothing_can_match() -> None:
    driven = harness_of(IntervalJoinProcessor((-5, 10), KEYS, "inner", L_ROWS, R_ROWS))
    driven.send(batch([(1, "a", 1, 0)], LEFT), LEFT)
    driven.send(batch([(1, "a", 1, 0)], RIGHT), RIGHT)
    driven.advance(5)
    assert driven.processor.rows == [1, 0]
    driven.advance(9)
    assert driven.processor.rows == [1, 0]
    driven.advance(10)
    assert driven.processor.rows == [0, 0]


def test_rows_move_to_another_parallelism_with_their_keys() -> None:
    rng = random.Random(4)
    left = [(i % 30, "a", i, rng.randint(0, 20)) for i in range(100)]
    right = [(i % 30, "a", i, rng.randint(0, 20)) for i in range(100)]
    single = harness_of(WindowJoinProcessor(Tumble(10), KEYS, "full", L_ROWS, R_ROWS))
    single.send(batch(left, LEFT), LEFT)
    sections = single.cut()
    parts = [
        harness_of(
            WindowJoinProcessor(Tumble(10), KEYS, "full", L_ROWS, R_ROWS),
            restored=sections,
            subtask=subtask,
            parallelism=3,
        )
        for subtask in range(3)
    ]
    found: Counter[Any] = Counter()
    for part in parts:
        mine = [row for row in right if _owner(row) == part.subtask]
        part.send(batch(mine, RIGHT), RIGHT).end()
        found += given(part.taken())
    assert found == expected_window(Tumble(10), left, right, "full")


def _owner(row: Row) -> int:
    from penstock.elements.hash import hash_columns
    from penstock.elements.keygroup import subtask_of

    return int(subtask_of(hash_columns(batch([row], RIGHT), KEYS), 3)[0])


def test_the_results_columns_say_what_may_be_null() -> None:
    def nullable(how: str) -> dict[str, bool]:
        made = WindowJoinProcessor(Tumble(10), ["k"], how, A, B)
        return {field.name: field.nullable for field in made.out_schema}

    plain = pa.field("k", pa.int64(), nullable=False)
    A = with_time(pa.schema([plain, pa.field("a", pa.int64(), nullable=False)]))
    B = with_time(pa.schema([plain, pa.field("b", pa.int64(), nullable=False)]))
    assert nullable("inner") == {"k": False, "a": False, "b": False, "_time": False}
    assert nullable("left") == {"k": False, "a": False, "b": True, "_time": False}
    assert nullable("full") == {"k": False, "a": True, "b": True, "_time": False}
    assert nullable("anti") == {"k": False, "a": False, "_time": False}


def test_joins_that_cannot_be_meant_are_refused() -> None:
    with pytest.raises(PlanError, match=r"both sides have a column 's'(.|\n)*rename"):
        WindowJoinProcessor(Tumble(10), ["k"], "inner", L_ROWS, R_ROWS)
    with pytest.raises(PlanError, match="not a way to join"):
        WindowJoinProcessor(Tumble(10), KEYS, "outer", L_ROWS, R_ROWS)
    with pytest.raises(PlanError, match="low > high"):
        IntervalJoinProcessor((5, -5), KEYS, "inner", L_ROWS, R_ROWS)
    with pytest.raises(PlanError, match="no event time"):
        WindowJoinProcessor(Tumble(10), KEYS, "inner", L_COLUMNS, R_ROWS)
    with pytest.raises(PlanError, match="no event time"):
        IntervalJoinProcessor((-5, 5), KEYS, "inner", L_COLUMNS, R_ROWS)
    other = R_ROWS.set(2, pa.field("k", pa.int32()))
    with pytest.raises(PlanError, match="int64 on the left and int32"):
        WindowJoinProcessor(Tumble(10), KEYS, "inner", L_ROWS, other)
