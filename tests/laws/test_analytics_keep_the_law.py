"""Top N, ranks, deduplication, rates, lag and lead, async calls: the same rows however they run."""

from __future__ import annotations

import asyncio
import re
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from law_data import Event, as_table, events, read, sql

import penstock as ps
from penstock.testing.same_rows import assert_same_rows

EVENTS = events()
TABLE = as_table(EVENTS)
ORDERED = sorted(EVENTS, key=lambda e: (e.ts, e.id))


def stream() -> ps.Stream[Any]:
    return read(ps.Pipeline("law"))


def by_key() -> dict[str, list[Event]]:
    found: dict[str, list[Event]] = defaultdict(list)
    for event in ORDERED:
        found[event.k].append(event)
    return found


def test_top_of_a_window() -> None:
    def build() -> ps.Stream[Any]:
        windows = stream().key_by("k").window(ps.tumble("30 seconds"))
        return windows.top(3, by="v desc, id", rank="n").select("k", "window_start", "n", "id")

    expected = sql(
        """SELECT k, w, n, id FROM (
             SELECT *, time_bucket(INTERVAL '30 seconds', ts) AS w,
                    row_number() OVER (PARTITION BY k, w ORDER BY v DESC, id) AS n FROM t)
           WHERE n <= 3""",
        t=TABLE,
    )
    assert_same_rows(build, expected)


def test_ranks_in_hopping_windows() -> None:
    def build() -> ps.Stream[Any]:
        windows = stream().key_by("k").window(ps.hop("30 seconds", every="10 seconds"))
        ranked = windows.rank(by="v", rank="r", dense_rank="d")
        return ranked.select("id", "k", "window_end", "r", "d")

    expected = sql(
        """SELECT id, k, w + INTERVAL '30 seconds', rank() OVER s, dense_rank() OVER s FROM (
             SELECT *, time_bucket(INTERVAL '10 seconds', ts) - INTERVAL '10 seconds' * i AS w
             FROM t, range(3) AS r(i)) WINDOW s AS (PARTITION BY k, w ORDER BY v)""",
        t=TABLE,
    )
    assert_same_rows(build, expected)


def test_the_first_row_of_each_key() -> None:
    firsts = {}
    for event in ORDERED:
        firsts.setdefault(event.v, event.id)
    assert_same_rows(
        lambda: stream().key_by("v").deduplicate().select("v", "id"), list(firsts.items())
    )


def test_first_rows_with_a_ttl() -> None:
    expected = []
    until: dict[str, Any] = {}
    for event in ORDERED:
        if event.k not in until or (event.ts - until[event.k]).total_seconds() >= 60:
            until[event.k] = event.ts
            expected.append((event.id,))
    assert_same_rows(
        lambda: stream().key_by("k").deduplicate(ttl="1 minute").select("id"), expected
    )


