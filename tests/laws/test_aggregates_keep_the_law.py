"""Aggregates of several values give the same rows straight, killed, and rescaled."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from law_data import as_table, events, read, sql

import penstock as ps
from penstock.testing.same_rows import assert_same_rows

TABLE = as_table(events())


class Span(ps.SegmentAggregate):
    """max - min."""

    returns = pa.int64()
    state = (pa.int64(), pa.int64())

    def fold(self, columns: list[pa.Array], starts: Any) -> list[Any]:
        return self.merge([columns[0], columns[0]], starts)

    def merge(self, state: list[pa.Array], starts: Any) -> list[Any]:
        low, high = (part.to_numpy() for part in state)
        return [np.minimum.reduceat(low, starts), np.maximum.reduceat(high, starts)]

    def finish(self, state: list[pa.Array]) -> Any:
        return state[1].to_numpy() - state[0].to_numpy()


class Squares(ps.Aggregate):
    """The sum of squares."""

    returns = int

    def create(self) -> int:
        return 0

    def add(self, state: int, value: int) -> int:
        return state + value * value

    def merge(self, state: int, other: int) -> int:
        return state + other

    def result(self, state: int) -> int:
        return state

    def retract(self, state: int, value: int) -> int:
        return state - value * value


def in_windows() -> ps.Stream[Any]:
    keyed = read(ps.Pipeline("law")).key_by("k").window(ps.tumble("1 minute"))
    return keyed.aggregate(
        best="max_by(id, v)", ids="array_agg(id)", bits="bit_xor(v)", line="regr_count(v, id)",
        kinds="approx_count_distinct(v / 10)", span=Span("v"), squares=Squares("v", where="v > 5"),
        opening="first(id)", closing="last(v) FILTER (WHERE v > 50)", spread="stddev(v)",
        middle="median(v)", high="quantile(v, 0.9)", every="bool_and(v < 90)", along="corr(v, id)",
    ).drop("window_end")  # fmt: skip


def without_windows() -> ps.Stream[Any]:
    keyed = read(ps.Pipeline("law")).key_by("k")
    return keyed.aggregate(
        best="min_by(id, v)", texts="string_agg(CAST(id AS VARCHAR), ',')", bits="bit_and(v)",
        kinds="approx_count_distinct(v / 10)", once="sum(DISTINCT v)", span=Span("v"),
        squares=Squares("v"), ttl=ps.FOREVER, flush="20 ms",
    )  # fmt: skip


def of_changes() -> ps.Stream[Any]:
    """Rows move from group to group as they change."""
    sums = read(ps.Pipeline("law")).with_columns(g="v % 40").key_by("g")
    sums = sums.aggregate(n="count(*)", total="sum(v)", ttl=ps.FOREVER, flush="20 ms")
    keyed = sums.with_columns(size="n / 4").key_by("size")
    return keyed.aggregate(
        groups="array_agg(g)", best="max_by(g, total)", bits="bit_or(g)", once="sum(DISTINCT n)",
        span=Span("total"), squares=Squares("g"), ttl=ps.FOREVER, flush="20 ms",
    )  # fmt: skip


SQUARES = "CAST(sum(v * v) AS BIGINT)"
CASES: dict[Any, str] = {
    in_windows: """
        SELECT k, time_bucket(INTERVAL 1 MINUTE, ts), (array_agg(id ORDER BY v DESC, id DESC))[1],
        array_agg(id ORDER BY ts, id), bit_xor(v), count(*), count(DISTINCT v // 10),
        max(v) - min(v), CAST(sum(v * v) FILTER (WHERE v > 5) AS BIGINT),
        (array_agg(id ORDER BY ts, id))[1],
        (array_agg(v ORDER BY ts DESC, v DESC) FILTER (WHERE v > 50))[1],
        stddev(v), CAST(median(v) AS DOUBLE), quantile_cont(v, 0.9), bool_and(v < 90),
        CASE WHEN NOT isnan(corr(v, id)) THEN corr(v, id) END
        FROM t GROUP BY ALL""",
    without_windows: f"""
        SELECT k, (array_agg(id ORDER BY v, id))[1], string_agg(id::VARCHAR, ',' ORDER BY ts, id),
        bit_and(v), count(DISTINCT v // 10), CAST(sum(DISTINCT v) AS BIGINT), max(v) - min(v),
        {SQUARES} FROM t GROUP BY k""",
    of_changes: """
        SELECT n // 4, array_agg(g ORDER BY g), (array_agg(g ORDER BY total DESC, g DESC))[1],
        bit_or(g), CAST(sum(DISTINCT n) AS BIGINT), max(total) - min(total),
        CAST(sum(g * g) AS BIGINT) FROM
        (SELECT v % 40 AS g, count(*) AS n, CAST(sum(v) AS BIGINT) AS total FROM t GROUP BY 1)
        GROUP BY 1""",
}


@pytest.mark.parametrize("build", CASES)
def test_the_rows_are_the_same_however_they_are_made(build: Any) -> None:
    assert_same_rows(build, sql(CASES[build], t=TABLE))
