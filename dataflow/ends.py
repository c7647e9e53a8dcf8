"""Where streams begin and end: source and sink nodes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from penstock.elements.changelog import HIDDEN
from penstock.expressions.functions import NONE, Functions
from penstock.operators.error_policy import DEAD_SCHEMA, Fail
from penstock.operators.event_times import time_projection, with_time
from penstock.operators.memory_source import MemorySource
from penstock.operators.processor import DEAD, MAIN, Processor
from penstock.operators.sink import Sink
from penstock.operators.source import EndOfSplit, ReaderContext, SourceConnector
from penstock.operators.source_processor import ConnectorSourceProcessor
from penstock.operators.watermarks import EventTime, ExpressionWatermark

from .graph import BuildContext, Columns, Logic, user_columns

POLL_ROWS = 64 * 1024


def snake_case(name: str) -> str:
    """How a class is called in reports.

    >>> snake_case("LateInbound"), snake_case("HTTPSource")
    ('late_inbound', 'http_source')
    """
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


@dataclass(frozen=True, eq=False)
class SourceLogic(Logic):
    """Reads a connector and says when each row happened."""

    connector: SourceConnector[Any]
    event_time: EventTime | None = None
    functions: Functions = NONE
    location: str = ""
    predicate: str | None = None
    """Pushed into the connector by planning; for explain()."""
    kind = "source"
    stateful = True
    identity_rule = "class"

    @property
    def title(self) -> str:
        """What the connector calls itself."""
        return self.connector.name

    @property
    def who(self) -> str:
        """Its name in errors."""
        return f"source({self.connector.name})"

    def outputs(self, inputs: Sequence[pa.Schema]) -> dict[str, pa.Schema]:
        """The connector's columns and `_time`, and bad records."""
        schema = self.connector.schema
        return {MAIN: schema if self.event_time is None else with_time(schema), DEAD: DEAD_SCHEMA}

    def needs(
        self, inputs: Sequence[pa.Schema], required: Mapping[str, Columns]
    ) -> Sequence[Columns]:
        """No input."""
        return []

    def time_columns(self) -> Columns:
        """The columns that event time and watermark are computed from."""
        if self.event_time is None:
            return frozenset()
        items = [self.event_time.time]
        if isinstance(self.event_time.strategy, ExpressionWatermark):
            items.append(self.event_time.strategy.sql)
        projection = time_projection(
            items, self.connector.schema, self.functions, self.who, self.location
        )
        return frozenset(projection.columns_read)

    def pruned(self, required: Columns, predicate: str | None) -> SourceLogic:
        """A source that reads what is required, and may skip rows that fail `predicate`."""
        connector = self.connector
        every = connector.schema.names
        wanted = required | self.time_columns()
        if not wanted:
            # Rows are counted by a column: the narrowest will do.
            wanted = frozenset([min(connector.schema, key=_width).name] if every else [])
        if len(wanted) < len(every):
            connector = connector.with_columns_read([name for name in every if name in wanted])
        if predicate is not None:
            connector = connector.with_predicate(predicate)
        return replace(self, connector=connector, predicate=predicate)

    def processor(self, inputs: Sequence[pa.Schema], build: BuildContext) -> Processor:
        """The engine's reader of connectors."""
        return ConnectorSourceProcessor(
            self.connector,
            self.event_time,
            build.on_error or Fail(),
            functions=self.functions,
            who=self.who,
            location=self.location,
        )

    def identity(self) -> tuple[str, ...]:
        """The connector's class, its name, and what it says distinguishes it."""
        distinct = self.connector.identity
        if not distinct and isinstance(self.connector, MemorySource):
            distinct = _content_digest(self.connector)
        return (type(self.connector).__qualname__, self.connector.name, distinct)

    def describe(self) -> str:
        """What is read."""
        names = ", ".join(self.connector.schema.names)
        text = f"source {self.connector.name}: reads {names or 'no columns'}"
        if self.event_time is not None:
            text += f"; event time {self.event_time.time}"
        if self.predicate is not None:
            text += f"; skips unless {self.predicate}"
        return text


def _width(field: pa.Field) -> int:
    try:
        return int(field.type.bit_width)
    except ValueError:  # Of variable width.
        return 1 << 20


def _content_digest(source: MemorySource) -> str:
    """Rows in memory have no name but themselves: edited rows are another source."""
    digest = hashlib.blake2b(digest_size=8)
    digest.update(source.schema.serialize())
    for split in source.splits():
        reader = source.reader(split, None, ReaderContext(0, lambda: None, None))
        try:
            while True:
                chunk = reader.poll(POLL_ROWS)
                if chunk is not None:
                    digest.update(chunk.batch.serialize())
        except EndOfSplit:
            reader.close()
    return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class SinkLogic(Logic):
    """Hands rows to a public Sink."""

    sink: Sink
    kind = "sink"
    stateful = True

    @property
    def takes_updates(self) -> bool:  # type: ignore[override]
        """Only sinks that say so understand `_change`."""
        return bool(getattr(self.sink, "updating", False))

    @property
    def identity_rule(self) -> Any:  # type: ignore[override]
        """A sink that stages has state; another may be found by its place."""
        return "class" if self.sink.transactional else "position"

    @property
    def title(self) -> str:
        """The sink's class."""
        return snake_case(type(self.sink).__name__)

    def outputs(self, inputs: Sequence[pa.Schema]) -> dict[str, pa.Schema]:
        """Nothing comes out."""
        return {}

    def needs(
        self, inputs: Sequence[pa.Schema], required: Mapping[str, Columns]
    ) -> Sequence[Columns]:
        """Everything."""
        return [frozenset(user_columns(inputs[0]))]

    def processor(self, inputs: Sequence[pa.Schema], build: BuildContext) -> Processor:
        """The engine's driver of sinks."""
        from penstock.operators.sink_processor import SinkProcessor

        return SinkProcessor(self.sink)

    def identity(self) -> tuple[str, ...]:
        """The class and where it writes."""
        return (type(self.sink).__qualname__, self.sink.identity)

    def describe(self) -> str:
        """Its guarantee."""
        how = "exactly once" if self.sink.transactional else "at least once"
        return f"{self.title}, {how}"


def without_time(schema: pa.Schema) -> pa.Schema:
    """What users see of a schema."""
    return pa.schema([field for field in schema if field.name not in HIDDEN])
