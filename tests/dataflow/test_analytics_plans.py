"""Analytics in plans: what is refused and how, what is pruned, what streams come out."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from plan_fixtures import Keep, flights, plan_of

import penstock as ps


def text_of(build: Callable[[], Any]) -> str:
    with pytest.raises(ps.PlanError) as caught:
        build()
    text = str(caught.value)
    assert "test_analytics_plans.py:" in text, text
    return re.sub(r"\.py:\d+", ".py:0", text)


def stream() -> ps.Stream[Any]:
    return flights(ps.Pipeline("p"))


def test_what_cannot_be_meant_is_refused_on_its_line() -> None:
    keyed = stream().key_by("carrier")
    hours = keyed.window(ps.tumble("1 hour"))
    for build, reason in (
        (lambda: keyed.top(0, by="distance"), "top: 0 is not a number of rows"),
        (lambda: keyed.top(3, by="nope desc"), 'top: no column "nope"'),
        (lambda: keyed.top(3, by="distance", rank="tail"), 'there is a column "tail" already'),
        (lambda: keyed.top(3, by="distance", rank="_change"), '"_change" is reserved'),
        (lambda: keyed.top(3, by="distance", rank=3), "rank=3 is no name of a column"),  # type: ignore[arg-type]
        (lambda: keyed.deduplicate(keep="any"), "deduplicate: keep='any'"),  # type: ignore[arg-type]
        (lambda: keyed.limit_rate(2, per="0 s"), "must be longer than nothing"),
        (lambda: keyed.sample(1.5), "sample: 1.5 is not from 0 to 1"),
        (lambda: keyed.over(preceding=-1), "preceding=-1 is not 0 to"),
        (lambda: keyed.over().with_columns(x="sum(tail)"), "sum(tail) takes numbers"),
        (lambda: keyed.window(ps.session("1 s")).top(1, by="distance"), "there is none over"),
        (
            lambda: keyed.window(ps.tumble("1 s"), allowed_lateness="1 s").top(1, by="distance"),
            "rows once given stay",
        ),
        (lambda: hours.rank(by="distance", rank="tail"), 'two result columns are called "tail"'),
        (lambda: hours.rank(by="distance"), "rank: no rank is named"),
        (lambda: stream().map_async(3), "3 is not a function"),  # type: ignore[arg-type]
        (lambda: stream().map_async(len, concurrency=0), "0 is not a number of rows"),
        (
            lambda: keyed.match("a &", within="1 s", define={}, measures={}),
            "cannot read '&'",
        ),
        (
            lambda: keyed.match("a", within="1 s", define={}, measures={"m": "b.tail"}),
            "the pattern has a",
        ),
        (
            lambda: keyed.match(
                "a b", within="1 s", define={"a": "distance > b.distance"}, measures={}
            ),
            '"b" comes after "a": it has no row yet',
        ),
        (
            lambda: keyed.match(
                "a b", within="1 s", define={"b": "distance > avg(a.tail)"}, measures={}
            ),
            "avg(a.tail) takes numbers, not text",
        ),
    ):
        assert reason in text_of(build)


def test_a_running_top_is_updating_and_what_appends_is_not() -> None:
    keyed = stream().key_by("carrier")
    assert keyed.top(3, by="distance").updating
    assert keyed.deduplicate(keep="last").updating
    assert not keyed.deduplicate().updating
    assert not keyed.window(ps.tumble("1 hour")).top(3, by="distance").updating
    with pytest.raises(ps.PlanError, match="the stream is updating"):
        keyed.top(3, by="distance").key_by("carrier").over().with_columns(n="count(*)")


def test_the_first_of_what_changes_is_found_without_leaving_rows_out_on_the_way() -> None:
    counts = stream().key_by("tail").aggregate(n="count(*)", far="max(distance)", ttl="1 day")
    best = counts.key_by("n").top(3, by="far desc", rank="place")
    assert best.updating
    best.select("n", "far").changes("sign").sink(Keep("kept"))
    plan = plan_of(best._pipeline)
    made = [type(each.processor).__name__ for v in plan.vertices for each in v.operators]
    assert "UpdatingTopProcessor" in made
    assert "ThinOutProcessor" not in made
    assert [e.schema.names for e in plan.edges if e.keys == ("n",)] == [
        ["n", "far", "_change", "_time"]
    ]


def test_a_row_that_may_be_taken_back_is_not_the_only_one_of_its_key() -> None:
    counts = stream().key_by("tail").aggregate(n="count(*)", ttl="1 day").key_by("n")
    for build in (counts.deduplicate, lambda: counts.deduplicate(keep="last", order="arrival")):
        text = text_of(build)
        assert "deduplicate: the stream is updating" in text
        assert 'key_by(...).top(1, by="price desc, bidder")' in text
    hours = counts.window(ps.tumble("1 hour"))
    assert "the stream is updating" in text_of(lambda: hours.top(1, by="n"))


def test_only_what_is_looked_at_crosses_the_exchange() -> None:
    made = stream().key_by("carrier").window(ps.tumble("1 hour")).top(3, by="distance desc")
    made.select("carrier", "tail").sink(Keep("kept"))
    (edge,) = [e for e in plan_of(made._pipeline).edges if e.partition == "hash"]
    assert edge.schema.names == ["carrier", "tail", "distance", "_time"]


def test_a_sample_of_keys_needs_no_exchange() -> None:
    made = stream().key_by("carrier").sample(0.5)
    made.sink(Keep("kept"))
    assert not [e for e in plan_of(made._pipeline).edges if e.partition == "hash"]
