"""Accumulators whose rows can be taken back: sums of signed terms.

`weighted` folds rows that count +1 or -1; `merge` and `final` are those of every accumulator. All
state is linear in the rows, so a row that is taken back before it was added does no harm. Integers
and decimals are exact. Floats carry their rounding error along, and infinities and NaNs are
counted, so that they leave without a trace. min, max and the like need every value: multisets.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from penstock.elements.buffers import fixed_array, fixed_values

from .accumulators import (
    SAFE_INT_BOUND,
    Accumulator,
    Average,
    Count,
    Numbers,
    Spread,
    Sum,
    overflow,
    present,
)
from .grouping import Groups


@dataclass(frozen=True, kw_only=True)
class SignedAccumulator(Accumulator):
    """An accumulator over rows with weights."""

    @abstractmethod
    def weighted(
        self, groups: Groups, argument: pa.Array | None, weights: Numbers
    ) -> list[pa.Array]:
        """One row per group from argument rows that count +1 or -1."""

    def partial(
        self, groups: Groups, argument: pa.Array | None, times_ns: Numbers
    ) -> list[pa.Array]:
        return self.weighted(groups, argument, np.ones(len(groups.codes), np.int64))

    def empty(self, parts: list[pa.Array]) -> Numbers:
        """Which rows are as if nothing had ever been added."""
        found = np.ones(len(parts[0]), np.bool_)
        for part in parts:
            if pa.types.is_decimal(part.type):
                found &= pc.equal(part, 0).to_numpy(zero_copy_only=False)
            else:
                found &= fixed_values(part) == 0
        return found


@dataclass(frozen=True, kw_only=True)
class SignedCount(SignedAccumulator):
    """count(*) and count(x)."""

    nullable: bool = False

    @property
    def stored(self) -> tuple[pa.DataType, ...]:
        return (pa.int64(),)

    @property
    def result(self) -> pa.DataType:
        return pa.int64()

    def weighted(
        self, groups: Groups, argument: pa.Array | None, weights: Numbers
    ) -> list[pa.Array]:
        if argument is not None and argument.null_count:
            weights = np.where(present(argument), weights, 0)
        return [pa.array(groups.add(weights.astype(np.int64, copy=False)))]

    def merge(self, groups: Groups, parts: list[pa.Array]) -> list[pa.Array]:
        return [pa.array(groups.add(fixed_values(parts[0])))]

    def final(self, parts: list[pa.Array]) -> pa.Array:
        return parts[0]


@dataclass(frozen=True, kw_only=True)
class SignedIntegers(SignedAccumulator):
    """A sum of integers as (total, how many values)."""

    @property
    def stored(self) -> tuple[pa.DataType, ...]:
        return (pa.int64(), pa.int64())

    @property
    def result(self) -> pa.DataType:
        return pa.int64()

    def weighted(
        self, groups: Groups, argument: pa.Array | None, weights: Numbers
    ) -> list[pa.Array]:
        assert argument is not None
        weights = np.where(present(argument), weights, 0).astype(np.int64, copy=False)
        values = fixed_values(argument).astype(np.int64, copy=False)
        totals = self._add(groups, values, weights)
        return [pa.array(totals), pa.array(groups.add(weights))]

    def merge(self, groups: Groups, parts: list[pa.Array]) -> list[pa.Array]:
        totals = fixed_values(parts[0])
        added = self._add(groups, totals, np.ones(len(totals), np.int64))
        return [pa.array(added), pa.array(groups.add(fixed_values(parts[1])))]

    def _add(self, groups: Groups, values: Numbers, weights: Numbers) -> Numbers:
        magnitudes = groups.add(np.abs(values.astype(np.float64)) * np.abs(weights))
        totals = groups.add(values * weights)  # Wrong only where the magnitudes say so.
        for group in np.flatnonzero(magnitudes >= SAFE_INT_BOUND).tolist():
            start = groups.starts[group]
            rows = groups.order[start : start + groups.sizes[group]]
            exact = sum(
                value * weight
                for value, weight in zip(values[rows].tolist(), weights[rows].tolist())
            )
            if not -(2**63) <= exact < 2**63:
                raise overflow(self.text, "int64")
            totals[group] = exact
        return totals

    def final(self, parts: list[pa.Array]) -> pa.Array:
        return fixed_array(pa.int64(), fixed_values(parts[0]), fixed_values(parts[1]) > 0)


@dataclass(frozen=True, kw_only=True)
class SignedDecimals(SignedAccumulator):
    """A sum of decimals, or of unsigned words, which may be below zero for a while."""

    kind: pa.DataType
    """Of the result."""

    @property
    def total(self) -> pa.DataType:
        """Of the total on its way."""
        return self.kind if pa.types.is_decimal(self.kind) else pa.decimal128(38, 0)

    @property
    def stored(self) -> tuple[pa.DataType, ...]:
        return (self.total, pa.int64())

    @property
    def result(self) -> pa.DataType:
        return self.kind

    def weighted(
        self, groups: Groups, argument: pa.Array | None, weights: Numbers
    ) -> list[pa.Array]:
        assert argument is not None
        weights = np.where(present(argument), weights, 0).astype(np.int64, copy=False)
        if pa.types.is_integer(argument.type):
            argument = argument.cast(pa.decimal128(20, 0))
        wide = argument.cast(pa.decimal256(76, self.total.scale))
        terms = pc.if_else(pa.array(weights < 0), pc.negate(wide), wide)
        terms = pc.if_else(pa.array(weights != 0), terms, pa.scalar(0, terms.type))
        return [self._add(groups, terms), pa.array(groups.add(weights))]

    def merge(self, groups: Groups, parts: list[pa.Array]) -> list[pa.Array]:
        wide = parts[0].cast(pa.decimal256(76, self.total.scale))
        return [self._add(groups, wide), pa.array(groups.add(fixed_values(parts[1])))]

    def _add(self, groups: Groups, terms: pa.Array) -> pa.Array:
        table = pa.table({"g": pa.array(groups.codes), "v": terms})
        summed = table.group_by("g", use_threads=False).aggregate([("v", "sum")])
        places = np.empty(groups.count, np.int64)
        places[summed.column("g").to_numpy()] = np.arange(groups.count)
        totals = summed.column("v_sum").combine_chunks().take(pa.array(places))
        try:
            return totals.cast(self.total)
        except pa.ArrowInvalid:
            raise overflow(self.text, "decimal(38)") from None

    def final(self, parts: list[pa.Array]) -> pa.Array:
        counted = pa.array(fixed_values(parts[1]) > 0)
        found = pc.if_else(counted, parts[0], pa.scalar(None, parts[0].type))
        if found.type == self.kind:
            return found
        try:
            return found.cast(self.kind)
        except pa.ArrowInvalid:
            raise overflow(self.text, str(self.kind)) from None


@dataclass(frozen=True, kw_only=True)
class SignedFloats(SignedAccumulator):
    """A sum of floats as (total, its rounding error, values, NaNs, infinities of either sign)."""

    @property
    def stored(self) -> tuple[pa.DataType, ...]:
        return (pa.float64(), pa.float64(), *[pa.int64()] * 4)

    @property
    def result(self) -> pa.DataType:
        return pa.float64()

    def weighted(
        self, groups: Groups, argument: pa.Array | None, weights: Numbers
    ) -> list[pa.Array]:
        assert argument is not None
        values = fixed_values(argument.cast(pa.float64()))
        weights = np.where(present(argument), weights, 0).astype(np.int64, copy=False)
        totals, errors = _sum_with_error(groups, np.where(np.isfinite(values), values, 0) * weights)
        counts = [weights]
        for special in (np.isnan(values), values == np.inf, values == -np.inf):
            counts.append(np.where(special, weights, 0))
        return [
            pa.array(totals),
            pa.array(errors),
            *(pa.array(groups.add(count)) for count in counts),
        ]

    def merge(self, groups: Groups, parts: list[pa.Array]) -> list[pa.Array]:
        totals, errors = _sum_with_error(groups, fixed_values(parts[0]))
        errors = errors + groups.add(fixed_values(parts[1]))
        counts = [pa.array(groups.add(fixed_values(part))) for part in parts[2:]]
        return [pa.array(totals), pa.array(errors), *counts]

    def final(self, parts: list[pa.Array]) -> pa.Array:
        totals, errors, values, nans, plus, minus = (fixed_values(part) for part in parts)
        found = totals + errors
        found = np.where(plus > 0, np.inf, np.where(minus > 0, -np.inf, found))
        found = np.where((nans > 0) | ((plus > 0) & (minus > 0)), np.nan, found)
        return fixed_array(pa.float64(), found, values > 0)


def _sum_with_error(groups: Groups, terms: Numbers) -> tuple[Numbers, Numbers]:
    """(sums, what they lack): Knuth's two-sum along the rows of each group, side by side."""
    totals, errors = np.zeros(groups.count), np.zeros(groups.count)
    ordered = terms[groups.order]
    with np.errstate(over="ignore", invalid="ignore"):
        if groups.sizes.max() > COMPENSATED_ROWS_MAX:
            return groups.add(terms), errors
        for step in range(int(groups.sizes.max())):
            live = np.flatnonzero(groups.sizes > step)
            term, before = ordered[groups.starts[live] + step], totals[live]
            after = before + term
            shadow = after - before
            errors[live] += (before - (after - shadow)) + (term - shadow)
            totals[live] = after
    return totals, errors


