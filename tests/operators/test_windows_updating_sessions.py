"""Sessions given early and refined late, against sessions of plain Python."""

from __future__ import annotations

import math
from collections import Counter
from copy import deepcopy
from random import Random
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.elements.clock import ManualClock
from penstock.elements.hash import hash_arrays
from penstock.elements.keygroup import subtask_of
from penstock.operators.aggregates import Aggregation
from penstock.operators.event_times import with_time
from penstock.operators.processor import LATE
from penstock.operators.windows.descriptors import Session
from penstock.operators.windows.sessions import SessionAggregateProcessor
from penstock.operators.windows.updating_sessions import UpdatingSessionProcessor
from penstock.testing.harness import Harness, batch_of

COLUMNS = pa.schema([("k", pa.float64()), ("s", pa.string()), ("v", pa.int64())])
SCHEMA = with_time(COLUMNS)
ITEMS = {
    "rows": "count(*)",
    "least": "min(v)",
    "total": "sum(v % 100)",
    "kinds": "count(DISTINCT v)",
    "middle": "median(v % 100)",
    "share": "1000 / count(DISTINCT s)",
}
SECOND = 10**9
Row = tuple[Any, ...]
"""(k, s, v, time)"""
Key = tuple[Any, Any]

rows = st.tuples(
    st.sampled_from([0.0, -0.0, math.nan, -math.inf, None]),
    st.sampled_from(["", "x"]),
    st.sampled_from([None, 0, 7, -(2**63), 2**63 - 1]),
    st.integers(-25, 60),
)
"""Few keys, so that sessions meet."""


@st.composite
def runs(draw: Any) -> list[Any]:
    """(rows, the watermark behind them, what happens)."""
    made: list[Any] = []
    for some in draw(st.lists(st.lists(rows, max_size=9), max_size=8)):
        pieces = [[row] for row in some] if draw(st.booleans()) else [some]
        further = draw(st.sampled_from([None, 0, 3, 9, 30]))
        what = draw(st.sampled_from(["", "", "tick", "cut", "restart", "crash", "rescale"]))
        made += [(piece, None, "") for piece in pieces[:-1]]
        made.append((pieces[-1] if pieces else [], further, what))
    return made


def batch(some: list[Row]) -> pa.RecordBatch:
    return batch_of(COLUMNS, [row[:3] for row in some], [row[3] for row in some])


def shown(value: Any) -> Any:
    """Equal keys print alike: NaN is NaN, and -0.0 is 0.0."""
    return repr(value + 0.0) if isinstance(value, float) else value


def result_of(some: list[Row]) -> tuple[Any, ...]:
    values = [v for _, _, v, _ in some if v is not None]
    small = sorted(abs(v) % 100 * (1 if v > 0 else -1) for v in values)
    at, half = divmod(len(small) - 1, 2)
    middle = (small[at] + small[at + half]) / 2 if small else None
    total = sum(small) if small else None
    kinds = len({s for _, s, _, _ in some})
    return len(some), min(values, default=None), total, len(set(values)), middle, 1000 // kinds


class Sessions:
    """The sessions there are: (key, rows); late rows lengthen those that are kept, no others."""

    def __init__(self, gap: int, lateness: int) -> None:
        self.gap, self.lateness = gap, lateness
        self.kept: list[tuple[Key, list[Row]]] = []
        self.final: list[tuple[Key, list[Row]]] = []
        self.late: list[Row] = []
        self.watermark = -(2**62)

    def add(self, some: list[Row]) -> None:
        rest = []
        for row in some:
            if row[3] + self.gap - 1 + self.lateness > self.watermark:
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
            for each in self.kept
            if each[0] == key_of(row)
            and min(r[3] for r in each[1]) - self.gap < row[3]
            and row[3] < max(r[3] for r in each[1]) + self.gap
        ]

    def _join(self, row: Row) -> None:
        touched = self._touched(row)
        self.kept = [each for each in self.kept if not any(each is one for one in touched)]
        self.kept.append((key_of(row), [row, *(r for _, some in touched for r in some)]))

    def pass_by(self, watermark: int) -> None:
        self.watermark = watermark
        for each in self.kept:
            if self.end_of(each) - 1 + self.lateness <= watermark:
                self.final.append(each)
        self.kept = [each for each in self.kept if not any(each is one for one in self.final)]

    def end_of(self, session: tuple[Key, list[Row]]) -> int:
        return max(row[3] for row in session[1]) + self.gap

    def table(self, until: int | None = None) -> Counter[Any]:
        """What readers should have: all sessions, or those that are over then."""
        chosen = [
            each
            for each in [*self.final, *self.kept]
            if until is None or self.end_of(each) - 1 <= until
        ]
        return Counter(
            (key, min(row[3] for row in some), self.end_of((key, some)), *result_of(some))
            for key, some in chosen
        )


