"""Conditions of `match` that refer to rows matched before, for many rows and ways to match at once.

A thread notes a number, a value or a total per reference, brought up to date with each row that it
takes. Whether rows meet a condition is asked for all pairs of a row and a thread together: the
row's columns and what the thread has noted are one batch for the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.types as pt

from penstock.elements.buffers import fixed_dtype
from penstock.elements.errors import PlanError, StateError
from penstock.expressions.check import Checker
from penstock.expressions.functions import Functions
from penstock.expressions.projection import Projection
from penstock.expressions.types import type_text

from .argument_failures import evaluated
from .match_conditions import Conditions, Reference, Referring
from .match_measures import added, extreme, python_values, result_type
from .match_pattern import Pattern
from .match_runs import KeyRuns, Matcher, Thread

Noted = tuple[Any, ...]


class Memory:
    """What threads note, and conditions over it. Planned once; travels by pickle."""

    def __init__(
        self,
        conditions: Conditions,
        pattern: Pattern,
        made_schema: pa.Schema,
        functions: Functions,
        who: str,
        location: str,
    ) -> None:
        self.who, self.location = who, location
        found: dict[tuple[str, str, str | None], Reference] = {}
        for said in conditions.referring.values():
            for each in said.references:
                found.setdefault(_facts(each), each)
        self.references = list(found.values())
        at = {facts: number for number, facts in enumerate(found)}
        self.kinds = [self._kind(each, made_schema) for each in self.references]
        self.empty: Noted = tuple(0 if r.function == "count" else None for r in self.references)
        self.of_variable = {
            name: [n for n, r in enumerate(self.references) if r.variable == name]
            for name in pattern.variables
        }
        self.asked: dict[str, Asked] = {}
        for name, said in conditions.referring.items():
            noted = [(each.shown, at[_facts(each)]) for each in said.references]
            self.asked[name] = Asked(self, name, said, noted, made_schema, functions)
        self.columns_read = frozenset(
            column for asked in self.asked.values() for column in asked.columns
        )
        self._live = [self._wanted(pattern, step) for step in range(len(pattern.steps))]

    def _kind(self, reference: Reference, schema: pa.Schema) -> pa.DataType:
        if reference.column is None:
            return pa.int64()
        kind = schema.field(reference.column).type
        function, shown = reference.function, f"{reference.shown} takes"
        if function in ("sum", "avg"):
            if not (pt.is_integer(kind) or pt.is_floating(kind) or pt.is_decimal(kind)):
                raise self._fault(f"{shown} numbers, not {type_text(kind)}")
        elif function != "count" and pt.is_nested(kind):
            raise self._fault(f"{shown} plain values, not {type_text(kind)}")
        return result_type(function, kind)

    def _fault(self, reason: str) -> PlanError:
        return PlanError(f"{self.who}: {reason}  {self.location}".rstrip())

    def _wanted(self, pattern: Pattern, step: int) -> list[tuple[int, bool]]:
        """(reference, whether it is a float) that may still be asked for behind this step."""
        here = pattern.steps[step]
        names = set(pattern.never) | ({here.variable} if here.most != 1 else set())
        for further in pattern.steps[step + 1 :]:
            names |= {further.variable, *further.banned}
        wanted = {at for name in names if name in self.asked for _, at in self.asked[name].noted}
        return [(at, pt.is_floating(self.kinds[at])) for at in sorted(wanted)]

    def live(self, step: int) -> list[tuple[int, bool]]:
        """The references that conditions behind this step may ask for."""
        return self._live[step]


class Asked:
    """The condition of one variable over a row's columns and what is noted."""

    def __init__(
        self,
        memory: Memory,
        name: str,
        said: Referring,
        noted: Sequence[tuple[str, int]],
        made_schema: pa.Schema,
        functions: Functions,
    ) -> None:
        self._memory = memory
        source, text = dict(said.computed), said.text
        fields = {field.name: field for field in made_schema}
        fields |= {
            shown: made_schema.field(column).with_name(shown) for shown, column in source.items()
        }
        for shown, at in noted:
            fields[shown] = pa.field(shown, memory.kinds[at])
        everything = pa.schema(list(fields.values()))
        checked = Checker(everything, functions).check(text, memory.who, memory.location)
        if not pa.types.is_boolean(checked.type):
            reason = f"{name} is {checked.type}, not a condition"
            raise PlanError(f"{memory.who}: {reason}  {memory.location}".rstrip())
        places = dict(noted)
        read = checked.columns_read
        self.noted = [(shown, places[shown]) for shown in read if shown in places]
        self._taken = [(shown, source.get(shown, shown)) for shown in read if shown not in places]
        self.columns = [column for _, column in self._taken]
        names = [shown for shown, _ in [*self._taken, *self.noted]]
        self._schema = pa.schema([everything.field(shown) for shown in names])
        self._condition = Projection(
            [(name, text)],
            self._schema,
            functions,
            who=memory.who,
            location=memory.location,
        )

    def answers(
        self, made: pa.RecordBatch, rows: Sequence[int], noted: Sequence[Noted]
    ) -> list[bool]:
        """For each pair of a row of `made` and what a thread has noted."""
        if len(rows) == 1:
            columns = [made.column(column).slice(rows[0], 1) for _, column in self._taken]
        else:
            at = pa.array(rows, pa.int64())
            columns = [made.column(column).take(at) for _, column in self._taken]
        columns += [self._column(place, noted) for _, place in self.noted]
        pairs = pa.RecordBatch.from_arrays(columns, schema=self._schema)
        (found,) = evaluated(self._condition, pairs, self._memory.who, self._memory.location)
        return [each is True for each in found.to_pylist()]  # Null is not true.

    def _column(self, place: int, noted: Sequence[Noted]) -> pa.Array:
        """One reference as a column."""
        reference, kind = self._memory.references[place], self._memory.kinds[place]
        values = [each[place] for each in noted]
        if reference.function == "first":
            values = [None if value is None else value[0] for value in values]
        elif reference.function == "avg":
            values = [None if value is None else float(value[0]) / value[1] for value in values]
        try:
            if pt.is_temporal(kind) and fixed_dtype(kind) is not None:
                width = pa.int64() if kind.bit_width == 64 else pa.int32()
                return pa.array(values, width).view(kind)
            return pa.array(values, kind)
        except (OverflowError, pa.ArrowInvalid):
            raise StateError(
                f"{self._memory.who}: {reference.shown} does not fit in {type_text(kind)}"
                f"  {self._memory.location}".rstrip()
                + "\n  Refer to something smaller, or cast to double before."
            ) from None