COMPENSATED_ROWS_MAX = 64
"""Rows of a group that are added one by one; more at once are added with NumPy's own rounding."""


@dataclass(frozen=True, kw_only=True)
class SignedAverage(SignedAccumulator):
    """avg: the sum's own parts, of which one is the number of values."""

    plain: Average
    total: SignedAccumulator

    @property
    def stored(self) -> tuple[pa.DataType, ...]:
        return self.total.stored

    @property
    def result(self) -> pa.DataType:
        return self.plain.result

    def weighted(
        self, groups: Groups, argument: pa.Array | None, weights: Numbers
    ) -> list[pa.Array]:
        return self.total.weighted(groups, argument, weights)

    def merge(self, groups: Groups, parts: list[pa.Array]) -> list[pa.Array]:
        return self.total.merge(groups, parts)

    def final(self, parts: list[pa.Array]) -> pa.Array:
        counts = parts[2] if isinstance(self.total, SignedFloats) else parts[1]
        return self.plain.final([self.total.final(parts), counts])


@dataclass(frozen=True, kw_only=True)
class SignedSpread(SignedAccumulator):
    """Variance as (values, a nearby value, sums of distances and of their squares, specials).

    Distances are taken from a value of the group, so that they cancel little. An outlier that is
    taken back leaves the rounding error that its square had: about 1e-16 of that.
    """

    sample: bool = True
    root: bool = False

    @property
    def stored(self) -> tuple[pa.DataType, ...]:
        return (pa.int64(), pa.float64(), pa.float64(), pa.float64(), pa.int64())

    @property
    def result(self) -> pa.DataType:
        return pa.float64()

    def weighted(
        self, groups: Groups, argument: pa.Array | None, weights: Numbers
    ) -> list[pa.Array]:
        assert argument is not None
        values = fixed_values(argument.cast(pa.float64()))
        weights = np.where(present(argument), weights, 0)
        finite = np.isfinite(values) & (weights != 0)
        counts = np.where(finite, weights, 0)
        near = _first_where(groups, finite, values)
        far = np.where(finite, values - near[groups.codes], 0.0)
        return [
            pa.array(groups.add(counts)),
            pa.array(near),
            pa.array(groups.add(far * counts)),
            pa.array(groups.add(far * far * counts)),
            pa.array(groups.add(np.where(finite, 0, weights))),
        ]

    def merge(self, groups: Groups, parts: list[pa.Array]) -> list[pa.Array]:
        counts, nears, sums, squares, specials = (fixed_values(part) for part in parts)
        near = _first_where(groups, (counts != 0) | (squares != 0), nears)
        move = nears - near[groups.codes]
        with np.errstate(all="ignore"):
            moved = squares + 2 * move * sums + counts * move * move
            return [
                pa.array(groups.add(counts)),
                pa.array(near),
                pa.array(groups.add(sums + counts * move)),
                pa.array(groups.add(moved)),
                pa.array(groups.add(specials)),
            ]

    def final(self, parts: list[pa.Array]) -> pa.Array:
        counts, _, sums, squares, specials = (fixed_values(part) for part in parts)
        every = counts + specials
        freedom = every - 1 if self.sample else every
        with np.errstate(all="ignore"):
            found = squares - sums * sums / np.maximum(counts, 1)
        found = np.maximum(found, 0.0) / np.maximum(freedom, 1)
        found = np.where(specials > 0, np.nan, found)
        return fixed_array(pa.float64(), np.sqrt(found) if self.root else found, freedom > 0)

    def empty(self, parts: list[pa.Array]) -> Numbers:
        # The nearby value means nothing by itself.
        return super().empty([*parts[:1], *parts[2:]])


