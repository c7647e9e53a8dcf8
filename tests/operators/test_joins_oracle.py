"""Joins in windows and intervals against nested loops: any keys, any batches, late rows, deaths."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.operators.event_times import with_time
from penstock.operators.join_condition import JoinCondition
from penstock.operators.joins import (
    LATE_RIGHT,
    LEFT,
    RIGHT,
    IntervalJoinProcessor,
    JoinProcessor,
    WindowJoinProcessor,
)
from penstock.operators.processor import LATE
from penstock.operators.windows.descriptors import Cumulate, Hop, Tumble
from penstock.testing.harness import Harness, batch_of

LEFT_COLUMNS = pa.schema([("k", pa.float64()), ("s", pa.binary()), ("l", pa.int64())])
RIGHT_COLUMNS = pa.schema([("r", pa.int64()), ("s", pa.binary()), ("k", pa.float64())])
LEFT_SCHEMA, RIGHT_SCHEMA = with_time(LEFT_COLUMNS), with_time(RIGHT_COLUMNS)
KEYS = ["k", "s"]
KINDS = ["inner", "left", "right", "full", "semi", "anti"]
WINDOWS = [Tumble(10), Tumble(7, 3), Hop(10, 5), Hop(9, 4, -3), Hop(4, 10), Cumulate(9, 3, 1)]
SPANS = [(-5, 10), (0, 0), (3, 7), (-9, -2), (0, 30)]
WHERE = JoinCondition("l < r", LEFT_SCHEMA, RIGHT_SCHEMA, KEYS)
LONG_AGO = -(2**62)
Row = tuple[Any, ...]
"""(k, s, number, time) on both sides"""

keys = st.tuples(
    st.sampled_from([0.0, -0.0, float("nan"), float("inf"), 7.0, None]),
    st.sampled_from([b"", b"\0", None]),
)
numbers = st.sampled_from([-(2**63), 0, 1, 2**63 - 1, None])


@st.composite
def runs(draw: Any, disorder: int) -> list[Any]:
    """(port, rows), ("watermark", time) and ("restart", None); rows in pieces of any size."""
    made: list[Any] = []
    now = draw(st.integers(-30, 30))
    for _ in range(draw(st.integers(0, 10))):
        what = draw(st.sampled_from([LEFT, RIGHT, LEFT, RIGHT, "watermark", "restart"]))
        if what == "restart":
            made.append((what, None))
            continue
        if what == "watermark":
            made.append((what, now - 6))
            continue
        rows = []
        for _ in range(draw(st.sampled_from([0, 1, 3, 9]))):
            now += draw(st.sampled_from([0, 0, 1, 4]))
            time = now - draw(st.integers(0, disorder))
            rows.append((*draw(keys), draw(numbers), time))
        pieces = [[row] for row in rows] if draw(st.booleans()) else [rows]
        made += [(what, piece) for piece in pieces]
    return made


def in_one_batch(made: list[Any]) -> list[Any]:
    """All rows of a side at once, the watermarks behind them."""
    rest = [step for step in made if step[0] not in (LEFT, RIGHT)]
    return [*((port, rows_of(made, port)) for port in (LEFT, RIGHT)), *rest]


def rows_of(made: list[Any], port: int) -> list[Row]:
    return [row for step in made if step[0] == port for row in step[1]]


def batch(rows: list[Row], port: int) -> pa.RecordBatch:
    order = (0, 1, 2) if port == LEFT else (2, 1, 0)
    columns = LEFT_COLUMNS if port == LEFT else RIGHT_COLUMNS
    return batch_of(columns, [tuple(row[i] for i in order) for row in rows], [r[3] for r in rows])


def drive(made: JoinProcessor, steps: list[Any]) -> Harness:
    driven = Harness(made, [LEFT_SCHEMA, RIGHT_SCHEMA], out_schemas=made.outputs)
    for what, given_ in steps:
        if what == "restart":
            driven.restart()
        elif what == "watermark":
            driven.advance(max(driven.watermark, given_))
        else:
            driven.send(batch(given_, what), what)
    driven.end()
    assert driven.rows_behind_watermark == 0
    assert driven.processor.rows == [0, 0]
    return driven


def shown(value: Any) -> Any:
    """Equal keys print alike: NaN is NaN, and -0.0 is 0.0."""
    return repr(value + 0.0) if isinstance(value, float) else value


def results(driven: Harness, output: str = "main") -> Counter[Any]:
    table = driven.taken(output)
    if not table.num_rows:
        return Counter()
    names = [name for name in ("k", "s", "l", "r") if name in table.column_names]
    columns = [list(map(shown, table.column(name).to_pylist())) for name in names]
    return Counter(zip(*columns, table.column("_time").cast(pa.int64()).to_pylist(), strict=True))


def windows_of(window: Any, time: int) -> set[tuple[int, int]]:
    """By trying every place a window could begin at."""
    size = window.size_ns
    every = window.every_ns if isinstance(window, Hop) else size
    begins = (s for s in range(time - size + 1, time + 1) if (s - window.offset_ns) % every == 0)
    if not isinstance(window, Cumulate):
        return {(s, s + size) for s in begins}
    step = window.step_ns
    return {(s, s + n) for s in begins for n in range(step, size + 1, step) if time < s + n}


def matches(a: Row, b: Row, where: bool) -> bool:
    if None in (a[0], a[1]) or (shown(a[0]), a[1]) != (shown(b[0]), b[1]):
        return False
    return not where or (None not in (a[2], b[2]) and a[2] < b[2])


def alone(row: Row, port: int, how: str, time: int) -> Row:
    values = (shown(row[0]), row[1])
    if how in ("semi", "anti"):
        return (*values, row[2], time)
    return (*values, row[2], None, time) if port == LEFT else (*values, None, row[2], time)


def joined(left: list[Any], right: list[Any], how: str, pairs: list[Any]) -> Counter[Any]:
    """`left` and `right` are (row, its time when alone), `pairs` (left, right, their time)."""
    found: Counter[Any] = Counter()
    matched = ({i for i, _, _ in pairs}, {j for _, j, _ in pairs})
    if how not in ("semi", "anti"):
        for i, j, time in pairs:
            a, b = left[i][0], right[j][0]
            found[(shown(a[0]), a[1], a[2], b[2], time)] += 1
    for i, (row, time) in enumerate(left):
        if (i in matched[LEFT]) == (how == "semi") and how not in ("inner", "right"):
            found[alone(row, LEFT, how, time)] += 1
    for j, (row, time) in enumerate(right):
        if j not in matched[RIGHT] and how in ("right", "full"):
            found[alone(row, RIGHT, how, time)] += 1
    return found


def in_windows(left: list[Any], right: list[Any], how: str, where: bool) -> Counter[Any]:
    """Both sides are (row, the windows it counts in, the watermark when it came)."""
    lefts = [(row, w, passed) for row, windows, passed in left for w in windows]
    rights = [(row, w, passed) for row, windows, passed in right for w in windows]
    pairs = [
        (i, j, max(a[3], b[3], before + 1, then + 1))
        for i, (a, wa, before) in enumerate(lefts)
        for j, (b, wb, then) in enumerate(rights)
        if wa == wb and matches(a, b, where)
    ]
    sides = [[(row, w[1] - 1) for row, w, _ in side] for side in (lefts, rights)]
    return joined(sides[LEFT], sides[RIGHT], how, pairs)


def in_spans(
    span: tuple[int, int], left: list[Row], right: list[Row], how: str, where: bool
) -> Counter[Any]:
    low, high = span
    pairs = [
        (i, j, max(a[3], b[3]))
        for i, a in enumerate(left)
        for j, b in enumerate(right)
        if low <= b[3] - a[3] <= high and matches(a, b, where)
    ]
    lefts = [(row, max(row[3], row[3] + high)) for row in left]
    rights = [(row, max(row[3], row[3] - low)) for row in right]
    return joined(lefts, rights, how, pairs)


def made_of(within: Any, how: str, where: bool) -> JoinProcessor:
    rest: Any = (KEYS, how, LEFT_SCHEMA, RIGHT_SCHEMA, WHERE if where else None)
    if isinstance(within, tuple):
        return IntervalJoinProcessor(within, *rest)
    return WindowJoinProcessor(within, *rest)


def oracle(within: Any, left: list[Row], right: list[Row], how: str, where: bool) -> Counter[Any]:
    if isinstance(within, tuple):
        return in_spans(within, left, right, how, where)
    sides = [
        [(row, windows_of(within, row[3]), LONG_AGO) for row in side] for side in (left, right)
    ]
    return in_windows(*sides, how, where)


@pytest.mark.parametrize("how", KINDS)
@settings(max_examples=40, deadline=None)
@given(
    steps=runs(disorder=5),
    within=st.sampled_from([*WINDOWS, *SPANS]),
    where=st.booleans(),
    at_once=st.booleans(),
)
def test_rows_in_time_give_what_nested_loops_give(
    how: str, steps: list[Any], within: Any, where: bool, at_once: bool
) -> None:
    steps = in_one_batch(steps) if at_once else steps
    driven = drive(made_of(within, how, where), steps)
    rows = [rows_of(steps, port) for port in (LEFT, RIGHT)]
    assert results(driven) == oracle(within, *rows, how, where)
    assert driven.counters["late"] == 0


@pytest.mark.parametrize("how", KINDS)
@settings(max_examples=40, deadline=None)
@given(
    steps=runs(disorder=25),
    within=st.sampled_from([*WINDOWS, *SPANS]),
    where=st.booleans(),
)
def test_late_rows_take_no_part_where_it_is_too_late_and_are_not_lost(
    how: str, steps: list[Any], within: Any, where: bool
) -> None:
    driven = drive(made_of(within, how, where), steps)
    watermark = LONG_AGO
    taken: tuple[list[Any], list[Any]] = ([], [])
    late: tuple[list[Row], list[Row]] = ([], [])
    for what, given_ in steps:
        if what == "watermark":
            watermark = max(watermark, given_)
        for row in given_ if what in (LEFT, RIGHT) else []:
            windows = set() if isinstance(within, tuple) else windows_of(within, row[3])
            open_ = {w for w in windows if w[1] - 1 > watermark}
            over = row[3] <= watermark if isinstance(within, tuple) else windows and not open_
            if over:
                late[what].append(row)
            else:
                taken[what].append((row, open_, watermark))
    rows = [[row for row, _, _ in side] for side in taken]
    if isinstance(within, tuple):
        expected = in_spans(within, *rows, how, where)
    else:
        expected = in_windows(taken[LEFT], taken[RIGHT], how, where)
    assert results(driven) == expected
    for port, output in ((LEFT, LATE), (RIGHT, LATE_RIGHT)):
        given_late = Counter((shown(k), s, n, time) for k, s, n, time in late[port])
        assert results(driven, output) == given_late
    assert driven.counters["late"] == len(late[LEFT]) + len(late[RIGHT])