def key_of(row: Row) -> Key:
    return shown(row[0]), None


class Reader:
    """Applies changes: what is taken back must be there just as it is."""

    def __init__(self) -> None:
        self.table: Counter[Any] = Counter()
        self.changes = 0

    def take(self, table: pa.Table) -> None:
        if not table.num_rows:
            return
        times = [table[n].cast(pa.int64()).to_pylist() for n in ("window_start", "window_end")]
        results = [table[name].to_pylist() for name in ITEMS]
        keys = [(shown(k), None) for k in table["k"].to_pylist()]
        for *row, sign in zip(keys, *times, *results, table["_change"].to_pylist(), strict=True):
            self.changes += 1
            self.table[tuple(row)] += sign
            assert self.table[tuple(row)] in (0, 1)
        self.table = +self.table


def made(gap: int, early_ns: int | None, lateness: int, keys: Any = ("k",)) -> Any:
    aggregation = Aggregation(ITEMS, SCHEMA)
    return UpdatingSessionProcessor(Session(gap), keys, aggregation, SCHEMA, early_ns, lateness)


def harness(
    gap: int, early_ns: int | None, lateness: int = 0, keys: Any = ("k",), **options: Any
) -> Harness:
    processor = made(gap, early_ns, lateness, keys)
    schemas = {"main": processor.out_schema, LATE: SCHEMA}
    return Harness(processor, [SCHEMA], out_schemas=schemas, **options)


class Fleet:
    """Subtasks that share the keys, their readers, and what was there at the last cut."""

    def __init__(self, gap: int, early_ns: int | None, lateness: int) -> None:
        self._shape = (gap, early_ns, lateness)
        self._clock = ManualClock(1_700_000_000_000_000_000)
        self.model, self.reader = Sessions(gap, lateness), Reader()
        self.late: Counter[Any] = Counter()
        self.watermark = -100
        self._members = [harness(*self._shape, watermark=-100, clock=self._clock)]
        self._members[0].advance(-100)
        self.model.pass_by(-100)
        self.cut()

    def send(self, some: list[Row]) -> None:
        self.model.add(some)
        content = batch(some)
        targets = subtask_of(hash_arrays([content.column("k")], len(some)), len(self._members))
        for number, member in enumerate(self._members):
            member.send(content.filter(pa.array(targets == number)))

    def advance(self, watermark: int) -> None:
        self.watermark = watermark
        self.model.pass_by(watermark)
        for member in self._members:
            member.advance(watermark)

    def tick(self) -> None:
        self._clock.advance_ns(SECOND)
        for member in self._members:
            member.tick()

    def read(self) -> None:
        for member in self._members:
            assert member.rows_behind_watermark == 0
            self.reader.take(member.taken())
            late = member.taken(LATE)
            if late.num_rows:
                columns = [list(map(shown, column.to_pylist())) for column in late.columns[:3]]
                times = late.column("_time").cast(pa.int64()).to_pylist()
                self.late.update(zip(*columns, times, strict=True))

    def cut(self) -> None:
        sections = [section for member in self._members for section in member.cut()]
        self.read()
        self._kept = (sections, self.watermark, *deepcopy((self.model, self.reader, self.late)))

    def crash(self, parallelism: int) -> None:
        sections, self.watermark, *rest = self._kept
        self.model, self.reader, self.late = deepcopy(tuple(rest))
        self._members = [
            harness(
                *self._shape, restored=sections, subtask=subtask, parallelism=parallelism,
                watermark=self.watermark, clock=self._clock,
            )
            for subtask in range(parallelism)
        ]  # fmt: skip

    def end(self) -> None:
        for member in self._members:
            member.end()
        self.read()


