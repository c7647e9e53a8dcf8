"""Rows and small operators that the tests of planning share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pyarrow as pa

import penstock as ps
from penstock.dataflow.planner import make_plan
from penstock.operators.source import SourceConnector, Split, SplitReader


@dataclass
class Flight:
    tail: str
    dep_time: datetime
    dep_delay: float | None


@dataclass
class Knock:
    tail: str
    minutes: float


class LateInbound(ps.KeyedOperator[Flight, Knock]):
    last = ps.ValueState(float, default=0.0)
    unknown = ps.Output(Flight)

    def __init__(self, threshold: float = 15.0) -> None:
        self.threshold = threshold

    def process(self, key: str, row: Flight, ctx: ps.Context) -> Iterator[Knock | ps.Side[Any]]:
        if row.dep_delay is None:
            yield self.unknown(row)
            return
        yield Knock(key, row.dep_delay)


FLIGHTS = pa.schema(
    [
        ("carrier", pa.string()),
        ("tail", pa.string()),
        ("dep_time", pa.timestamp("us", "UTC")),
        ("dep_delay", pa.float64()),
        ("distance", pa.int64()),
        ("notes", pa.string()),
    ]
)


class Feed(SourceConnector[Any]):
    """A source that remembers what was pushed into it; it is never read."""

    name = "feed"

    def __init__(
        self,
        schema: pa.Schema = FLIGHTS,
        splits: int = 8,
        *,
        name: str = "feed",
        bounded: bool = True,
        replay: bool = True,
    ) -> None:
        self.name, self.identity = name, name
        self.bounded, self.replay = bounded, replay
        self.columns: list[str] | None = None
        self.predicate: str | None = None
        self._schema = schema
        self._splits = splits

    @property
    def schema(self) -> pa.Schema:
        return self._schema

    def splits(self) -> Sequence[Split]:
        return [Split(f"s{n}") for n in range(self._splits)]

    def reader(self, split: Split, position: Any, ctx: Any) -> SplitReader:
        raise AssertionError("planning reads nothing")

    def with_columns_read(self, columns: Sequence[str]) -> Feed:
        changed = self._changed()
        changed.columns = list(columns)
        changed._schema = pa.schema([self._schema.field(name) for name in columns])
        return changed

    def with_predicate(self, predicate: str) -> Feed:
        changed = self._changed()
        changed.predicate = predicate
        return changed

    def _changed(self) -> Feed:
        changed = Feed.__new__(Feed)
        changed.__dict__.update(self.__dict__)
        return changed


class Keep(ps.Sink):
    """Exactly once, by declaration only."""

    def __init__(self, identity: str = "") -> None:
        self._identity = identity

    @property
    def identity(self) -> str:
        return self._identity

    def write(self, batch: pa.RecordBatch, ctx: Any) -> None:
        raise AssertionError("planning writes nothing")

    def prepare(self, txn: str) -> bytes:
        return b""


def flights(p: ps.Pipeline, **options: Any) -> ps.Stream[Any]:
    """The flights with event time."""
    feed = options.pop("feed", None) or Feed()
    return p.source(feed, event_time="dep_time", out_of_order="1 hour", **options)


def plan_of(p: ps.Pipeline, parallelism: int = 1) -> Any:
    """The physical plan."""
    return make_plan(p.name, p._ends, p.functions, parallelism).plan


def processors(plan: Any) -> list[Any]:
    """All processors, vertex by vertex, head to tail."""
    return [spec.processor for vertex in plan.vertices for spec in vertex.operators]


def ids(plan: Any) -> dict[str, str]:
    """Operator id by name."""
    return {spec.name: spec.id for vertex in plan.vertices for spec in vertex.operators}


def read_by_sources(plan: Any) -> list[Feed]:
    """The connectors as they will be read."""
    return [p.connector for p in processors(plan) if hasattr(p, "connector")]
