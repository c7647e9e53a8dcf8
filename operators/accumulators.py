"""Columnar accumulators: one aggregate as columns that can be made, merged and finished.

`partial` folds argument rows into one row per group, `merge` folds such rows again, `final` reads
the result; all are vectorised and order within a group is kept. Integers and decimals are exact:
a total that does not fit raises StateError naming the aggregate. NULL arguments are left out,
and an aggregate of nothing is NULL (a count is 0); NaN is greater than every number.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from penstock.elements.buffers import fixed_array, fixed_dtype, fixed_values, validity
from penstock.elements.errors import StateError

from .grouping import Groups, ranks
from .segments import best_rows

Numbers = npt.NDArray[Any]
SAFE_INT_BOUND = float(2**62)
"""Sums whose terms' magnitudes add up to less cannot have wrapped around."""
DECIMAL_BOUND = 1e37
"""The same for decimal(38), counted in units of the last digit."""


@dataclass(frozen=True, kw_only=True)
class Accumulator(ABC):
    """One aggregate. `text` is how the user wrote it, for errors."""

    text: str

    @property
    @abstractmethod
    def stored(self) -> tuple[pa.DataType, ...]:
        """The types of the partial columns."""

    @property
    @abstractmethod
    def result(self) -> pa.DataType:
        """The type of the result."""

    nullable: bool = True

    @property
    def repeats_matter(self) -> bool:
        """Whether a value counts as often as it is there."""
        return True

    @property
    def of_values(self) -> bool:
        """Whether the arguments alone say the result, whatever their times."""
        return True

    def nothing(self) -> pa.Array:
        """The result of no rows at all, once."""
        return pa.nulls(1, self.result) if self.nullable else pa.array([0], self.result)

    @abstractmethod
    def partial(
        self, groups: Groups, argument: pa.Array | None, times_ns: Numbers
    ) -> list[pa.Array]:
        """One row per group from argument rows; no argument for count(*)."""

    @abstractmethod
    def merge(self, groups: Groups, parts: list[pa.Array]) -> list[pa.Array]:
        """One row per group from partial rows."""

    @abstractmethod
    def final(self, parts: list[pa.Array]) -> pa.Array:
        """The result per partial row."""


def present(column: pa.Array) -> npt.NDArray[np.bool_]:
    """Which rows have a value."""
    valid = validity(column)
    return np.ones(len(column), np.bool_) if valid is None else valid


def exact_sum(groups: Groups, values: Numbers, text: str, dtype: type[np.generic]) -> Numbers:
    """Integer sums that are right or raise; `values` are zero where they do not count."""
    values = values.astype(dtype, copy=False)
    widest = max(abs(int(values.min())), abs(int(values.max())))
    if widest * len(values) < SAFE_INT_BOUND:
        return groups.add(values)
    magnitudes = groups.add(np.abs(values.astype(np.float64)))
    totals = groups.add(values)
    if magnitudes.max() < SAFE_INT_BOUND:
        return totals
    info = np.iinfo(dtype)  # type: ignore[type-var]
    for group in np.flatnonzero(magnitudes >= SAFE_INT_BOUND).tolist():
        start = groups.starts[group]
        rows = groups.order[start : start + groups.sizes[group]]
        total = sum(values[rows].tolist())
        if not info.min <= total <= info.max:
            raise overflow(text, str(np.dtype(dtype)))
        totals[group] = total
    return totals


def overflow(text: str, kind: str) -> StateError:
    """A total that does not fit."""
    return StateError(
        f"{text}: the total {'of integers ' if 'int' in kind else ''}does not fit {kind}\n"
        "  Sum a wider type:  CAST(column AS DECIMAL(38, 0))  is exact,  DOUBLE  is not."
    )


@dataclass(frozen=True, kw_only=True)
class Count(Accumulator):
    """count(*) and count(x)."""

    nullable: bool = False

    @property
    def stored(self) -> tuple[pa.DataType, ...]:
        return (pa.int64(),)

    @property
    def result(self) -> pa.DataType:
        return pa.int64()

    def partial(
        self, groups: Groups, argument: pa.Array | None, times_ns: Numbers
    ) -> list[pa.Array]:
        if argument is None or argument.null_count == 0:
            return [pa.array(groups.sizes)]
        return [pa.array(groups.add(present(argument).astype(np.int64)))]

    def merge(self, groups: Groups, parts: list[pa.Array]) -> list[pa.Array]:
        return [pa.array(groups.add(fixed_values(parts[0])))]

    def final(self, parts: list[pa.Array]) -> pa.Array:
        return parts[0]


