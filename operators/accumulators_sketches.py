"""Sketches: how many distinct values (HyperLogLog) and quantiles (DDSketch), within stated errors.

A sketch is two short lists in a row, of entries that are there, sorted, so that equal data give
equal bytes however they were split. They merge by sorting; counts of a quantile sketch are a sum
of signed terms, so that its rows can be taken back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from penstock.elements.buffers import fixed_array, fixed_values
from penstock.elements.hash import hash_array

from .accumulators import Accumulator, Numbers, present
from .grouping import Groups, canonical
from .segments import list_column, list_lengths, list_owners
from .updating_accumulators import SignedAccumulator

REGISTER_BITS = 12
"""4,096 registers: the standard error of a count is 1.04 / sqrt(4096) = 1.6 %."""
RANK_BITS = 6
REGISTERS = 1 << REGISTER_BITS
LOW_BITS = 64 - REGISTER_BITS
SPREAD = np.uint64(0x9E3779B97F4A7C15)
ESTIMATED_GROUPS = 16 * 1024
"""Sketches that are read at once: each takes 54 words meanwhile."""

RELATIVE_ERROR = 0.01
"""A quantile is this near to the value that has its rank."""
GAMMA = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)
LOG_GAMMA = float(np.log(GAMMA))
ONE = 40_000
"""The bucket of 1.0. Buckets of positive doubles are 4,500 to 75,500, of negative ones -those."""
INFINITE = 80_000
NAN = 80_001
BUCKET_BITS = 18
BUCKET_SHIFT = 1 << (BUCKET_BITS - 1)
SMALLEST = float(np.finfo(np.float64).tiny)
"""Smaller magnitudes have no full precision and count as 0."""


@dataclass(frozen=True, kw_only=True)
class DistinctSketch(Accumulator):
    """approx_count_distinct: per register the highest rank seen, as (register, rank) in one word.

    Few distinct values are few entries: 4 bytes each, 16 KiB at most.
    """

    nullable: bool = False

    @property
    def repeats_matter(self) -> bool:
        return False

    @property
    def stored(self) -> tuple[pa.DataType, ...]:
        return (pa.list_(pa.uint32()),)

    @property
    def result(self) -> pa.DataType:
        return pa.int64()

    def partial(
        self, groups: Groups, argument: pa.Array | None, times_ns: Numbers
    ) -> list[pa.Array]:
        assert argument is not None
        rows = np.flatnonzero(present(argument))
        hashes = hash_array(canonical(argument.take(pa.array(rows))))
        # Rows of one subtask have the top bits of their keys in common: mixed once more.
        hashes = (hashes ^ (hashes >> np.uint64(32))) * SPREAD
        registers = hashes >> np.uint64(LOW_BITS)
        low = (hashes & np.uint64((1 << LOW_BITS) - 1)).astype(np.float64)
        ranks = (LOW_BITS + 1 - np.frexp(low)[1]).astype(np.uint64)
        return self._highest(groups, groups.codes[rows], (registers << np.uint64(6)) | ranks)

    def merge(self, groups: Groups, parts: list[pa.Array]) -> list[pa.Array]:
        owners = groups.codes[list_owners(parts[0])]
        return self._highest(groups, owners, fixed_values(parts[0].flatten()).astype(np.uint64))

    def _highest(self, groups: Groups, owners: Numbers, entries: Numbers) -> list[pa.Array]:
        bits = np.uint64(REGISTER_BITS + RANK_BITS)
        both = np.sort((owners.astype(np.uint64) << bits) | entries)
        registers = both >> np.uint64(RANK_BITS)
        last = np.ones(len(both), np.bool_)
        last[:-1] = registers[1:] != registers[:-1]
        both = both[last]
        lengths = np.bincount((both >> bits).astype(np.int64), minlength=groups.count)
        kept = (both & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.uint32)
        return [list_column(pa.array(kept), lengths)]

    def final(self, parts: list[pa.Array]) -> pa.Array:
        counts = np.zeros(len(parts[0]), np.int64)
        for first in range(0, len(counts), ESTIMATED_GROUPS):
            some = parts[0].slice(first, ESTIMATED_GROUPS)
            ranks = fixed_values(some.flatten()).astype(np.int64) & ((1 << RANK_BITS) - 1)
            at = list_owners(some) * (LOW_BITS + 2) + ranks
            table = np.bincount(at, minlength=len(some) * (LOW_BITS + 2))
            table = table.reshape(len(some), LOW_BITS + 2).astype(np.float64)
            table[:, 0] = REGISTERS - list_lengths(some)
            counts[first : first + len(some)] = np.rint(_estimates(table)).astype(np.int64)
        return pa.array(counts)


def _estimates(table: Numbers) -> Numbers:
    """Distinct values from how many registers have each rank: Ertl's improved estimator (2017)."""
    highest = table.shape[1] - 1
    with np.errstate(divide="ignore"):
        z = REGISTERS * _tau(1 - table[:, highest] / REGISTERS)
        for rank in range(highest - 1, 0, -1):
            z = 0.5 * (z + table[:, rank])
        z = z + REGISTERS * _sigma(table[:, 0] / REGISTERS)
        found: Numbers = REGISTERS**2 / (2 * np.log(2) * z)
    return found


