"""What `aggregate(worst="max(dep_delay)", share="sum(a) / count(*)")` means, checked when planning.

Each item is an expression over calls of aggregates, or an object of a user's class; equal calls
are computed once. An argument is any SQL expression over the rows; `FILTER (WHERE …)` and
`DISTINCT` are understood. What computes a call is chosen in aggregate_calls.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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

from .accumulators import Accumulator, Count
from .aggregate_calls import (
    ALIASES,
    FRACTIONS,
    FUNCTIONS,
    KEEP_NULLS,
    PAIRS,
    AggregateCall,
    Found,
    Maker,
    Packed,
    usage,
)
from .aggregate_classes import AggregateClass, AggregateItem, checked_class
from .argument_failures import evaluated
from .multisets import Multiset

__all__ = ["FUNCTIONS", "AggregateCall", "Aggregation"]


class Aggregation:
    """The checked items of one aggregate(…). Travels by pickle.

    `arguments` computes the argument columns from rows; `results` are the fields of the items.
    """

    def __init__(
        self,
        items: Mapping[str, AggregateItem],
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
        finals = [(name, reading.item(item)) for name, item in items.items()]
        self.arguments: Projection | None = reading.arguments()
        self.calls: tuple[AggregateCall, ...] = tuple(reading.calls())
        self._packs: tuple[Packed, ...] = tuple(reading.packs)
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
        if self.arguments is None:
            return []
        columns = evaluated(self.arguments, batch, self._who, self._location)
        return [*columns, *(pack.pack(columns) for pack in self._packs)]

    @property
    def argument_kinds(self) -> list[pa.DataType]:
        """Their types."""
        kinds = [] if self.arguments is None else self.arguments.schema.types
        return [*kinds, *(pack.kind(kinds) for pack in self._packs)]

    def finish(self, calculated: Sequence[pa.Array]) -> list[pa.Array]:
        """The items' columns from those of the calls, in the order of `calls`."""
        batch = pa.RecordBatch.from_arrays(list(calculated), schema=self._calculated)
        return evaluated(self._finals, batch, self._who, self._location)


