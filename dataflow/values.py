"""Nodes of values: filter, with_columns, select, rename, drop, and casts that planning adds.

They keep no state and are pure functions of a row, so pruning may shorten them and fusion may put
several into one ValueStage. Expressions were checked when the user's line ran.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from penstock.elements.changelog import HIDDEN
from penstock.expressions.check import CheckedExpression
from penstock.operators.cast_columns import CastColumns
from penstock.operators.processor import DEAD, MAIN, Processor
from penstock.operators.value_stage import DEAD_SCHEMA, Step, ValueStage

from .graph import BuildContext, Columns, Logic, user_columns

Item = tuple[str, CheckedExpression]
ValueKind = Literal["filter", "with_columns", "select", "rename", "drop"]


def columns_of(expressions: Sequence[CheckedExpression]) -> Columns:
    """The user's columns that they read."""
    return frozenset(c for e in expressions for c in e.columns_read if c not in HIDDEN)


class ValueLogic(Logic):
    """A node that fusion understands."""

    takes_updates = True

    @property
    def title(self) -> str:
        """Its kind: many lines of a program have the same."""
        return self.kind

    @abstractmethod
    def transform(self, schema: pa.Schema) -> pa.Schema:
        """The columns behind it."""

    @abstractmethod
    def reads(self, schema: pa.Schema, required: Columns) -> Columns:
        """The columns before it that `required` columns behind it come from."""

    @abstractmethod
    def step(self) -> Step:
        """What a ValueStage does for it."""

    def shrunk(self, schema: pa.Schema, required: Columns) -> ValueLogic | None:
        """Itself over the pruned `schema`, without what nobody requires; None if nothing is left.

        Names are dropped and renamed by what is present, not by what is required: a column that
        stays for another reader must not meet a new one of its name.
        """
        return self

    def outputs(self, inputs: Sequence[pa.Schema]) -> dict[str, pa.Schema]:
        """Rows, and those that an error policy set aside."""
        return {MAIN: self.transform(inputs[0]), DEAD: DEAD_SCHEMA}

    def needs(
        self, inputs: Sequence[pa.Schema], required: Mapping[str, Columns]
    ) -> Sequence[Columns]:
        """One input."""
        return [self.reads(inputs[0], required.get(MAIN, frozenset()))]

    def processor(self, inputs: Sequence[pa.Schema], build: BuildContext) -> Processor:
        """A stage of one step."""
        return make_stage([self], inputs[0], build)


@dataclass(frozen=True)
class Filter(ValueLogic):
    """Rows for which `condition` is true; null is not true."""

    condition: CheckedExpression
    kind = "filter"

    def transform(self, schema: pa.Schema) -> pa.Schema:
        return schema

    def reads(self, schema: pa.Schema, required: Columns) -> Columns:
        return required | columns_of([self.condition])

    def step(self) -> Step:
        return Step.filter(self.condition.sql)

    def describe(self) -> str:
        return f"filter {self.condition.sql}"


@dataclass(frozen=True)
class WithColumns(ValueLogic):
    """New columns at the end, replaced ones in their place; all see the columns before."""

    items: tuple[Item, ...]
    kind = "with_columns"

    def transform(self, schema: pa.Schema) -> pa.Schema:
        made = {name: pa.field(name, e.type, e.nullable) for name, e in self.items}
        fields = [made.pop(f.name, f) for f in schema if f.name not in HIDDEN]
        return _with_hidden(schema, [*fields, *made.values()])

    def reads(self, schema: pa.Schema, required: Columns) -> Columns:
        made = {name for name, _ in self.items}
        used = columns_of([e for name, e in self.items if name in required])
        return (required - made) | used

    def step(self) -> Step:
        return Step.with_columns([(name, e.sql) for name, e in self.items])

    def shrunk(self, schema: pa.Schema, required: Columns) -> ValueLogic | None:
        items = tuple(item for item in self.items if item[0] in required)
        return WithColumns(items) if items else None

    def describe(self) -> str:
        return "with_columns " + ", ".join(f"{name} = {e.sql}" for name, e in self.items)


@dataclass(frozen=True)
class Select(ValueLogic):
    """Exactly these columns, and those that ride along."""

    items: tuple[Item, ...]
    kind = "select"

    def transform(self, schema: pa.Schema) -> pa.Schema:
        return _with_hidden(schema, [pa.field(n, e.type, e.nullable) for n, e in self.items])

    def reads(self, schema: pa.Schema, required: Columns) -> Columns:
        return columns_of([e for name, e in self.items if name in required])

    def step(self) -> Step:
        return Step.select([(name, e.sql) for name, e in self.items])

    def shrunk(self, schema: pa.Schema, required: Columns) -> ValueLogic | None:
        return Select(tuple(item for item in self.items if item[0] in required))

    def describe(self) -> str:
        return "select " + ", ".join(
            name if e.column == name else f"{name} = {e.sql}" for name, e in self.items
        )


