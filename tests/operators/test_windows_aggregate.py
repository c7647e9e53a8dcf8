"""Windowed aggregates against a plain-Python oracle: disorder, late rows, nulls, restarts."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest

from penstock.elements.errors import PlanError
from penstock.elements.signals import WATERMARK_MAX
from penstock.operators.aggregates import Aggregation
from penstock.operators.event_times import with_time
from penstock.operators.processor import LATE
from penstock.operators.windows import Cumulate, Hop, Tumble, cumulate, hop, tumble
from penstock.operators.windows.aggregate import WindowAggregateProcessor
from penstock.testing.harness import Harness, batch_of

COLUMNS = pa.schema([("k", pa.int64()), ("v", pa.float64()), ("n", pa.int32()), ("s", pa.string())])
ROWS = with_time(COLUMNS)
ITEMS = {
    "rows": "count(*)",
    "some": "count(v)",
    "total": "sum(n)",
    "least": "min(s)",
    "most": "max(v)",
    "mean": "avg(n)",
    "kinds": "count(DISTINCT s)",
    "middle": "median(n)",
    "opening": "first(s)",
}
Row = tuple[Any, ...]


def windows_of(window: Tumble | Hop | Cumulate, time: int) -> list[tuple[int, int]]:
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


def greatest(values: list[float]) -> float | None:
    """NaN is greater than every number."""
    if any(math.isnan(value) for value in values):
        return math.nan
    return max(values, default=None)


def result_of(rows: list[Row]) -> tuple[Any, ...]:
    """What ITEMS mean, in plain Python."""
    numbers = sorted(row[2] for row in rows if row[2] is not None)
    floats = [row[1] for row in rows if row[1] is not None]
    texts = [row[3] for row in rows if row[3] is not None]
    middle = None
    if numbers:
        at = (len(numbers) - 1) / 2
        middle = (numbers[math.floor(at)] + numbers[math.ceil(at)]) / 2
    earliest = min(row[4] for row in rows)
    opening = min(
        (row[3] for row in rows if row[4] == earliest), key=lambda s: (s is None, s or "")
    )
    return (
        len(rows), len(floats), sum(numbers) if numbers else None, min(texts, default=None),
        greatest(floats), sum(numbers) / len(numbers) if numbers else None, len(set(texts)),
        middle, opening,
    )  # fmt: skip


def comparable(value: Any) -> Any:
    """NaN equals itself, and sorts."""
    if isinstance(value, float) and math.isnan(value):
        return "nan"
    return round(value, 9) if isinstance(value, float) else value


def expected(window: Any, rows: list[Row]) -> list[tuple[Any, ...]]:
    """All windows of rows that are not late."""
    groups: dict[Any, list[Row]] = defaultdict(list)
    for row in rows:
        for start, end in windows_of(window, row[4]):
            groups[row[0], start, end].append(row)
    found = [(*key, *result_of(group)) for key, group in groups.items()]
    return sorted((tuple(comparable(v) for v in row) for row in found), key=repr)


def given(table: pa.Table) -> list[tuple[Any, ...]]:
    """The processor's rows in the oracle's form."""
    if not table.num_columns:
        return []
    times = [
        table.column(name).cast(pa.int64()).to_pylist() for name in ("window_start", "window_end")
    ]
    columns = [table.column("k").to_pylist(), *times]
    columns += [table.column(name).to_pylist() for name in ITEMS]
    return sorted((tuple(comparable(v) for v in row) for row in zip(*columns)), key=repr)


def stream(seed: int, disorder: int, count: int = 400) -> Iterator[tuple[list[Row], int]]:
    """Batches of rows and the watermark after each; times begin before 1970."""
    rng = random.Random(seed)
    now, newest = -300, -(2**62)
    for _ in range(count // 20):
        rows = []
        for _ in range(rng.choice([1, 1, 5, 40])):
            now += rng.choice([0, 0, 1, 3])
            time = now - rng.randint(0, disorder)
            newest = max(newest, time)
            value = rng.choice([None, math.nan, -0.0, 0.0, rng.uniform(-5, 5)])
            key = rng.choice([None, 0, 1, 2**40, -7])
            text = rng.choice([None, "a", "b", "é", ""])
            rows.append((key, value, rng.choice([None, rng.randint(-9, 9)]), text, time))
        yield rows, newest - disorder - 1


def processor(window: Any, lateness_ns: int = 0) -> WindowAggregateProcessor:
    return WindowAggregateProcessor(window, ["k"], Aggregation(ITEMS, ROWS), ROWS, lateness_ns)


def harness_of(made: WindowAggregateProcessor, **options: Any) -> Harness:
    schemas = {"main": made.out_schema, LATE: made.in_schema}
    return Harness(made, [ROWS], out_schemas=schemas, **options)


def batch(rows: list[Row]) -> pa.RecordBatch:
    return batch_of(COLUMNS, [row[:4] for row in rows], [row[4] for row in rows])


WINDOWS = [
    Tumble(10),
    Tumble(7, 3),
    Hop(10, 5),
    Hop(10, 4, -3),
    Hop(3, 10),
    Cumulate(12, 4),
    Cumulate(9, 3, 1),
]


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("seed", range(4))
def test_windows_give_what_a_plain_loop_gives_also_through_restarts(window: Any, seed: int) -> None:
    driven = harness_of(processor(window))
    rng = random.Random(seed)
    everything: list[Row] = []
    results: list[tuple[Any, ...]] = []
    for rows, watermark in stream(seed, disorder=6):
        everything += rows
        pieces = [[row] for row in rows] if seed == 1 else [rows]
        for piece in pieces:
            driven.send(batch(piece))
        if rng.random() < 0.6:
            driven.advance(max(watermark, driven.watermark))
        results += given(driven.taken())
        if rng.random() < 0.3:
            driven.restart()
    driven.end()
    results += given(driven.taken())
    assert sorted(results, key=repr) == expected(window, everything)
    assert driven.rows_behind_watermark == 0
    assert driven.counters["late"] == 0
    assert driven.processor._store.panes.size == 0


@pytest.mark.parametrize("window", WINDOWS)
def test_every_row_is_either_in_a_result_or_late(window: Any) -> None:
    driven = harness_of(processor(window))
    kept: list[Row] = []
    late = 0
    for rows, watermark in stream(11, disorder=25):
        for row in rows:
            ends = [end for _, end in windows_of(window, row[4])]
            if ends and all(end - 1 <= driven.watermark for end in ends):
                late += 1
            else:
                kept.append((*row, driven.watermark))
        driven.send(batch(rows))
        # A bound that is too small for the disorder: some rows are late.
        driven.advance(max(watermark + 18, driven.watermark))
    driven.end()
    groups: dict[Any, int] = defaultdict(int)
    for row in kept:
        for start, end in windows_of(window, row[4]):
            if end - 1 > row[5]:
                groups[row[0], start, end] += 1
    assert late > 0
    assert driven.counters["late"] == late == driven.taken(LATE).num_rows
    rows_by_window = {row[:3]: row[3] for row in given(driven.taken())}
    assert rows_by_window == dict(groups)


def test_a_late_row_within_the_lateness_gives_its_window_again() -> None:
    driven = harness_of(processor(Tumble(10), lateness_ns=20))
    driven.send(batch([(1, 1.0, 1, "a", 5), (2, 1.0, 1, "a", 5)])).advance(9)
    assert [row[:4] for row in given(driven.taken())] == [(1, 0, 10, 1), (2, 0, 10, 1)]
    driven.send(batch([(1, 2.0, 2, "b", 3)])).advance(12)
    again = given(driven.taken())
    assert [row[:6] for row in again] == [(1, 0, 10, 2, 2, 3)], "whole, and only the touched key"
    driven.send(batch([(1, 2.0, 2, "b", 4)])).restart()
    assert [row[:4] for row in given(driven.taken())] == [(1, 0, 10, 3)], "at the barrier"
    driven.advance(29).send(batch([(1, 2.0, 2, "b", 4)])).advance(40)
    assert given(driven.taken()) == []
    assert driven.counters["late"] == 1
    assert driven.taken(LATE).column("v").to_pylist() == [2.0]


def test_lateness_never_loses_a_row_of_a_hop() -> None:
    driven = harness_of(processor(Hop(10, 5), lateness_ns=7))
    last: dict[Any, Any] = {}
    sent = 0
    for rows, watermark in stream(3, disorder=25):
        driven.send(batch(rows))
        sent += len(rows)
        driven.advance(max(watermark + 26, driven.watermark))
        last |= {row[:3]: row[3] for row in given(driven.taken())}
    driven.end()
    last |= {row[:3]: row[3] for row in given(driven.taken())}
    late = driven.taken(LATE).num_rows
    assert 0 < late < sent
    # Each row on time is in two windows, or in one if the other was closed already.
    assert (sent - late) < sum(last.values()) <= 2 * (sent - late)


def test_windows_completed_before_a_restart_stay_complete() -> None:
    driven = harness_of(processor(Tumble(10)))
    driven.send(batch([(1, 1.0, 1, "a", 5)])).advance(9).restart()
    driven.taken()
    driven.send(batch([(1, 1.0, 1, "a", 6), (1, 1.0, 1, "a", 10)])).end()
    assert [row[:4] for row in given(driven.taken())] == [(1, 10, 20, 1)]
    assert driven.counters["late"] == 1


def test_state_moves_to_another_parallelism_with_its_keys() -> None:
    single = harness_of(processor(Hop(10, 5)))
    rows = [(key, 1.0, key, "a", time) for key in range(50) for time in (1, 7, 13)]
    single.send(batch(rows)).advance(3)
    sections = single.cut()
    results = []
    for subtask in range(3):
        part = harness_of(
            processor(Hop(10, 5)), restored=sections, subtask=subtask, parallelism=3, watermark=3
        )
        results += given(part.end().taken())
    assert sorted(results, key=repr) == expected(Hop(10, 5), rows)


def test_a_stream_without_keys_has_one_group() -> None:
    made = WindowAggregateProcessor(tumble("10 s"), [], Aggregation({"n": "count(*)"}, ROWS), ROWS)
    driven = Harness(made, [ROWS], out_schemas={"main": made.out_schema})
    driven.send(batch([(1, 1.0, 1, "a", 5), (2, 1.0, 1, "a", 6)])).restart()
    assert driven.end().rows()[0]["n"] == 2
    assert made.out_schema.names == ["window_start", "window_end", "n", "_time"]


def test_results_carry_the_last_instant_of_their_window() -> None:
    driven = harness_of(processor(Tumble(10)))
    table = driven.send(batch([(1, 1.0, 1, "a", -25)])).end().taken()
    assert table.column("_time").cast(pa.int64()).to_pylist() == [-21]
    assert table.column("window_start").cast(pa.int64()).to_pylist() == [-30]


def test_many_windows_that_complete_together_are_given_in_pieces(monkeypatch: Any) -> None:
    monkeypatch.setattr("penstock.operators.windows.aggregate.EXPANDED_ROWS_MAX", 16)
    driven = harness_of(processor(Hop(10, 2)))
    rows = [(key, 1.0, 1, "a", time) for key in range(5) for time in range(0, 60, 3)]
    driven.send(batch(rows))
    assert given(driven.end().taken()) == expected(Hop(10, 2), rows)


@pytest.mark.parametrize("window", [Hop(10, 2), Cumulate(12, 4), Tumble(5)])
def test_windows_that_complete_together_are_given_in_the_order_of_their_ends(window: Any) -> None:
    driven = harness_of(processor(window))
    times = [57, 3, 30, 4, 58, 1, 44, 31, 9, 45]
    driven.send(batch([(key, 1.0, 1, "a", time) for time in times for key in range(3)]))
    ends = driven.end().taken().column("window_end").cast(pa.int64()).to_pylist()
    assert len(set(ends)) > 3
    assert ends == sorted(ends)


def test_partials_that_pile_up_are_merged(monkeypatch: Any) -> None:
    monkeypatch.setattr("penstock.operators.windows.pane_store.PENDING_ROWS_MAX", 8)
    monkeypatch.setattr("penstock.operators.windows.pane_store.COMPACT_ROWS_MIN", 16)
    driven = harness_of(processor(Tumble(1000)))
    rows = [(i % 5, 1.0, i, "ab"[i % 2], i) for i in range(300)]
    for row in rows:
        driven.send(batch([row]))
    assert driven.processor._store._table.rows < 60
    assert given(driven.end().taken()) == expected(Tumble(1000), rows)


def test_the_end_of_data_completes_every_window() -> None:
    driven = harness_of(processor(Cumulate(10, 5)))
    driven.send(batch([(1, 1.0, 1, "a", 2)])).end()
    assert driven.watermark == WATERMARK_MAX
    assert [row[:3] for row in given(driven.taken())] == [(1, 0, 10), (1, 0, 5)]


def test_descriptors_refuse_what_cannot_be_meant() -> None:
    assert hop("10 seconds", every="2 seconds").every_ns == 2 * 10**9
    with pytest.raises(PlanError, match="multiple of step"):
        cumulate("1 hour", step="7 minutes")
    with pytest.raises(PlanError, match="longer than nothing"):
        tumble("0 s")
    with pytest.raises(PlanError, match="windows"):
        hop("1 day", every="1 ms")


def test_a_result_column_called_like_a_key_is_refused() -> None:
    with pytest.raises(PlanError, match='called "k"'):
        WindowAggregateProcessor(Tumble(10), ["k"], Aggregation({"k": "count(*)"}, ROWS), ROWS)
