"""Rows, operators and a harness for tests of keyed operators."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from penstock.elements.rows import RowCodec
from penstock.operators.context import Context
from penstock.operators.declared import (
    Fired,
    ListState,
    MapState,
    ReducingState,
    Timer,
    ValueState,
)
from penstock.operators.event_time_column import with_time_field, with_times
from penstock.operators.keyed_operator import KeyedOperator
from penstock.operators.keyed_processor import KeyedProcessor
from penstock.operators.processor import MAIN
from penstock.testing.harness import Harness

SECOND = 1_000_000_000
T0 = datetime(2024, 1, 1, tzinfo=UTC)


@dataclass
class Event:
    key: str
    n: int | None


@dataclass
class Made:
    key: str
    text: str


EVENTS = with_time_field(RowCodec(Event).schema)


def events(*rows: tuple[str, int | None, int]) -> pa.RecordBatch:
    """(key, n, second)."""
    batch = RowCodec(Event).encode([Event(key, n) for key, n, _ in rows])
    return with_times(batch, np.array([second * SECOND for *_, second in rows], np.int64))


def harness(op: KeyedOperator[Any, Any], policy: Any = None, **options: Any) -> Harness:
    processor = KeyedProcessor(op, "key", EVENTS, *([policy] if policy else []))
    return Harness(processor, [EVENTS], out_schemas=processor.outputs, **options)


def texts(driven: Harness, output: str = MAIN) -> list[str]:
    return [row["text"] for row in driven.rows(output)]


class AllKinds(KeyedOperator[Event, Made]):
    last = ValueState(int)
    seen = ListState(int)
    counts = MapState(int, int)
    total = ReducingState(int, operator.add)
    bag = ValueState(set, default=set())

    def process(self, key: str, row: Event, ctx: Context) -> Iterator[Made]:
        assert row.n is not None
        before = self.last.value
        self.last.value = row.n
        self.seen.append(row.n)
        self.counts[row.n] = self.counts.get(row.n, 0) + 1
        self.total.add(row.n)
        self.bag.value.add(row.n)
        yield Made(
            key,
            f"{before} {list(self.seen)} {dict(self.counts)} {self.total.value} "
            f"{sorted(self.bag.value)}",
        )


class Alarm(KeyedOperator[Event, Made]):
    """Sets its timer to second n; tells when it fires."""

    early = Timer()
    late = Timer()

    def process(self, key: str, row: Event, ctx: Context) -> None:
        if row.n is None:
            self.early.clear()
        elif row.n % 2:
            self.early.set(row.n * SECOND)
        else:
            self.late.set(row.n * SECOND, tag="x")

    def on_timer(self, key: str, timer: Fired, ctx: Context) -> Iterator[Made]:
        assert not ctx.is_late
        yield Made(key, f"{key} {timer.name}{timer.tag} {timer.time_ns // SECOND}")


class Expiring(KeyedOperator[Event, Made]):
    last = ValueState(int, default=0, ttl="10 seconds")

    def process(self, key: str, row: Event, ctx: Context) -> list[Made]:
        before, self.last.value = self.last.value, row.n or 0
        return [Made(key, str(before))]
