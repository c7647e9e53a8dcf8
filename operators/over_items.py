"""What `over().with_columns(before="lag(price)", mean="avg(price)")` means, checked when planning.

Each item is an expression over the row's columns and calls of FUNCTIONS. A call looks at the rows
of the key up to this one (or at the `preceding` ones before it), lag and lead at single rows. Nulls
count as in SQL: aggregates leave them out, lag, lead, first and last do not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.types as pt

from penstock.elements.changelog import HIDDEN
from penstock.elements.errors import PlanError
from penstock.elements.signals import TIME_COLUMN
from penstock.expressions.complaint import complaint
from penstock.expressions.cursor import SyntaxFault
from penstock.expressions.expression import Expr, ExprLike, as_expr
from penstock.expressions.functions import NONE, Functions
from penstock.expressions.parser import parse
from penstock.expressions.projection import Projection
from penstock.expressions.syntax import Node, render
from penstock.expressions.types import type_text

from .argument_failures import evaluated

FUNCTIONS = ("lag", "lead", "row_number", "count", "sum", "min", "max", "avg", "first", "last")
_WITHOUT_ARGUMENT = ("row_number", "count")
ROWS_AWAY_MAX = 10_000
"""How far lag, lead and `preceding` may reach."""


@dataclass(frozen=True)
class OverCall:
    """One call. `argument` is an index into the arguments; `away` is that of lag and lead."""

    function: str
    argument: int | None
    away: int
    kind: pa.DataType

    @property
    def nullable(self) -> bool:
        """Counts are never null."""
        return self.function not in _WITHOUT_ARGUMENT


class OverItems:
    """The calls in some items over rows of `schema`, and what is computed of their results."""

    def __init__(
        self,
        items: Mapping[str, ExprLike],
        schema: pa.Schema,
        functions: Functions = NONE,
        who: str = "over",
        location: str = "",
    ) -> None:
        self._schema, self._who, self._location = schema, who, location
        self._found: list[tuple[str, Expr | None, int, str]] = []
        finals = [(name, self._item(as_expr(text))) for name, text in items.items()]
        if not finals:
            raise PlanError(f"{who}: no column is given  {location}".rstrip())
        texts = list(dict.fromkeys(expr for _, expr, _, _ in self._found if expr is not None))
        named = [(f"a{at}", expr) for at, expr in enumerate(texts)]
        self.arguments: Projection | None = None
        if named:
            self.arguments = Projection(named, schema, functions, who=who, location=location)
        self.calls = [self._call(*found, texts) for found in self._found]
        results = [
            pa.field(f"__o{at}", call.kind, call.nullable) for at, call in enumerate(self.calls)
        ]
        self.seen = pa.schema([*schema, *results])
        """What the items see: the row and the results of the calls."""
        self._finals = Projection(finals, self.seen, functions, who=who, location=location)
        self.out_schema = self._out_schema()
        read = set(self._finals.columns_read)
        if self.arguments is not None:
            read |= set(self.arguments.columns_read)
        self.columns_read = frozenset(read & set(schema.names)) - HIDDEN

    def _out_schema(self) -> pa.Schema:
        made = {field.name: field for field in self._finals.schema}
        fields = [made.pop(f.name, f) for f in self._schema if f.name != TIME_COLUMN]
        return pa.schema([*fields, *made.values(), self._schema.field(TIME_COLUMN)])

    def argument_columns(self, batch: pa.RecordBatch) -> list[pa.Array]:
        """The arguments of the calls, for rows of the input."""
        if self.arguments is None:
            return []
        return evaluated(self.arguments, batch, self._who, self._location)

    def argument_kinds(self) -> list[pa.DataType]:
        """Their types."""
        return [] if self.arguments is None else list(self.arguments.schema.types)

    def finish(
        self, rows: pa.RecordBatch, results: Sequence[pa.Array], times: pa.Array
    ) -> pa.RecordBatch:
        """Result rows, which may have later times than the rows they are made of."""
        seen = pa.RecordBatch.from_arrays([*rows.columns, *results], schema=self.seen)
        finals = evaluated(self._finals, seen, self._who, self._location)
        made = dict(zip(self._finals.schema.names, finals, strict=True))
        made[TIME_COLUMN] = times
        columns = [
            made[name] if name in made else rows.column(name) for name in self.out_schema.names
        ]
        return pa.RecordBatch.from_arrays(columns, schema=self.out_schema)

    def _item(self, given: Expr) -> Expr:
        try:
            tree = parse(given.text)
        except SyntaxFault as fault:
            raise self._fault(fault.reason, given, fault.start, fault.end) from None
        text = render(tree, lambda node: self._replaced(node, given))
        return _with_used(text, given)

    def _replaced(self, node: Node, given: Expr) -> str | None:
        name = node.name.lower() if node.kind == "call" else ""
        if name not in FUNCTIONS:
            return None
        arguments = list(node.children)
        for child in arguments:
            if any(n.kind == "call" and n.name.lower() in FUNCTIONS for n in child.walk()):
                raise self._fault(f"a call inside {name}()", given, child.start, child.end)
        if node.distinct or node.where is not None:
            raise self._fault(f"{name}() knows no DISTINCT or FILTER", given, node.start, node.end)
        away = 0
        if name in ("lag", "lead"):
            away = self._away(arguments.pop(), given) if len(arguments) == 2 else 1
        bare = name in _WITHOUT_ARGUMENT and (node.star or not arguments)
        if not bare and (len(arguments) != 1 or name == "row_number"):
            usage = {"row_number": "row_number()", "lag": "lag(x) or lag(x, 2)"}
            raise self._fault(f"write {usage.get(name, f'{name}(x)')}", given, node.start, node.end)
        argument = None
        if not bare:
            child = arguments[0]
            argument = _with_used(given.text[child.start : child.end], given)
        shown = given.text[node.start : node.end]
        found = (name, argument, away, shown)
        if found not in self._found:
            self._found.append(found)
        return f'"__o{self._found.index(found)}"'

    def _away(self, node: Node, given: Expr) -> int:
        text = given.text[node.start : node.end]
        if not text.isdigit() or not 0 < int(text) <= ROWS_AWAY_MAX:
            reason = f"the second argument is a number of rows, 1 to {ROWS_AWAY_MAX}"
            raise self._fault(reason, given, node.start, node.end)
        return int(text)

    def _call(
        self, name: str, argument: Expr | None, away: int, shown: str, texts: list[Expr]
    ) -> OverCall:
        if argument is None:
            return OverCall(name, None, away, pa.int64())
        assert self.arguments is not None
        at = texts.index(argument)
        kind = self.arguments.schema.field(at).type
        if name == "count":
            return OverCall(name, at, away, pa.int64())
        if name in ("sum", "avg"):
            total = _total_kind(kind)
            if total is None:
                raise PlanError(
                    f"{self._who}: {shown} takes numbers, not {type_text(kind)}"
                    f"  {self._location}".rstrip()
                )
            return OverCall(name, at, away, pa.float64() if name == "avg" else total)
        if name in ("min", "max") and pt.is_nested(kind):
            raise PlanError(
                f"{self._who}: {shown} takes plain values, not {type_text(kind)}"
                f"  {self._location}".rstrip()
            )
        return OverCall(name, at, away, kind)

    def _fault(self, reason: str, given: Expr, start: int, end: int) -> PlanError:
        return complaint(self._who, self._location, reason, given.text, (start, end))


def _total_kind(kind: pa.DataType) -> pa.DataType | None:
    if pt.is_decimal128(kind):
        return pa.decimal128(38, kind.scale)
    if pt.is_floating(kind):
        return pa.float64()
    if pt.is_integer(kind):
        return pa.int64()
    return None


def _with_used(text: str, given: Expr) -> Expr:
    """`text` with those parameters that it mentions: an unused one would be refused."""
    names = {node.name for node in parse(text).walk() if node.kind == "param"}
    return Expr(text, tuple((name, value) for name, value in given.params if name in names))
