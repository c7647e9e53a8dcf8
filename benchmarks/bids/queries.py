"""The queries of the bids benchmark: each as a pipeline, and as SQL for batch engines.

The SQL is DuckDB's; `datafusion` and `polars` say where those differ. `rows` says which files' rows
count as input. Results are compared by `check`: SQL over the pipeline's output, which must give
what the same SQL gives over the batch result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import penstock as ps


@dataclass(frozen=True)
class Query:
    """One query. `build(p, read)` makes the stream whose rows are counted."""

    build: Callable[[ps.Pipeline, Callable[[str], Any]], Any]
    sql: str
    rows: tuple[str, ...] = ("bids",)
    stateful: bool = True
    timed: bool = True
    """Whether anything asks for event time; where nothing does, no engine reads it."""
    compared: str = "count(*)"
    """Aggregates over both results that must be equal."""
    datafusion: str | None = None
    notes: str = ""
    polars: Any = field(default=None)


WINDOW = "time_bucket(INTERVAL '10 seconds', datetime)"
BIN = "date_bin(INTERVAL '10 seconds', datetime, TIMESTAMP '1970-01-01T00:00:00')"


def _q1(p: ps.Pipeline, read: Any) -> Any:
    return read("bids").select("auction", "bidder", "datetime", price="price * 908 / 1000")


def _q2(p: ps.Pipeline, read: Any) -> Any:
    return read("bids").filter("auction % 123 = 0").select("auction", "price")


def _q5(p: ps.Pipeline, read: Any) -> Any:
    counts = (
        read("bids")
        .key_by("auction")
        .window(ps.hop("10 seconds", every="2 seconds"))
        .aggregate(n="count(*)")
    )
    return counts.window(ps.tumble("2 seconds")).aggregate(
        top="max(n)", auctions="count(*)", bids="sum(n)"
    )


def _q7(p: ps.Pipeline, read: Any) -> Any:
    return read("bids").window(ps.tumble("10 seconds")).aggregate(top="max(price)")


def _q8(p: ps.Pipeline, read: Any) -> Any:
    persons = read("persons8").select("id", "name")
    sellers = read("auctions8").select("seller", "reserve").rename(id="seller")
    return persons.join(sellers, on="id", window=ps.tumble("10 seconds"))


def _q11(p: ps.Pipeline, read: Any) -> Any:
    sessions = read("bids").key_by("bidder").window(ps.session("10 seconds"))
    return sessions.aggregate(n="count(*)")


def _q12(p: ps.Pipeline, read: Any) -> Any:
    return read("bids").key_by("bidder").window(ps.tumble("10 seconds")).aggregate(n="count(*)")


def _running(p: ps.Pipeline, read: Any) -> Any:
    return read("bids").key_by("auction").aggregate(n="count(*)", ttl=ps.FOREVER)


def _join(p: ps.Pipeline, read: Any) -> Any:
    auctions = read("auctions").select("id", "category").rename(auction="id")
    bids = read("bids").select("auction", "price")
    return bids.join(auctions, on="auction", ttl=ps.FOREVER)


def _top3(p: ps.Pipeline, read: Any) -> Any:
    bids = read("bids").select("auction", "bidder", "price")
    return bids.key_by("auction").top(3, by="price desc")


def _dedup(p: ps.Pipeline, read: Any) -> Any:
    return read("bids").select("bidder", "price").key_by("bidder").deduplicate()


_SESSIONS = """
SELECT bidder, count(*) AS n FROM (
  SELECT bidder, sum(fresh) OVER (PARTITION BY bidder ORDER BY datetime
      ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS session
  FROM (SELECT bidder, datetime, CASE WHEN datetime - lag(datetime) OVER (
      PARTITION BY bidder ORDER BY datetime) < INTERVAL '10 seconds' THEN 0 ELSE 1 END AS fresh
    FROM bids))
GROUP BY bidder, session"""

_HOP = """
SELECT bucket, max(n) AS top, count(*) AS auctions, sum(n) AS bids FROM (
  SELECT auction, slide + slides.k * INTERVAL '2 seconds' AS bucket, sum(n) AS n
  FROM (SELECT auction, {slide} AS slide, count(*) AS n FROM bids GROUP BY ALL),
       (VALUES (0), (1), (2), (3), (4)) AS slides(k)
  GROUP BY auction, bucket) GROUP BY bucket"""
_BACK = ", ".join(f"(INTERVAL '{2 * k} seconds')" for k in range(5))
_SLIDE = "time_bucket(INTERVAL '2 seconds', datetime)"
_SLIDE_BIN = "date_bin(INTERVAL '2 seconds', datetime, TIMESTAMP '1970-01-01T00:00:00')"

QUERIES: dict[str, Query] = {
    "q1": Query(
        _q1,
        "SELECT auction, bidder, datetime, price * 908 // 1000 AS price FROM bids",
        stateful=False,
        timed=False,
        compared="count(*), sum(price)",
        datafusion="SELECT auction, bidder, datetime, price * 908 / 1000 AS price FROM bids",
    ),
    "q2": Query(
        _q2,
        "SELECT auction, price FROM bids WHERE auction % 123 = 0",
        stateful=False,
        timed=False,
        compared="count(*), sum(price)",
    ),
    "q5": Query(
        _q5,
        _HOP.format(slide=_SLIDE),
        compared="count(*), sum(top), sum(auctions), sum(bids)",
        datafusion=_HOP.format(slide=_SLIDE_BIN)
        .replace("GROUP BY ALL", "GROUP BY auction, " + _SLIDE_BIN)
        .replace("slides.k * INTERVAL '2 seconds'", "slides.k")
        .replace("(0), (1), (2), (3), (4)", _BACK),
    ),
    "q7": Query(
        _q7,
        f"SELECT {WINDOW} AS w, max(price) AS top FROM bids GROUP BY w",
        compared="count(*), sum(top)",
        datafusion=f"SELECT {BIN} AS w, max(price) AS top FROM bids GROUP BY {BIN}",
    ),
    "q8": Query(
        _q8,
        f"""SELECT p.id, p.name, a.reserve FROM
  (SELECT id, name, {WINDOW} AS w FROM persons8) p JOIN
  (SELECT seller AS id, reserve, {WINDOW} AS w FROM auctions8) a ON p.id = a.id AND p.w = a.w""",
        rows=("persons8", "auctions8"),
        compared="count(*), sum(reserve)",
        datafusion=f"""SELECT p.id, p.name, a.reserve FROM
  (SELECT id, name, {BIN} AS w FROM persons8) p JOIN
  (SELECT seller AS id, reserve, {BIN} AS w FROM auctions8) a ON p.id = a.id AND p.w = a.w""",
    ),
    "q11": Query(_q11, _SESSIONS, compared="count(*), sum(n), max(n)"),
    "q12": Query(
        _q12,
        f"SELECT bidder, {WINDOW} AS w, count(*) AS n FROM bids GROUP BY bidder, w",
        compared="count(*), sum(n), max(n)",
        datafusion=f"SELECT bidder, {BIN} AS w, count(*) AS n FROM bids GROUP BY bidder, {BIN}",
    ),
    "running": Query(
        _running,
        "SELECT auction, count(*) AS n FROM bids GROUP BY auction",
        timed=False,
        compared="count(*), sum(n)",
    ),
    "join": Query(
        _join,
        "SELECT auction, price, category FROM bids JOIN "
        "(SELECT id AS auction, category FROM auctions) USING (auction)",
        rows=("bids", "auctions"),
        timed=False,
        compared="count(*), sum(price), sum(category)",
        datafusion="SELECT bids.auction, price, category FROM bids JOIN auctions "
        "ON bids.auction = auctions.id",
    ),
    "top3": Query(
        _top3,
        "SELECT auction, bidder, price FROM bids QUALIFY row_number() OVER "
        "(PARTITION BY auction ORDER BY price DESC) <= 3",
        timed=False,
        compared="count(*), sum(price)",
        datafusion="SELECT auction, bidder, price FROM (SELECT auction, bidder, price, "
        "row_number() OVER (PARTITION BY auction ORDER BY price DESC) AS r FROM bids) "
        "WHERE r <= 3",
    ),
    "dedup": Query(
        _dedup,
        "SELECT bidder, first(price ORDER BY datetime) AS price FROM bids GROUP BY bidder",
        compared="count(*)",
        datafusion="SELECT bidder, first_value(price ORDER BY datetime) AS price FROM bids "
        "GROUP BY bidder",
        notes="the batch engines find the first row by sorting or scanning",
    ),
}