@pytest.mark.parametrize("early_ns", [None, 0, SECOND])
@settings(max_examples=40, deadline=None)
@given(
    steps=runs(),
    gap=st.sampled_from([1, 4, 15]),
    lateness=st.sampled_from([0, 5, 30]),
    ends=st.booleans(),
)
def test_readers_have_the_sessions_of_the_rows_so_far(
    early_ns: int | None, steps: list[Any], gap: int, lateness: int, ends: bool
) -> None:
    fleet = Fleet(gap, early_ns, lateness)
    for some, further, what in steps:
        # Equal rows are told apart by the model.
        fleet.send([(*row,) for row in map(list, some)])
        if what == "tick":
            fleet.tick()
        if what in ("cut", "restart", "rescale"):
            fleet.cut()
        fleet.read()
        if early_ns == 0 or (early_ns is not None and what not in ("", "crash")):
            assert fleet.reader.table == fleet.model.table()
        if early_ns is None and what in ("cut", "restart", "rescale"):
            assert fleet.reader.table == fleet.model.table(fleet.watermark)
        if what in ("restart", "rescale", "crash"):
            fleet.crash(3 if what == "rescale" else 1)
        if further is not None:
            fleet.advance(max(fleet.watermark, -30) + further)
            fleet.read()
            over = fleet.model.table(fleet.watermark)
            if early_ns is None:
                assert fleet.reader.table == over
            else:
                assert not over - fleet.reader.table
    if ends:
        fleet.end()
        assert fleet.reader.table == fleet.model.table()
    assert fleet.late == Counter(
        (shown(row[0]), row[1], shown(row[2]), row[3]) for row in fleet.model.late
    )


