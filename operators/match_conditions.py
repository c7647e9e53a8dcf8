"""What the conditions of `match` say of rows matched before: `price < last(down.price)`.

1. A condition is split at its ANDs. Parts without references are columns of the batch, as items of
   `over` are; what refers to matched rows is left to match_memory, for rows that passed the others.
2. Of a step without rows yet count is 0 and all others are null. A row that is tried as a step is
   not among the rows of that step.
3. A reference that could never find a row is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from penstock.elements.errors import PlanError
from penstock.expressions.analysis import all_of, conjuncts, may_fail
from penstock.expressions.check import Checker
from penstock.expressions.complaint import complaint, no_column
from penstock.expressions.cursor import SyntaxFault
from penstock.expressions.expression import Expr, ExprLike, as_expr
from penstock.expressions.functions import Functions
from penstock.expressions.lexer import quote_name
from penstock.expressions.parser import parse
from penstock.expressions.resolve import match_name
from penstock.expressions.syntax import Node, render

from .match_pattern import Pattern
from .over_items import FUNCTIONS as OVER_FUNCTIONS

FUNCTIONS = ("first", "last", "min", "max", "sum", "avg", "count")
PASSES = "__is_"
"""Before the name of a step: what its condition says without looking at matched rows."""


@dataclass(frozen=True)
class Reference:
    """`function` over the rows matched as `variable`; `column` is one of the batch, or none."""

    function: str
    variable: str
    column: str | None
    shown: str


@dataclass(frozen=True)
class Referring:
    """What is left of a condition: its references and what it takes from the row by name."""

    text: Expr
    references: tuple[Reference, ...]
    computed: tuple[tuple[str, str], ...]
    """(how the text calls it, column of the batch) of calls of lag() and the like."""


class Conditions:
    """`items` are for `over`; `referring` is what is left of conditions that refer."""

    def __init__(
        self,
        pattern: Pattern,
        conditions: Mapping[str, ExprLike],
        schema: pa.Schema,
        functions: Functions,
        who: str,
        location: str,
    ) -> None:
        self._pattern, self._schema = pattern, schema
        self._who, self._location = who, location
        self._checker = Checker(schema, functions)
        self._steps = pattern.variables
        self.items: dict[str, ExprLike] = {}
        self.referring: dict[str, Referring] = {}
        for name in self._steps:
            if name not in conditions:
                continue  # Any row.
            given = as_expr(conditions[name])
            try:
                tree = parse(given.text)
            except SyntaxFault as fault:
                span = (fault.start, fault.end)
                raise complaint(who, location, fault.reason, given.text, span) from None
            self._check_names(tree, given)
            if self._refers(tree):
                self._split(name, given, conjuncts(tree))
            else:
                self.items[PASSES + name] = given
        self.passes = [name for name in self._steps if PASSES + name in self.items]
        """Steps with a condition that is known for every row."""
        self.columns_read = self._columns_read()

    def _columns_read(self) -> frozenset[str]:
        """Columns of the input that references name, beside what `items` read."""
        known = self._schema.names
        references = [each for said in self.referring.values() for each in said.references]
        return frozenset(r.column for r in references if r.column is not None and r.column in known)

    def _split(self, name: str, given: Expr, parts: Sequence[Node]) -> None:
        """Parts in front of all that refer come first anyway, others if they cannot fail."""
        before: list[Node] = []
        behind: list[Node] = []
        for part in parts:
            if self._refers(part) or (behind and not self._harmless(part, given)):
                behind.append(part)
            else:
                before.append(part)
        if before:
            self.items[PASSES + name] = _with_used(render(all_of(before)), given)
        references: dict[str, Reference] = {}
        computed: dict[str, str] = {}

        def named(node: Node) -> str | None:
            if self._is_reference(node):
                found = self._reference(name, node, given)
                self._check_free(found.shown, node, given)
                references[found.shown] = found
                return quote_name(found.shown)
            if _is_over(node):
                shown = given.text[node.start : node.end]
                self._check_free(shown, node, given)
                computed[shown] = self._item(_with_used(render(node), given))
                return quote_name(shown)
            return None

        text = _with_used(render(all_of(behind), named), given)
        self.referring[name] = Referring(text, tuple(references.values()), tuple(computed.items()))

    def _refers(self, part: Node) -> bool:
        return any(self._is_reference(node) for node in part.walk())

    def _harmless(self, part: Node, given: Expr) -> bool:
        """Whether it may be computed for rows that the parts before it keep away."""
        if any(_is_over(node) for node in part.walk()):
            return False
        text = _with_used(render(part), given)
        checked = self._checker.check(text, self._who, self._location)
        return not may_fail(checked.tree, self._checker)

    def _item(self, text: Expr) -> str:
        for name, known in self.items.items():
            if known == text and not name.startswith(PASSES):
                return name
        name = f"__row{len(self.items)}"
        self.items[name] = text
        return name

    def _check_names(self, tree: Node, given: Expr) -> None:
        """Dots belong to steps or to columns, and steps are seen through FUNCTIONS."""
        for node in tree.walk():
            if node.kind == "pieces" and node.name == "field" and node.children[0].kind == "column":
                name = node.children[0].name
                if name not in self._steps and not match_name(name, self._schema.names):
                    reason = f'no step and no column is called "{name}"'
                    known = f"the pattern has {', '.join(self._steps)}"
                    raise self._fault(reason, node, given, known)
            of_rows = _is_over(node) and node.name.lower() not in FUNCTIONS
            if of_rows and any(self._step_of(each) is not None for each in node.walk()):
                reason = f"{node.name}() goes by the rows of the key, not of a step"
                raise self._fault(reason, node, given, f"of a step: {', '.join(FUNCTIONS)}")

    # References --------------------------------------------------------------------------------

    def _is_reference(self, node: Node) -> bool:
        """Whether it is `step.column`, `count(step)`, or a function of what a step's rows have."""
        if node.kind == "call" and node.name.lower() in FUNCTIONS:
            if any(self._step_of(each) is not None for each in node.walk()):
                return True
            child = node.children[0] if len(node.children) == 1 else None
            if child is None or child.kind != "column" or child.name not in self._steps:
                return False
            # A column of this name stays what it is.
            return child.name not in self._schema.names
        return self._step_of(node) is not None

    def _step_of(self, node: Node) -> str | None:
        """The step of `step.column`."""
        if node.kind != "pieces" or node.name != "field" or node.children[0].kind != "column":
            return None
        name = node.children[0].name
        if name in self._schema.names and pa.types.is_struct(self._schema.field(name).type):
            # A field of that column, as without any step of its name.
            return None
        return name if name in self._steps else None

    def _reference(self, tried: str, node: Node, given: Expr) -> Reference:
        """The reference in the condition of `tried`; raises PlanError."""
        function = node.name.lower() if node.kind == "call" else "last"
        argument = node
        if node.kind == "call":
            if node.distinct or node.where is not None:
                raise self._fault(
                    f"{function}() of a step knows no DISTINCT or FILTER", node, given
                )
            if len(node.children) != 1:
                advice = ""
                if function == "last":
                    advice = "the row at hand is no part of it: last(x.c) is LAST(x.c, 1) elsewhere"
                reason = f"{function}() of a step takes one argument"
                raise self._fault(reason, node, given, advice)
            argument = node.children[0]
        shown = given.text[node.start : node.end]
        if argument.kind == "column":
            self._check_found(tried, argument.name, node, given)
            if function != "count":
                raise self._fault(f"{shown} names no column", node, given)
            return Reference("count", argument.name, None, shown)
        variable, column = self._argument(argument, given)
        self._check_found(tried, variable, node, given)
        return Reference(function, variable, column, shown)

    def _argument(self, argument: Node, given: Expr) -> tuple[str, str]:
        """(the step, the column of the batch that has the value for each of its rows)."""
        steps: dict[str, None] = {}

        def plain(node: Node) -> str | None:
            step = self._step_of(node)
            if step is not None:
                steps[step] = None
                return quote_name(self._column(node, given))
            if node.kind == "column":
                reason = f'"{node.name}" is of no step: all columns in a call are of one'
                raise self._fault(reason, node, given)
            if _is_over(node):
                raise self._fault(f"{node.name}() inside another call", node, given)
            return None

        text = render(argument, plain)
        if len(steps) != 1:
            raise self._fault("a call is over the rows of one step", argument, given)
        step = next(iter(steps))
        if self._step_of(argument) is not None:
            return step, self._column(argument, given)
        return step, self._item(_with_used(text, given))

    def _column(self, node: Node, given: Expr) -> str:
        """The input's column that `step.column` names."""
        field = node.children[1]
        name = field.name[1:-1].replace("''", "'")
        found = match_name(name, self._schema.names)
        if len(found) != 1:
            span = (field.start, field.end)
            text = given.text
            raise no_column(self._who, self._location, name, False, text, span, self._schema)
        return found[0]

    def _check_free(self, shown: str, node: Node, given: Expr) -> None:
        """What is found goes by its text where the rest of the condition looks for it."""
        if shown in self._schema.names:
            raise self._fault(
                f'there is a column called "{shown}"', node, given, "rename it before"
            )

    def _check_found(self, tried: str, variable: str, node: Node, given: Expr) -> None:
        if variable in self._schema.names:
            reason = f'"{variable}" is a step and a column'
            raise self._fault(reason, node, given, "call the step something else")
        steps = self._pattern.steps
        first = next((at for at, step in enumerate(steps) if step.variable == variable), None)
        if first is None:
            raise self._fault(
                f'no row is matched as "{variable}", which is only excluded', node, given
            )
        tries = [
            at for at, step in enumerate(steps) if step.variable == tried or tried in step.banned
        ]
        if tried in self._pattern.never or any(first < at for at in tries):
            return
        if variable == tried:
            if steps[first].most != 1:
                return
            reason = f'"{variable}" is one row: while it is looked for there is none yet'
        else:
            reason = f'"{variable}" comes after "{tried}": it has no row yet'
        raise self._fault(reason, node, given)

    def _fault(self, reason: str, node: Node, given: Expr, advice: str = "") -> PlanError:
        span = (node.start, node.end)
        return complaint(self._who, self._location, reason, given.text, span, advice=advice)


def _is_over(node: Node) -> bool:
    return node.kind == "call" and node.name.lower() in OVER_FUNCTIONS


def _with_used(text: str, given: Expr) -> Expr:
    """`text` with those parameters that it mentions."""
    names = {node.name for node in parse(text).walk() if node.kind == "param"}
    return Expr(text, tuple((name, value) for name, value in given.params if name in names))
