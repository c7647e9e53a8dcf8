"""Windows by the calendar of a place give the same rows straight, killed, and rescaled."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa
from law_data import START, Dealt, Event, as_table, events, sql

import penstock as ps
from penstock.testing.same_rows import assert_same_rows

BERLIN = ZoneInfo("Europe/Berlin")
FIRST = datetime(2024, 3, 28, 3, tzinfo=UTC)
SPREAD = 720
"""The seconds of these rows are five days, in the midst of which clocks are put forward."""


def spread(rows: list[Event]) -> list[Event]:
    return [replace(each, ts=FIRST + (each.ts - START) * SPREAD) for each in rows]


TABLE = as_table(spread(events()))


def build() -> ps.Stream[Any]:
    stream = ps.Pipeline("law").source(Dealt(TABLE), event_time="ts", out_of_order="1 hour")
    windows = {
        "hop": ps.hop("2 days", every="1 day", timezone="Europe/Berlin"),
        "by day": ps.cumulate("1 week", step="1 day", timezone="Europe/Berlin"),
        "by hours": ps.cumulate("1 day", step="6 hours", offset="90 min", timezone="Europe/Berlin"),
    }
    made = []
    for kind, window in windows.items():
        keyed = stream.key_by("k").window(window)
        totals = keyed.aggregate(n="count(*)", total="sum(v)", kinds="count(DISTINCT v)")
        made.append(totals.with_columns(kind=f"'{kind}'"))
    return made[0].union(*made[1:])


def midnight(day: int, **later: int) -> datetime:
    """That many days behind 2024-03-18, a Monday, on clocks in Berlin."""
    wall = datetime(2024, 3, 18, tzinfo=BERLIN) + timedelta(days=day, **later)
    return wall.astimezone(UTC)


def windows() -> list[tuple[str, datetime, datetime]]:
    found = [("hop", midnight(day), midnight(day + 2)) for day in range(28)]
    for week in (0, 7, 14):
        found += [("by day", midnight(week), midnight(week + day)) for day in range(1, 8)]
    for day in range(28):
        begin, end = (midnight(each, minutes=90) for each in (day, day + 1))
        pieces = [begin + timedelta(hours=hours) for hours in range(6, 25, 6)]
        found += [("by hours", begin, each) for each in pieces if each < end]
        found.append(("by hours", begin, end))
    return found


def test_hops_and_totals_so_far_by_the_calendar_of_a_place() -> None:
    kinds, starts, ends = zip(*windows(), strict=True)
    instants = pa.timestamp("us", "UTC")
    table = pa.table(
        {"kind": kinds, "s": pa.array(starts, instants), "e": pa.array(ends, instants)}
    )
    query = """
        SELECT k, s, e, count(*), CAST(sum(v) AS BIGINT), count(DISTINCT v), kind
        FROM t JOIN w ON ts >= s AND ts < e GROUP BY kind, k, s, e"""
    expected = sql(query, t=TABLE, w=table)
    assert {row[-1] for row in expected} == {"hop", "by day", "by hours"}
    assert_same_rows(build, expected)
