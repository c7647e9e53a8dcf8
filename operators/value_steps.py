"""Steps of a value stage, and their fusion into as few projections as possible.

Promises: a row that a filter drops is never shown to a later step that could fail on it, and the
result is that of the steps one after the other. Steps that only pick, drop and rename columns
cost nothing. `_change` and `_time`, where there are any, stay the last columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from penstock.elements.changelog import HIDDEN
from penstock.elements.errors import PlanError
from penstock.expressions import analysis
from penstock.expressions.check import CheckedExpression, Checker, require_condition
from penstock.expressions.complaint import column_list
from penstock.expressions.expression import ExprLike, as_expr
from penstock.expressions.functions import Functions
from penstock.expressions.projection import Projection
from penstock.expressions.syntax import Node, render

CONDITION = "__p"
"""The column of a projection that says which rows stay."""
DEFINITION_CHARS_MAX = 4_000
"""Longest text of one column after fusion; definitions that use each other grow exponentially."""

StepKind = Literal["filter", "with_columns", "select", "drop", "rename"]


@dataclass(frozen=True)
class Step:
    """One call of the fluent API on values. Names are exact; expressions as users write them."""

    kind: StepKind
    items: tuple[tuple[str, ExprLike], ...] = ()
    names: tuple[tuple[str, str], ...] = ()

    @classmethod
    def filter(cls, condition: ExprLike) -> Step:
        """Keep the rows for which it is true; null is not true."""
        return cls("filter", items=((CONDITION, condition),))

    @classmethod
    def with_columns(cls, items: Sequence[tuple[str, ExprLike]]) -> Step:
        """Add columns, or replace them in their place; all see the columns before this step."""
        return cls("with_columns", items=tuple(items))

    @classmethod
    def select(cls, items: Sequence[tuple[str, ExprLike]]) -> Step:
        """Exactly these columns (and hidden ones)."""
        return cls("select", items=tuple(items))

    @classmethod
    def drop(cls, names: Sequence[str]) -> Step:
        """All columns but these."""
        return cls("drop", names=tuple((name, "") for name in names))

    @classmethod
    def rename(cls, names: Mapping[str, str]) -> Step:
        """Old name to new name."""
        return cls("rename", names=tuple(names.items()))


@dataclass(frozen=True)
class Segment:
    """One projection, and whether its last column is the condition by which rows stay."""

    projection: Projection
    conditional: bool


@dataclass
class _Draft:
    """A segment while steps are added: what each column means in terms of its input."""

    checker: Checker
    meaning: dict[str, Node]
    condition: Node | None = None

    @property
    def schema(self) -> pa.Schema:
        """What comes in."""
        return self.checker.schema

    @classmethod
    def over(cls, checker: Checker) -> _Draft:
        """Nothing done yet: every column means itself."""
        return cls(checker, {name: _column(name) for name in checker.schema.names})


def fuse(
    steps: Sequence[Step], schema: pa.Schema, functions: Functions, who: str, location: str = ""
) -> tuple[list[Segment], pa.Schema]:
    """(segments to be run one after the other, the schema behind them); raises PlanError."""
    fusion = _Fusion(schema, functions, who, location)
    for step in steps:
        fusion.add(step)
    return fusion.finish(), fusion.schema


class _Fusion:
    def __init__(self, schema: pa.Schema, functions: Functions, who: str, location: str) -> None:
        self._functions = functions
        self._who = who
        self._location = location
        self._checker = Checker(schema, functions)
        self._draft = _Draft.over(self._checker)
        self._closed: list[_Draft] = []

    @property
    def schema(self) -> pa.Schema:
        """The columns behind the steps so far."""
        return self._checker.schema

    def _becomes(self, fields: Sequence[pa.Field]) -> None:
        self._checker = Checker(pa.schema(fields), self._functions)

    def add(self, step: Step) -> None:
        """Take one more step."""
        if step.kind == "filter":
            self._filter(step.items[0][1])
        elif step.kind == "drop":
            self._drop([name for name, _ in step.names])
        elif step.kind == "rename":
            self._rename(dict(step.names))
        else:
            self._compute(step)

    def finish(self) -> list[Segment]:
        """The projections, each with just the columns that later ones read."""
        drafts = [*self._closed, self._draft]
        needed = list(self.schema.names)
        made: list[tuple[_Draft, list[str]]] = []
        for draft in reversed(drafts):
            made.append((draft, needed))
            read = {name for each in needed for name in analysis.columns_of(draft.meaning[each])}
            if draft.condition is not None:
                read |= analysis.columns_of(draft.condition)
            needed = [name for name in draft.schema.names if name in read]
        return self._projections(made[::-1])

    def _projections(self, made: list[tuple[_Draft, list[str]]]) -> list[Segment]:
        segments: list[Segment] = []
        schema = made[0][0].schema
        for at, (draft, names) in enumerate(made):
            items = [(name, render(draft.meaning[name])) for name in names]
            if draft.condition is not None:
                items.append((CONDITION, render(draft.condition)))
            # Fusion must not change what was said of a column when its step was checked.
            known = made[at + 1][0].schema if at + 1 < len(made) else self.schema
            declared = {name: known.field(name) for name in names}
            projection = Projection(
                items, schema, self._functions, who=self._who, declared=declared
            )
            segments.append(Segment(projection, draft.condition is not None))
            schema = pa.schema([each for each in projection.schema if each.name != CONDITION])
        return segments

    # -- steps

    def _check(self, given: ExprLike) -> CheckedExpression:
        return self._checker.check(given, self._who, self._location)

    def _filter(self, given: ExprLike) -> None:
        checked = self._check(given)
        require_condition(checked, as_expr(given).text, self._who, self._location)
        draft, (tree,) = self._meant([checked])
        if draft.condition is not None and analysis.may_fail(tree, draft.checker):
            draft, tree = self._close(), checked.tree
        parts = [tree] if draft.condition is None else [draft.condition, tree]
        draft.condition = analysis.all_of(parts)

    def _compute(self, step: Step) -> None:
        checked = [(name, self._check(given)) for name, given in step.items]
        for name, _ in checked:
            self._refuse_reserved(name, step.kind)
        draft, trees = self._meant([each for _, each in checked])
        if any(_keep_apart(tree, draft) for tree in trees):
            draft, trees = self._close(), [each.tree for _, each in checked]
        made = dict(zip([name for name, _ in checked], trees))
        fields = {name: _field(self.schema, name, each) for name, each in checked}
        if len(made) != len(checked):
            raise PlanError(f"{self._who}: a column is given twice  {self._location}".rstrip())
        meaning = draft.meaning
        if step.kind == "with_columns":
            # Replaced columns keep their place; hidden ones stay last.
            made = {name: made.pop(name, tree) for name, tree in meaning.items()} | made
            fields = {each.name: fields.pop(each.name, each) for each in self.schema} | fields
        for hidden in (field for field in self.schema if field.name in HIDDEN):
            made.pop(hidden.name, None)
            fields.pop(hidden.name, None)
            made[hidden.name] = meaning[hidden.name]
            fields[hidden.name] = hidden
        draft.meaning = made
        self._becomes(list(fields.values()))

    def _drop(self, names: Sequence[str]) -> None:
        for name in names:
            self._require(name, "drop")
        kept = [each for each in self.schema if each.name not in names]
        self._draft.meaning = {each.name: self._draft.meaning[each.name] for each in kept}
        self._becomes(kept)

    def _rename(self, names: Mapping[str, str]) -> None:
        for old, new in names.items():
            self._require(old, "rename")
            self._refuse_reserved(new, "rename")
        renamed = [each.with_name(names.get(each.name, each.name)) for each in self.schema]
        new_names = [each.name for each in renamed]
        if len(set(new_names)) != len(new_names):
            raise PlanError(
                f"{self._who}: rename would give two columns one name\n"
                f"  columns: {column_list(self.schema.names)}"
            )
        meaning = self._draft.meaning
        self._draft.meaning = {names.get(name, name): tree for name, tree in meaning.items()}
        self._becomes(renamed)

    # -- fusion

    def _meant(self, checked: Sequence[CheckedExpression]) -> tuple[_Draft, list[Node]]:
        """The expressions in terms of the input of the draft that they belong to."""
        meaning = self._draft.meaning
        read = {name for each in checked for name in each.columns_read}
        trees = [analysis.substitute(each.tree, meaning) for each in checked]
        # A volatile column used in two places would have two values.
        if any(analysis.is_volatile(meaning[name], self._functions) for name in read) or any(
            len(render(tree)) > DEFINITION_CHARS_MAX for tree in trees
        ):
            return self._close(), [each.tree for each in checked]
        return self._draft, trees

    def _close(self) -> _Draft:
        self._closed.append(self._draft)
        self._draft = _Draft.over(self._checker)
        return self._draft

    # -- names

    def _require(self, name: str, verb: str) -> None:
        if name in HIDDEN or name not in self.schema.names:
            raise PlanError(
                f'{self._who}: no column "{name}" to {verb}\n'
                f"  columns: {column_list(self.schema.names)}"
            )

    def _refuse_reserved(self, name: str, verb: str) -> None:
        if name in HIDDEN or name.startswith("__"):
            raise PlanError(f'{self._who}: the name "{name}" is reserved; {verb} another one')


def _keep_apart(tree: Node, draft: _Draft) -> bool:
    """Whether `tree` must not, or had better not, see the rows that the draft's filter drops."""
    if draft.condition is None or analysis.bare(tree).kind == "column":
        return False
    return analysis.is_costly(tree) or analysis.may_fail(tree, draft.checker)


def _column(name: str) -> Node:
    return Node("column", name, 0, 0, quoted=True)


def _field(schema: pa.Schema, name: str, checked: CheckedExpression) -> pa.Field:
    column = checked.column
    if column is not None:
        return schema.field(column).with_name(name)
    return pa.field(name, checked.type, checked.nullable)
