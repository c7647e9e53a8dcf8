"""What an aggregate without a window keeps per call, chosen by whether rows can be taken back.

Append-only input keeps the windows' own accumulators; updating input keeps signed ones, and what
cannot be summed (min, max, and their like) keeps its values as a multiset.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penstock.elements.buffers import fixed_values
from penstock.elements.errors import PlanError
from penstock.elements.hash import refuse_unhashable
from penstock.expressions.types import type_text

from .accumulators import Accumulator
from .aggregates import Aggregation
from .grouping import Groups
from .multisets import MultisetResult, finish
from .updating_accumulators import SignedAccumulator, SignedCount, signed

Numbers = npt.NDArray[np.int64]
ROWS = SignedCount(text="count(*)")
"""How many rows a group has: it is there while there are any."""


@dataclass(frozen=True)
class ValueReading:
    """How a call reads the values of a multiset."""

    values: int
    how: MultisetResult

    def read(self, owners: Numbers, count: int, content: pa.Array, times: pa.Array) -> pa.Array:
        """The result of groups 0 … count-1 from values that are there (`times` > 0)."""
        return finish(self.how, owners, count, content, times)


@dataclass(frozen=True)
class Call:
    """One aggregate: an accumulator over argument `argument`, or a reading of a multiset."""

    argument: int | None
    accumulator: Accumulator | None = None
    reading: ValueReading | None = None


class UpdatingCalls:
    """The calls of an aggregation, over append-only or over `updating` rows."""

    def __init__(self, aggregation: Aggregation, updating: bool, who: str, location: str) -> None:
        """PlanError for an aggregate whose rows cannot be taken back."""
        self.aggregation = aggregation
        self.updating = updating
        self.values: list[tuple[int, pa.DataType]] = [
            (each.argument, each.kind) for each in aggregation.multisets
        ]
        """(argument, type) of each multiset."""
        self.calls: list[Call] = []
        for call in aggregation.calls:
            if call.accumulator is None:
                assert call.multiset is not None
                assert call.reading is not None
                reading = ValueReading(call.multiset, call.reading)
                self.calls.append(Call(call.argument, reading=reading))
            elif not updating:
                self.calls.append(Call(call.argument, call.accumulator))
            else:
                self.calls.append(self._signed(call.argument, call.accumulator, who, location))
        for field in aggregation.results:
            try:
                refuse_unhashable(field.type)
            except TypeError:
                raise PlanError(
                    f"{who}: {field.name} is {type_text(field.type)}, of which it cannot be said"
                    f" whether it has changed  {location}".rstrip()
                ) from None
        self.accumulators: list[tuple[int | None, Accumulator]] = [
            (call.argument, call.accumulator) for call in self.calls if call.accumulator is not None
        ]

    def _signed(
        self, argument: int | None, accumulator: Accumulator, who: str, location: str
    ) -> Call:
        made = signed(accumulator)
        if made is not None:
            return Call(argument, made)
        if not accumulator.of_values:
            raise PlanError(
                f"{who}: {accumulator.text} over an updating stream: rows of it are taken back,"
                f" and what came before is not known then  {location}".rstrip()
                + "\n  With a column that says the order:  max_by(x, at), or min_by for the first."
            )
        assert argument is not None
        wanted = (argument, self.aggregation.argument_kinds[argument])
        if wanted not in self.values:
            self.values.append(wanted)
        how = MultisetResult("accumulate", accumulator=accumulator)
        return Call(argument, reading=ValueReading(self.values.index(wanted), how))

    @property
    def foldable(self) -> bool:
        """Whether partial results of several subtasks merge as columns."""
        return not self.values

    @property
    def stored(self) -> list[pa.Field]:
        """The row count, then the parts of all accumulators."""
        parts = [
            pa.field(f"__p{at}_{part}", kind)
            for at, (_, accumulator) in enumerate(self.accumulators)
            for part, kind in enumerate(accumulator.stored)
        ]
        return [pa.field("__rows", pa.int64(), nullable=False), *parts]

    def from_rows(
        self, groups: Groups, arguments: Sequence[pa.Array], times_ns: Numbers, weights: Numbers
    ) -> list[pa.Array]:
        """The stored columns, one row per group, from rows."""
        parts = ROWS.weighted(groups, None, weights) if self.updating else [pa.array(groups.sizes)]
        for argument, accumulator in self.accumulators:
            column = None if argument is None else arguments[argument]
            if isinstance(accumulator, SignedAccumulator):
                parts.extend(accumulator.weighted(groups, column, weights))
            else:
                parts.extend(accumulator.partial(groups, column, times_ns))
        return parts

    def merge(self, groups: Groups, parts: Sequence[pa.Array]) -> list[pa.Array]:
        """One row per group from stored columns."""
        merged = ROWS.merge(groups, list(parts[:1]))
        at = 1
        for _, accumulator in self.accumulators:
            width = len(accumulator.stored)
            merged.extend(accumulator.merge(groups, list(parts[at : at + width])))
            at += width
        return merged

    def results(
        self, parts: Sequence[pa.Array], values: Sequence[tuple[Numbers, pa.Array, pa.Array]]
    ) -> list[pa.Array]:
        """The items' columns; `values` are (row of `parts`, value, how often) per multiset."""
        count = len(parts[0])
        calculated = []
        at = 1
        for call in self.calls:
            if call.accumulator is not None:
                width = len(call.accumulator.stored)
                calculated.append(call.accumulator.final(list(parts[at : at + width])))
                at += width
            else:
                assert call.reading is not None
                owners, content, times = values[call.reading.values]
                calculated.append(call.reading.read(owners, count, content, times))
        return self.aggregation.finish(calculated)

    def empty(self, parts: Sequence[pa.Array]) -> npt.NDArray[np.bool_]:
        """Which rows are as if nothing had been added: no rows, and nothing taken back early."""
        found: npt.NDArray[np.bool_] = fixed_values(parts[0]) == 0
        at = 1
        for _, accumulator in self.accumulators:
            width = len(accumulator.stored)
            if isinstance(accumulator, SignedAccumulator):
                found &= accumulator.empty(list(parts[at : at + width]))
            at += width
        return found
