"""Aggregates without a window give the same table straight, killed, and rescaled."""

from __future__ import annotations

from typing import Any

import pytest
from law_data import as_table, events, read, sql

import penstock as ps
from penstock.testing.same_rows import assert_same_rows

TABLE = as_table(events())


def simple() -> ps.Stream[Any]:
    keyed = read(ps.Pipeline("law")).key_by("k")
    return keyed.aggregate(
        n="count(*)", total="sum(v)", mean="avg(v)", most="max(v)", ttl=ps.FOREVER, flush="20 ms"
    )


def by_values() -> ps.Stream[Any]:
    keyed = read(ps.Pipeline("law")).key_by("k")
    return keyed.aggregate(
        kinds="count(DISTINCT v)", middle="median(v)", ttl=ps.FOREVER, flush="20 ms"
    )


def of_changes() -> ps.Stream[Any]:
    """An aggregate over an aggregate: rows move from group to group as they change."""
    sums = read(ps.Pipeline("law")).with_columns(g="v % 40").key_by("g")
    sums = sums.aggregate(n="count(*)", total="sum(v)", ttl=ps.FOREVER, flush="20 ms")
    keyed = sums.with_columns(size="n / 4").key_by("size")
    return keyed.aggregate(
        groups="count(*)", most="max(total)", least="min(total)", all_of_them="sum(total)",
        ttl=ps.FOREVER, flush="20 ms",
    )  # fmt: skip


def of_everything() -> ps.Stream[Any]:
    stream = read(ps.Pipeline("law")).filter("v > 10")
    return stream.aggregate(n="count(*)", big="count(*) FILTER (WHERE v > 50)", flush="20 ms")


def early_and_refined() -> ps.Stream[Any]:
    window = ps.hop("1 minute", every="40 seconds")
    keyed = read(ps.Pipeline("law")).key_by("k").window(window, early="20 ms", refine=True)
    return keyed.aggregate(n="count(*)", kinds="count(DISTINCT v)")


def early_sessions() -> ps.Stream[Any]:
    keyed = read(ps.Pipeline("law")).key_by("k").window(ps.session("7 seconds"), early="20 ms")
    return keyed.aggregate(n="count(*)", kinds="count(DISTINCT v)", most="max(id)")


def days_elsewhere() -> ps.Stream[Any]:
    hours = (
        read(ps.Pipeline("law"))
        .key_by("k")
        .window(ps.tumble("1 day", offset="5 min", timezone="Asia/Kathmandu"))
    )
    return hours.aggregate(n="count(*)", total="sum(v)")


def first_of_changes() -> ps.Stream[Any]:
    """Of all groups, by keys that groups move between, and of windows that are given early."""
    stream = read(ps.Pipeline("law"))
    sums = stream.with_columns(g="v % 40").key_by("g")
    sums = sums.aggregate(n="count(*)", total="sum(v)", ttl=ps.FOREVER, flush="20 ms")
    window = ps.tumble("2 minutes")
    live = stream.key_by("v").window(window, early="20 ms", refine=True).aggregate(n="count(*)")
    keyed = sums.with_columns(side="total % 3").key_by("side")
    made = [
        keyed.top(3, by="n desc, g", rank="nth").select("side", "nth", "g", "n"),
        sums.top(5, by="total", rank="nth").select("nth", "g", "n", side="-1"),
        live.key_by("window_start")
        .top(2, by="n desc, v", rank="nth")
        .select("nth", "n", g="v", side="-2"),
    ]
    parts = [one.select("nth", "g", "n", side="CAST(side AS BIGINT)") for one in made]
    return parts[0].union(*parts[1:])


CASES: dict[Any, str] = {
    simple: "SELECT k, count(*), CAST(sum(v) AS BIGINT), avg(v), max(v) FROM t GROUP BY k",
    by_values: "SELECT k, count(DISTINCT v), CAST(median(v) AS DOUBLE) FROM t GROUP BY k",
    of_changes: """
        SELECT n // 4, count(*), max(total), min(total), CAST(sum(total) AS BIGINT) FROM
        (SELECT v % 40, count(*) AS n, CAST(sum(v) AS BIGINT) AS total FROM t GROUP BY 1)
        GROUP BY 1""",
    first_of_changes: """
        WITH s AS (SELECT v % 40 AS g, count(*) AS n, CAST(sum(v) AS BIGINT) AS total
          FROM t GROUP BY 1),
        w AS (SELECT time_bucket(INTERVAL '2 minutes', ts) AS w, v, count(*) AS n
          FROM t GROUP BY 1, 2)
        FROM (SELECT row_number() OVER (PARTITION BY total % 3 ORDER BY n DESC, g) AS nth,
          g, n, total % 3 FROM s QUALIFY nth <= 3)
        UNION ALL FROM (SELECT row_number() OVER (ORDER BY total, g) AS nth, g, n, -1 FROM s
          QUALIFY nth <= 5)
        UNION ALL FROM (SELECT row_number() OVER (PARTITION BY w ORDER BY n DESC, v) AS nth,
          v, n, -2 FROM w QUALIFY nth <= 2)""",
    early_and_refined: """
        SELECT k, s, s + INTERVAL 60 SECONDS, count(*), count(DISTINCT v)
        FROM t, range(TIMESTAMPTZ '2024-01-01', TIMESTAMPTZ '2024-01-02', INTERVAL 40 SECONDS) w(s)
        WHERE ts >= s AND ts < s + INTERVAL 60 SECONDS GROUP BY k, s
        UNION ALL SELECT k, TIMESTAMPTZ '2023-12-31 23:59:20', TIMESTAMPTZ '2024-01-01 00:00:20',
        count(*), count(DISTINCT v) FROM t WHERE ts < TIMESTAMPTZ '2024-01-01 00:00:20' GROUP BY k
        """,
    early_sessions: """
        SELECT k, min(ts), max(ts) + INTERVAL 7 SECONDS, count(*), count(DISTINCT v), max(id) FROM
        (SELECT *, sum(begins) OVER (PARTITION BY k ORDER BY ts, id) AS session FROM
        (SELECT *, CASE WHEN ts - lag(ts) OVER (PARTITION BY k ORDER BY ts, id)
        < INTERVAL 7 SECONDS THEN 0 ELSE 1 END AS begins FROM t)) GROUP BY k, session""",
    days_elsewhere: """
        SELECT k, TIMESTAMPTZ '2023-12-31 18:20:00Z', TIMESTAMPTZ '2024-01-01 18:20:00Z',
        count(*), CAST(sum(v) AS BIGINT) FROM t GROUP BY k""",
    of_everything: "SELECT count(*), count(*) FILTER (WHERE v > 50) FROM t WHERE v > 10",
}


@pytest.mark.parametrize("build", CASES)
def test_the_table_is_the_same_however_it_is_run(build: Any) -> None:
    assert_same_rows(build, sql(CASES[build], t=TABLE))
