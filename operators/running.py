"""Running values over stretches of rows: sums, extremes, and which row is how far before another.

Rows lie stretch behind stretch, one per key, in their order. Sums of integers and decimals are
exact or an error; float sums add neighbours pairwise and never subtract, so that they are the same
up to rounding however the stretches are cut (hazards 20, 21).
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Context, Decimal, Inexact
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from penstock.elements.buffers import fixed_values, validity
from penstock.elements.errors import StateError

from .row_order import Numbers, sort_words

SAFE = 2.0**62
"""Sums of magnitudes below this, even in double, fit in 64 bits."""
_DECIMALS = Context(prec=38, traps=[Inexact])


class Stretches:
    """Stretches of the given lengths, none empty."""

    def __init__(self, lengths: Numbers) -> None:
        self.lengths = lengths
        self.starts = np.cumsum(lengths) - lengths
        self.rows = int(lengths.sum())
        self.of_row = np.repeat(np.arange(len(lengths)), lengths)
        self.nth = np.arange(self.rows) - np.repeat(self.starts, lengths)
        self.lasts = self.starts + lengths - 1

    def away(self, rows: int) -> Numbers:
        """The row so many before (negative: behind) each, or -1 outside of its stretch."""
        at = np.arange(self.rows) - rows
        nth = self.nth - rows
        return np.where((nth >= 0) & (nth < self.lengths[self.of_row]), at, -1)

    def scan(
        self, combine: Callable[[Any, Any], Any], values: npt.NDArray[Any]
    ) -> npt.NDArray[Any]:
        """Running `combine` (earlier, later), which is associative, from the start of each."""
        found = values.copy()
        step, longest = 1, int(self.lengths.max(initial=0))
        while step < longest:
            rows = np.flatnonzero(self.nth >= step)
            found[rows] = combine(found[rows - step], found[rows])
            step *= 2
        return found


def take_or_null(values: pa.Array, at: Numbers) -> pa.Array:
    """The values at these rows; null where the row is -1."""
    return values.take(pa.array(at, mask=at < 0))


def counts(present: npt.NDArray[np.bool_], stretches: Stretches, preceding: int | None) -> Numbers:
    """How many rows up to each are `present`, in the frame."""
    return _framed(
        np.cumsum(present.astype(np.int64)), present.astype(np.int64), stretches, preceding
    )


def sums(values: pa.Array, stretches: Stretches, preceding: int | None, who: str) -> pa.Array:
    """The sum of the frame up to each row; nulls are left out, and null if there is nothing else.

    Integers give int64, floats float64, decimals 38 digits.
    """
    valid = validity(values)
    present = np.ones(len(values), np.bool_) if valid is None else valid
    none = counts(present, stretches, preceding) == 0
    if pt.is_floating(values.type):
        numbers = np.where(present, fixed_values(values.cast(pa.float64())), 0.0)
        with np.errstate(invalid="ignore", over="ignore"):
            if preceding is None:
                return pa.array(stretches.scan(np.add, numbers), mask=none)
            return pa.array(_added(numbers, stretches, preceding), mask=none)
    if pt.is_integer(values.type):
        whole = np.where(present, fixed_values(values), 0)
        if np.abs(whole.astype(np.float64)).sum() < SAFE:
            whole = whole.astype(np.int64)
            return pa.array(_framed(np.cumsum(whole), whole, stretches, preceding), mask=none)
    return _exact(values, stretches, preceding, none, who)


def _framed(
    total: Numbers, values: Numbers, stretches: Stretches, preceding: int | None
) -> Numbers:
    """Differences of a running total over all rows: sums from the start of stretch or frame."""
    begin = np.repeat(stretches.starts, stretches.lengths)
    if preceding is not None:
        begin = np.maximum(begin, np.arange(stretches.rows) - preceding)
    return total - total[begin] + values[begin] if len(total) else total


def _added(
    values: npt.NDArray[np.float64], stretches: Stretches, preceding: int
) -> npt.NDArray[np.float64]:
    """Sums of short frames, added from the oldest row on: differences would lose digits."""
    longest = min(preceding, int(stretches.lengths.max(initial=1)) - 1)
    found = np.zeros(len(values))
    for away in range(longest, -1, -1):
        rows = np.flatnonzero(stretches.nth >= away)
        found[rows] += values[rows - away]
    return found


def _exact(
    values: pa.Array,
    stretches: Stretches,
    preceding: int | None,
    none: npt.NDArray[np.bool_],
    who: str,
) -> pa.Array:
    """Python's own numbers: for sums that might not fit, and for decimals."""
    decimal = pt.is_decimal(values.type)
    add: Callable[[Any, Any], Any] = _DECIMALS.add if decimal else int.__add__
    zero: Any = Decimal(0) if decimal else 0
    kind = pa.decimal128(38, values.type.scale) if decimal else pa.int64()
    numbers = [zero if value is None else value for value in values.to_pylist()]
    found: list[Any] = []
    try:
        for start, length in zip(
            stretches.starts.tolist(), stretches.lengths.tolist(), strict=True
        ):
            part = numbers[start : start + length]
            if preceding is None:
                found += accumulate(part, add)
                continue
            for at in range(length):
                *_, last = accumulate(part[max(0, at - preceding) : at + 1], add)
                found.append(last)
        return pa.array([None if n else v for n, v in zip(none, found)], kind)
    except (Inexact, OverflowError, pa.ArrowInvalid):
        digits = "38 digits" if decimal else "64 bits"
        raise StateError(
            f"{who}: a sum does not fit in {digits}\n  Sum something smaller, or cast to double."
        ) from None


def extremes(
    values: pa.Array, stretches: Stretches, preceding: int | None, greatest: bool
) -> pa.Array:
    """The least or greatest value of the frame up to each row; nulls are left out."""
    *_, word = sort_words(values, greatest)
    valid = validity(values)
    rows = np.arange(len(values))
    candidates = rows if valid is None else np.where(valid, rows, -1)

    def better(earlier: Numbers, later: Numbers) -> Numbers:
        wins = (later >= 0) & ((earlier < 0) | (word[later] < word[earlier]))
        return np.where(wins, later, earlier)

    if preceding is None:
        return take_or_null(values, stretches.scan(better, candidates))
    # Frames of 1, 2, 4, … rows; two of them, overlapping, make any length.
    length = min(preceding + 1, int(stretches.lengths.max(initial=1)))
    found, width = candidates, 1
    while 2 * width <= length:
        found = _behind(found, stretches, width, better)
        width *= 2
    if width < length:
        found = _behind(found, stretches, length - width, better)
    return take_or_null(values, found)


def _behind(
    found: Numbers,
    stretches: Stretches,
    step: int,
    better: Callable[[Numbers, Numbers], Numbers],
) -> Numbers:
    rows = np.flatnonzero(stretches.nth >= step)
    joined = found.copy()
    joined[rows] = better(found[rows - step], found[rows])
    return joined


def averages(totals: pa.Array, present: Numbers) -> pa.Array:
    """Sums by counts, in double; null where nothing was summed."""
    divisor = pa.array(np.maximum(present, 1).astype(np.float64))
    return pc.divide(totals.cast(pa.float64()), divisor)
