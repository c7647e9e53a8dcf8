"""Checks an expression when a pipeline is built: names, types, that it works row by row.

Promises: what passes here fails at run time only for values (overflow, bad casts, errors in user
functions). Errors are PlanErrors that show the expression and where in it the fault is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from penstock.elements.conform import plain_type
from penstock.elements.errors import EngineError, PlanError

from .complaint import complaint, described, nearest
from .cursor import SyntaxFault
from .expression import ExprLike, as_expr
from .failures import reason_of
from .functions import NONE, Functions
from .parser import parse
from .resolve import Resolver
from .session import Session
from .syntax import Node, render
from .types import type_text


@dataclass(frozen=True)
class CheckedExpression:
    """`sql` is canonical: exact quoted names, values in place; it can be checked again."""

    sql: str
    type: pa.DataType
    nullable: bool
    columns_read: tuple[str, ...]
    tree: Node
    """The resolved tree, for analysis; its positions are those of the text as written."""

    @property
    def column(self) -> str | None:
        """The name of the column, if the expression is a column and nothing else."""
        node = self.tree
        while node.kind == "pieces" and node.name == "paren":
            node = node.children[0]
        return node.name if node.kind == "column" else None


class Checker:
    """Checks expressions against one schema; the session behind it is opened when needed."""

    def __init__(self, schema: pa.Schema, functions: Functions = NONE) -> None:
        self.schema = schema
        self.functions = functions
        self._session: Session | None = None

    @property
    def session(self) -> Session:
        """A session for planning, in the process of whoever builds the pipeline."""
        if self._session is None:
            self._session = Session(self.schema, self.functions)
        return self._session

    def check(
        self, expression: ExprLike, who: str = "expression", location: str = ""
    ) -> CheckedExpression:
        """The expression, understood; raises PlanError."""
        given = as_expr(expression)
        try:
            written = parse(given.text)
        except SyntaxFault as fault:
            span = (fault.start, fault.end)
            raise complaint(who, location, fault.reason, given.text, span) from None
        resolver = Resolver(given, self.schema, self.functions, who, location)
        tree = resolver.resolve(written)
        _refuse_aggregate_syntax(tree, resolver)
        read = {node.name for node in tree.walk() if node.kind == "column"}
        columns = tuple(name for name in self.schema.names if name in read)
        sql = render(tree)
        field = self._plan(tree, sql, resolver)
        return CheckedExpression(sql, plain_type(field.type), field.nullable, columns, tree)

    def types(self, nodes: Sequence[Node]) -> Mapping[int, pa.DataType]:
        """id(node) -> type, for nodes of checked trees."""
        if not nodes:
            return {}
        items = {f"c{at}": render(node) for at, node in enumerate(nodes)}
        schema, _ = self.session.plan(items)
        return {id(node): field.type for node, field in zip(nodes, schema, strict=True)}

    def _plan(self, tree: Node, sql: str, resolver: Resolver) -> pa.Field:
        if tree.kind == "column":
            return self.schema.field(tree.name)
        try:
            schema, scalar = self.session.plan({"x": sql})
        except Exception as error:
            raise self._planning_fault(tree, error, resolver) from None
        except BaseException as error:  # a panic of the engine is not an Exception
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
            raise EngineError(f"planning {sql} panicked: {error}") from error
        if not scalar:
            raise resolver.fault(
                tree,
                "this does not work row by row",
                "aggregates belong into aggregate(…), queries into p.sql(…)",
            )
        if pa.types.is_null(schema.field(0).type):
            raise resolver.fault(
                tree, "this has no type", "write which: cast(NULL AS double), for example"
            )
        return schema.field(0)

    def _planning_fault(self, tree: Node, error: Exception, resolver: Resolver) -> PlanError:
        """Point at the smallest part that fails by itself."""
        worst = tree
        reason = reason_of(error)
        for node in reversed(list(tree.walk())):
            try:
                self.session.plan({"x": render(node)})
            except Exception as inner:
                worst, reason = node, reason_of(inner)
                break
        advice = ""
        if worst.kind == "call" and "Invalid function" in reason:
            reason = f"no function {worst.name}()"
            near = nearest(worst.name, [f.name for f in self.functions])
            advice = f"did you mean {near}()?" if near else "Python functions: p.register(…) first"
        fault = resolver.fault(worst, reason, advice)
        used = {node.name for node in worst.walk() if node.kind == "column"}
        if used and not advice:
            shown = pa.schema([field for field in self.schema if field.name in used])
            return PlanError(f"{fault}\n  types: {described(shown)}")
        return fault


def _refuse_aggregate_syntax(tree: Node, resolver: Resolver) -> None:
    for node in tree.walk():
        if node.kind == "call" and (node.star or node.distinct or node.where is not None):
            raise resolver.fault(
                node, "this does not work row by row", "aggregates belong into aggregate(…)"
            )


def check(
    expression: ExprLike,
    schema: pa.Schema,
    functions: Functions = NONE,
    who: str = "expression",
    location: str = "",
) -> CheckedExpression:
    """Check one expression against `schema`; raises PlanError that names `who` and `location`."""
    return Checker(schema, functions).check(expression, who, location)


def check_condition(
    expression: ExprLike,
    schema: pa.Schema,
    functions: Functions = NONE,
    who: str = "filter",
    location: str = "",
) -> CheckedExpression:
    """Check an expression that must be true or false."""
    checked = check(expression, schema, functions, who, location)
    require_condition(checked, as_expr(expression).text, who, location)
    return checked


def require_condition(checked: CheckedExpression, text: str, who: str, location: str) -> None:
    """Raise PlanError unless the expression is of type bool."""
    if not pa.types.is_boolean(checked.type):
        raise complaint(
            who,
            location,
            f"a condition is needed, but this is {type_text(checked.type)}",
            text,
            (0, len(text)),
        )