@dataclass(frozen=True, kw_only=True)
class Sum(Accumulator):
    """sum of integers (64 bit), floats (double) or decimals (38 digits)."""

    kind: pa.DataType
    """Of the total."""

    @property
    def stored(self) -> tuple[pa.DataType, ...]:
        return (self.kind,)

    @property
    def result(self) -> pa.DataType:
        return self.kind

    def partial(
        self, groups: Groups, argument: pa.Array | None, times_ns: Numbers
    ) -> list[pa.Array]:
        assert argument is not None
        if argument.type != self.kind:
            argument = argument.cast(self.kind)
        return self.merge(groups, [argument])

    def merge(self, groups: Groups, parts: list[pa.Array]) -> list[pa.Array]:
        column = parts[0]
        if pa.types.is_decimal(self.kind):
            return [self._decimals(groups, column)]
        valid = validity(column)
        values = fixed_values(column)
        if valid is not None:
            values = np.where(valid, values, 0)
        if pa.types.is_floating(self.kind):
            totals = groups.add(values)
        else:
            unsigned = pa.types.is_unsigned_integer(self.kind)
            dtype: Any = np.uint64 if unsigned else np.int64
            totals = exact_sum(groups, values, self.text, dtype)
        return [fixed_array(self.kind, totals, None if valid is None else groups.any(valid))]

    def _decimals(self, groups: Groups, column: pa.Array) -> pa.Array:
        units = np.abs(column.cast(pa.float64()).fill_null(0.0).to_numpy()) * 10.0**self.kind.scale
        if groups.add(units).max() >= DECIMAL_BOUND:
            raise overflow(self.text, "decimal(38)")
        table = pa.table({"g": pa.array(groups.codes), "v": column})
        summed = table.group_by("g", use_threads=False).aggregate([("v", "sum")])
        places = np.empty(groups.count, np.int64)
        places[summed.column("g").to_numpy()] = np.arange(groups.count)
        totals = summed.column("v_sum").combine_chunks().take(pa.array(places))
        return totals.cast(self.kind)

    def final(self, parts: list[pa.Array]) -> pa.Array:
        return parts[0]


@dataclass(frozen=True, kw_only=True)
class Average(Accumulator):
    """avg: a total and a count; double, or a decimal of four more digits for decimals."""

    total: Sum

    @property
    def stored(self) -> tuple[pa.DataType, ...]:
        return (*self.total.stored, pa.int64())

    @property
    def result(self) -> pa.DataType:
        kind = self.total.kind
        if pa.types.is_decimal(kind):
            return pa.decimal128(38, min(38, kind.scale + 4))
        return pa.float64()

    def partial(
        self, groups: Groups, argument: pa.Array | None, times_ns: Numbers
    ) -> list[pa.Array]:
        counts = Count(text=self.text).partial(groups, argument, times_ns)
        return [*self.total.partial(groups, argument, times_ns), *counts]

    def merge(self, groups: Groups, parts: list[pa.Array]) -> list[pa.Array]:
        totals = self.total.merge(groups, parts[:1])
        return [*totals, *Count(text=self.text).merge(groups, parts[1:])]

    def final(self, parts: list[pa.Array]) -> pa.Array:
        total, count = parts
        if pa.types.is_decimal(self.total.kind):
            # A wide quotient first: Arrow has no division that keeps a chosen scale.
            scale = self.result.scale
            wide = total.cast(pa.decimal256(45, scale))
            ones = pc.max_element_wise(count, 1).cast(pa.decimal256(19, 0))
            return pc.round(pc.divide(wide, ones), ndigits=scale).cast(self.result)
        numbers = fixed_values(count)
        valid = present(total)
        quotients = fixed_values(total).astype(np.float64) / np.maximum(numbers, 1)
        return fixed_array(pa.float64(), quotients, valid)


