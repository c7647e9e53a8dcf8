"""What `aggregate(worst="max(dep_delay)", share="sum(a) / count(*)")` means, checked when planning.

Each item is an expression over calls of aggregates; equal calls are computed once. An argument is
any SQL expression over the rows; `FILTER (WHERE …)` and `count(DISTINCT x)` are understood. The
calls become accumulators (columns) or multisets (rows); see accumulators.py and multisets.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

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

from .accumulators import Accumulator, Average, Count, Edge, Extreme, Spread, Sum
from .multisets import Multiset, MultisetResult

_ALIASES = {
    "mean": "avg",
    "first_value": "first",
    "last_value": "last",
    "var": "var_samp",
    "variance": "var_samp",
    "stddev": "stddev_samp",
    "percentile_cont": "quantile",
    "every": "bool_and",
}
FUNCTIONS = (
    "count", "count_distinct", "sum", "min", "max", "avg", "first", "last", "var_samp", "var_pop",
    "stddev_samp", "stddev_pop", "bool_and", "bool_or", "quantile", "median",
)  # fmt: skip
"""The aggregates there are, beside their other names."""


@dataclass(frozen=True)
class AggregateCall:
    """One call. `argument` is the number of the argument column, None for count(*).

    `multiset` is the number of the multiset it reads; None for accumulators.
    """

    text: str
    argument: int | None
    accumulator: Accumulator | None
    multiset: int | None = None
    reading: MultisetResult | None = None

    @property
    def field(self) -> pa.Field:
        """Type and nullability of the result."""
        if self.accumulator is not None:
            return pa.field(self.text, self.accumulator.result, self.accumulator.nullable)
        assert self.reading is not None
        return pa.field(self.text, self.reading.result, self.reading.nullable)


class Aggregation:
    """The checked items of one aggregate(…). Travels by pickle.

    `arguments` computes the argument columns from rows; `results` are the fields of the items.
    """

    def __init__(
        self,
        items: Mapping[str, ExprLike],
        schema: pa.Schema,
        functions: Functions = NONE,
        who: str = "aggregate",
        location: str = "",
    ) -> None:
        """`schema` is that of the rows; raises PlanError."""
        if not items:
            raise PlanError(f'{who}: nothing to compute; for example  rows="count(*)"  {location}')
        self._who, self._location = who, location
        reading = _Reading(schema, functions, who, location)
        finals = [(name, reading.item(as_expr(text))) for name, text in items.items()]
        self.arguments: Projection | None = reading.arguments()
        self.calls: tuple[AggregateCall, ...] = tuple(reading.calls())
        self.accumulators: tuple[Accumulator, ...] = tuple(
            call.accumulator for call in self.calls if call.accumulator is not None
        )
        self.multisets: tuple[Multiset, ...] = tuple(reading.multisets)
        calculated = pa.schema(
            [call.field.with_name(f"__a{at}") for at, call in enumerate(self.calls)]
        )
        self._finals = Projection(finals, calculated, functions, who=who, location=location)
        self._calculated = calculated
        self.results: pa.Schema = self._finals.schema

    @property
    def columns_read(self) -> tuple[str, ...]:
        """Columns of the rows that the arguments need."""
        return () if self.arguments is None else self.arguments.columns_read

    @property
    def associative(self) -> bool:
        """Whether partial results of several subtasks merge into the right one as columns."""
        return not self.multisets

    @property
    def stored(self) -> list[pa.Field]:
        """The partial columns of all accumulators."""
        return [
            pa.field(f"__p{at}_{part}", kind)
            for at, accumulator in enumerate(self.accumulators)
            for part, kind in enumerate(accumulator.stored)
        ]

    def argument_columns(self, batch: pa.RecordBatch) -> list[pa.Array]:
        """The argument columns of a batch of rows."""
        return [] if self.arguments is None else self.arguments(batch).columns

    def finish(self, calculated: Sequence[pa.Array]) -> list[pa.Array]:
        """The items' columns from those of the calls, in the order of `calls`."""
        batch = pa.RecordBatch.from_arrays(list(calculated), schema=self._calculated)
        columns: list[pa.Array] = self._finals(batch).columns
        return columns


