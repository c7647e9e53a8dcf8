"""Rows for the same-rows law: small, disordered within a bound, the same at each call."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import duckdb
import pyarrow as pa

import penstock as ps

START = datetime(2024, 1, 1, tzinfo=UTC)
DISORDER_S = 5
BOUND = f"{DISORDER_S} seconds"
KEYS = ("a", "b", "c", "d", "e")


@dataclass
class Event:
    """What most cases read."""

    id: int
    k: str
    v: int
    ts: datetime


def events(rows: int = 600, seed: int = 1, first_id: int = 0) -> list[Event]:
    """A row a second on average, at most DISORDER_S behind its predecessors."""
    chance = random.Random(seed)
    found = []
    for number in range(rows):
        late_ms = chance.randrange(DISORDER_S * 1000)
        found.append(
            Event(
                first_id + number,
                chance.choice(KEYS),
                chance.randrange(100),
                START + timedelta(seconds=number + DISORDER_S, milliseconds=-late_ms),
            )
        )
    return found


def as_table(rows: list[Event]) -> pa.Table:
    """The same rows as a table."""
    return pa.table(
        {
            "id": pa.array([e.id for e in rows], pa.int64()),
            "k": pa.array([e.k for e in rows], pa.string()),
            "v": pa.array([e.v for e in rows], pa.int64()),
            "ts": pa.array([e.ts for e in rows], pa.timestamp("us", "UTC")),
        }
    )


def read(pipeline: ps.Pipeline, rows: list[Event] | None = None) -> ps.Stream[Any]:
    """The rows as a stream with event time; no row is later than the bound."""
    source = events() if rows is None else rows
    return pipeline.source(as_table(source), event_time="ts", out_of_order=BOUND)


def sql(query: str, **tables: pa.Table) -> list[tuple[Any, ...]]:
    """What DuckDB answers; times in UTC."""
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        for name, table in tables.items():
            connection.register(name, table)
        found = connection.sql(query).to_arrow_table()
    return list(zip(*(column.to_pylist() for column in found.columns), strict=True))
