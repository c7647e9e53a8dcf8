"""Windows of every kind against plain Python: any keys, any batches, any lateness, deaths."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.operators.aggregates import Aggregation
from penstock.operators.event_times import with_time
from penstock.operators.processor import LATE
from penstock.operators.windows.aggregate import WindowAggregateProcessor
from penstock.operators.windows.count import CountAggregateProcessor
from penstock.operators.windows.descriptors import CountWindow, Cumulate, Hop, Session, Tumble
from penstock.operators.windows.sessions import SessionAggregateProcessor
from penstock.testing.harness import Harness, batch_of

COLUMNS = pa.schema([("k", pa.float64()), ("s", pa.string()), ("v", pa.int64())])
SCHEMA = with_time(COLUMNS)
KEYS = ["k", "s"]
ITEMS = {
    "rows": "count(*)",
    "least": "min(v)",
    "total": "sum(v % 100)",
    "kinds": "count(DISTINCT v)",
    "last": "last(v)",
}
WINDOWS = [Tumble(10), Tumble(7, 3), Hop(10, 4, -3), Hop(3, 10), Cumulate(12, 4, 1)]
Row = tuple[Any, ...]
"""(k, s, v, time)"""
Key = tuple[Any, Any]

rows = st.tuples(
    st.sampled_from([0.0, -0.0, math.nan, -math.inf, None]),
    st.sampled_from(["", "x", None]),
    st.sampled_from([None, 0, 7, -(2**63), 2**63 - 1]),
    st.integers(-25, 60),
)


@st.composite
def runs(draw: Any) -> list[Any]:
    """(rows, the watermark behind them, whether it dies there)."""
    made = []
    for some in draw(st.lists(st.lists(rows, max_size=9), max_size=8)):
        pieces = [[row] for row in some] if draw(st.booleans()) else [some]
        further = draw(st.sampled_from([None, 0, 3, 9, 30]))
        made += [(piece, None, False) for piece in pieces[:-1]]
        made.append((pieces[-1] if pieces else [], further, draw(st.booleans())))
    return made


def batch(some: list[Row]) -> pa.RecordBatch:
    return batch_of(COLUMNS, [row[:3] for row in some], [row[3] for row in some])


def shown(value: Any) -> Any:
    """Equal keys print alike: NaN is NaN, and -0.0 is 0.0."""
    return repr(value + 0.0) if isinstance(value, float) else value


def key_of(row: Row) -> Key:
    return shown(row[0]), row[1]


def result_of(some: list[Row]) -> tuple[Any, ...]:
    """What ITEMS mean; of equal times the last value is the greatest, nulls the greatest."""
    values = [v for _, _, v, _ in some if v is not None]
    latest = max(time for *_, time in some)
    ties = [v for _, _, v, time in some if time == latest]
    total = sum(remainder(v) for v in values)
    last = None if None in ties else max(ties)
    return len(some), min(values, default=None), total if values else None, len(set(values)), last


def remainder(value: int) -> int:
    """That of SQL, with the sign of the value."""
    return abs(value) % 100 * (1 if value > 0 else -1)


def results(driven: Harness) -> list[tuple[Any, ...]]:
    """(key, start, end, results)."""
    table = driven.taken()
    if not table.num_rows:
        return []
    bounds = [table.column(n).cast(pa.int64()).to_pylist() for n in ("window_start", "window_end")]
    columns = [table.column(name).to_pylist() for name in [*KEYS, *ITEMS]]
    return [
        ((shown(row[0]), row[1]), start, end, row[2:])
        for row, start, end in zip(zip(*columns), *bounds)
    ]


def harness_of(made: Any) -> Harness:
    return Harness(made, [SCHEMA], out_schemas={"main": made.out_schema, LATE: SCHEMA})


def aggregation() -> Aggregation:
    return Aggregation(ITEMS, SCHEMA)


def windows_of(window: Any, time: int) -> list[tuple[int, int]]:
    """By trying every place a window could begin at."""
    size = window.size_ns
    every = window.every_ns if isinstance(window, Hop) else size
    begins = [s for s in range(time - size + 1, time + 1) if (s - window.offset_ns) % every == 0]
    if not isinstance(window, Cumulate):
        return [(s, s + size) for s in begins]
    step = window.step_ns
    return [(s, s + n) for s in begins for n in range(step, size + 1, step) if time < s + n]


def late_of(driven: Harness) -> Counter[Row]:
    table = driven.taken(LATE)
    if not table.num_rows:
        return Counter()
    columns = [list(map(shown, column.to_pylist())) for column in table.columns[:3]]
    return Counter(zip(*columns, table.column("_time").cast(pa.int64()).to_pylist()))


def as_late(some: list[Row]) -> Counter[Row]:
    return Counter((*key_of(row), *row[2:]) for row in some)


@settings(max_examples=40, deadline=None)
@given(steps=runs(), window=st.sampled_from(WINDOWS), lateness=st.sampled_from([0, 4, 30]))
def test_windows_are_given_when_complete_and_again_when_late_rows_change_them(
    steps: list[Any], window: Any, lateness: int
) -> None:
    made = WindowAggregateProcessor(window, KEYS, aggregation(), SCHEMA, lateness)
    driven = harness_of(made)
    groups: dict[Any, list[Row]] = {}
    table: dict[Any, Any] = {}
    late: list[Row] = []
    watermark = -100
    driven.advance(watermark)
    for some, further, dies in steps:
        driven.send(batch(some))
        for row in some:
            windows = windows_of(window, row[3])
            open_ = [w for w in windows if w[1] - 1 > watermark - lateness]
            late += [row] if windows and not open_ else []
            for bounds in open_:
                groups.setdefault((key_of(row), *bounds), []).append(row)
        if dies:
            driven.restart()
        if further is not None:
            watermark = max(watermark, -30) + further
            driven.advance(watermark)
            table |= {row[:3]: row[3] for row in results(driven)}
            complete = {of: given_ for of, given_ in groups.items() if of[2] - 1 <= watermark}
            assert table == {of: result_of(given_) for of, given_ in complete.items()}
    driven.end()
    given_at_end = results(driven)
    assert len({row[:3] for row in given_at_end}) == len(given_at_end)
    table |= {row[:3]: row[3] for row in given_at_end}
    assert table == {of: result_of(given_) for of, given_ in groups.items()}
    assert late_of(driven) == as_late(late)
    assert driven.counters["late"] == len(late)
    assert driven.processor._store.panes.size == 0


class Sessions:
    """What sessions there are: rows of a key in lists, each row with whether it was given."""

    def __init__(self, gap: int, lateness: int) -> None:
        self.gap, self.lateness = gap, lateness
        self.open: list[tuple[Key, list[Row]]] = []
        self.fresh: set[int] = set()
        self.late: list[Row] = []

    def add(self, some: list[Row], watermark: int) -> None:
        """Rows in time begin sessions or lengthen them, late ones can only lengthen them."""
        rest = []
        for row in some:
            if row[3] + self.gap - 1 + self.lateness > watermark:
                self._join(row)
            else:
                rest.append(row)
        while near := [row for row in rest if self._touched(row)]:
            for row in near:
                self._join(row)
            rest = [row for row in rest if not any(row is each for each in near)]
        self.late += rest

    def _touched(self, row: Row) -> list[Any]:
        return [
            each
            for each in self.open
            if each[0] == key_of(row)
            and min(r[3] for r in each[1]) - self.gap < row[3]
            and row[3] < max(r[3] for r in each[1]) + self.gap
        ]

    def _join(self, row: Row) -> None:
        touched = self._touched(row)
        self.open = [each for each in self.open if not any(each is one for one in touched)]
        self.open.append((key_of(row), [row, *(r for _, some in touched for r in some)]))
        self.fresh.add(id(row))

    def pass_by(self, watermark: int) -> list[tuple[Any, ...]]:
        """What is over now and was not given as it is; what no row can reach any more is gone."""
        given_, kept = [], []
        for key, some in self.open:
            end = max(row[3] for row in some) + self.gap
            if end - 1 <= watermark and any(id(row) in self.fresh for row in some):
                given_.append((key, min(row[3] for row in some), end, result_of(some)))
                self.fresh -= {id(row) for row in some}
            if end - 1 + self.lateness > watermark:
                kept.append((key, some))
        self.open = kept
        return given_


@settings(max_examples=40, deadline=None)
@given(steps=runs(), gap=st.sampled_from([1, 4, 15]), lateness=st.sampled_from([0, 5, 30]))
def test_sessions_are_given_when_over_and_again_when_late_rows_change_them(
    steps: list[Any], gap: int, lateness: int
) -> None:
    made = SessionAggregateProcessor(Session(gap), KEYS, aggregation(), SCHEMA, lateness)
    driven, model = harness_of(made), Sessions(gap, lateness)
    watermark = -100
    driven.advance(watermark)
    # Equal rows must be told apart by the model.
    steps = [([(*row,) for row in map(list, some)], *rest) for some, *rest in steps]
    for some, further, dies in steps:
        driven.send(batch(some))
        model.add(some, watermark)
        if dies:
            driven.restart()
        if further is not None:
            watermark = max(watermark, -30) + further
            driven.advance(watermark)
            found, wanted = results(driven), model.pass_by(watermark)
            assert sorted(found, key=repr) == sorted(wanted, key=repr)
    driven.end()
    assert sorted(results(driven), key=repr) == sorted(model.pass_by(2**63 - 1), key=repr)
    assert late_of(driven) == as_late(model.late)
    assert driven.counters["late"] == len(model.late)
    assert driven.processor._store.rows == 0


@settings(max_examples=40, deadline=None)
@given(steps=runs(), size=st.integers(1, 4))
def test_count_windows_are_each_so_many_rows_of_a_key(steps: list[Any], size: int) -> None:
    items = {name: text for name, text in ITEMS.items() if name != "kinds"}
    made = CountAggregateProcessor(CountWindow(size), KEYS, Aggregation(items, SCHEMA), SCHEMA)
    driven = harness_of(made)
    arrived: dict[Key, list[Row]] = {}
    for some, _, dies in steps:
        driven.send(batch(some))
        for row in some:
            arrived.setdefault(key_of(row), []).append(row)
        if dies:
            driven.restart()
    driven.end()
    wanted: Counter[Any] = Counter()
    for key, some in arrived.items():
        for at in range(0, len(some) - size + 1, size):
            whole = some[at : at + size]
            count, least, total, _, last = result_of(whole)
            wanted[(*key, count, least, total, last)] += 1
    names = [*KEYS, *items]
    table = driven.taken()
    columns = [list(map(shown, table[name].to_pylist())) for name in names if table.num_rows]
    assert Counter(zip(*columns)) == wanted
    rest = sum(len(some) % size for some in arrived.values())
    assert driven.counters["incomplete_rows"] == rest
