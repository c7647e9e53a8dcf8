"""Rows for the same-rows law: small, disordered within a bound, the same at each call."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import duckdb
import pyarrow as pa

import penstock as ps
from penstock.operators.source import (
    Chunk,
    EndOfSplit,
    Position,
    ReaderContext,
    SourceConnector,
    Split,
    SplitReader,
)

START = datetime(2024, 1, 1, tzinfo=UTC)
DISORDER_S = 5
BOUND = f"{DISORDER_S} seconds"
SPLITS = 3
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


class Dealt(SourceConnector[Any]):
    """A table in SPLITS splits, each with every SPLITS-th row, so that all go on together."""

    name = "dealt"

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    @property
    def schema(self) -> pa.Schema:
        """The table's."""
        return self._table.schema

    def splits(self) -> list[Split]:
        """Numbered."""
        return [Split(str(number), 1, number) for number in range(SPLITS)]

    def reader(self, split: Split, position: Position, ctx: ReaderContext) -> SplitReader:
        """Position: rows of the split already read."""
        piece = self._table.take(list(range(split.detail, self._table.num_rows, SPLITS)))
        return _Reading(piece.combine_chunks().to_batches()[0], position or 0)


class _Reading(SplitReader):
    def __init__(self, rows: pa.RecordBatch, at: int) -> None:
        self._rows = rows
        self._at = at

    def poll(self, limit_rows: int) -> Chunk:
        """The next rows, as a slice with an offset."""
        if self._at >= self._rows.num_rows:
            raise EndOfSplit
        batch = self._rows.slice(self._at, limit_rows)
        self._at += batch.num_rows
        return Chunk(batch, self._at)


def read(
    pipeline: ps.Pipeline, rows: list[Event] | None = None, name: str = "events"
) -> ps.Stream[Any]:
    """The rows as a stream with event time; no row is later than the bound."""
    table = as_table(events() if rows is None else rows)
    return pipeline.source(Dealt(table), event_time="ts", out_of_order=BOUND, name=name)


def sql(query: str, **tables: pa.Table) -> list[tuple[Any, ...]]:
    """What DuckDB answers; times in UTC."""
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        for name, table in tables.items():
            connection.register(name, table)
        found = connection.sql(query).to_arrow_table()
    return list(zip(*(column.to_pylist() for column in found.columns), strict=True))
