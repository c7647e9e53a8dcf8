"""Windows given early and refined late, and windows without an end, against plain Python."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.elements.errors import PlanError
from penstock.operators.aggregates import Aggregation
from penstock.operators.event_times import with_time
from penstock.operators.processor import LATE
from penstock.operators.windows import Cumulate, Hop, Tumble, global_window
from penstock.operators.windows.triggered import GlobalWindowProcessor
from penstock.operators.windows.updating import UpdatingWindowProcessor
from penstock.testing.harness import Harness, batch_of

COLUMNS = pa.schema([("k", pa.int64()), ("n", pa.int64())])
ROWS = with_time(COLUMNS)
ITEMS = {"rows": "count(*)", "total": "sum(n)", "kinds": "count(DISTINCT n)", "first": "first(n)"}
SECOND = 10**9
Row = tuple[int | None, int | None, int]


def windows_of(window: Any, time: int) -> list[tuple[int, int]]:
    """By trying all of them."""
    if isinstance(window, Cumulate):
        start = (time - window.offset_ns) // window.size_ns * window.size_ns + window.offset_ns
        ends = range(start + window.step_ns, start + window.size_ns + 1, window.step_ns)
        return [(start, end) for end in ends if time < end]
    every = window.every_ns if isinstance(window, Hop) else window.size_ns
    base = (time - window.offset_ns) // every
    starts = [
        k * every + window.offset_ns for k in range(base - window.size_ns // every - 1, base + 1)
    ]
    return [(s, s + window.size_ns) for s in starts if s <= time < s + window.size_ns]


def result_of(rows: list[Row]) -> tuple[Any, ...]:
    numbers = [n for _, n, _ in rows if n is not None]
    earliest = min(time for _, _, time in rows)
    ties = [n for _, n, time in rows if time == earliest]
    first = min(ties, key=lambda n: (n is None, n or 0))
    return len(rows), sum(numbers) if numbers else None, len(set(numbers)), first


class Reader:
    """Applies changes; a row that is taken back must be there."""

    def __init__(self) -> None:
        self.table: dict[Any, Any] = {}
        self.changes = 0

    def take(self, table: pa.Table) -> None:
        if not table.num_rows:
            return
        for name in ("window_start", "window_end"):
            at = table.column_names.index(name)
            table = table.set_column(at, name, table.column(name).cast(pa.int64()))
        for row in table.drop_columns(["_time"]).to_pylist():
            sign = row.pop("_change")
            key = (row.pop("k"), row.pop("window_start"), row.pop("window_end"))
            self.changes += 1
            if sign > 0:
                assert key not in self.table
                self.table[key] = tuple(row.values())
            else:
                assert self.table.pop(key) == tuple(row.values())


def updating(window: Any, early_ns: int | None, lateness_ns: int = 0) -> Harness:
    aggregation = Aggregation(ITEMS, ROWS)
    made = UpdatingWindowProcessor(window, ["k"], aggregation, ROWS, early_ns, lateness_ns)
    return Harness(made, [ROWS], out_schemas={"main": made.out_schema, LATE: ROWS})


def batch(rows: list[Row]) -> pa.RecordBatch:
    return batch_of(COLUMNS, [row[:2] for row in rows], [row[2] for row in rows])


row = st.tuples(
    st.sampled_from([None, 1, 2]), st.sampled_from([None, 0, 5, -3]), st.integers(-60, 90)
)
WINDOWS = [Tumble(10), Tumble(7, 3), Hop(10, 4, -3), Hop(3, 10), Hop(7, 3, 1), Cumulate(12, 4)]


@pytest.mark.parametrize("early_ns", [None, 0, SECOND])
@settings(max_examples=30, deadline=None)
@given(
    window=st.sampled_from(WINDOWS),
    lateness=st.sampled_from([0, 5, 40]),
    steps=st.lists(
        st.tuples(
            st.lists(row, max_size=8), st.integers(0, 25), st.sampled_from(["", "tick", "restart"])
        ),
        max_size=8,
    ),
)
def test_what_readers_have_in_the_end_is_what_the_rows_say(
    early_ns: int | None, window: Any, lateness: int, steps: list[Any]
) -> None:
    run, reader = updating(window, early_ns, lateness), Reader()
    groups: dict[Any, list[Row]] = defaultdict(list)
    late, watermark = 0, -(2**62)
    for rows, further, what in steps:
        run.send(batch(rows))
        for each in rows:
            windows = windows_of(window, each[2])
            open_ = [w for w in windows if w[1] - 1 > watermark - lateness]
            late += bool(windows) and not open_
            for bounds in open_:
                groups[each[0], *bounds].append(each)
        if what == "tick":
            run.tick(SECOND)
        if what == "restart":
            run.restart()
        watermark = max(watermark, -60) + further
        run.advance(watermark)
        reader.take(run.taken())
        complete = {key: result_of(of) for key, of in groups.items() if key[2] - 1 <= watermark}
        if early_ns is None:
            assert reader.table == complete
        else:
            assert {k: v for k, v in reader.table.items() if k[2] - 1 <= watermark} == complete
        if early_ns == 0:
            assert reader.table == {key: result_of(of) for key, of in groups.items()}
    assert run.taken(LATE).num_rows == run.counters["late"] == late
    run.end()
    reader.take(run.taken())
    assert reader.table == {key: result_of(of) for key, of in groups.items()}


def test_results_of_complete_windows_lie_ahead_of_the_watermark_and_are_forgotten_when_final() -> (
    None
):
    run = updating(Tumble(10), SECOND, 5)
    run.send(batch([(1, 1, 3)])).tick(SECOND)
    assert [r["_change"] for r in run.rows()] == [1]
    run.advance(9)
    assert run.rows() == []
    run.send(batch([(1, 1, 4)])).advance(10)
    table = run.taken()
    assert table.column("_change").to_pylist() == [-1, 1]
    assert table.column("_time").cast(pa.int64()).to_pylist() == [10, 10]
    run.advance(14)
    assert run.processor._groups.index.rows == 0  # type: ignore[attr-defined]
    run.send(batch([(1, 1, 4)]))
    assert run.taken(LATE).num_rows == 1


def global_run(trigger: str, ttl: str = "1 day", **options: Any) -> Harness:
    window = global_window(trigger=trigger, ttl=ttl)
    made = GlobalWindowProcessor(window, ["k"], Aggregation(ITEMS, ROWS), ROWS)
    return Harness(made, [ROWS], out_schemas={"main": made.out_schema}, **options)


@settings(max_examples=40, deadline=None)
@given(
    steps=st.lists(st.lists(row, max_size=15), max_size=6),
    every=st.integers(1, 4),
    restart=st.booleans(),
)
def test_a_number_of_rows_fires_with_each_row_that_fills_it(
    steps: list[list[Row]], every: int, restart: bool
) -> None:
    run = global_run(f"{every} rows")
    seen: dict[Any, list[Row]] = defaultdict(list)
    expected = []
    for rows in steps:
        run.send(batch(rows))
        for each in rows:
            seen[each[0]].append(each)
            if len(seen[each[0]]) % every == 0:
                expected.append((each[0], *result_of(seen[each[0]])))
        if restart:
            run.restart()
    run.end()
    found = [tuple(r.values()) for r in run.rows()]
    for key in {each[0] for each in expected}:
        assert [r for r in found if r[0] == key] == [r for r in expected if r[0] == key]
    assert len(found) == len(expected)


def test_an_interval_fires_what_has_changed_and_once_more_at_the_end() -> None:
    run = global_run("10 seconds")
    run.send(batch([(1, 5, 0), (2, 5, 0)]))
    run.tick(9 * SECOND)
    assert run.rows() == []
    run.tick(SECOND)
    assert [(r["k"], r["total"]) for r in run.rows()] == [(1, 5), (2, 5)]
    run.send(batch([(2, 1, 3)])).end()
    assert [(r["k"], r["total"]) for r in run.rows()] == [(2, 6)]
    assert run.rows_behind_watermark == 0


def test_a_key_of_a_global_window_is_forgotten_in_silence_after_its_ttl() -> None:
    run = global_run("1 row", ttl="100 ns")
    run.send(batch([(1, 5, 0)])).advance(200)
    assert [r["rows"] for r in run.rows()] == [1]
    run.send(batch([(1, 5, 201)]))
    assert [r["rows"] for r in run.rows()] == [1]


def test_triggers_are_rows_or_durations() -> None:
    assert global_window(trigger="1 row", ttl="1 s").trigger_rows == 1
    for trigger in ("0 rows", "often", "0 s"):
        with pytest.raises(PlanError, match="global_window"):
            global_window(trigger=trigger, ttl="1 s")
