"""Nodes of windows: aggregates per key and window, and the stream of rows that came too late."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from penstock.elements.errors import PlanError
from penstock.elements.signals import TIME_COLUMN
from penstock.operators.aggregate_classes import AggregateItem, item_expr
from penstock.operators.aggregates import Aggregation
from penstock.operators.processor import LATE, MAIN, Processor
from penstock.operators.windows.aggregate import WindowAggregateProcessor
from penstock.operators.windows.count import CountAggregateProcessor
from penstock.operators.windows.descriptors import (
    CountWindow,
    Cumulate,
    GlobalWindow,
    Hop,
    Session,
    Tumble,
)
from penstock.operators.windows.sessions import SessionAggregateProcessor
from penstock.operators.windows.triggered import GlobalWindowProcessor
from penstock.operators.windows.updating import UpdatingWindowProcessor
from penstock.operators.windows.updating_sessions import UpdatingSessionProcessor

from .graph import BuildContext, Columns, Logic


@dataclass(frozen=True, eq=False)
class WindowLogic(Logic):
    """Aggregates over event time windows, by key."""

    window: Any
    keys: tuple[str, ...]
    items: tuple[tuple[str, AggregateItem], ...]
    lateness_ns: int
    functions: Any
    location: str
    early_ns: int | None = None
    refines: bool = False
    """Late rows refine what was given, instead of its being given again; so they do if early."""
    kind = "aggregate"
    stateful = True
    identity_rule = "class"

    @property
    def title(self) -> str:
        """The kind of window."""
        return str(self.window.text.split()[0])

    @property
    def who(self) -> str:
        """Its name in errors."""
        return f"aggregate over {self.window.text}"

    def aggregation(self, schema: pa.Schema) -> Aggregation:
        """What is computed of rows of `schema`."""
        return Aggregation(dict(self.items), schema, self.functions, self.who, self.location)

    @property
    def updating(self) -> bool:
        """Whether results are taken back."""
        return self.refines or self.early_ns is not None

    def _make(self, schema: pa.Schema) -> Any:
        if self.updating:
            sessions = isinstance(self.window, Session)
            made = UpdatingSessionProcessor if sessions else UpdatingWindowProcessor
            return made(
                self.window,
                self.keys,
                self.aggregation(schema),
                schema,
                self.early_ns,
                self.lateness_ns,
                self.who,
                self.location,
            )
        return make_window(
            self.window,
            self.keys,
            self.aggregation(schema),
            schema,
            self.lateness_ns,
            self.who,
            self.location,
        )

    def outputs(self, inputs: Sequence[pa.Schema]) -> dict[str, pa.Schema]:
        """Results, and late rows as they came."""
        results = {MAIN: self._make(inputs[0]).out_schema}
        # Windows of so many rows, or of all, know no lateness.
        return (
            results
            if isinstance(self.window, (CountWindow, GlobalWindow))
            else {**results, LATE: inputs[0]}
        )

    @property
    def parallelism_max(self) -> int | None:  # type: ignore[override]
        """Without a key all rows meet in one place."""
        return None if self.keys else 1

    def needs(
        self, inputs: Sequence[pa.Schema], required: Mapping[str, Columns]
    ) -> Sequence[Columns]:
        """Keys, arguments, and what is read of late rows."""
        read = frozenset(self.aggregation(inputs[0]).columns_read) - {TIME_COLUMN}
        return [frozenset(self.keys) | read | required.get(LATE, frozenset())]

    def processor(self, inputs: Sequence[pa.Schema], build: BuildContext) -> Processor:
        """One of the engine's window operators."""
        made: Processor = self._make(inputs[0])
        return made

    def identity(self) -> tuple[str, ...]:
        """Window, aggregates and key: with others its state would mean something else."""
        # Lateness may change: it bounds what is kept, not what it means.
        items = "; ".join(f"{name}={canonical(text)}" for name, text in self.items)
        kept: tuple[str, ...] = ("updating",) if self.updating else ()
        # What readers have at a cut is not the same with and without it.
        kept += ("early",) if self.early_ns is not None else ()
        return (self.window.text, items, ", ".join(self.keys), *kept)

    def describe(self) -> str:
        """Window, key, aggregates."""
        items = ", ".join(f"{name} = {item_expr(text).text}" for name, text in self.items)
        by = f" by {', '.join(self.keys)}" if self.keys else ""
        return f"{self.window.text}{by}: {items}"


def make_window(
    window: Any,
    keys: Sequence[str],
    aggregation: Aggregation,
    schema: pa.Schema,
    lateness_ns: int,
    who: str,
    location: str,
) -> Any:
    """The processor for a window descriptor."""
    if isinstance(window, (Tumble, Hop, Cumulate)):
        return WindowAggregateProcessor(
            window, keys, aggregation, schema, lateness_ns, who, location
        )
    if isinstance(window, Session):
        return SessionAggregateProcessor(
            window, keys, aggregation, schema, lateness_ns, who, location
        )
    if isinstance(window, CountWindow):
        return CountAggregateProcessor(window, keys, aggregation, schema, who, location)
    if isinstance(window, GlobalWindow):
        return GlobalWindowProcessor(window, keys, aggregation, schema, who, location)
    raise PlanError(f"{who}: {window!r} is not a window")


def canonical(text: AggregateItem) -> str:
    """An expression as identities hold it, whatever its spaces."""
    expression = item_expr(text)
    params = ",".join(f"{name}={value!r}" for name, value in expression.params)
    return " ".join(expression.text.split()) + (f" [{params}]" if params else "")
