"""Joins give the same rows straight, with checkpoints, killed, and rescaled (hazard 21)."""

from __future__ import annotations

from collections.abc import Callable
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


KINDS = ("inner", "left", "right", "full", "semi", "anti")
NEAR = "l.k = r.k AND abs(epoch_ms(l.ts) - epoch_ms(r.ts)) <= 20000 AND l.v < r.v"


# Several kinds in one pipeline: each law costs seconds ----------------------------------------


def every_kind(
    join: Callable[[str], ps.Stream[Any]], *columns: str, kinds: tuple[str, ...] = KINDS
) -> ps.Stream[Any]:
    """The rows of joins of all kinds, with which kind it was."""
    made = []
    for how in kinds:
        joined = join(how)
        if how in ("semi", "anti"):
            joined = joined.with_columns(**{columns[-1]: "CAST(NULL AS BIGINT)"})
        made.append(joined.select(*columns, how=f"'{how}'"))
    return made[0].union(*made[1:])


def in_sql(ours: str, theirs: str, onto: Callable[[str], str]) -> list[Any]:
    """What `every_kind` gives: columns of the left side, one of the right, the tables joined."""
    found = []
    for how in KINDS:
        alone = how in ("semi", "anti")
        keyed = ours if alone else ours.replace("l.g", "coalesce(l.g, r.g)")
        found.append(f"SELECT {keyed}, {'NULL' if alone else theirs}, '{how}' FROM {onto(how)}")
    return sql(" UNION ALL ".join(found), **TABLES)


@pytest.mark.parametrize("kinds", [("inner", "semi"), ("left", "right", "full", "anti")])
def test_joins_without_bounds_on_their_results(kinds: tuple[str, ...]) -> None:
    def build() -> ps.Stream[Any]:
        left, right = sides()

        def join(how: str) -> ps.Stream[Any]:
            return left.join(right, on="k", how=how, ttl="20 s", where="v < w")

        return every_kind(join, "id", "other", kinds=kinds)

    expected = in_sql("l.id", "r.id", lambda how: f"a AS l {how} JOIN b AS r ON {NEAR}")
    assert_same_rows(build, [row for row in expected if row[-1] in kinds])


TUMBLED = ("right", "full", "anti")


def test_joins_in_windows() -> None:
    def build() -> ps.Stream[Any]:
        left, right = sides()

        def join(how: str) -> ps.Stream[Any]:
            hop = ps.hop("30 seconds", every="10 seconds")
            window = ps.tumble("20 seconds") if how in TUMBLED else hop
            return left.join(right, on="k", how=how, where="v < w", window=window)

        return every_kind(join, "id", "other")

    def onto(how: str) -> str:
        tumbled = how in TUMBLED
        every, times = (20, 1) if tumbled else (10, 3)
        left, right = (
            f"""(SELECT *, time_bucket(INTERVAL '{every} seconds', ts)
                 - INTERVAL '{every} seconds' * i AS w FROM {name}, range({times}) AS r(i))"""
            for name in ("a", "b")
        )
        return f"""{left} AS l {how} JOIN {right} AS r
                   ON l.k = r.k AND l.w = r.w AND l.v < r.v"""

    assert_same_rows(build, in_sql("l.id", "r.id", onto))


def test_joins_in_intervals() -> None:
    def build() -> ps.Stream[Any]:
        left, right = sides()

        def join(how: str) -> ps.Stream[Any]:
            return left.join(right, on="k", how=how, where="v < w", within=("-4 s", "6 s"))

        return every_kind(join, "id", "other")

    def onto(how: str) -> str:
        return f"""a AS l {how} JOIN b AS r ON l.k = r.k AND l.v < r.v AND
            r.ts BETWEEN l.ts - INTERVAL '4 seconds' AND l.ts + INTERVAL '6 seconds'"""

    assert_same_rows(build, in_sql("l.id", "r.id", onto))


def test_joins_of_two_streams_that_both_change() -> None:
    def build() -> ps.Stream[Any]:
        p = ps.Pipeline("law")
        ours = read(p, EVENTS).with_columns(g="v % 40").key_by("g")
        theirs = read(p, MORE, "more").with_columns(g="v % 53").key_by("g")
        left = ours.aggregate(n="count(*)", ttl=ps.FOREVER, flush="20 ms")
        right = theirs.aggregate(m="count(*)", ttl=ps.FOREVER, flush="20 ms")

        def join(how: str) -> ps.Stream[Any]:
            return left.join(right, on="g", how=how, where="n > m + 4", ttl=ps.FOREVER)

        return every_kind(join, "g", "n", "m")

    def onto(how: str) -> str:
        return f"""(SELECT v % 40 AS g, count(*) AS n FROM a GROUP BY ALL) AS l {how} JOIN
            (SELECT v % 53 AS g, count(*) AS m FROM b GROUP BY ALL) AS r
            ON l.g = r.g AND l.n > r.m + 4"""

    assert_same_rows(build, in_sql("l.g, l.n", "r.m", onto))


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