class _Reading:
    """Collects calls, arguments and multisets while the items are read."""

    def __init__(self, schema: pa.Schema, functions: Functions, who: str, location: str) -> None:
        self._schema, self._functions = schema, functions
        self._who, self._location = who, location
        self._found: list[tuple[str, Node, str | None, float | None]] = []
        self._arguments: dict[tuple[str, tuple[tuple[str, object], ...]], int] = {}
        self._argument_of: list[int | None] = []
        self._texts: list[str] = []
        self.multisets: list[Multiset] = []
        self._projection: Projection | None = None

    def item(self, given: Expr) -> ExprLike:
        """The item with its calls replaced by the columns of their results."""
        try:
            tree = parse(given.text)
        except SyntaxFault as fault:
            raise self._fault(fault.reason, given, fault.start, fault.end) from None
        seen = 0

        def replace(node: Node) -> str | None:
            nonlocal seen
            name = _function(node)
            if name is None:
                return None
            seen += 1
            return f'"__a{self._call(name, node, given)}"'

        text = render(tree, replace)
        if not seen:
            choice = ", ".join(FUNCTIONS)
            raise self._fault(
                f"no aggregate in it; there are {choice}", given, tree.start, tree.end
            )
        return Expr(text, given.params)

    def _call(self, name: str, node: Node, given: Expr) -> int:
        arguments = list(node.children)
        if node.distinct and name != "count":
            raise self._fault(f"{name}(DISTINCT …) is not there", given, node.start, node.end)
        if name == "count" and node.distinct:
            name = "count_distinct"
        fraction = None
        if name == "quantile" and len(arguments) == 2:
            fraction = self._fraction(arguments.pop(), given)
        expected = 0 if name == "count" and (node.star or not arguments) else 1
        if len(arguments) != expected or (name == "quantile" and fraction is None):
            usage = "quantile(x, 0.99)" if name == "quantile" else f"{name}(x)"
            raise self._fault(f"write {usage}", given, node.start, node.end)
        for child in arguments:
            if any(_function(inner) for inner in child.walk()):
                raise self._fault("an aggregate inside an aggregate", given, child.start, child.end)
        argument = _source(given, arguments[0]) if arguments else None
        if node.where is not None:
            condition = _source(given, node.where)
            argument = f"CASE WHEN {condition} THEN {argument or '1'} END"
        number = None
        if argument is not None:
            key = (argument, given.params)
            number = self._arguments.setdefault(key, len(self._arguments))
        for at, (other, _, _, q) in enumerate(self._found):
            if (other, q, self._argument_of[at]) == (name, fraction, number):
                return at
        self._found.append((name, node, argument, fraction))
        self._argument_of.append(number)
        self._texts.append(_source(given, node))
        return len(self._found) - 1

    def _fraction(self, node: Node, given: Expr) -> float:
        try:
            text = given.value(node.name) if node.kind == "param" else _source(given, node)
            fraction = float(text)
        except (ValueError, TypeError, KeyError):
            fraction = -1.0
        if not 0 <= fraction <= 1:
            raise self._fault(
                "the second argument is a number from 0 to 1", given, node.start, node.end
            )
        return fraction

    def arguments(self) -> Projection | None:
        """One projection for all arguments."""
        if self._arguments:
            named = [
                (f"a{at}", Expr(text, _used(text, params)))
                for (text, params), at in self._arguments.items()
            ]
            self._projection = Projection(
                named, self._schema, self._functions, who=self._who, location=self._location
            )
        return self._projection

    def calls(self) -> list[AggregateCall]:
        """The calls, once their arguments have types."""
        made = []
        for text, (name, _, _, fraction), at in zip(
            self._texts, self._found, self._argument_of, strict=True
        ):
            if at is None:
                made.append(AggregateCall(text, None, Count(text=text)))
                continue
            assert self._projection is not None
            kind = self._projection.schema.field(at).type
            if name in ("count_distinct", "quantile", "median"):
                made.append(self._multiset_call(text, name, at, kind, fraction))
            else:
                made.append(AggregateCall(text, at, self._accumulator(text, name, kind)))
        return made

    def _multiset_call(
        self, text: str, name: str, argument: int, kind: pa.DataType, fraction: float | None
    ) -> AggregateCall:
        if name != "count_distinct" and not _is_number(kind):
            raise self._unfit(text, kind, "numbers")
        if pa.types.is_nested(kind):
            raise self._unfit(text, kind, "plain values")
        if not any(each.argument == argument for each in self.multisets):
            self.multisets.append(Multiset(argument, kind))
        at = next(i for i, each in enumerate(self.multisets) if each.argument == argument)
        if name == "count_distinct":
            return AggregateCall(text, argument, None, at, MultisetResult("distinct"))
        found = MultisetResult("quantile", 0.5 if fraction is None else fraction)
        return AggregateCall(text, argument, None, at, found)

    def _accumulator(self, text: str, name: str, kind: pa.DataType) -> Accumulator:
        if name == "count":
            return Count(text=text)
        if name in ("sum", "avg"):
            total = Sum(text=text, kind=self._total_kind(text, kind))
            return total if name == "sum" else Average(text=text, total=total)
        if name in _SPREADS:
            if not _is_number(kind):
                raise self._unfit(text, kind, "numbers")
            sample, root = _SPREADS[name]
            return Spread(text=text, sample=sample, root=root)
        if name in ("bool_and", "bool_or"):
            if not pa.types.is_boolean(kind):
                raise self._unfit(text, kind, "booleans")
            return Extreme(text=text, kind=kind, least=name == "bool_and")
        if pa.types.is_nested(kind):
            raise self._unfit(text, kind, "plain values")
        if name in ("first", "last"):
            if TIME_COLUMN not in self._schema.names:
                raise PlanError(
                    f"{self._who}: {text} needs event time, which says what is {name}"
                    f"  {self._location}".rstrip()
                )
            return Edge(text=text, kind=kind, first=name == "first")
        return Extreme(text=text, kind=kind, least=name == "min")

    def _total_kind(self, text: str, kind: pa.DataType) -> pa.DataType:
        if pa.types.is_decimal(kind):
            if kind.bit_width > 128:
                raise self._unfit(text, kind, "decimals of up to 38 digits")
            return pa.decimal128(38, kind.scale)
        if pa.types.is_floating(kind):
            return pa.float64()
        if kind == pa.uint64():
            return pa.uint64()
        if pa.types.is_integer(kind):
            return pa.int64()
        raise self._unfit(text, kind, "numbers")

    def _unfit(self, text: str, kind: pa.DataType, wanted: str) -> PlanError:
        return PlanError(
            f"{self._who}: {text} takes {wanted}, not {type_text(kind)}  {self._location}".rstrip()
        )

    def _fault(self, reason: str, given: Expr, start: int, end: int) -> PlanError:
        return complaint(self._who, self._location, reason, given.text, (start, end))


_SPREADS = {
    "var_samp": (True, False),
    "var_pop": (False, False),
    "stddev_samp": (True, True),
    "stddev_pop": (False, True),
}


def _function(node: Node) -> str | None:
    """The canonical name, if the node calls an aggregate."""
    if node.kind != "call":
        return None
    name = _ALIASES.get(node.name.lower(), node.name.lower())
    return name if name in FUNCTIONS else None


def _source(given: Expr, node: Node) -> str:
    return given.text[node.start : node.end]


def _used(text: str, params: tuple[tuple[str, object], ...]) -> tuple[tuple[str, object], ...]:
    """Those parameters that `text` mentions: an unused one would be refused."""
    names = {node.name for node in parse(text).walk() if node.kind == "param"}
    return tuple((name, value) for name, value in params if name in names)


def _is_number(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind))