@dataclass(frozen=True)
class Rename(ValueLogic):
    """`names` are pairs of (old, new)."""

    names: tuple[tuple[str, str], ...]
    kind = "rename"

    def transform(self, schema: pa.Schema) -> pa.Schema:
        new = dict(self.names)
        return pa.schema([f.with_name(new.get(f.name, f.name)) for f in schema])

    def reads(self, schema: pa.Schema, required: Columns) -> Columns:
        old = {new: old for old, new in self.names}
        return frozenset(old.get(name, name) for name in required)

    def step(self) -> Step:
        return Step.rename(dict(self.names))

    def shrunk(self, schema: pa.Schema, required: Columns) -> ValueLogic | None:
        names = tuple(pair for pair in self.names if pair[0] in schema.names)
        return Rename(names) if names else None

    def describe(self) -> str:
        return "rename " + ", ".join(f"{old} to {new}" for old, new in self.names)


@dataclass(frozen=True)
class Drop(ValueLogic):
    """All columns but these."""

    names: tuple[str, ...]
    kind = "drop"

    def transform(self, schema: pa.Schema) -> pa.Schema:
        return pa.schema([f for f in schema if f.name not in self.names])

    def reads(self, schema: pa.Schema, required: Columns) -> Columns:
        return required

    def step(self) -> Step:
        return Step.drop(list(self.names))

    def shrunk(self, schema: pa.Schema, required: Columns) -> ValueLogic | None:
        names = tuple(name for name in self.names if name in schema.names)
        return Drop(names) if names else None

    def describe(self) -> str:
        return "drop " + ", ".join(self.names)


@dataclass(frozen=True)
class Cast(Logic):
    """Added by planning: columns brought to `types`, so that inputs fit each other (hazard 30)."""

    target: tuple[pa.Field, ...]
    kind = "cast"
    takes_updates = True

    @property
    def title(self) -> str:
        """For people."""
        return "cast"

    def outputs(self, inputs: Sequence[pa.Schema]) -> dict[str, pa.Schema]:
        """The target, cut down to what is left after pruning."""
        present = set(inputs[0].names)
        return {MAIN: pa.schema([f for f in self.target if f.name in present])}

    def needs(
        self, inputs: Sequence[pa.Schema], required: Mapping[str, Columns]
    ) -> Sequence[Columns]:
        """What is required, by the same names."""
        return [required.get(MAIN, frozenset())]

    def processor(self, inputs: Sequence[pa.Schema], build: BuildContext) -> Processor:
        """Picks and casts columns."""
        return CastColumns(self.outputs(inputs)[MAIN])

    def describe(self) -> str:
        return "cast " + ", ".join(f"{f.name} {f.type}" for f in self.target)


def shrink(
    logics: Sequence[ValueLogic], schema: pa.Schema, required: Columns
) -> tuple[list[ValueLogic], pa.Schema]:
    """Consecutive nodes over the pruned `schema`, ending with just the `required` columns.

    Gives what is left of them and the schema behind them.
    """
    left: list[ValueLogic] = []
    for logic, want in zip(logics, _demands(logics, schema, required), strict=True):
        less = logic.shrunk(schema, want)
        if less is not None:
            left.append(less)
            schema = less.transform(schema)
    extra = tuple(name for name in user_columns(schema) if name not in required)
    if extra:
        left.append(Drop(extra))
        schema = left[-1].transform(schema)
    return left, schema


def _demands(logics: Sequence[ValueLogic], schema: pa.Schema, required: Columns) -> list[Columns]:
    """The columns required behind each of the nodes."""
    before = [schema]
    for logic in logics:
        before.append(logic.transform(before[-1]))
    wanted = []
    for logic, columns in zip(reversed(logics), reversed(before[:-1]), strict=True):
        wanted.append(required)
        required = logic.reads(columns, required)
    return wanted[::-1]


def make_stage(logics: Sequence[ValueLogic], schema: pa.Schema, build: BuildContext) -> ValueStage:
    """One processor for consecutive value nodes."""
    steps = [logic.step() for logic in logics]
    return ValueStage(steps, schema, build.functions, build.on_error, who=build.name)


def _with_hidden(schema: pa.Schema, fields: Sequence[pa.Field]) -> pa.Schema:
    return pa.schema([*fields, *(field for field in schema if field.name in HIDDEN)])