class _Reading:
    """Collects calls, arguments and multisets while the items are read."""

    def __init__(self, schema: pa.Schema, functions: Functions, who: str, location: str) -> None:
        self._schema, self._functions = schema, functions
        self._who, self._location = who, location
        self._found: list[Found] = []
        self._texts: list[str] = []
        self._arguments: dict[tuple[str, tuple[tuple[str, object], ...]], int] = {}
        self.packs: list[Packed] = []
        self.multisets: list[Multiset] = []
        self._projection: Projection | None = None

    def item(self, item: AggregateItem) -> ExprLike:
        """The item with its calls replaced by the columns of their results."""
        if isinstance(item, AggregateClass):
            return f'"__a{self._class(checked_class(item, self._who, self._location))}"'
        given = as_expr(item)
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
            what = f"{tree.name}() is no aggregate" if tree.kind == "call" else "no aggregate in it"
            raise self._fault(f"{what}; there are {choice}", given, tree.start, tree.end)
        return Expr(text, given.params)

    def _class(self, item: AggregateClass) -> int:
        columns = tuple(self._argument(each.text, each.params) for each in item._columns)
        where = None
        if item._where is not None:
            where = self._argument(_kept(item._where.text), item._where.params)
        self._found.append(Found("", columns, where, item=item))
        self._texts.append(item.text)
        return len(self._found) - 1

    def _argument(self, text: str, params: tuple[tuple[str, object], ...]) -> int:
        return self._arguments.setdefault((text, params), len(self._arguments))

    def _call(self, name: str, node: Node, given: Expr) -> int:
        arguments = list(node.children)
        if node.distinct and name in ("first", "last", "quantile", "median", "approx_quantile"):
            raise self._fault(f"{name}(DISTINCT …) is not there", given, node.start, node.end)
        distinct = node.distinct
        if name == "count" and distinct:
            name, distinct = "count_distinct", False
        constant = self._constant(name, node, arguments, given)
        expected = 2 if name in PAIRS else 1
        if name == "count" and (node.star or not arguments):
            expected = 0
        if len(arguments) != expected:
            raise self._fault(f"write {usage(name)}", given, node.start, node.end)
        for child in arguments:
            if any(_function(inner) for inner in child.walk()):
                raise self._fault("an aggregate inside an aggregate", given, child.start, child.end)
        columns, where = self._columns(name, node, arguments, given)
        found = Found(name, columns, where, distinct, constant)
        if found in self._found:
            return self._found.index(found)
        self._found.append(found)
        self._texts.append(_source(given, node))
        return len(self._found) - 1

    def _columns(
        self, name: str, node: Node, arguments: list[Node], given: Expr
    ) -> tuple[tuple[int, ...], int | None]:
        """The argument columns, and the one that says which rows count, where that is apart."""
        texts = [_source(given, child) for child in arguments]
        where = None
        if node.where is not None:
            condition = _source(given, node.where)
            if name in KEEP_NULLS:
                where = self._argument(_kept(condition), given.params)
            else:
                last = texts.pop() if texts else "1"
                texts.append(f"CASE WHEN {condition} THEN {last} END")
        return tuple(self._argument(text, given.params) for text in texts), where

    def _constant(
        self, name: str, node: Node, arguments: list[Node], given: Expr
    ) -> float | str | None:
        """Take the argument off that is not a column: a fraction or a separator."""
        if name in FRACTIONS and node.name.lower() == "approx_median":
            return 0.5
        if name in FRACTIONS:
            if len(arguments) != 2:
                raise self._fault(f"write {usage(name)}", given, node.start, node.end)
            return self._fraction(arguments.pop(), given)
        if name == "string_agg" and len(arguments) == 2:
            return self._separator(arguments.pop(), given)
        return None

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

    def _separator(self, node: Node, given: Expr) -> str:
        text: object = None
        if node.kind == "param":
            text = dict(given.params).get(node.name)
        elif node.kind == "literal" and node.name.startswith("'"):
            text = node.name[1:-1].replace("''", "'")
        if not isinstance(text, str):
            raise self._fault("the second argument is a text", given, node.start, node.end)
        return text

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
        maker = Maker(self._who, self._location, TIME_COLUMN in self._schema.names)
        return [
            self._made(maker, text, found)
            for text, found in zip(self._texts, self._found, strict=True)
        ]

    def _made(self, maker: Maker, text: str, found: Found) -> AggregateCall:
        if not found.columns:
            return AggregateCall(text, None, Count(text=text))
        assert self._projection is not None
        kinds = self._projection.schema.types
        mine = [kinds[at] for at in found.columns]
        packed = found.packed
        argument, kind = found.columns[0], mine[0]
        if packed is not None:
            if packed not in self.packs:
                self.packs.append(packed)
            argument, kind = len(kinds) + self.packs.index(packed), packed.kind(kinds)
        reading = maker.reading(text, found, mine)
        if reading is None:
            return AggregateCall(text, argument, maker.accumulator(text, found, mine))
        wanted = Multiset(argument, kind)
        if wanted not in self.multisets:
            self.multisets.append(wanted)
        return AggregateCall(text, argument, None, self.multisets.index(wanted), reading)

    def _fault(self, reason: str, given: Expr, start: int, end: int) -> PlanError:
        return complaint(self._who, self._location, reason, given.text, (start, end))


def _function(node: Node) -> str | None:
    """The canonical name, if the node calls an aggregate."""
    if node.kind != "call":
        return None
    name = ALIASES.get(node.name.lower(), node.name.lower())
    return name if name in FUNCTIONS else None


def _kept(condition: str) -> str:
    """Null where a row is left out."""
    return f"CASE WHEN {condition} THEN TRUE END"


def _source(given: Expr, node: Node) -> str:
    return given.text[node.start : node.end]


def _used(text: str, params: tuple[tuple[str, object], ...]) -> tuple[tuple[str, object], ...]:
    """Those parameters that `text` mentions: an unused one would be refused."""
    names = {node.name for node in parse(text).walk() if node.kind == "param"}
    return tuple((name, value) for name, value in params if name in names)
