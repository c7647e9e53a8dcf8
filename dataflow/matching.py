"""match(): patterns over the rows of a key, checked when the user's line runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from penstock.elements.durations import Duration
from penstock.expressions.expression import ExprLike
from penstock.operators.match_pattern import Pattern, parse_pattern
from penstock.operators.match_processor import MatchProcessor
from penstock.operators.match_runs import Skip

from .analytics import KeyedRowsLogic, by_text, checked_span
from .graph import Columns
from .schema_check import check_new_name, plan_error

SKIPS = ("past last row", "to next row")


@dataclass(frozen=True, eq=False)
class MatchLogic(KeyedRowsLogic):
    """One row per match."""

    keys: tuple[str, ...]
    pattern: Pattern
    conditions: tuple[tuple[str, ExprLike], ...]
    measures: tuple[tuple[str, str], ...]
    within_ns: int
    skip: Skip
    functions: Any
    location: str
    kind = "match"

    def make(self, schema: pa.Schema) -> Any:
        """The automaton over rows of `schema`."""
        return MatchProcessor(
            self.keys,
            self.pattern,
            dict(self.conditions),
            dict(self.measures),
            self.within_ns,
            self.skip,
            schema,
            self.functions,
            self.kind,
            self.location,
        )

    def reads(self, schema: pa.Schema) -> Columns:
        """What conditions and measures look at."""
        found: Columns = self.make(schema).columns_read
        return found

    def identity(self) -> tuple[str, ...]:
        """All that gives the runs in state their meaning."""
        conditions = "; ".join(f"{name}={by_text(text)}" for name, text in self.conditions)
        measures = "; ".join(f"{name}={text}" for name, text in self.measures)
        facts = (self.pattern.text, conditions, measures, str(self.within_ns), self.skip)
        return (*facts, ", ".join(self.keys))

    def describe(self) -> str:
        """Pattern and key."""
        return f"match {self.pattern.text} by {', '.join(self.keys)}"


def match_logic(
    keys: tuple[str, ...],
    pattern: Any,
    within: Duration,
    define: Mapping[str, ExprLike],
    measures: Mapping[str, str],
    skip: Any,
    functions: Any,
    location: str,
) -> MatchLogic:
    """The node; raises PlanError of the user's line."""
    who = "match"
    if not isinstance(pattern, str):
        raise plan_error(who, f"{pattern!r} is not a pattern", location, 'Write  "a b+ c?"')
    if skip not in SKIPS:
        raise plan_error(who, f"skip={skip!r}; there are {', '.join(SKIPS)}", location)
    for name, text in measures.items():
        check_new_name(name, who, location)
        if not isinstance(text, str):
            raise plan_error(who, f"the measure {name}={text!r} is not text", location)
    parsed = parse_pattern(pattern, who, location)
    within_ns = checked_span(within, f"{who}(within=)", location)
    conditions = tuple(define.items())
    return MatchLogic(
        keys, parsed, conditions, tuple(measures.items()), within_ns, skip, functions, location
    )
