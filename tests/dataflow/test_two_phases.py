"""Windowed aggregates fold before the exchange where nobody can tell, and only there."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest
from plan_fixtures import Feed, Keep, flights, plan_of
from plan_interpreter import Interpreter

import penstock as ps
from penstock.operators.processor import MAIN
from penstock.operators.thin_out import ThinOutProcessor
from penstock.operators.two_phase import GlobalAggregateProcessor


def shape(plan: Any) -> list[tuple[list[str], int]]:
    return [([s.name for s in v.operators], v.parallelism) for v in plan.vertices]


def counts(s: ps.Stream[Any], window: Any = None, **items: str) -> ps.Stream[Any]:
    keyed = s.key_by("carrier").window(window or ps.tumble("1 hour"))
    return keyed.aggregate(**(items or {"n": "count(*)", "far": "max(distance)"}))


@pytest.mark.parametrize(
    "window", [None, ps.hop("1 hour", every="10 minutes"), ps.cumulate("1 day", step="1 hour")]
)
@pytest.mark.parametrize("parallelism", [1, 3])
def test_rows_are_folded_where_they_are_read(window: Any, parallelism: int) -> None:
    p = ps.Pipeline("p")
    counts(flights(p), window).sink(Keep())
    plan = plan_of(p, parallelism)
    first, second = plan.vertices
    assert [s.name for s in first.operators] == ["feed", "keep", "fold"]
    assert isinstance(second.operators[0].processor, GlobalAggregateProcessor)
    (edge,) = plan.edges
    assert (edge.partition, edge.keys) == ("hash", ("carrier",))
    assert edge.schema.equals(first.operators[2].outputs[MAIN])
    assert not first.operators[2].stateful


@pytest.mark.parametrize(
    "unlike",
    ["multiset", "late rows are read", "session", "count window", "unbounded", "may fall idle"],
)
def test_rows_cross_as_they_are_where_folding_could_be_noticed(unlike: str) -> None:
    p = ps.Pipeline("p")
    if unlike == "may fall idle":
        s = p.source(Feed(), event_time="dep_time", out_of_order="1 hour", idle="5 s")
    else:
        s = flights(p, feed=Feed(bounded=unlike != "unbounded"))
    windows = {"session": ps.session("1 hour"), "count window": ps.count_window(3)}
    items = {"planes": "count(DISTINCT tail)"} if unlike == "multiset" else {}
    made = counts(s, windows.get(unlike), **items)
    made.sink(Keep("a"))
    if unlike == "late rows are read":
        made.late.sink(Keep("b"), name="late")
    names = [spec.name for vertex in plan_of(p, 2).vertices for spec in vertex.operators]
    assert "fold" not in names


def test_each_branch_of_a_union_folds_for_itself() -> None:
    p = ps.Pipeline("p")
    both = flights(p, feed=Feed(name="a")).union(flights(p, feed=Feed(name="b")))
    counts(both).sink(Keep())
    plan = plan_of(p, 2)
    assert [spec.name for v in plan.vertices for spec in v.operators].count("fold") == 2
    assert len(plan.edges) == 2


def test_windows_of_a_whole_stream_fold_only_if_rows_leave_their_subtask() -> None:
    p = ps.Pipeline("p")
    flights(p).window(ps.tumble("1 hour")).aggregate(n="count(*)").sink(Keep())
    assert shape(plan_of(p, 1)) == [(["feed", "tumble", "keep"], 1)]
    assert shape(plan_of(p, 2)) == [(["feed", "keep", "fold"], 2), (["tumble", "keep"], 1)]


def test_a_hot_key_crosses_once_per_subtask_and_pane() -> None:
    start = datetime(2024, 1, 1, tzinfo=UTC)
    rows = [
        {"page": "hot" if n % 10 else f"cold {n}", "at": start + timedelta(milliseconds=n)}
        for n in range(3000)
    ]
    p = ps.Pipeline("p")
    s = p.source(pa.Table.from_pylist(rows), event_time="at", out_of_order="1 second")
    windows = s.key_by("page").window(ps.tumble("1 second"))
    windows.aggregate(n="count(*)").sink(Keep(), name="out")
    run = Interpreter(plan_of(p, 2))
    crossed: Counter[str] = Counter()
    give = run.give

    def counted(vertex: Any, operator: int, subtask: int, batch: pa.RecordBatch, port: int) -> None:
        if "__rows" in batch.schema.names:
            crossed.update(batch.column("page").to_pylist())
        give(vertex, operator, subtask, batch, port)

    run.give = counted  # type: ignore[method-assign]
    found = run.run().rows("out")
    assert [r["n"] for r in found if r["page"] == "hot"] == [900, 900, 900]
    assert crossed["hot"] == 3
    assert crossed["cold 10"] == 1


@pytest.mark.parametrize("width", [1, 3])
def test_rows_that_cannot_be_first_are_left_out_where_they_are_read(width: int) -> None:
    kept: list[Any] = [
        lambda s: s.deduplicate(),
        lambda s: s.deduplicate(order="arrival"),
        lambda s: s.deduplicate(keep="last"),
        lambda s: s.top(3, by="distance desc, carrier"),
    ]
    for build in kept:
        p = ps.Pipeline("p")
        made = build(flights(p).key_by("carrier"))
        (made.changes() if "_change" in made._schema.names else made).sink(Keep())
        first, second = plan_of(p, width).vertices
        assert first.operators[-1].name == "fold"
        assert isinstance(first.operators[-1].processor, ThinOutProcessor)
        assert second.operators[0].name in ("deduplicate", "top")


def test_they_cross_where_a_forgotten_key_or_an_expression_may_want_them() -> None:
    kept: list[Any] = [
        lambda s: s.deduplicate(ttl="1 hour"),
        lambda s: s.deduplicate(keep="last", ttl="1 hour"),
        lambda s: s.top(3, by="distance desc", ttl="1 hour"),
        lambda s: s.top(3, by="distance * 2 desc"),
        lambda s: s.top(3, by="tail"),
        lambda s: s.top(5000, by="distance"),
    ]
    for build in kept:
        p = ps.Pipeline("p")
        made = build(flights(p).key_by("carrier"))
        (made.changes() if "_change" in made._schema.names else made).sink(Keep())
        names = [spec.name for v in plan_of(p, 2).vertices for spec in v.operators]
        assert "fold" not in names
