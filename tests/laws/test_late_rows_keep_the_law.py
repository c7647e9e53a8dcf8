"""Rows that come too late refine results or go to the late output, and are never lost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from law_data import Dealt, Event, as_table, events, read, sql

import penstock as ps
from penstock.testing.same_rows import assert_same_rows

EVENTS = events()
TABLE = as_table(EVENTS)
MORE = [Event(e.id, e.k, e.v, e.ts + timedelta(seconds=2)) for e in events(300, 2, 10_000)]


@dataclass
class Found:
    id: int


def hurried(p: ps.Pipeline) -> ps.Stream[Any]:
    """The rows as a stream that allows no disorder, although there is much."""
    return p.source(Dealt(TABLE), event_time="ts", out_of_order="0 s")


def test_late_rows_refine_what_was_given() -> None:
    def build() -> ps.Stream[Any]:
        # The lateness makes up for the disorder.
        rows = hurried(ps.Pipeline("law")).key_by("k")
        hops = ps.hop("8 seconds", every="4 seconds")
        kept: dict[str, Any] = {"allowed_lateness": "10 seconds", "refine": True}
        of_hops = rows.window(hops, **kept).aggregate(n="count(*)", d="count(DISTINCT v)")
        fours = rows.window(ps.tumble("4 seconds"), early="50 ms", **kept)
        quiet = rows.window(ps.session("7 seconds"), **kept)
        return of_hops.union(
            fours.aggregate(n="count(*)", d="sum(v)"),
            quiet.aggregate(n="count(*)", d="count(DISTINCT v)"),
        )

    expected = sql(
        """SELECT k, w, w + INTERVAL '8 seconds', count(*), count(DISTINCT v) FROM (
             SELECT *, time_bucket(INTERVAL '4 seconds', ts) - INTERVAL '4 seconds' * i AS w
             FROM t, range(2) AS r(i)) GROUP BY k, w
           UNION ALL
           SELECT k, time_bucket(INTERVAL '4 seconds', ts) AS w, w + INTERVAL '4 seconds',
             count(*), CAST(sum(v) AS BIGINT) FROM t GROUP BY k, w
           UNION ALL
           SELECT k, min(ts), max(ts) + INTERVAL '7 seconds', count(*), count(DISTINCT v) FROM
             (SELECT *, sum(begins) OVER (PARTITION BY k ORDER BY ts, id) AS session FROM
             (SELECT *, CASE WHEN ts - lag(ts) OVER (PARTITION BY k ORDER BY ts, id)
             < INTERVAL '7 seconds' THEN 0 ELSE 1 END AS begins FROM t)) GROUP BY k, session""",
        t=TABLE,
    )
    assert_same_rows(build, expected)


def repeat(row: Any) -> Iterator[Found]:
    for _ in range(row.n):
        yield Found(row.v)


def test_late_rows_are_emitted_or_late_but_never_lost() -> None:
    def build() -> ps.Stream[Any]:
        rows = hurried(ps.Pipeline("law"))
        counts = rows.key_by("v").window(ps.tumble("4 seconds")).aggregate(n="count(*)")
        quiet = rows.key_by("v").window(ps.session("4 seconds")).aggregate(n="count(*)")
        return union_of(
            counts.flat_map(repeat).select("id"),
            counts.late.select(id="v"),
            quiet.flat_map(repeat).select("id"),
            quiet.late.select(id="v"),
        )

    assert_same_rows(build, [(e.v,) for e in EVENTS] * 2)


def union_of(first: ps.Stream[Any], *others: ps.Stream[Any]) -> ps.Stream[Any]:
    return first.union(*others)


def test_late_rows_of_joins_and_analytics_are_not_lost_either() -> None:
    def build() -> ps.Stream[Any]:
        p = ps.Pipeline("law")
        rows = hurried(p).select("id", "k", "v")
        nothing = read(p, MORE, "more").filter("v < 0").select("k", other="id")
        keyed = rows.key_by("k")
        limited = keyed.limit_rate(2, per="20 seconds")
        made = [
            rows.join(nothing, on="k", how="left", window=ps.tumble("4 seconds")),
            rows.join(nothing, on="k", how="anti", within=("-4 s", "0 s")),
            rows.join_asof(nothing, on="k"),
            keyed.over().with_columns(n="count(*)"),
            keyed.window(ps.tumble("4 seconds")).rank(by="v", rank="r"),
            limited,
        ]
        given = [one.select("id") for each in made for one in (each, each.late)]
        return union_of(*given, limited.excess.select("id"))

    assert_same_rows(build, [(e.id,) for e in EVENTS] * 6)
