"""The program that simulations run, and how fast its job is told to be."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from penstock.dataflow.plan import Edge, OperatorSpec, Plan, Vertex
from penstock.dataflow.settings import JobSettings
from penstock.elements.errors import StateError
from penstock.operators.processor import Processor
from penstock.operators.source import Position, ReaderContext, SourceConnector, Split, SplitReader

from .simulated_subtask import SPLIT_ROWS

SPLITS = 4
PARALLELISM = 2
_SCHEMA = pa.schema([("n", pa.int64())])


def require_injected(error: StateError) -> None:
    """Only what this simulation broke may fail."""
    if "injected" not in str(error):
        raise AssertionError(f"nothing was broken, yet: {error}") from error


class _Splits(SourceConnector[Any]):
    name = "simulated"

    @property
    def schema(self) -> pa.Schema:
        return _SCHEMA

    def splits(self) -> Sequence[Split]:
        return [Split(str(number), SPLIT_ROWS) for number in range(SPLITS)]

    def reader(self, split: Split, position: Position, ctx: ReaderContext) -> SplitReader:
        raise AssertionError("never read")


class _Operator(Processor):
    def __init__(self, connector: SourceConnector[Any] | None = None) -> None:
        self.connector = connector

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        raise AssertionError("never run")


def _vertex(name: str, **marks: bool) -> Vertex:
    connector = _Splits() if "is_source" in marks else None
    spec = OperatorSpec(name, name, _Operator(connector), {"main": _SCHEMA}, "", True, **marks)
    return Vertex(name, name, (spec,), (), PARALLELISM)


PLAN = Plan(
    "simulated",
    (_vertex("source", is_source=True), _vertex("middle"), _vertex("sink", is_sink=True)),
    (
        Edge("a", "source", 0, "main", "middle", 0, "hash", _SCHEMA),
        Edge("b", "middle", 0, "main", "sink", 0, "hash", _SCHEMA),
    ),
    sources=("source",),
)
SETTINGS = JobSettings(
    checkpoint_interval_s=5e-9,
    checkpoint_timeout_s=200e-9,
    restart_attempts=10_000,
    restart_delay_s=5e-9,
    restart_delay_s_max=40e-9,
    restart_healthy_s=1.0,
    retained_checkpoints=1,
    tolerated_failed_checkpoints=2,
)
"""One step of the schedule's clock is a nanosecond."""