@dataclass(frozen=True, kw_only=True)
class Extreme(Accumulator):
    """min and max of anything that can be sorted; bool_and and bool_or are those of booleans."""

    kind: pa.DataType
    least: bool = True

    @property
    def repeats_matter(self) -> bool:
        return False

    @property
    def stored(self) -> tuple[pa.DataType, ...]:
        return (self.kind,)

    @property
    def result(self) -> pa.DataType:
        return self.kind

    def partial(
        self, groups: Groups, argument: pa.Array | None, times_ns: Numbers
    ) -> list[pa.Array]:
        assert argument is not None
        return self.merge(groups, [argument])

    def merge(self, groups: Groups, parts: list[pa.Array]) -> list[pa.Array]:
        column = parts[0]
        dtype = fixed_dtype(column.type)
        if dtype is None or dtype.kind not in "iuf" or dtype == np.float16:
            return [self._by_rank(groups, column)]
        valid = validity(column)
        values = fixed_values(column)
        if valid is not None:
            values = np.where(valid, values, _neutral(dtype, self.least))
            valid = groups.any(valid)
        if dtype.kind == "f" and self.least:
            # NaN is greater than every number: a group's least is NaN only if all are.
            found = groups.reduce(np.fmin, values)
            if valid is not None:
                nans = groups.reduce(np.logical_and, np.isnan(values) | ~present(column))
                found = np.where(nans & valid, np.nan, found).astype(dtype)
        else:
            found = groups.reduce(np.minimum if self.least else np.maximum, values)
        return [fixed_array(self.kind, found, valid)]

    def _by_rank(self, groups: Groups, column: pa.Array) -> pa.Array:
        by_row, row_of_rank = ranks(column)
        valid = validity(column)
        if valid is not None:
            worst = len(row_of_rank) if self.least else -1
            by_row = np.where(valid, by_row, worst)
        best = groups.reduce(np.minimum if self.least else np.maximum, by_row)
        found = (best >= 0) & (best < len(row_of_rank))
        rows = row_of_rank[np.where(found, best, 0)]
        return column.take(pa.array(rows, mask=~found))

    def final(self, parts: list[pa.Array]) -> pa.Array:
        return parts[0]


def _neutral(dtype: np.dtype[Any], least: bool) -> Any:
    if dtype.kind == "f":
        return np.inf if least else -np.inf
    info = np.iinfo(dtype)
    return info.max if least else info.min


@dataclass(frozen=True, kw_only=True)
class Edge(Accumulator):
    """first and last by event time, nulls included.

    Rows of one instant are told apart by value, so that the result does not depend on the order
    of arrival (hazard 21): first takes the smallest of them, last the greatest; null is greatest.
    """

    kind: pa.DataType
    first: bool = True

    @property
    def of_values(self) -> bool:
        return False

    @property
    def stored(self) -> tuple[pa.DataType, ...]:
        return (self.kind, pa.int64())

    @property
    def result(self) -> pa.DataType:
        return self.kind

    def partial(
        self, groups: Groups, argument: pa.Array | None, times_ns: Numbers
    ) -> list[pa.Array]:
        assert argument is not None
        return self.merge(groups, [argument, pa.array(times_ns, pa.int64())])

    def merge(self, groups: Groups, parts: list[pa.Array]) -> list[pa.Array]:
        column, times = parts
        rows = pa.array(best_rows(groups, fixed_values(times), column, least=self.first))
        return [column.take(rows), times.take(rows)]

    def final(self, parts: list[pa.Array]) -> pa.Array:
        return parts[0]


@dataclass(frozen=True, kw_only=True)
class Spread(Accumulator):
    """Variance and standard deviation: count, mean and squared distances, merged after Chan."""

    sample: bool = True
    root: bool = False

    @property
    def stored(self) -> tuple[pa.DataType, ...]:
        return (pa.int64(), pa.float64(), pa.float64())

    @property
    def result(self) -> pa.DataType:
        return pa.float64()

    def partial(
        self, groups: Groups, argument: pa.Array | None, times_ns: Numbers
    ) -> list[pa.Array]:
        assert argument is not None
        values = argument.cast(pa.float64())
        with np.errstate(all="ignore"):
            return self._fold(groups, values)

    def _fold(self, groups: Groups, values: pa.Array) -> list[pa.Array]:
        valid = present(values)
        numbers = np.where(valid, fixed_values(values), 0.0)
        counts = groups.add(valid.astype(np.int64))
        means = groups.add(numbers) / np.maximum(counts, 1)
        distances = np.where(valid, numbers - means[groups.codes], 0.0)
        return [pa.array(counts), pa.array(means), pa.array(groups.add(distances * distances))]

    def merge(self, groups: Groups, parts: list[pa.Array]) -> list[pa.Array]:
        counts, means, squares = (fixed_values(part) for part in parts)
        totals = groups.add(counts)
        with np.errstate(all="ignore"):
            merged = groups.add(counts * means) / np.maximum(totals, 1)
            between = counts * (means - merged[groups.codes]) ** 2
            return [pa.array(totals), pa.array(merged), pa.array(groups.add(squares + between))]

    def final(self, parts: list[pa.Array]) -> pa.Array:
        counts, _, squares = (fixed_values(part) for part in parts)
        freedom = counts - 1 if self.sample else counts
        found = squares / np.maximum(freedom, 1)
        return fixed_array(pa.float64(), np.sqrt(found) if self.root else found, freedom > 0)
