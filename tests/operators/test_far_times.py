"""Operators give the same in every century: streams moved to either end of event time."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest

from penstock.elements.durations import DAYS_MAX
from penstock.operators.aggregates import Aggregation
from penstock.operators.asof_join import AsOfJoinProcessor
from penstock.operators.broadcast_join import BroadcastJoinProcessor
from penstock.operators.dedup import FirstRowProcessor
from penstock.operators.event_times import EARLIEST_NS, LATEST_NS, with_time
from penstock.operators.incremental_join import FOREVER_NS, IncrementalJoinProcessor
from penstock.operators.interval_join import IntervalJoinProcessor
from penstock.operators.match_pattern import parse_pattern
from penstock.operators.match_processor import MatchProcessor
from penstock.operators.over import OverProcessor
from penstock.operators.over_items import OverItems
from penstock.operators.processor import Processor
from penstock.operators.ranking import RunningTopProcessor
from penstock.operators.ranking_windows import WindowRankProcessor
from penstock.operators.rate_limit import RateLimitProcessor
from penstock.operators.row_order import RowOrder
from penstock.operators.updating_aggregate import UpdatingAggregateProcessor
from penstock.operators.window_join import WindowJoinProcessor
from penstock.operators.windows.aggregate import WindowAggregateProcessor
from penstock.operators.windows.descriptors import (
    Cumulate,
    GlobalWindow,
    Hop,
    Session,
    Tumble,
)
from penstock.operators.windows.sessions import SessionAggregateProcessor
from penstock.operators.windows.triggered import GlobalWindowProcessor
from penstock.operators.windows.updating import UpdatingWindowProcessor
from penstock.operators.windows.updating_sessions import UpdatingSessionProcessor
from penstock.testing.harness import Harness, batch_of

COLUMNS = pa.schema([("k", pa.int64()), ("v", pa.int64())])
OTHERS = pa.schema([("k", pa.int64()), ("w", pa.int64())])
SCHEMA, OTHER = with_time(COLUMNS), with_time(OTHERS)
CENTURY_NS = DAYS_MAX * 86_400 * 10**9
"""The longest duration there is."""
ROUND_NS = 600
"""What the windows below divide."""
STEPS = 40
FAR = {
    "1778": -(-EARLIEST_NS // ROUND_NS) * ROUND_NS,
    "2161": (LATEST_NS - 60 * STEPS) // ROUND_NS * ROUND_NS,
}


def aggregated(kind: Any, *before: Any, **more: Any) -> Any:
    aggregation = Aggregation({"n": "count(*)", "kinds": "count(DISTINCT v)"}, SCHEMA)
    return kind(*before, ["k"], aggregation, SCHEMA, **more)


def order() -> RowOrder:
    return RowOrder("v desc", SCHEMA)


def matching(within_ns: int) -> Processor:
    conditions, measures = {"a": "v < 3", "b": "v > lag(v)"}, {"n": "count(b)"}
    pattern = parse_pattern("a b+")
    skip: Any = "past last row"
    return MatchProcessor(["k"], pattern, conditions, measures, within_ns, skip, SCHEMA)


def pairs(kind: Any, *before: Any, how: str, **more: Any) -> Any:
    return kind(*before, ["k"], how, SCHEMA, OTHER, **more)


WINDOWS: list[Any] = [Tumble(20), Hop(30, 10, 5), Hop(5, 20), Cumulate(60, 20)]
MADE: dict[str, Callable[[], Any]] = {
    "over": lambda: OverProcessor(
        ["k"], OverItems({"s": "sum(v)", "b": "lead(v)"}, SCHEMA), 2, SCHEMA
    ),
    "first rows": lambda: FirstRowProcessor(["k"], SCHEMA, True, None),
    "rates": lambda: RateLimitProcessor(["k"], 1, 20, SCHEMA),
    "as of": lambda: pairs(AsOfJoinProcessor, how="left"),
    "broadcast": lambda: pairs(BroadcastJoinProcessor, how="left"),
    "for ever": lambda: pairs(IncrementalJoinProcessor, FOREVER_NS, how="full"),
}
for window in WINDOWS:
    MADE |= {
        f"{window} late": lambda w=window: aggregated(WindowAggregateProcessor, w, lateness_ns=15),
        f"{window} {CENTURY_NS} late": lambda w=window: aggregated(
            WindowAggregateProcessor, w, lateness_ns=CENTURY_NS
        ),
        f"{window} refined": lambda w=window: aggregated(
            UpdatingWindowProcessor, w, early_ns=None, lateness_ns=15
        ),
        f"{window} {CENTURY_NS} refined": lambda w=window: aggregated(
            UpdatingWindowProcessor, w, early_ns=0, lateness_ns=CENTURY_NS
        ),
        f"{window} top": lambda w=window: WindowRankProcessor(w, ["k"], order(), SCHEMA, 1),
        f"{window} joined": lambda w=window: pairs(WindowJoinProcessor, w, how="full"),
    }
for span in (12, CENTURY_NS):
    MADE |= {
        f"session of {span}": lambda ns=span: aggregated(SessionAggregateProcessor, Session(ns)),
        f"session with {span}": lambda ns=span: aggregated(
            SessionAggregateProcessor, Session(12), lateness_ns=ns
        ),
        f"session refined for {span}": lambda ns=span: aggregated(
            UpdatingSessionProcessor, Session(12), early_ns=None, lateness_ns=ns
        ),
        f"early session of {span}": lambda ns=span: aggregated(
            UpdatingSessionProcessor, Session(ns), early_ns=0, lateness_ns=15
        ),
        f"global for {span}": lambda ns=span: aggregated(
            GlobalWindowProcessor, GlobalWindow(2, None, ns)
        ),
        f"updating for {span}": lambda ns=span: UpdatingAggregateProcessor(
            ["k"], Aggregation({"n": "count(*)"}, SCHEMA), SCHEMA, ns, 0
        ),
        f"first rows for {span}": lambda ns=span: FirstRowProcessor(["k"], SCHEMA, True, ns),
        f"arrivals for {span}": lambda ns=span: FirstRowProcessor(["k"], SCHEMA, False, ns),
        f"top for {span}": lambda ns=span: RunningTopProcessor(
            ["k"], order(), 1, SCHEMA, ttl_ns=ns
        ),
        f"as of {span}": lambda ns=span: pairs(AsOfJoinProcessor, how="left", tolerance_ns=ns),
        f"within {span}": lambda ns=span: pairs(IntervalJoinProcessor, (-ns, ns), how="full"),
        f"join for {span}": lambda ns=span: pairs(IncrementalJoinProcessor, ns, how="full"),
        f"match within {span}": lambda ns=span: matching(ns),
    }


def run(made: Any, base_ns: int) -> list[Any]:
    """Everything that comes out, by step; times from `base_ns`."""
    chance = random.Random(2)
    two = isinstance(getattr(made, "sides", getattr(made, "_in", None)), tuple)
    driven = Harness(made, [SCHEMA, OTHER] if two else [SCHEMA])
    now, found = 0, []
    for _ in range(STEPS):
        rows, port = [], chance.choice([0, 1]) if two else 0
        for _row in range(chance.choice([0, 1, 4])):
            now += chance.choice([0, 1, 15])
            time = max(0, now - chance.randrange(20))
            rows.append((chance.choice([None, 1, 2]), chance.randrange(6), base_ns + time))
        columns = OTHERS if port else COLUMNS
        driven.send(batch_of(columns, [row[:2] for row in rows], [row[2] for row in rows]), port)
        if chance.random() < 0.5:
            driven.advance(max(driven.watermark, base_ns + now - 15))
        if chance.random() < 0.2:
            driven.restart()
        found.append(outputs(driven, base_ns))
    driven.end()
    found += [outputs(driven, base_ns), dict(driven.counters), driven.rows_behind_watermark]
    return found


def outputs(driven: Harness, base_ns: int) -> list[Any]:
    found = []
    for output in ("main", "late", "late_right", "excess"):
        table = driven.taken(output)
        rows = []
        for batch in table.to_batches():
            columns = []
            for column in batch.columns:
                timed = pa.types.is_timestamp(column.type)
                values = (column.cast(pa.int64()) if timed else column).to_pylist()
                columns.append([v - base_ns if timed and v is not None else v for v in values])
            rows += list(zip(*columns, strict=True))
        found.append(sorted(rows, key=repr))
    return found


@pytest.mark.parametrize("century", FAR)
@pytest.mark.parametrize("name", MADE)
def test_what_comes_out_is_the_same_at_the_ends_of_time(name: str, century: str) -> None:
    expected = run(MADE[name](), 0)
    assert any(any(step) for step in expected[:-2])
    assert run(MADE[name](), FAR[century]) == expected
