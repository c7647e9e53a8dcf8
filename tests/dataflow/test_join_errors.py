"""Joins that cannot be meant are refused on the user's line, with what to write instead."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from plan_fixtures import Feed, Keep, flights, ids, plan_of, read_by_sources

import penstock as ps

RETURNS = pa.schema([("owner", pa.string())])


def two(p: ps.Pipeline) -> tuple[ps.Stream[Any], ps.Stream[Any]]:
    """Flights, and some columns of others under other names."""
    other = flights(p, feed=Feed(name="b")).select("tail", then="dep_time", far="distance")
    return flights(p, feed=Feed(name="a")), other


def owners(keys: pa.RecordBatch) -> pa.RecordBatch:
    return keys.append_column("owner", keys["tail"])


CASES: list[tuple[Any, list[str]]] = [
    (lambda a, b: a.join(b, on="tail", ttl="1 h", where="far + 1"), ["where", "far + 1"]),
    (lambda a, b: a.join(b, on="tail", ttl="1 h", where="fra > 1"), ['no column "fra"']),
    (
        lambda a, b: a.join(
            a.select("tail", "distance"), on="tail", how="semi", ttl="1 h", where="1=1"
        ),
        ["both streams have a column distance", "Rename one first"],
    ),
    (lambda a, b: a.join_asof(b, on="tail", how="full"), ["how='full'; there are inner and left"]),
    (lambda a, b: a.join_asof(b, on="tail", tolerance="-1 s"), ["tolerance='-1 s' is negative"]),
    (lambda a, b: a.join_asof(b, on="tail", tolerance=5), ["5 is not a duration"]),
    (lambda a, b: a.join_asof("b", on="tail"), ["join_asof: str is not a stream"]),
    (lambda a, b: a.join_broadcast(b, on="tial"), ["join_broadcast(on=), left stream: no column"]),
    (lambda a, b: a.join_broadcast(b, on="tail", how="anti"), ["there are inner and left"]),
    (lambda a, b: a.join_lookup("f", on="tail", returns=RETURNS), ["'f' is not a function"]),
    (
        lambda a, b: a.join_lookup(owners, on="tail", returns=RETURNS, cache_ttl="1 h"),
        ["cache_ttl= without cache_rows=", "cache_rows=100_000"],
    ),
    (
        lambda a, b: a.join_lookup(owners, on="tail", returns=RETURNS, cache_rows=-1),
        ["cache_rows=-1"],
    ),
    (lambda a, b: a.join_lookup(owners, on="tail", returns="x"), ["returns='x' is not a schema"]),
]


@pytest.mark.parametrize(("build", "parts"), CASES)
def test_a_join_says_what_is_wrong_with_it(build: Any, parts: list[str]) -> None:
    a, b = two(ps.Pipeline("p"))
    with pytest.raises(ps.PlanError) as refused:
        build(a, b)
    text = str(refused.value)
    assert "(test_join_errors.py:" in text
    for part in parts:
        assert part in text


def test_streams_that_take_rows_back_are_joined_by_ttl_and_refused_elsewhere() -> None:
    a, b = two(ps.Pipeline("p"))
    changing = b.join(a.select("tail", "notes"), on="tail", how="left", ttl="1 h")
    assert changing.updating
    assert a.drop("notes").join(changing, on="tail", ttl="1 h").updating
    assert not a.drop("notes").join_broadcast(changing, on="tail").updating
    with pytest.raises(ps.PlanError, match=r"(?s)only the table may be.*changes\("):
        changing.join_broadcast(a.select("tail", "carrier"), on="tail")
    for refused in (
        lambda: a.drop("notes").join(changing, on="tail", within=("0 s", "1 s")),
        lambda: a.drop("notes").join_asof(changing, on="tail"),
        lambda: changing.join_lookup(owners, on="tail", returns=RETURNS),
    ):
        with pytest.raises(ps.PlanError, match=r"(?s)is updating.*stream\.changes"):
            refused()


def test_columns_that_only_the_condition_reads_are_read() -> None:
    p = ps.Pipeline("p")
    a, b = two(p)
    joined = a.join(b, on="tail", how="semi", ttl="1 h", where="distance < far")
    joined.select("carrier").sink(Keep())
    read = {feed.name: set(feed.columns or []) for feed in read_by_sources(plan_of(p))}
    assert read == {
        "a": {"carrier", "tail", "dep_time", "distance"},
        "b": {"tail", "dep_time", "distance"},
    }


def test_a_join_is_found_again_by_its_kind_bound_condition_and_key() -> None:
    def joins(**said: Any) -> set[str]:
        p = ps.Pipeline("p")
        a, b = two(p)
        a.join(b, on="tail", **{"ttl": "1 h", **said}).sink(Keep())
        return {found for name, found in ids(plan_of(p)).items() if name == "join"}

    plain = joins()
    assert joins() == plain
    assert joins(where="far > 1") != plain
    assert joins(ttl="2 h") != plain
    assert joins(how="semi") != plain
