"""Accumulators that call users' aggregate classes: state as pickled objects, or as columns.

Arguments come as structs; a null struct is a row that is left out. An exception of user code is
raised on with the aggregate and the method named.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from penstock.elements.buffers import fixed_values
from penstock.state.pickling import dump_value, load_value

from .accumulators import Accumulator, Numbers, present
from .aggregate_classes import Aggregate, SegmentAggregate
from .grouping import Groups
from .updating_accumulators import SignedAccumulator


@contextmanager
def _calling(text: str, method: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        error.add_note(f"in {method}() of the aggregate {text}")
        raise


@dataclass(frozen=True, kw_only=True)
class PerRow(Accumulator):
    """An Aggregate as (pickled state, how many rows); the state is null where there are none."""

    aggregate: Aggregate
    kind: pa.DataType

    @property
    def stored(self) -> tuple[pa.DataType, ...]:
        return (pa.binary(), pa.int64())

    @property
    def result(self) -> pa.DataType:
        return self.kind

    def nothing(self) -> pa.Array:
        with _calling(self.text, "result"):
            return pa.array([self.aggregate.result(self.aggregate.create())], self.kind)

    def partial(
        self, groups: Groups, argument: pa.Array | None, times_ns: Numbers
    ) -> list[pa.Array]:
        return self._folded(groups, argument, np.ones(len(groups.codes), np.int64))

    def _folded(
        self, groups: Groups, argument: pa.Array | None, weights: Numbers
    ) -> list[pa.Array]:
        assert argument is not None
        weights = np.where(present(argument), weights, 0)
        rows = groups.order[weights[groups.order] != 0]
        columns = [field.take(pa.array(rows)).to_pylist() for field in argument.flatten()]
        taken = [weight < 0 for weight in weights[rows].tolist()]
        lengths = groups.add((weights != 0).astype(np.int64)).tolist()
        states: list[bytes | None] = [None] * groups.count
        arguments = zip(taken, *columns, strict=True)
        for group, length in enumerate(lengths):
            if length:
                states[group] = dump_value(self._state(itertools.islice(arguments, length)))
        return [pa.array(states, pa.binary()), pa.array(groups.add(weights.astype(np.int64)))]

    def _state(self, rows: Iterable[tuple[Any, ...]]) -> Any:
        """The state of rows (whether it is taken back, arguments …)."""
        add, retract = self.aggregate.add, self.aggregate.retract
        with _calling(self.text, "add or retract"):
            state = self.aggregate.create()
            for back, *values in rows:
                state = retract(state, *values) if back else add(state, *values)
                if state is None:
                    method = "retract" if back else "add"
                    raise TypeError(f"{method}() gave None; it must return the state")
        return state

    def merge(self, groups: Groups, parts: list[pa.Array]) -> list[pa.Array]:
        stored = parts[0].to_pylist()
        merged: list[bytes | None] = [stored[row] for row in groups.firsts.tolist()]
        for group in np.flatnonzero(groups.sizes > 1).tolist():
            start = groups.starts[group]
            rows = groups.order[start : start + groups.sizes[group]].tolist()
            there = [each for each in (stored[row] for row in rows) if each is not None]
            merged[group] = self._merged(there) if len(there) > 1 else next(iter(there), None)
        return [pa.array(merged, pa.binary()), pa.array(groups.add(fixed_values(parts[1])))]

    def _merged(self, stored: list[bytes]) -> bytes:
        state = load_value(stored[0])
        with _calling(self.text, "merge"):
            for other in stored[1:]:
                state = self.aggregate.merge(state, load_value(other))
                if state is None:
                    raise TypeError("merge() gave None; it must return the state")
        return dump_value(state)

    def final(self, parts: list[pa.Array]) -> pa.Array:
        results = []
        with _calling(self.text, "result"):
            for stored in parts[0].to_pylist():
                state = self.aggregate.create() if stored is None else load_value(stored)
                results.append(self.aggregate.result(state))
            return pa.array(results, self.kind)


@dataclass(frozen=True, kw_only=True)
class PerRowSigned(PerRow, SignedAccumulator):
    """The same of a class that can take rows back."""

    def weighted(
        self, groups: Groups, argument: pa.Array | None, weights: Numbers
    ) -> list[pa.Array]:
        return self._folded(groups, argument, weights)

    def empty(self, parts: list[pa.Array]) -> Numbers:
        return np.asarray(fixed_values(parts[1]) == 0)


@dataclass(frozen=True, kw_only=True)
class PerSegment(Accumulator):
    """A SegmentAggregate; no row is left out here, see accumulators_filtered.py."""

    aggregate: SegmentAggregate
    kind: pa.DataType

    @property
    def stored(self) -> tuple[pa.DataType, ...]:
        return tuple(self.aggregate.state)

    @property
    def result(self) -> pa.DataType:
        return self.kind

    def partial(
        self, groups: Groups, argument: pa.Array | None, times_ns: Numbers
    ) -> list[pa.Array]:
        assert argument is not None
        order = pa.array(groups.order)
        columns = [field.take(order) for field in argument.flatten()]
        with _calling(self.text, "fold"):
            return self._checked(self.aggregate.fold(columns, groups.starts), groups.count)

    def merge(self, groups: Groups, parts: list[pa.Array]) -> list[pa.Array]:
        order = pa.array(groups.order)
        columns = [part.take(order) for part in parts]
        with _calling(self.text, "merge"):
            return self._checked(self.aggregate.merge(columns, groups.starts), groups.count)

    def final(self, parts: list[pa.Array]) -> pa.Array:
        with _calling(self.text, "finish"):
            return _column(self.aggregate.finish(parts), self.kind, len(parts[0]))

    def _checked(self, made: Sequence[Any], count: int) -> list[pa.Array]:
        kinds = self.stored
        if len(made) != len(kinds):
            raise ValueError(f"it gave {len(made)} columns; `state` names {len(kinds)}")
        return [_column(each, kind, count) for each, kind in zip(made, kinds, strict=True)]


def _column(made: Any, kind: pa.DataType, count: int) -> pa.Array:
    """What user code gave, as a column of `kind`."""
    if isinstance(made, pa.ChunkedArray):
        made = made.combine_chunks()
    if not isinstance(made, pa.Array):
        made = pa.array(made, None if isinstance(made, np.ndarray) else kind)
    if len(made) != count:
        raise ValueError(f"it gave {len(made)} values for {count} groups")
    return made if made.type == kind else made.cast(kind)