def _first_where(groups: Groups, mask: Numbers, values: Numbers) -> Numbers:
    """The value of each group's first row for which `mask` is true; 0 if there is none."""
    found = np.zeros(groups.count)
    rows = np.flatnonzero(mask)[::-1]
    found[groups.codes[rows]] = values[rows]  # The last to be written came first.
    return found


def signed(accumulator: Accumulator) -> SignedAccumulator | None:
    """The accumulator for rows that may be taken back; None if it needs every value for that."""
    text = accumulator.text
    if isinstance(accumulator, SignedAccumulator):
        return accumulator
    if isinstance(accumulator, Count):
        return SignedCount(text=text)
    if isinstance(accumulator, Sum):
        return _signed_sum(accumulator)
    if isinstance(accumulator, Average):
        return SignedAverage(text=text, plain=accumulator, total=_signed_sum(accumulator.total))
    if isinstance(accumulator, Spread):
        return SignedSpread(text=text, sample=accumulator.sample, root=accumulator.root)
    return None


def _signed_sum(plain: Sum) -> SignedAccumulator:
    kind: Any = plain.kind
    if pa.types.is_floating(kind):
        return SignedFloats(text=plain.text)
    if kind == pa.int64():
        return SignedIntegers(text=plain.text)
    return SignedDecimals(text=plain.text, kind=kind)
