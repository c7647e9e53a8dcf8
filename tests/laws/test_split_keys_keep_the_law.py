"""Keys that are split into parts and merged give the same rows straight, killed, and rescaled."""

from __future__ import annotations

from typing import Any

import pytest
from law_data import as_table, events, read, sql

import penstock as ps
from penstock.testing.same_rows import assert_same_rows

TABLE = as_table(events())


def by_values() -> ps.Stream[Any]:
    keyed = read(ps.Pipeline("law")).key_by("k")
    made = keyed.aggregate(
        n="count(*)",
        kinds="count(DISTINCT v)",
        once="sum(DISTINCT v)",
        mean="avg(v)",
        most="max(v)",
        ttl=ps.FOREVER,
        flush="20 ms",
    )
    return made.options(split_keys=4)


def of_changes() -> ps.Stream[Any]:
    """Extremes of rows that are taken back as they change."""
    sums = read(ps.Pipeline("law")).with_columns(g="v % 40").key_by("g")
    sums = sums.aggregate(n="count(*)", total="sum(v)", ttl=ps.FOREVER, flush="20 ms")
    keyed = sums.with_columns(size="n / 4").key_by("size")
    made = keyed.aggregate(
        groups="count(*)", most="max(total)", least="min(total)", all_of_them="sum(total)",
        ttl=ps.FOREVER, flush="20 ms",
    )  # fmt: skip
    return made.options(split_keys=3)


def of_everything() -> ps.Stream[Any]:
    made = read(ps.Pipeline("law")).aggregate(
        n="count(*)", kinds="count(DISTINCT v)", flush="20 ms"
    )
    return made.options(split_keys=4)


def windows() -> ps.Stream[Any]:
    keyed = read(ps.Pipeline("law")).key_by("k").window(ps.hop("1 minute", every="40 seconds"))
    return keyed.aggregate(n="count(*)", kinds="count(DISTINCT v)").options(split_keys=4)


def early_and_refined() -> ps.Stream[Any]:
    window = ps.hop("1 minute", every="40 seconds")
    keyed = read(ps.Pipeline("law")).key_by("k").window(window, early="20 ms", refine=True)
    return keyed.aggregate(n="count(*)", kinds="count(DISTINCT v)").options(split_keys=4)


HOPS = """
    SELECT k, s, s + INTERVAL 60 SECONDS, count(*), count(DISTINCT v)
    FROM t, range(TIMESTAMPTZ '2023-12-31 23:59:20', TIMESTAMPTZ '2024-01-02',
                  INTERVAL 40 SECONDS) w(s)
    WHERE ts >= s AND ts < s + INTERVAL 60 SECONDS GROUP BY k, s"""
CASES: dict[Any, str] = {
    by_values: """
        SELECT k, count(*), count(DISTINCT v), CAST(sum(DISTINCT v) AS BIGINT), avg(v), max(v)
        FROM t GROUP BY k""",
    of_changes: """
        SELECT n // 4, count(*), max(total), min(total), CAST(sum(total) AS BIGINT) FROM
        (SELECT v % 40, count(*) AS n, CAST(sum(v) AS BIGINT) AS total FROM t GROUP BY 1)
        GROUP BY 1""",
    of_everything: "SELECT count(*), count(DISTINCT v) FROM t",
    windows: HOPS,
    early_and_refined: HOPS,
}


@pytest.mark.parametrize("build", CASES)
def test_the_table_is_the_same_however_it_is_run(build: Any) -> None:
    assert_same_rows(build, sql(CASES[build], t=TABLE))