def test_rates_and_what_is_beyond_them() -> None:
    def build() -> ps.Stream[Any]:
        limited = stream().key_by("k").limit_rate(2, per="20 seconds")
        within, beyond = limited.select("id"), limited.excess.select(id="-id")
        return within.union(beyond)

    taken: dict[Any, int] = defaultdict(int)
    expected = []
    for event in ORDERED:
        span = (event.k, int(event.ts.timestamp()) // 20)
        expected.append((event.id if taken[span] < 2 else -event.id,))
        taken[span] += 1
    assert_same_rows(build, expected)


def test_lag_lead_and_running_values() -> None:
    def build() -> ps.Stream[Any]:
        over = stream().key_by("k").over(preceding=4)
        made = over.with_columns(
            before="lag(v, 2)", after="lead(id)", n="row_number()", mean="avg(v)", most="max(v)"
        )
        return made.select("k", "id", "before", "after", "n", "mean", "most")

    expected = sql(
        """SELECT k, id, lag(v, 2) OVER s, lead(id) OVER s, row_number() OVER s,
                  avg(v) OVER f, max(v) OVER f FROM t
           WINDOW s AS (PARTITION BY k ORDER BY ts, id),
                  f AS (PARTITION BY k ORDER BY ts, id
                        ROWS BETWEEN 4 PRECEDING AND CURRENT ROW)""",
        t=TABLE,
    )
    assert_same_rows(build, expected)


def test_running_totals_over_all_rows_so_far() -> None:
    def build() -> ps.Stream[Any]:
        made = stream().key_by("k").over().with_columns(total="sum(v)", least="min(v)")
        return made.select("id", "total", "least")

    expected = []
    for rows in by_key().values():
        seen: list[int] = []
        for event in rows:
            seen.append(event.v)
            expected.append((event.id, sum(seen), min(seen)))
    assert_same_rows(build, expected)


def test_a_running_top_with_ranks() -> None:
    def build() -> ps.Stream[Any]:
        return stream().key_by("k").top(3, by="v desc, id", rank="n").select("k", "n", "id")

    expected = sql(
        """SELECT k, n, id FROM (
             SELECT *, row_number() OVER (PARTITION BY k ORDER BY v DESC, id) AS n FROM t)
           WHERE n <= 3""",
        t=TABLE,
    )
    assert_same_rows(build, expected)


def test_the_last_row_of_each_key() -> None:
    lasts: dict[int, Event] = {}
    for event in EVENTS:
        best = lasts.get(event.v)
        if best is None or (-event.ts.timestamp(), event.id) < (-best.ts.timestamp(), best.id):
            lasts[event.v] = event
    assert_same_rows(
        lambda: stream().key_by("v").deduplicate(keep="last").select("v", "id"),
        [(v, event.id) for v, event in lasts.items()],
    )


def test_patterns() -> None:
    def build() -> ps.Stream[Any]:
        return (
            stream()
            .key_by("k")
            .match(
                "low up+",
                within="1 minute",
                define={"low": "v < 30", "up": "v > lag(v)"},
                measures={"first": "low.id", "ups": "count(up)", "last": "up.id"},
            )
        )

    expected = []
    for k, rows in by_key().items():
        at = 0
        while at < len(rows):
            end = at
            while (
                end + 1 < len(rows)
                and rows[end + 1].v > rows[end].v
                and (rows[end + 1].ts - rows[at].ts).total_seconds() <= 60
            ):
                end += 1
            if rows[at].v < 30 and end > at:
                bounds = (rows[at].ts, rows[end].ts)
                expected.append((k, *bounds, rows[at].id, end - at, rows[end].id))
                at = end + 1
            else:
                at += 1
    assert len(expected) > 20
    assert_same_rows(build, expected)


def test_patterns_that_refer_to_matched_rows() -> None:
    def build() -> ps.Stream[Any]:
        return (
            stream()
            .key_by("k")
            .match(
                "start down+ back",
                within="1 minute",
                define={
                    "down": "v < coalesce(last(down.v), start.v)",
                    "back": "v >= start.v AND v > 2 * min(down.v) AND count(down) < 4",
                },
                measures={"start": "start.id", "downs": "count(down)", "back": "back.id"},
            )
        )

    expected = []
    for k, rows in by_key().items():
        at = 0
        while at < len(rows):
            end = at + 1
            while end < len(rows) and rows[end].v < rows[end - 1].v:
                end += 1
            downs = [row.v for row in rows[at + 1 : end]]
            back = rows[end] if end < len(rows) else None
            if (
                back is not None
                and 0 < len(downs) < 4
                and back.v >= rows[at].v
                and back.v > 2 * min(downs)
                and (back.ts - rows[at].ts).total_seconds() <= 60
            ):
                bounds = (rows[at].ts, back.ts)
                expected.append((k, *bounds, rows[at].id, len(downs), back.id))
                at = end
            at += 1
    assert len(expected) > 20
    assert_same_rows(build, expected)


def test_orders_samples_and_firsts_of_windows_and_arrival() -> None:
    def build() -> ps.Stream[Any]:
        keyed = stream().key_by("k")
        firsts = keyed.deduplicate(order="arrival")
        hops = keyed.window(ps.hop("30 seconds", every="20 seconds"))
        tens = keyed.window(ps.tumble("10 seconds"))
        steps = keyed.window(ps.cumulate("1 minute", step="30 seconds"))
        end = "CAST(window_end AS BIGINT)"
        made = [
            hops.top(1, by="v desc, id").select("k", "id", till=end),
            tens.sort(by="v").select("k", "id", till=end),
            tens.sample(2).select("k", till=end, id="CAST(-1 AS BIGINT)"),
            steps.rank(by="v", dense_rank="d").select("k", till=end, id="-d"),
            firsts.select("k", till="CAST(0 AS BIGINT)", id="CAST(0 AS BIGINT)"),
        ]
        parts = [one.select("k", "id", "till", part=str(at)) for at, one in enumerate(made)]
        return parts[0].union(*parts[1:])

    expected = sql(
        """WITH hops AS (SELECT *, time_bucket(INTERVAL '20 seconds', ts)
                           - INTERVAL '20 seconds' * i + INTERVAL '30 seconds' AS e
                         FROM t, range(2) AS r(i) WHERE ts < e),
             tens AS (SELECT *, time_bucket(INTERVAL '10 seconds', ts) + INTERVAL '10 seconds' AS e
                      FROM t),
             steps AS (SELECT *, time_bucket(INTERVAL '60 seconds', ts)
                         + INTERVAL '30 seconds' * i AS e FROM t, range(1, 3) AS r(i) WHERE ts < e)
           SELECT k, arg_min(id, (-v, id)), epoch_ns(e), 0 FROM hops GROUP BY k, e
           UNION ALL SELECT k, id, epoch_ns(e), 1 FROM tens
           UNION ALL FROM (SELECT k, -1, epoch_ns(e), 2 FROM tens
             QUALIFY row_number() OVER (PARTITION BY k, e) <= 2)
           UNION ALL
             SELECT k, -dense_rank() OVER (PARTITION BY k, e ORDER BY v), epoch_ns(e), 3 FROM steps
           UNION ALL SELECT DISTINCT k, 0, 0, 4 FROM t""",
        t=TABLE,
    )
    assert_same_rows(build, expected)


REGULAR = {
    "low high": "ac",
    "low !high mid": "a[^c]*?b",
    "low mid? ... high": "ab?.*?c",
    "mid{2,} !low": "b{2,}(?!.*a)",
    "low+ mid* high?": "a+b*c?",
}
"""Patterns as regular expressions over rows as letters."""


SKIPS: list[Any] = ["past last row", "to next row"]


def test_patterns_of_every_kind() -> None:
    define = {"low": "v < 35", "mid": "v BETWEEN 35 AND 69", "high": "v >= 70"}

    def build() -> ps.Stream[Any]:
        keyed = stream().key_by("k")
        made = []
        for number, text in enumerate(REGULAR):
            named = {name: condition for name, condition in define.items() if name in text}
            found = keyed.match(
                text,
                within="1 day",
                define=named,
                measures={"rows": "count(low)" if "low" in text else "count(mid)"},
                skip=SKIPS[number % 2],
            )
            made.append(found.select("k", "match_start", "match_end", pattern=str(number)))
        return made[0].union(*made[1:])

    expected = []
    for k, rows in by_key().items():
        letters = "".join("abc"[(e.v >= 35) + (e.v >= 70)] for e in rows)
        for number, regular in enumerate(map(re.compile, REGULAR.values())):
            matches: Any = regular.finditer(letters)
            if SKIPS[number % 2] == "to next row":
                matches = filter(None, (regular.match(letters, at) for at in range(len(letters))))
            for match in matches:
                bounds = (rows[match.start()].ts, rows[match.end() - 1].ts)
                expected.append((k, *bounds, number))
    assert_same_rows(build, expected)


def test_samples() -> None:
    kept = stream().key_by("v").sample(0.3).select("id").collect()["id"].to_pylist()
    assert 0 < len(kept) < len(EVENTS)
    assert_same_rows(
        lambda: stream().key_by("v").sample(0.3).select("id"), [(number,) for number in kept]
    )


@dataclass
class Answer:
    id: int
    text: str


async def answer(row: Event) -> Answer:
    await asyncio.sleep(row.v % 5 / 1000)
    return Answer(row.id, f"{row.k}{row.v}")


TRIED: set[int] = set()
"""What this process has called for once."""


def halting(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Every second batch fails the first time, as a service may."""
    first = batch["id"][0].as_py()
    if first % 2 and first not in TRIED:
        TRIED.add(first)
        raise ConnectionError("not now")
    texts = [f"{k}{v}" for k, v in zip(batch["k"].to_pylist(), batch["v"].to_pylist(), strict=True)]
    return pa.record_batch({"id": batch["id"], "text": pa.array(texts)})


def test_async_calls_before_a_window() -> None:
    def build() -> ps.Stream[Any]:
        rows = stream()
        calls: dict[str, Any] = {"batch": 4, "retries": 2, "returns": Answer, "timeout": "20 s"}
        answers = [
            rows.map_async(answer, ordered=True, concurrency=20, name="ordered"),
            rows.map_async(answer, ordered=False, concurrency=20, name="unordered"),
            rows.map_async(halting, name="halting", **calls),
        ]
        counts = []
        for way, made in enumerate(answers):
            windows = made.key_by("text").window(ps.tumble("30 seconds"))
            # A row that its watermark had overtaken would be late, and missing here.
            counts.append(windows.aggregate(n="count(*)").options(name=f"w{way}"))
        parts = [one.select("text", "n", way=str(at)) for at, one in enumerate(counts)]
        return parts[0].union(*parts[1:])

    found = sql(
        """SELECT k || v, count(*) FROM t
           GROUP BY k, v, time_bucket(INTERVAL '30 seconds', ts)""",
        t=TABLE,
    )
    assert_same_rows(build, [(text, n, way) for text, n in found for way in range(3)])
