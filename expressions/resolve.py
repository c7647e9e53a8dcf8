"""Gives every name of a tree its meaning: columns exactly, values as literals, functions.

Identifiers match exactly, else by one case-insensitive match, quoted or not. `event_time()`
reads the event time; functions that read the clock are refused, for a replay must see what the
first run saw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from penstock.elements.errors import PlanError
from penstock.elements.signals import TIME_COLUMN

from .complaint import ambiguous_column, complaint, no_column
from .expression import Expr, literal
from .functions import Functions
from .syntax import Node

_CLOCK_WORDS = "now today current_timestamp current_date current_time localtime localtimestamp"
_CLOCKS = frozenset(_CLOCK_WORDS.split())
_ZONED_DATE_WORDS = _CLOCKS - {"now", "today"}
_EVENT_TIME = "event_time"
_NOT_SCALAR = {
    "unnest": "makes several rows of one: use p.sql(…) or an operator",
    "exists": "is a query: use p.sql(…)",
}


def match_name(name: str, names: Sequence[str]) -> list[str]:
    """`name` itself if it is there, else all that differ in case only."""
    if name in names:
        return [name]
    return [each for each in names if each.lower() == name.lower()]


@dataclass(frozen=True)
class Resolver:
    """Names in the light of one schema and its functions; errors say where they stand."""

    expression: Expr
    schema: pa.Schema
    functions: Functions
    who: str
    location: str

    def resolve(self, node: Node) -> Node:
        """The tree with exact names and literal values. Requires: `node` is of the expression."""
        if node.kind == "column":
            return self._column(node)
        if node.kind == "param":
            return self._param(node)
        if node.kind == "call" or (node.kind == "pieces" and node.name == "in param"):
            return self._call(node) if node.kind == "call" else self._in_list(node)
        children = tuple(self.resolve(child) for child in node.children)
        return replace(node, children=children) if children != node.children else node

    def fault(self, node: Node, reason: str, advice: str = "") -> PlanError:
        """An error that points at `node`."""
        span = (node.start, node.end)
        text = self.expression.text
        return complaint(self.who, self.location, reason, text, span, advice=advice)

    def _column(self, node: Node) -> Node:
        matches = match_name(node.name, self.schema.names)
        span = (node.start, node.end)
        text = self.expression.text
        if len(matches) == 1:
            return node if matches[0] == node.name else replace(node, name=matches[0])
        if matches:
            raise ambiguous_column(self.who, self.location, node.name, text, span, matches)
        if not node.quoted and node.name.lower() in _ZONED_DATE_WORDS:
            raise self._clock(node)
        raise no_column(self.who, self.location, node.name, node.quoted, text, span, self.schema)

    def _clock(self, node: Node) -> PlanError:
        return self.fault(
            node,
            f"{node.name} would give other results when rows are replayed",
            "event_time() is the row's own time; in a Python operator ctx.now() is the clock",
        )

    def _value(self, node: Node) -> object:
        try:
            return self.expression.value(node.name)
        except KeyError:
            given = ", ".join(f"${name}" for name, _ in self.expression.params) or "none"
            raise self.fault(
                node,
                f"no value for ${node.name} (given: {given})",
                f'write ps.expr("…", {node.name}=…)',
            ) from None

    def _param(self, node: Node) -> Node:
        value = self._value(node)
        if isinstance(value, tuple):
            raise self.fault(node, f"${node.name} is a list, which may only follow IN")
        return Node("literal", literal(value, f"${node.name}"), node.start, node.end)

    def _in_list(self, node: Node) -> Node:
        left, param = node.children
        values = self._value(param)
        if values == ():
            raise self.fault(param, f"${param.name} is an empty list, which matches nothing")
        texts = [
            literal(each, f"${param.name}")
            for each in (values if isinstance(values, tuple) else (values,))
        ]
        items = tuple(Node("literal", text, param.start, param.end) for text in texts)
        parts = ("(", f"{node.parts[1]}(", *([", "] * (len(items) - 1)), "))")
        return replace(node, name="in", children=(self.resolve(left), *items), parts=parts)

    def _call(self, node: Node) -> Node:
        lower = node.name.lower()
        if lower == _EVENT_TIME:
            return self._event_time(node)
        if lower in _CLOCKS:
            raise self._clock(node)
        if lower in _NOT_SCALAR:
            raise self.fault(node, f"{lower} {_NOT_SCALAR[lower]}")
        children = tuple(self.resolve(child) for child in node.children)
        where = self.resolve(node.where) if node.where is not None else None
        ours = self.functions.find(node.name)
        if ours is not None:
            return replace(node, name=ours.name, quoted=True, children=children, where=where)
        # SQL's own functions have lower-case names, also when they were written in quotes.
        return replace(node, name=lower, quoted=False, children=children, where=where)

    def _event_time(self, node: Node) -> Node:
        if node.children:
            raise self.fault(node, "event_time() takes no arguments")
        if TIME_COLUMN not in self.schema.names:
            raise self.fault(
                node,
                "the stream has no event time",
                'say it where it is read:  p.source(..., event_time="ts", out_of_order="1 hour")',
            )
        return Node("column", TIME_COLUMN, node.start, node.end)