class Recall:
    """The rows of one batch, as the automaton asks for them: `at` is the row at hand."""

    def __init__(
        self, memory: Memory, made: pa.RecordBatch, passes: Mapping[str, Sequence[bool]]
    ) -> None:
        """`passes`: what conditions say without looking at matched rows."""
        self._memory, self._made, self._passes = memory, made, passes
        self.at = 0
        self._answers: dict[tuple[int, str], bool] = {}
        columns = {r.column for r in memory.references if r.column is not None}
        known = {column: python_values(made.column(column)) for column in columns}
        self._values = [None if r.column is None else known[r.column] for r in memory.references]
        self._steps: list[Callable[[Any, Any], Any]] = [
            _NOTES[r.function] for r in memory.references
        ]

    def begins(self, variable: str, passed: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """The rows that meet the condition with nothing matched before, of those that passed."""
        if variable not in self._memory.asked:
            return passed
        rows = np.flatnonzero(passed)
        begins = np.zeros(len(passed), np.bool_)
        if len(rows):
            asked, empty = self._memory.asked[variable], self._memory.empty
            begins[rows] = asked.answers(self._made, rows.tolist(), [empty] * len(rows))
        return begins

    def ask(self, matcher: Matcher, wanted: Iterable[tuple[int, KeyRuns]]) -> None:
        """Find what conditions say of each row behind each thread of its key."""
        grouped: dict[str, list[tuple[int, Thread]]] = {name: [] for name in self._memory.asked}
        for at, runs in wanted:
            open_ = [name for name in grouped if name not in self._passes or self._passes[name][at]]
            if not open_:
                continue
            for run in runs.runs:
                for thread in run.threads:
                    tried = matcher.tried(thread)
                    for name in open_:
                        if name in tried:
                            grouped[name].append((at, thread))
        self._answers = {}
        for variable, pairs in grouped.items():
            if not pairs:
                continue
            rows, noted = [at for at, _ in pairs], [thread.noted for _, thread in pairs]
            found = self._memory.asked[variable].answers(self._made, rows, noted)
            for (_, thread), answer in zip(pairs, found, strict=True):
                # Threads live through the round that they are asked in.
                self._answers[id(thread), variable] = answer

    def is_a(self, thread: Thread, variable: str) -> bool:
        """Whether the row at hand meets the condition behind this thread."""
        passes = self._passes.get(variable)
        if passes is not None and not passes[self.at]:
            return False
        return variable not in self._memory.asked or self._answers[id(thread), variable]

    def noted(self, noted: Noted, variable: str) -> Noted:
        """With the row at hand taken as `variable`."""
        places = self._memory.of_variable[variable]
        if noted and not places:
            return noted
        known = list(noted or self._memory.empty)
        for place in places:
            values = self._values[place]
            value = None if values is None else values[self.at]
            if values is None:
                known[place] += 1
            else:
                known[place] = self._steps[place](known[place], value)
        return tuple(known)

    def mark(self, thread: Thread) -> Noted:
        """What is still asked for, floats by their bits: -0.0 is not 0.0, NaN is NaN."""
        noted = thread.noted
        return tuple(
            repr(noted[at]) if is_float else noted[at]
            for at, is_float in self._memory.live(thread.step)
        )


def _sum(known: Any, value: Any) -> Any:
    if value is None:
        return known
    return value if known is None else added(known, value)


def _avg(known: Any, value: Any) -> Any:
    if value is None:
        return known
    return (value, 1) if known is None else (added(known[0], value), known[1] + 1)


def _extreme(greatest: bool) -> Callable[[Any, Any], Any]:
    def noted(known: Any, value: Any) -> Any:
        if value is None or known is None:
            return known if value is None else value
        return extreme([known, value], greatest)

    return noted


_NOTES: dict[str, Callable[[Any, Any], Any]] = {
    "first": lambda known, value: (value,) if known is None else known,
    "last": lambda known, value: value,
    "count": lambda known, value: known + (value is not None),
    "sum": _sum,
    "avg": _avg,
    "min": _extreme(False),
    "max": _extreme(True),
}


def _facts(reference: Reference) -> tuple[str, str, str | None]:
    return reference.function, reference.variable, reference.column
