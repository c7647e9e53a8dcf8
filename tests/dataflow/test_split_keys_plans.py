"""`split_keys=` puts a salt and a stage of parts in front of an aggregate that can be merged."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest
from plan_fixtures import Feed, Keep, flights, plan_of
from plan_interpreter import Interpreter

import penstock as ps
from penstock.elements.errors import PlanError


def kinds(s: ps.Stream[Any], salts: int | None = 4, name: str | None = None) -> ps.Stream[Any]:
    keyed = s.key_by("carrier").window(ps.tumble("1 hour"))
    return keyed.aggregate(n="count(*)", tails="count(DISTINCT tail)").options(
        split_keys=salts, name=name
    )


def aggregates(plan: Any) -> list[Any]:
    return [spec for vertex in plan.vertices for spec in vertex.operators if spec.name == "tumble"]


def test_rows_go_by_key_and_salt_and_parts_by_key() -> None:
    p = ps.Pipeline("p")
    kinds(flights(p)).sink(Keep())
    plan = plan_of(p, 3)
    assert [(edge.partition, edge.keys) for edge in plan.edges] == [
        ("hash", ("carrier", "__salt")),
        ("hash", ("carrier",)),
    ]
    assert [vertex.parallelism for vertex in plan.vertices] == [3, 3, 3]
    assert plan.edges[0].schema.names == ["carrier", "tail", "__salt", "_time"]


def test_late_rows_come_from_the_parts_as_they_came() -> None:
    p = ps.Pipeline("p")
    made = kinds(flights(p))
    made.sink(Keep("on time"))
    made.late.sink(Keep("late"), name="late")
    plan = plan_of(p, 2)
    first, second = aggregates(plan)
    (edge,) = [edge for edge in plan.edges if edge.keys == ("carrier", "__salt")]
    assert first.outputs["late"].names == [n for n in edge.schema.names if n != "__salt"]
    assert "late" not in second.outputs
    (link,) = [link for vertex in plan.vertices for link in vertex.links if link.output == "late"]
    assert [v.operators[link.target].name for v in plan.vertices if link in v.links] == ["late"]


def test_parts_of_other_salts_are_other_state() -> None:
    def ids(salts: int | None, name: str | None) -> list[str]:
        p = ps.Pipeline("p")
        kinds(flights(p), salts, name).sink(Keep())
        return [
            spec.id
            for vertex in plan_of(p, 2).vertices
            for spec in vertex.operators
            if spec.stateful and not spec.is_source and not spec.is_sink
        ]

    assert ids(4, "tails") == ["tails_parts4", "tails_split4"]
    assert ids(None, "tails") == ["tails"]
    seen = [*ids(4, None), *ids(8, None), *ids(None, None)]
    assert len(set(seen)) == 5
    assert ids(4, None) == ids(4, None)


def test_without_a_key_parts_are_made_by_all_subtasks() -> None:
    p = ps.Pipeline("p")
    made = flights(p).aggregate(tails="count(DISTINCT tail)").options(split_keys=8)
    made.changes("change").sink(Keep())
    plan = plan_of(p, 3)
    assert [vertex.parallelism for vertex in plan.vertices] == [3, 3, 1]
    assert plan.edges[0].keys == ("__salt",)


def test_explain_says_what_is_split_and_merged() -> None:
    text = kinds(flights(ps.Pipeline("p"))).explain()
    assert "split carrier into 4 parts" in text
    assert "merge 4 parts of tumble" in text


def start_of(number: int) -> datetime:
    return datetime(2024, 1, 1, tzinfo=UTC) + timedelta(seconds=number)


@pytest.mark.parametrize("parallelism", [1, 3])
def test_a_union_of_streams_that_are_split_gives_what_it_gives_unsplit(parallelism: int) -> None:
    def run(salts: int | None) -> Any:
        p = ps.Pipeline("p")
        made = []
        for side in range(2):
            rows = [
                {"carrier": "hot", "tail": str(n % (50 + side)), "at": start_of(60 * n)}
                for n in range(300)
            ]
            table = pa.Table.from_pylist(rows)
            made.append(p.source(table, event_time="at", out_of_order="1 s", name=f"s{side}"))
        kinds(made[0].union(made[1]), salts).sink(Keep(), name="out")
        return Interpreter(plan_of(p, parallelism)).run().rows("out")

    assert run(None) == run(8)
    assert len(run(8)) == 5


def over(window: Any, **options: Any) -> Callable[[ps.Stream[Any]], ps.Stream[Any]]:
    return lambda s: s.key_by("carrier").window(window, **options).aggregate(n="count(*)")


REFUSED: dict[str, tuple[Callable[[ps.Stream[Any]], ps.Stream[Any]], Any, str]] = {
    "session": (over(ps.session("1 hour")), 4, "only aggregates can be split"),
    "count window": (over(ps.count_window(3)), 4, "only aggregates can be split"),
    "map": (lambda s: s.filter("distance > 0"), 4, "only aggregates can be split"),
    "lateness": (
        over(ps.tumble("1 hour"), allowed_lateness="1 hour"), 4, "refine=True",
    ),
    "ttl": (
        lambda s: s.key_by("carrier").aggregate(n="count(DISTINCT tail)", ttl="1 day"),
        4, "ttl=ps.FOREVER",
    ),
    "median": (
        lambda s: s.key_by("carrier").aggregate(m="median(distance)", ttl=ps.FOREVER),
        4, r"median\(distance\) needs all values",
    ),
    "two DISTINCTs": (
        lambda s: s.key_by("carrier").aggregate(
            a="count(DISTINCT tail)", b="count(DISTINCT notes)", ttl=ps.FOREVER
        ),
        4, "values of one DISTINCT, and here are 2",
    ),
    "one part": (over(ps.tumble("1 hour")), 1, "from 2 to 1024"),
    "no number": (over(ps.tumble("1 hour")), "many", "from 2 to 1024"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_split_is_refused_at_the_users_line(case: str) -> None:
    build, salts, reason = REFUSED[case]
    made = build(flights(ps.Pipeline("p"), feed=Feed()))
    with pytest.raises(PlanError, match=reason) as caught:
        made.options(split_keys=salts)
    assert "test_split_keys_plans.py" in str(caught.value)