def _sigma(x: Numbers) -> Numbers:
    """x + sum of x^(2^k) 2^(k-1): what the empty registers say; infinite if all are."""
    with np.errstate(over="ignore", invalid="ignore"):
        y, z = 1.0, x.copy()
        while True:
            x = x * x
            before, z = z, z + x * y
            y += y
            if (before == z).all() or y > 2.0**60:
                return np.where(x == 1.0, np.inf, z)


def _tau(x: Numbers) -> Numbers:
    """The same for registers at the highest rank."""
    y, z = 1.0, 1 - x
    while True:
        x = np.sqrt(x)
        before, y = z, y * 0.5
        z = z - (1 - x) ** 2 * y
        if (before == z).all():
            return np.asarray(z / 3)


@dataclass(frozen=True, kw_only=True)
class QuantileSketch(SignedAccumulator):
    """approx_quantile: how many values lie in each bucket; a bucket's ends differ by 2 %.

    The result is within RELATIVE_ERROR of the value of rank floor(fraction * (n - 1)). NaN is
    greater than every number; magnitudes below the smallest normal double count as 0.
    """

    fraction: float

    @property
    def stored(self) -> tuple[pa.DataType, ...]:
        return (pa.list_(pa.int32()), pa.list_(pa.int64()))

    @property
    def result(self) -> pa.DataType:
        return pa.float64()

    def weighted(
        self, groups: Groups, argument: pa.Array | None, weights: Numbers
    ) -> list[pa.Array]:
        assert argument is not None
        rows = np.flatnonzero(present(argument))
        numbers = fixed_values(argument.take(pa.array(rows)).cast(pa.float64(), safe=False))
        return self._added(groups, groups.codes[rows], _buckets(numbers), weights[rows])

    def merge(self, groups: Groups, parts: list[pa.Array]) -> list[pa.Array]:
        owners = groups.codes[list_owners(parts[0])]
        buckets, counts = (fixed_values(part.flatten()) for part in parts)
        return self._added(groups, owners, buckets.astype(np.int64), counts)

    def _added(
        self, groups: Groups, owners: Numbers, buckets: Numbers, counts: Numbers
    ) -> list[pa.Array]:
        """Entries with how often each is there; those that are there no more are left out."""
        both = (owners.astype(np.int64) << BUCKET_BITS) + (buckets + BUCKET_SHIFT)
        alike = bool(len(counts)) and (counts == counts[0]).all()
        if alike:
            both = np.sort(both)
        else:
            order = np.argsort(both)
            both, counts = both[order], counts[order]
        first = np.ones(len(both), np.bool_)
        first[1:] = both[1:] != both[:-1]
        starts = np.flatnonzero(first)
        if alike:
            summed = np.diff(starts, append=len(both)) * counts[0]
        else:
            summed = np.add.reduceat(counts, starts) if len(starts) else np.zeros(0, np.int64)
        there = summed != 0
        both, summed = both[starts[there]], summed[there]
        lengths = np.bincount(both >> BUCKET_BITS, minlength=groups.count)
        kept = ((both & ((1 << BUCKET_BITS) - 1)) - BUCKET_SHIFT).astype(np.int32)
        return [list_column(pa.array(kept), lengths), list_column(pa.array(summed), lengths)]

    def final(self, parts: list[pa.Array]) -> pa.Array:
        count = len(parts[0])
        owners = list_owners(parts[0])
        buckets, times = (fixed_values(part.flatten()) for part in parts)
        # Values that were taken back before they came are not there.
        here = times > 0
        owners, buckets, times = owners[here], buckets[here], times[here]
        if not len(buckets):
            return pa.nulls(count, pa.float64())
        until = np.cumsum(times)
        rows = np.zeros(count, np.int64)
        np.add.at(rows, owners, times)
        before = np.cumsum(rows) - rows
        wanted = before + np.floor(self.fraction * np.maximum(rows - 1, 0)).astype(np.int64)
        at = np.searchsorted(until, wanted, side="right")
        found = _values(buckets[np.minimum(at, len(buckets) - 1)])
        return fixed_array(pa.float64(), found, rows > 0)

    def empty(self, parts: list[pa.Array]) -> Numbers:
        return np.asarray(list_lengths(parts[0]) == 0)


def _buckets(numbers: Numbers) -> Numbers:
    """Bucket i holds (gamma^(i-1), gamma^i]."""
    size = np.abs(numbers)
    with np.errstate(divide="ignore", invalid="ignore"):
        at = np.ceil(np.log(size) / LOG_GAMMA) + ONE
    at = np.where(size < SMALLEST, 0.0, np.where(np.isinf(size), INFINITE, at))
    found: Any = np.where(np.isnan(numbers), NAN, np.where(numbers < 0, -at, at))
    return np.asarray(found, np.float64).astype(np.int64)


def _values(buckets: Numbers) -> Numbers:
    """The number in each bucket that is within the error of all of them."""
    size = np.abs(buckets)
    with np.errstate(over="ignore"):
        inside = np.exp((size - ONE) * LOG_GAMMA) * (2 / (1 + GAMMA))
    inside = np.minimum(inside, np.finfo(np.float64).max)
    inside = np.where(size == 0, 0.0, np.where(size >= INFINITE, np.inf, inside))
    found = np.where(buckets == NAN, np.nan, np.copysign(inside, buckets))
    return np.asarray(found, np.float64)
