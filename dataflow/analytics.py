"""Nodes of top N, ranks, deduplication, rate limits and samples, and the checks behind them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from penstock.elements.changelog import HIDDEN, is_updating
from penstock.elements.durations import FOREVER, duration_ns
from penstock.elements.errors import PlanError
from penstock.elements.signals import TIME_COLUMN
from penstock.expressions.expression import Expr, ExprLike
from penstock.operators.dedup import FirstRowProcessor
from penstock.operators.over import OverProcessor
from penstock.operators.over_items import OverItems
from penstock.operators.processor import LATE, MAIN, Processor
from penstock.operators.ranking import (
    TOP_ROWS_MAX,
    NewestArrival,
    Order,
    RunningTopProcessor,
)
from penstock.operators.ranking_changes import UpdatingTopProcessor, rows_schema
from penstock.operators.ranking_windows import RankKind, WindowRankProcessor
from penstock.operators.rate_limit import KeySampleProcessor, RateLimitProcessor
from penstock.operators.row_order import RowOrder
from penstock.operators.thin_out import FirstBy, thins
from penstock.operators.windows.descriptors import Cumulate, Hop, Tumble

from .graph import BuildContext, Columns, IdentityRule, Logic
from .schema_check import at_line, plan_error

By = ExprLike | Sequence[ExprLike]


class KeyedRowsLogic(Logic):
    """An operator by key that gives the input's rows, with or without further columns."""

    keys: tuple[str, ...]
    stateful = True
    identity_rule: IdentityRule = "class"

    @abstractmethod
    def make(self, schema: pa.Schema) -> Any:
        """The processor; it knows `out_schema`."""

    def reads(self, schema: pa.Schema) -> Columns:
        """Columns that it looks at, beside the keys."""
        return frozenset()

    @property
    def title(self) -> str:
        """Its verb."""
        return self.kind

    @property
    def parallelism_max(self) -> int | None:  # type: ignore[override]
        """Without a key all rows meet in one place."""
        return None if self.keys else 1

    def outputs(self, inputs: Sequence[pa.Schema]) -> dict[str, pa.Schema]:
        """What the processor says."""
        made = self.make(inputs[0])
        return dict(getattr(made, "outputs", None) or {MAIN: made.out_schema})

    def needs(
        self, inputs: Sequence[pa.Schema], required: Mapping[str, Columns]
    ) -> Sequence[Columns]:
        """Keys, what it looks at, and what others read of the rows, late ones among them."""
        wanted = frozenset(self.keys) | self.reads(inputs[0])
        for columns in required.values():
            wanted |= columns & frozenset(inputs[0].names)
        return [wanted - HIDDEN]

    def thinned_by(self, schema: pa.Schema) -> tuple[FirstBy, int] | None:
        """What rows must be among the first of, if others may be left out before an exchange."""
        return None

    def processor(self, inputs: Sequence[pa.Schema], build: BuildContext) -> Processor:
        """For the pruned input."""
        made: Processor = self.make(inputs[0])
        return made

    def describe(self) -> str:
        """Verb, settings, key."""
        said = ", ".join(fact for fact in self.identity()[:-1] if fact)
        return f"{self.kind} {said}" + (f" by {', '.join(self.keys)}" if self.keys else "")


@dataclass(frozen=True, eq=False)
class TopLogic(KeyedRowsLogic):
    """The first rows of each key so far; `by` None: the newest arrivals."""

    keys: tuple[str, ...]
    by: By | None
    count: int
    rank: str | None
    ttl_ns: int | None
    functions: Any
    location: str
    verb: str = "top"
    takes_updates = True

    @property
    def kind(self) -> str:  # type: ignore[override]
        """The user's verb."""
        return self.verb

    def _order(self, schema: pa.Schema) -> Order:
        if self.by is None:
            return NewestArrival()
        rows = rows_schema(schema) if is_updating(schema) else schema
        return RowOrder(self.by, rows, self.functions, self.verb, self.location)

    def make(self, schema: pa.Schema) -> Any:
        order, said = self._order(schema), (self.verb, self.location)
        if is_updating(schema):
            assert isinstance(order, RowOrder)
            return UpdatingTopProcessor(
                self.keys, order, self.count, schema, self.rank, self.ttl_ns, *said
            )
        return RunningTopProcessor(
            self.keys, order, self.count, schema, self.rank, self.ttl_ns, *said
        )

    def reads(self, schema: pa.Schema) -> Columns:
        return self._order(schema).columns_read

    def thinned_by(self, schema: pa.Schema) -> tuple[FirstBy, int] | None:
        if is_updating(schema):
            # Every row counts: one that is behind now comes up when others go.
            return None
        first: FirstBy | None = "last come"
        if self.by is not None:
            # An expression that may fail stays where its error is expected.
            first = self._order(schema).leading_column
        # With a TTL every row keeps its key alive.
        thinned = self.ttl_ns is None and first is not None and thins(first, self.count, schema)
        return (first, self.count) if thinned and first is not None else None

    def identity(self) -> tuple[str, ...]:
        return (str(self.count), by_text(self.by), self.rank or "", ", ".join(self.keys))