def test_every_kind_of_aggregate_ends_as_in_sessions_that_are_given_once() -> None:
    items = {
        "a": "first(v)", "b": "last(v)", "c": "stddev(v)", "d": "string_agg(s, '-')",
        "e": "approx_quantile(v, 0.5)", "f": "approx_count_distinct(v)", "g": "max_by(s, v)",
        "h": "quantile(v, 0.9)", "i": "sum(v) FILTER (WHERE s = 'x')", "j": "avg(DISTINCT v)",
        "l": "bit_xor(v)", "m": "array_agg(v)",
    }  # fmt: skip
    aggregation, chance = Aggregation(items, SCHEMA), Random(3)
    plain = SessionAggregateProcessor(Session(6), ["k"], aggregation, SCHEMA)
    early = UpdatingSessionProcessor(Session(6), ["k"], aggregation, SCHEMA, SECOND)
    runs = [Harness(made, [SCHEMA]) for made in (plain, early)]
    for _ in range(60):
        some = [
            (float(chance.randrange(3)), chance.choice("xy"), chance.randrange(9), time)
            for time in chance.choices(range(200), k=chance.choice([1, 4]))
        ]
        die = chance.random() < 0.2
        for run in runs:
            run.send(batch(some)).tick(SECOND // 2)
            if die:
                run.restart()
    found = []
    for run in runs:
        counted: Counter[str] = Counter()
        for row in run.end().rows():
            sign = row.pop("_change", 1)
            row["c"] = row["c"] and round(row["c"], 9)
            counted[repr(row)] += sign
        found.append(+counted)
    assert found[0] == found[1]
    assert sum(found[0].values()) > 9


def test_a_row_between_two_sessions_takes_both_back_and_gives_one() -> None:
    run = harness(10, SECOND)
    run.send(batch([(1.0, "x", 3, 0), (1.0, "x", 4, 15)])).tick(SECOND)
    assert shown_changes(run) == [(1, 0, 10, 1), (1, 15, 25, 1)]
    run.restart().send(batch([(1.0, "x", 4, 8)]))
    assert shown_changes(run) == []
    run.tick(SECOND)
    changes = shown_changes(run)
    assert sorted(changes[:2]) == [(-1, 0, 10, 1), (-1, 15, 25, 1)]
    assert changes[2:] == [(1, 0, 25, 3)]
    run.send(batch([(1.0, "x", None, 24)])).cut()
    assert shown_changes(run) == [(-1, 0, 25, 3), (1, 0, 34, 4)]
    run.advance(33)
    assert shown_changes(run) == [], "it is what was given before it was over"


def test_a_late_row_lets_a_session_go_on_and_it_is_taken_back_until_it_is_over() -> None:
    run = harness(10, None, 20)
    run.send(batch([(1.0, "x", 3, 0)])).advance(9)
    table = run.taken()
    assert table["_change"].to_pylist() == [1]
    assert table["_time"].cast(pa.int64()).to_pylist() == [9]
    run.send(batch([(1.0, "x", 3, 8)])).advance(10)
    table = run.taken()
    assert table["_change"].to_pylist() == [-1]
    assert table["_time"].cast(pa.int64()).to_pylist() == [17]
    run.restart().advance(17)
    assert shown_changes(run) == [(1, 0, 18, 2)]
    run.advance(37).send(batch([(1.0, "x", 3, 8)]))
    assert run.taken(LATE).num_rows == 1
    assert run.rows_behind_watermark == 0


def test_a_session_taken_in_is_taken_back_with_what_takes_its_place() -> None:
    run = harness(10, SECOND)
    run.send(batch([(1.0, "x", 3, 0), (1.0, "x", 4, 15), (1.0, "x", 4, 16)])).tick(SECOND)
    assert len(shown_changes(run)) == 2
    # The second is the larger one, so the first becomes a part of it.
    run.send(batch([(1.0, "x", 4, 8)])).advance(12)
    assert shown_changes(run) == [], "what was given of the first stands until then"
    run.advance(25)
    assert shown_changes(run) == [(-1, 0, 10, 1), (-1, 15, 26, 2), (1, 0, 26, 4)]


def test_what_a_session_took_in_goes_on_with_it_into_another() -> None:
    run = harness(10, SECOND)
    times = [0, 15, 16, 32, 33, 34, 35]
    run.send(batch([(1.0, "x", 1, time) for time in times])).tick(SECOND)
    assert len(shown_changes(run)) == 3
    run.send(batch([(1.0, "x", 1, 8)])).send(batch([(1.0, "x", 1, 24)])).advance(44)
    back = [(-1, 0, 10, 1), (-1, 15, 26, 2), (-1, 32, 45, 4)]
    assert sorted(shown_changes(run)) == [*sorted(back), (1, 0, 45, 9)]


def test_sessions_without_a_key_are_of_the_whole_stream() -> None:
    run = harness(10, SECOND, keys=())
    run.send(batch([(1.0, "x", 1, 0), (2.0, "x", 2, 5)])).restart()
    assert [(r["rows"], r["_change"]) for r in run.rows()] == [(2, 1)]
    run.send(batch([(3.0, "x", 1, 14)])).end()
    assert [(r["rows"], r["_change"]) for r in run.rows()] == [(2, -1), (3, 1)]


def test_what_is_final_is_forgotten_keys_and_values_too() -> None:
    run = harness(10, SECOND, 5)
    for number in range(300):
        start = 100 * number
        run.send(batch([(float(number % 7), "x", number, start), (9.0, "x", 1, start + 30)]))
        run.advance(start + 60)
    processor: Any = run.processor
    assert processor._groups.index.rows == 0
    assert processor._sessions.keys == 0
    assert processor._values[0]._index.rows == 0


def shown_changes(run: Harness) -> list[tuple[int, int, int, int]]:
    """(sign, start, end, rows)."""
    table = run.taken()
    if not table.num_rows:
        return []
    bounds = [table[n].cast(pa.int64()).to_pylist() for n in ("window_start", "window_end")]
    signs, counts = table["_change"].to_pylist(), table["rows"].to_pylist()
    return list(zip(signs, *bounds, counts, strict=True))
