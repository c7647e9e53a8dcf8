"""Joins give the same rows straight, with checkpoints, killed, and rescaled (hazard 21)."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pyarrow as pa
import pytest
from law_data import Event, as_table, events, read, sql

import penstock as ps
from penstock.testing.same_rows import assert_same_rows

EVENTS = events(400)
MORE = [Event(e.id, e.k, e.v, e.ts + timedelta(seconds=2)) for e in events(200, 2, 10_000)]
TABLES = {"a": as_table(EVENTS), "b": as_table(MORE)}
SCALES = pa.table({"k": ["a", "b", "c", "c"], "factor": [2, 3, 4, 5]})


def sides() -> tuple[ps.Stream[Any], ps.Stream[Any]]:
    """`id, k, v, ts` and `other, k, w`."""
    p = ps.Pipeline("law")
    other = read(p, MORE, "more").select("k", other="id", w="v")
    return read(p, EVENTS).select("id", "k", "v"), other


NEAR = "a.k = b.k AND abs(epoch_ms(a.ts) - epoch_ms(b.ts)) <= 20000 AND a.v < b.v"
MATCHES = "EXISTS (FROM b WHERE a.k = b.k AND abs(epoch_ms(a.ts) - epoch_ms(b.ts)) <= 20000 "
QUERIES = {
    how: f"SELECT coalesce(a.k, b.k), a.id, a.v, b.id, b.v FROM a {how} JOIN b ON {NEAR}"
    for how in ("inner", "left", "right", "full")
} | {
    how: f"SELECT k, id, v FROM a WHERE {'NOT' if how == 'anti' else ''} {MATCHES} AND a.v < b.v)"
    for how in ("semi", "anti")
}


@pytest.mark.parametrize("how", list(QUERIES))
def test_joins_without_bounds_on_their_results(how: str) -> None:
    def build() -> ps.Stream[Any]:
        left, right = sides()
        return left.join(right, on="k", how=how, ttl="20 s", where="v < w")

    assert_same_rows(build, sql(QUERIES[how], **TABLES))


@pytest.mark.parametrize("where", [None, "v < w"])
def test_versions_by_event_time(where: str | None) -> None:
    # Versions of one key and instant would leave the choice open: there are none.
    def build() -> ps.Stream[Any]:
        left, right = sides()
        return left.join_asof(right, on="k", where=where)

    expected = sql(
        """SELECT a.id, a.k, a.v, b.id, b.v FROM a
           ASOF LEFT JOIN b ON a.k = b.k AND a.ts >= b.ts""",
        **TABLES,
    )
    rows = [
        (k, id, v, *((other, w) if where is None or (w is not None and v < w) else (None, None)))
        for id, k, v, other, w in expected
    ]
    assert_same_rows(build, rows)


def test_a_table_that_all_subtasks_hold() -> None:
    def build() -> ps.Stream[Any]:
        p = ps.Pipeline("law")
        scales = p.source(SCALES, name="scales")
        return read(p).select("id", "k", "v").join_broadcast(scales, on="k", how="left")

    expected = sql(
        "SELECT a.k, a.id, a.v, s.factor FROM a LEFT JOIN s USING (k)",
        s=SCALES,
        a=as_table(events()),
    )
    assert_same_rows(build, expected)


def test_a_table_that_changes_with_time() -> None:
    def build() -> ps.Stream[Any]:
        left, right = sides()
        return left.join_broadcast(right, on="k", where="w < 5")

    expected = sql(
        "SELECT a.k, a.id, a.v, b.id, b.v FROM a JOIN b ON a.k = b.k AND b.ts <= a.ts AND b.v < 5",
        **TABLES,
    )
    assert_same_rows(build, expected)


def length_of(keys: pa.RecordBatch) -> pa.Table:
    names = keys.column("k").to_pylist()
    return pa.table({"k": names, "code": [ord(name) for name in names]})


def test_a_lookup() -> None:
    def build() -> ps.Stream[Any]:
        rows = read(ps.Pipeline("law")).select("id", "k")
        returns = pa.schema([("code", pa.int64())])
        return rows.join_lookup(length_of, on="k", returns=returns, cache_rows=100)

    assert_same_rows(build, [(e.k, e.id, ord(e.k)) for e in events()])


def test_a_join_of_what_is_still_being_counted() -> None:
    def build() -> ps.Stream[Any]:
        p = ps.Pipeline("law")
        counts = read(p).key_by("k").aggregate(n="count(*)", ttl=ps.FOREVER)
        scales = read(p, MORE, "more").select("k", other="id", w="v")
        return counts.join(scales, on="k", how="full", ttl=ps.FOREVER, where="n > w")

    expected = sql(
        """WITH counts AS (SELECT k, count(*) AS n FROM a GROUP BY k)
           SELECT coalesce(c.k, b.k), c.n, b.id, b.v FROM counts c
           FULL JOIN b ON c.k = b.k AND c.n > b.v""",
        a=as_table(events()),
        b=TABLES["b"],
    )
    assert_same_rows(build, expected)