@dataclass(frozen=True, eq=False)
class WindowRankLogic(KeyedRowsLogic):
    """Rows of a window in an order."""

    window: Tumble | Hop | Cumulate
    keys: tuple[str, ...]
    by: By
    count: int | None
    ranks: tuple[tuple[str, RankKind], ...]
    functions: Any
    location: str
    verb: str

    @property
    def kind(self) -> str:  # type: ignore[override]
        """The user's verb."""
        return self.verb

    def _order(self, schema: pa.Schema) -> RowOrder:
        return RowOrder(self.by, schema, self.functions, self.verb, self.location)

    def make(self, schema: pa.Schema) -> Any:
        ranks, said = dict(self.ranks), (self.verb, self.location)
        return WindowRankProcessor(
            self.window, self.keys, self._order(schema), schema, self.count, ranks, *said
        )

    def reads(self, schema: pa.Schema) -> Columns:
        return self._order(schema).columns_read

    def outputs(self, inputs: Sequence[pa.Schema]) -> dict[str, pa.Schema]:
        return {MAIN: self.make(inputs[0]).out_schema, LATE: inputs[0]}

    def identity(self) -> tuple[str, ...]:
        return (self.window.text, str(self.count or ""), by_text(self.by), ", ".join(self.keys))


@dataclass(frozen=True, eq=False)
class FirstLogic(KeyedRowsLogic):
    """The first row of each key."""

    keys: tuple[str, ...]
    by_event_time: bool
    ttl_ns: int | None
    kind = "deduplicate"

    def make(self, schema: pa.Schema) -> Any:
        return FirstRowProcessor(self.keys, schema, self.by_event_time, self.ttl_ns)

    def thinned_by(self, schema: pa.Schema) -> tuple[FirstBy, int] | None:
        # With a TTL a row may count that has an earlier one before it.
        if self.ttl_ns is not None:
            return None
        return ((TIME_COLUMN, False) if self.by_event_time else "first come"), 1

    def identity(self) -> tuple[str, ...]:
        order = "event_time" if self.by_event_time else "arrival"
        return ("first", order, str(self.ttl_ns or ""), ", ".join(self.keys))


@dataclass(frozen=True, eq=False)
class RateLimitLogic(KeyedRowsLogic):
    """At most so many rows per key and span."""

    keys: tuple[str, ...]
    count: int
    span_ns: int
    text: str
    kind = "limit_rate"

    def make(self, schema: pa.Schema) -> Any:
        return RateLimitProcessor(self.keys, self.count, self.span_ns, schema)

    def identity(self) -> tuple[str, ...]:
        return (self.text, ", ".join(self.keys))

    def describe(self) -> str:
        return f"limit_rate {self.count} per {self.text} by {', '.join(self.keys)}"


@dataclass(frozen=True, eq=False)
class SampleLogic(KeyedRowsLogic):
    """All rows of some keys; no exchange, for the hash is the same everywhere."""

    keys: tuple[str, ...]
    fraction: float
    seed: int
    kind = "sample"
    stateful = False
    identity_rule: IdentityRule = "position"

    def make(self, schema: pa.Schema) -> Any:
        return KeySampleProcessor(self.keys, self.fraction, self.seed, schema)

    def identity(self) -> tuple[str, ...]:
        return (str(self.fraction), str(self.seed), ", ".join(self.keys))


@dataclass(frozen=True, eq=False)
class OverLogic(KeyedRowsLogic):
    """Rows with what the rows of their key before and behind them say."""

    keys: tuple[str, ...]
    items: tuple[tuple[str, ExprLike], ...]
    preceding: int | None
    functions: Any
    location: str
    kind = "over"

    def _items(self, schema: pa.Schema) -> OverItems:
        return OverItems(dict(self.items), schema, self.functions, self.kind, self.location)

    def make(self, schema: pa.Schema) -> Any:
        return OverProcessor(self.keys, self._items(schema), self.preceding, schema)

    def reads(self, schema: pa.Schema) -> Columns:
        return self._items(schema).columns_read

    def identity(self) -> tuple[str, ...]:
        items = "; ".join(f"{name}={by_text(text)}" for name, text in self.items)
        frame = "all rows" if self.preceding is None else f"{self.preceding} preceding"
        return (frame, items, ", ".join(self.keys))


def by_text(by: By | None) -> str:
    """What was given as `by`, for identities."""
    if by is None:
        return "arrival"
    items = [by] if isinstance(by, (str, Expr)) else list(by)
    return ", ".join(f"{i.text} {i.params}" if isinstance(i, Expr) else str(i) for i in items)


def checked_count(count: object, who: str, location: str, most: int | None = TOP_ROWS_MAX) -> int:
    """A number of rows."""
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise plan_error(who, f"{count!r} is not a number of rows, 1 or more", location)
    if most is not None and count > most:
        raise plan_error(who, f"{count} rows per key are too many; at most {most}", location)
    return count


def checked_span(value: Any, who: str, location: str) -> int:
    """A duration longer than nothing."""
    try:
        found = duration_ns(value, who)
    except PlanError as error:
        raise at_line(error, location) from None
    if found <= 0:
        raise plan_error(who, f"{value!r} must be longer than nothing", location)
    return found


def checked_ttl(value: Any, schema: pa.Schema, who: str, location: str) -> int | None:
    """A TTL in event time, or none."""
    if value is None or value == FOREVER:
        return None
    if TIME_COLUMN not in schema.names:
        raise plan_error(
            who,
            "ttl= is in event time, which the stream does not have",
            location,
            'Say it where it is read:  p.source(..., event_time="ts", out_of_order="5 seconds")',
        )
    return checked_span(value, f"{who}(ttl=)", location)
