"""Accumulators over two arguments, which come as structs (first, second).

A null struct, or a null in either field, is no pair. min_by and max_by give one row's value;
corr, covar and regr keep count, means and products of distances, merged after Chan.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.types as pt

from penstock.elements.buffers import fixed_array, fixed_dtype, fixed_values

from .accumulators import Accumulator, Numbers, present
from .grouping import Groups, Mask
from .segments import best_rows, groups_of, spread, value_ranks

Statistic = Literal[
    "corr", "covar_pop", "covar_samp", "regr_slope", "regr_intercept", "regr_r2", "regr_count",
    "regr_avgx", "regr_avgy", "regr_sxx", "regr_syy", "regr_sxy",
]  # fmt: skip


def pairs_of(argument: pa.Array) -> tuple[pa.Array, pa.Array, Mask]:
    """(first fields, second fields, which rows have both)."""
    first, second = argument.flatten()
    return first, second, present(first) & present(second)


@dataclass(frozen=True, kw_only=True)
class ByExtreme(Accumulator):
    """min_by(x, y) and max_by(x, y): the x of the row with the least or greatest y.

    Among equal y min_by takes the least x and max_by the greatest (hazard 21); NaN is greatest.
    """

    kind: pa.DataType
    by: pa.DataType
    least: bool = True

    @property
    def repeats_matter(self) -> bool:
        return False

    @property
    def stored(self) -> tuple[pa.DataType, ...]:
        return (self.kind, self.by)

    @property
    def result(self) -> pa.DataType:
        return self.kind

    def partial(
        self, groups: Groups, argument: pa.Array | None, times_ns: Numbers
    ) -> list[pa.Array]:
        assert argument is not None
        values, keys, both = pairs_of(argument)
        return self._picked(groups, values, keys, both)

    def merge(self, groups: Groups, parts: list[pa.Array]) -> list[pa.Array]:
        values, keys = parts
        return self._picked(groups, values, keys, present(keys))

    def _picked(
        self, groups: Groups, values: pa.Array, keys: pa.Array, both: Mask
    ) -> list[pa.Array]:
        if both.all():
            within, owners = groups, np.arange(groups.count)
        else:
            rows = np.flatnonzero(both)
            if not len(rows):
                return [pa.nulls(groups.count, self.kind), pa.nulls(groups.count, self.by)]
            at = pa.array(rows)
            values, keys = values.take(at), keys.take(at)
            within, owners = groups_of(groups.codes[rows], groups.count)
        best = pa.array(best_rows(within, _sortable(keys), values, least=self.least))
        found = [column.take(best) for column in (values, keys)]
        return [spread(each, owners, groups.count, pa.nulls(1, each.type)) for each in found]

    def final(self, parts: list[pa.Array]) -> pa.Array:
        return parts[0]


def _sortable(keys: pa.Array) -> Numbers:
    """Numbers in the order of `keys`."""
    dtype = fixed_dtype(keys.type)
    if dtype is not None and dtype.kind in "iuf" and dtype != np.float16:
        values = fixed_values(keys)
        if dtype.kind != "f" or not np.isnan(values).any():
            return values
    return value_ranks(keys)


@dataclass(frozen=True, kw_only=True)
class Moments(Accumulator):
    """Statistics of pairs (y, x) as SQL orders them.

    Without spread in x there is no line: corr, slope, intercept and r2 are NULL, as the standard
    says.
    """

    statistic: Statistic

    @property
    def stored(self) -> tuple[pa.DataType, ...]:
        return (pa.int64(), *[pa.float64()] * 5)

    @property
    def result(self) -> pa.DataType:
        return pa.int64() if self.statistic == "regr_count" else pa.float64()

    def partial(
        self, groups: Groups, argument: pa.Array | None, times_ns: Numbers
    ) -> list[pa.Array]:
        assert argument is not None
        first, second, both = pairs_of(argument)
        y, x = (fixed_values(column.cast(pa.float64(), safe=False)) for column in (first, second))
        zero = np.zeros(len(y))
        return self._fold(groups, both.astype(np.int64), y, x, [zero, zero, zero])

    def merge(self, groups: Groups, parts: list[pa.Array]) -> list[pa.Array]:
        counts, y, x, *products = (fixed_values(part) for part in parts)
        return self._fold(groups, counts, y, x, products)

    def _fold(
        self, groups: Groups, counts: Numbers, y: Numbers, x: Numbers, products: list[Numbers]
    ) -> list[pa.Array]:
        """From counts, means and products of distances (yy, xx, xy) within each row."""
        totals = groups.add(counts)
        with np.errstate(all="ignore"):
            mean_y, far_y = _distances(groups, counts, totals, y)
            mean_x, far_x = _distances(groups, counts, totals, x)
            terms = (far_y * far_y, far_x * far_x, far_x * far_y)
            folded = [
                groups.add(np.where(counts > 0, within + counts * term, 0.0))
                for within, term in zip(products, terms, strict=True)
            ]
        return [pa.array(totals), *(pa.array(part) for part in (mean_y, mean_x, *folded))]

    def final(self, parts: list[pa.Array]) -> pa.Array:
        count, mean_y, mean_x, yy, xx, xy = (fixed_values(part) for part in parts)
        if self.statistic == "regr_count":
            return parts[0]
        with np.errstate(all="ignore"):
            found, there = self._result(count, mean_y, mean_x, yy, xx, xy)
        return fixed_array(pa.float64(), found, there & (count > 0))

    def _result(
        self, n: Numbers, mean_y: Numbers, mean_x: Numbers, yy: Numbers, xx: Numbers, xy: Numbers
    ) -> tuple[Numbers, Mask]:
        """(the statistic, where there is one)."""
        always = np.ones(len(n), np.bool_)
        name = self.statistic
        if name == "covar_pop":
            return xy / n, always
        if name == "covar_samp":
            return xy / (n - 1), n > 1
        if name == "corr":
            bounded = xy / (np.sqrt(xx) * np.sqrt(yy))
            return np.clip(bounded, -1.0, 1.0), (xx != 0) & (yy != 0)
        if name == "regr_slope":
            return xy / xx, xx != 0
        if name == "regr_intercept":
            return mean_y - xy / xx * mean_x, xx != 0
        if name == "regr_r2":
            squared = np.where(yy == 0, 1.0, (xy / xx) * (xy / yy))
            return squared, xx != 0
        single = {
            "regr_avgx": mean_x,
            "regr_avgy": mean_y,
            "regr_sxx": xx,
            "regr_syy": yy,
            "regr_sxy": xy,
        }
        return single[name], always


def _distances(
    groups: Groups, counts: Numbers, totals: Numbers, means: Numbers
) -> tuple[Numbers, Numbers]:
    """(mean per group, distance of each row's mean from it).

    Both are taken from a value of the group, so that equal values have no distance at all.
    """
    near = np.zeros(groups.count)
    rows = np.flatnonzero((counts > 0) & np.isfinite(means))[::-1]
    near[groups.codes[rows]] = means[rows]
    moved = np.where(counts > 0, means - near[groups.codes], 0.0)
    mean = groups.add(counts * moved) / np.maximum(totals, 1)
    return near + mean, moved - mean[groups.codes]


def is_plain(kind: pa.DataType) -> bool:
    """Whether values of it are in an order that all agree on."""
    return not (pt.is_nested(kind) or pt.is_null(kind))
