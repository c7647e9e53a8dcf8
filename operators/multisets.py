"""Aggregates that need every distinct value: DISTINCT, quantile, median, and what is taken back.

Their state is rows (group, value, how often), which merge by adding up (kernels.md section 3:
"sketches as rows"), so it is bounded by the number of distinct values, not of rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penstock.elements.buffers import fixed_array, fixed_values

from .accumulators import Accumulator
from .grouping import group_rows
from .segments import groups_of, spread, value_ranks

Function = Literal["distinct", "quantile", "accumulate"]


@dataclass(frozen=True)
class MultisetResult:
    """How one aggregate reads a multiset; `once`: each value counts once."""

    function: Function
    fraction: float = 0.5
    accumulator: Accumulator | None = None
    once: bool = False

    @property
    def result(self) -> pa.DataType:
        """int64 for a count, double for a quantile, else as the accumulator says."""
        if self.accumulator is not None:
            return self.accumulator.result
        return pa.int64() if self.function == "distinct" else pa.float64()

    @property
    def nullable(self) -> bool:
        """Counts of nothing are 0, everything else is NULL."""
        if self.accumulator is not None:
            return self.accumulator.nullable
        return self.function == "quantile"


@dataclass(frozen=True)
class Multiset:
    """The values of argument `argument`, of type `kind`."""

    argument: int
    kind: pa.DataType


def fold_values(columns: list[pa.Array], values: pa.Array, times: pa.Array) -> pa.RecordBatch:
    """Columns `g0`, `g1`, … `value` and `n`, one row per distinct combination.

    `times` says how often each row counts; rows with a null value are left out.
    """
    if values.null_count:
        keep = values.is_valid()
        columns = [column.filter(keep) for column in columns]
        values, times = values.filter(keep), times.filter(keep)
    names = [*(f"g{at}" for at in range(len(columns))), "value", "n"]
    if not len(values):
        return pa.RecordBatch.from_arrays([*columns, values, times], names)
    groups = group_rows([*columns, values], len(values))
    rows = pa.array(groups.firsts)
    counted = pa.array(groups.add(fixed_values(times)))
    kept = [column.take(rows) for column in columns]
    return pa.RecordBatch.from_arrays([*kept, values.take(rows), counted], names)


def finish(
    how: MultisetResult,
    groups: npt.NDArray[np.int64],
    count: int,
    values: pa.Array,
    times: pa.Array,
) -> pa.Array:
    """The result for groups 0 … count-1, some of which may have no values."""
    if how.function == "distinct":
        return pa.array(np.bincount(groups, minlength=count).astype(np.int64))
    if how.accumulator is not None:
        return _accumulated(how.accumulator, how.once, groups, count, values, times)
    if not len(values):
        return pa.nulls(count, pa.float64())
    return _quantiles(how.fraction, groups, count, values, fixed_values(times))


def _accumulated(
    accumulator: Accumulator,
    once: bool,
    groups: npt.NDArray[np.int64],
    count: int,
    values: pa.Array,
    times: pa.Array,
) -> pa.Array:
    if not len(values):
        return accumulator.nothing().take(pa.array(np.zeros(count, np.int64)))
    if accumulator.repeats_matter:
        # In the order of values, so that sums of floats are the same again after a restart.
        order = np.lexsort((value_ranks(values), groups))
        if not once:
            order = np.repeat(order, fixed_values(times)[order])
        values, groups = values.take(pa.array(order)), groups[order]
    some, owners = groups_of(groups, count)
    parts = accumulator.partial(some, values, np.zeros(len(values), np.int64))
    return spread(accumulator.final(parts), owners, count, accumulator.nothing())


def _quantiles(
    fraction: float, groups: Any, count: int, values: pa.Array, times: npt.NDArray[Any]
) -> pa.Array:
    """Linear between the two nearest values, like NumPy's default; NaN is the greatest."""
    numbers = values.cast(pa.float64(), safe=False).to_numpy()
    order = np.lexsort((numbers, groups))
    numbers, times = numbers[order], times[order]
    # `until[i]`: how many values lie before the end of run i, over all groups.
    until = np.cumsum(times)
    rows = np.bincount(groups[order], weights=times, minlength=count).astype(np.int64)
    before = np.cumsum(rows) - rows
    at = fraction * np.maximum(rows - 1, 0)
    low = np.floor(at).astype(np.int64)
    high = np.minimum(low + 1, np.maximum(rows - 1, 0))
    last = len(numbers) - 1
    below = numbers[np.minimum(np.searchsorted(until, before + low, side="right"), last)]
    above = numbers[np.minimum(np.searchsorted(until, before + high, side="right"), last)]
    weight = at - low
    with np.errstate(invalid="ignore"):
        # Taken as it is where nothing is to be mixed: infinity times zero would be NaN.
        near = (weight == 0) | (below == above)
        found = np.where(near, below, below * (1 - weight) + above * weight)
    return fixed_array(pa.float64(), found, rows > 0)
