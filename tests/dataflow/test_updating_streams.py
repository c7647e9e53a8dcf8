"""Updating streams when planning: who takes them, what rides along, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from plan_fixtures import Keep, flights, plan_of

import penstock as ps
from penstock.operators.updating_aggregate import UpdatingAggregateProcessor


def counts(p: ps.Pipeline, **items: str) -> ps.Stream[Any]:
    keyed = flights(p).key_by("carrier")
    return keyed.aggregate(**(items or {"n": "count(*)", "far": "max(distance)"}), ttl=ps.FOREVER)


class Table(Keep):
    """A sink that understands changes."""

    updating = True


def test_values_keep_the_change_and_the_event_time_where_they_are() -> None:
    s = counts(ps.Pipeline("p"))
    assert s.updating
    made = s.filter("n > 3").with_columns(m="n + 1").rename(airline="carrier").drop("far")
    made = made.select("m", "airline")
    assert made.updating
    assert made.schema.names == ["m", "airline"]
    assert made._schema.names == ["m", "airline", "_change", "_time"]


@pytest.mark.parametrize(
    "use",
    [
        lambda s: s.map(lambda row: row),
        lambda s: s.key_by("carrier").window(ps.tumble("1 hour")).aggregate(k="count(*)"),
        lambda s: s.join(s, on="carrier", how="semi", within=("0 s", "1 s")),
        lambda s: s.sink(Keep()),
    ],
    ids=["function", "window", "interval join", "sink"],
)
def test_who_takes_rows_that_stay_refuses_them_and_names_changes(
    use: Callable[[ps.Stream[Any]], Any],
) -> None:
    with pytest.raises(ps.PlanError, match=r"updating[\s\S]*changes\("):
        use(counts(ps.Pipeline("p")))


def test_changes_is_an_append_stream_with_a_column_of_its_own() -> None:
    s = counts(ps.Pipeline("p")).changes("sign")
    assert not s.updating
    assert s.schema.names == ["carrier", "n", "far", "sign"]
    s.sink(Keep())
    with pytest.raises(ps.PlanError, match="not updating"):
        s.changes()
    with pytest.raises(ps.PlanError, match='"far" already'):
        counts(ps.Pipeline("p")).changes("far")


def test_the_change_itself_is_nobodys_column() -> None:
    s = counts(ps.Pipeline("p"))
    for use in (
        lambda: s.filter("_change > 0"),
        lambda: s.select("_change"),
        lambda: s.with_columns(c="_change"),
        lambda: s.key_by("_change"),
        lambda: flights(ps.Pipeline("q")).with_columns(_change="1"),
    ):
        with pytest.raises(ps.PlanError, match="_change"):
            use()


def test_updating_and_append_streams_have_no_union() -> None:
    p = ps.Pipeline("p")
    s = counts(p)
    other = s.changes("c").drop("c")
    with pytest.raises(ps.PlanError, match="stream 1 is updating"):
        s.union(other)
    assert s.union(s.filter("n > 1")).updating


def test_a_key_needs_a_bound_on_how_long_it_is_remembered() -> None:
    keyed = flights(ps.Pipeline("p")).key_by("carrier")
    with pytest.raises(ps.PlanError, match=r'ttl="1 day"[\s\S]*FOREVER'):
        keyed.aggregate(n="count(*)")
    with pytest.raises(ps.PlanError, match="must be longer"):
        keyed.aggregate(n="count(*)", ttl="0 s")
    assert flights(ps.Pipeline("p")).aggregate(n="count(*)").updating


@pytest.mark.parametrize("parallelism", [1, 3])
def test_rows_are_folded_before_they_cross_unless_every_value_is_needed(parallelism: int) -> None:
    p = ps.Pipeline("p")
    counts(p).sink(Table())
    first, second = plan_of(p, parallelism).vertices
    assert [s.name for s in first.operators] == ["feed", "keep", "fold"]
    assert isinstance(second.operators[0].processor, UpdatingAggregateProcessor)
    p = ps.Pipeline("p")
    counts(p, kinds="count(DISTINCT tail)").sink(Table())
    first, _ = plan_of(p, parallelism).vertices
    assert "fold" not in [s.name for s in first.operators]


def test_what_is_left_in_the_end_is_collected_also_through_a_second_aggregate() -> None:
    p = ps.Pipeline("p")
    s = p.source(_rows(95))
    sums = s.key_by("k").aggregate(total="sum(v)", n="count(*)", ttl=ps.FOREVER, flush="0 s")
    again = sums.with_columns(even="total % 2 = 0").key_by("even")
    table = again.aggregate(k="count(*)", most="max(total)", least="min(k)", ttl=ps.FOREVER)
    found = {row["even"]: row for row in table.collect().to_pylist()}
    totals = {k: sum(n for n in range(95) if n % 5 == k) for k in range(5)}
    for even in (True, False):
        mine = {k: t for k, t in totals.items() if (t % 2 == 0) == even}
        assert found[even] == {
            "even": even,
            "k": len(mine),
            "most": max(mine.values()),
            "least": min(mine),
        }


def _rows(count: int) -> Any:
    import pyarrow as pa

    return pa.table({"k": [n % 5 for n in range(count)], "v": list(range(count))})
