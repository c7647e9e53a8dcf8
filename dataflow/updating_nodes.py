"""Nodes of aggregates without a window: an updating stream of one row per key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from penstock.elements.changelog import HIDDEN, is_updating
from penstock.elements.durations import Duration, duration_ns, ttl_ns
from penstock.elements.errors import PlanError
from penstock.operators.aggregate_classes import AggregateItem, item_expr
from penstock.operators.aggregates import Aggregation
from penstock.operators.processor import MAIN, Processor
from penstock.operators.updating_aggregate import UpdatingAggregateProcessor
from penstock.operators.updating_calls import UpdatingCalls

from .aggregate_methods import check_items
from .graph import BuildContext, Columns, Logic, Port
from .schema_check import at_line, plan_error
from .window_nodes import canonical

if TYPE_CHECKING:
    from .stream import Stream


@dataclass(frozen=True, eq=False)
class UpdatingLogic(Logic):
    """Aggregates of all rows of a key, given anew as they change. `ttl_ns` None: for ever."""

    keys: tuple[str, ...]
    items: tuple[tuple[str, AggregateItem], ...]
    ttl_ns: int | None
    flush_ns: int
    functions: Any
    location: str
    kind = "aggregate"
    stateful = True
    identity_rule = "class"
    takes_updates = True
    who = "aggregate"

    @property
    def title(self) -> str:
        """For people."""
        return "aggregate"

    def aggregation(self, schema: pa.Schema) -> Aggregation:
        """What is computed of rows of `schema`."""
        return Aggregation(dict(self.items), schema, self.functions, self.who, self.location)

    def calls(self, schema: pa.Schema) -> UpdatingCalls:
        """What is kept of them."""
        aggregation = self.aggregation(schema)
        return UpdatingCalls(aggregation, is_updating(schema), self.who, self.location)

    def made(self, schema: pa.Schema, partial_input: bool = False) -> UpdatingAggregateProcessor:
        """The processor for rows of `schema`, or for what was folded of them."""
        return UpdatingAggregateProcessor(
            self.keys,
            self.aggregation(schema),
            schema,
            self.ttl_ns,
            self.flush_ns,
            self.who,
            self.location,
            partial_input=partial_input,
        )

    def outputs(self, inputs: Sequence[pa.Schema]) -> dict[str, pa.Schema]:
        """Keys, items, `_change`."""
        return {MAIN: self.made(inputs[0]).out_schema}

    @property
    def parallelism_max(self) -> int | None:  # type: ignore[override]
        """Without a key all rows meet in one place."""
        return None if self.keys else 1

    def needs(
        self, inputs: Sequence[pa.Schema], required: Mapping[str, Columns]
    ) -> Sequence[Columns]:
        """Keys and arguments."""
        read = frozenset(self.aggregation(inputs[0]).columns_read) - HIDDEN
        return [frozenset(self.keys) | read]

    def processor(self, inputs: Sequence[pa.Schema], build: BuildContext) -> Processor:
        """The engine's updating aggregate."""
        return self.made(inputs[0])

    def identity(self) -> tuple[str, ...]:
        """Aggregates and key. How long groups are kept and how often given may change."""
        items = "; ".join(f"{name}={canonical(text)}" for name, text in self.items)
        return ("updating", items, ", ".join(self.keys))

    def describe(self) -> str:
        """Key and aggregates."""
        items = ", ".join(f"{name} = {item_expr(text).text}" for name, text in self.items)
        by = f" by {', '.join(self.keys)}" if self.keys else ""
        return f"aggregate{by}: {items}"


def aggregated(
    stream: Stream[Any],
    keys: tuple[str, ...],
    items: Mapping[str, AggregateItem],
    ttl: Duration | None,
    flush: Duration,
    location: str,
) -> Stream[Any]:
    """The updating stream of an aggregate without a window; raises PlanError of the user's line."""
    check_items(items, location)
    try:
        lives_ns = ttl_ns(ttl, "aggregate(ttl=)")
        flush_ns = duration_ns(flush, "aggregate(flush=)")
    except PlanError as error:
        raise at_line(error, location) from None
    if ttl is None and keys:
        raise plan_error(
            "aggregate",
            "without a window it needs a bound on how long it remembers a key",
            location,
            'ttl="1 day"        keys that long without a row are taken back and forgotten',
            "ttl=ps.FOREVER     never",
            'or cut rows into windows first:  .window(ps.tumble("1 hour")).aggregate(...)',
        )
    if (lives_ns is not None and lives_ns <= 0) or flush_ns < 0:
        raise plan_error("aggregate", f"ttl={ttl!r} and flush={flush!r} must be longer", location)
    functions = stream._pipeline.functions
    logic = UpdatingLogic(keys, tuple(items.items()), lives_ns, flush_ns, functions, location)
    port = Port(stream._taps, "hash" if keys else "none", keys)
    return stream._made(logic, [port], location)
