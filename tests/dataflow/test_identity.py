from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
from plan_fixtures import Feed, Keep, LateInbound, flights, ids, plan_of

import penstock as ps
from penstock.dataflow.identity import Claim, operator_ids


def ids_after(edit: Callable[[ps.Stream[Any]], ps.Stream[Any]], parallelism: int = 2) -> Any:
    p = ps.Pipeline("p")
    s = edit(flights(p))
    s.key_by("tail").process(LateInbound()).sink(Keep())
    s.key_by("carrier").window(ps.tumble("1 hour")).aggregate(n="count(*)").sink(Keep("b"))
    return ids(plan_of(p, parallelism))


STATEFUL = ["feed", "late_inbound", "tumble", "keep"]


@pytest.mark.parametrize(
    "edit",
    [
        lambda s: s.filter("distance > 100"),
        lambda s: s.with_columns(x="distance * 2").filter("x > 3"),
        lambda s: s.filter("distance > 100").chain_break(),
        lambda s: s.options(parallelism=7),
        lambda s: s.on_error(ps.Drop()),
        lambda s: s.map(lambda row: row),
    ],
)
def test_stateless_edits_never_move_an_operator(
    edit: Callable[[ps.Stream[Any]], ps.Stream[Any]],
) -> None:
    before, after = ids_after(lambda s: s), ids_after(edit)
    assert [before[name] for name in STATEFUL] == [after[name] for name in STATEFUL]


def test_parallelism_is_no_part_of_an_id() -> None:
    assert ids_after(lambda s: s, 1) == ids_after(lambda s: s, 5)


def test_an_id_is_the_same_in_another_process() -> None:
    # Frozen: what was written by an older version is found by these.
    assert ids_after(lambda s: s)["late_inbound"] == "keyed-69acde0a9bb1"


def test_another_configuration_of_the_class_keeps_its_state() -> None:
    def build(threshold: float) -> str:
        p = ps.Pipeline("p")
        flights(p).key_by("tail").process(LateInbound(threshold)).sink(Keep())
        return ids(plan_of(p))["late_inbound"]

    assert build(10.0) == build(30.0)


def test_another_key_is_another_operator() -> None:
    def build(key: str) -> str:
        p = ps.Pipeline("p")
        flights(p).key_by(key).process(LateInbound()).sink(Keep())
        return ids(plan_of(p))["late_inbound"]

    assert build("tail") != build("carrier")


def test_other_aggregates_are_another_operator() -> None:
    def build(text: str) -> str:
        p = ps.Pipeline("p")
        keyed = flights(p).key_by("tail").window(ps.tumble("1 hour"))
        keyed.aggregate(x=text).sink(Keep())
        return ids(plan_of(p))["tumble"]

    assert build("max(distance)") != build("min(distance)")
    assert build("max(distance)") == build(" max(distance)  ")


def test_a_name_is_an_id() -> None:
    p = ps.Pipeline("p")
    flights(p, name="departures").key_by("tail").process(LateInbound(), name="knocks").sink(
        Keep(), name="out"
    )
    found = ids(plan_of(p))
    assert found == {"departures": "departures", "knocks": "knocks", "out": "out"}


def test_two_uses_of_one_class_on_one_key_must_be_named() -> None:
    p = ps.Pipeline("p")
    keyed = flights(p).key_by("tail")
    keyed.process(LateInbound(10)).sink(Keep("a"))
    keyed.process(LateInbound(30)).sink(Keep("b"))
    with pytest.raises(ps.PlanError) as caught:
        plan_of(p)
    text = str(caught.value)
    assert "late_inbound: used twice on tail, so a restart could not tell their state" in text
    assert '.options(name="late_inbound_1")' in text
    p = ps.Pipeline("p")
    keyed = flights(p).key_by("tail")
    keyed.process(LateInbound(10)).sink(Keep("a"))
    keyed.process(LateInbound(30), name="worse").sink(Keep("b"))
    assert ids(plan_of(p))["worse"] == "worse"


def test_two_sources_of_one_class_are_told_apart_by_what_they_read() -> None:
    def build(first: str, second: str) -> dict[str, str]:
        p = ps.Pipeline("p")
        p.source(Feed(name=first)).union(p.source(Feed(name=second))).sink(Keep())
        return ids(plan_of(p))

    assert build("a", "b")["a"] == build("b", "a")["a"]
    with pytest.raises(ps.PlanError, match="used twice"):
        build("a", "a")


def test_rows_in_memory_are_told_apart_by_their_content() -> None:
    def build(first: list[int], second: list[int]) -> list[str]:
        p = ps.Pipeline("p")
        a, b = p.source(pa.table({"x": first})), p.source(pa.table({"x": second}))
        a.union(b).sink(Keep())
        return [v.operators[0].id for v in plan_of(p).vertices[:2]]

    one, two = build([1, 2], [3])
    assert one != two
    assert build([3], [1, 2]) == [two, one]


def test_one_name_cannot_be_given_twice() -> None:
    p = ps.Pipeline("p")
    flights(p, name="x").sink(Keep(), name="x")
    with pytest.raises(ps.PlanError, match="two operators are named 'x'"):
        plan_of(p)


def test_two_sinks_into_one_place_must_be_named() -> None:
    p = ps.Pipeline("p")
    s = flights(p)
    s.sink(Keep("out"))
    s.filter("distance > 3").sink(Keep("out"))
    with pytest.raises(ps.PlanError, match=r"\.sink\(\.\.\., name="):
        plan_of(p)


def test_batch_operators_are_found_by_class_only_if_they_keep_state() -> None:
    class Plain(ps.Operator):
        def process(self, batch: pa.RecordBatch, ctx: ps.Context) -> list[pa.RecordBatch]:
            return [batch]

    class Counting(ps.Operator):
        def open(self, ctx: ps.Context) -> None:
            self._seen = ctx.operator_state("seen")

        def process(self, batch: pa.RecordBatch, ctx: ps.Context) -> list[pa.RecordBatch]:
            return [batch]

    def build(operator: type[ps.Operator]) -> None:
        p = ps.Pipeline("p")
        flights(p).process(operator()).filter("distance > 3").process(operator()).sink(Keep())
        plan_of(p)

    build(Plain)
    with pytest.raises(ps.PlanError, match="counting: used twice"):
        build(Counting)


def test_equals_without_state_take_an_ordinal() -> None:
    claims = [Claim("source", "s", "class", ("s",), ())]
    claims += [Claim("filter", "filter", "position", (), (0,)) for _ in range(3)]
    found = operator_ids(claims)
    assert len(set(found)) == 4
    assert operator_ids(claims) == found


def test_folding_before_the_exchange_moves_nothing() -> None:
    def build(reads_late: bool) -> Any:
        p = ps.Pipeline("p")
        keyed = flights(p).key_by("carrier").window(ps.tumble("1 hour"))
        hot = keyed.aggregate(n="count(*)")
        hot.filter("n > 3").sink(Keep())
        if reads_late:
            hot.late.sink(Keep("late"), name="late")
        return ids(plan_of(p, 2))

    folded, whole = build(False), build(True)
    assert "fold" in folded
    assert "fold" not in whole
    for name in ("feed", "tumble", "filter", "keep"):
        assert folded[name] == whole[name]
