"""The aggregates there are: their names, what they take, and what computes them.

A call becomes an accumulator (columns) or the reading of a multiset (rows). Aggregates of two
arguments, and those that keep nulls, take a struct of their columns: see Packed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.types as pt

from penstock.elements.buffers import validity
from penstock.elements.errors import PlanError
from penstock.elements.hash import refuse_unhashable
from penstock.expressions.types import type_text

from .accumulators import Accumulator, Average, Count, Edge, Extreme, Spread, Sum
from .accumulators_bits import Bits
from .accumulators_filtered import Filtered
from .accumulators_lists import Joined, ListOf
from .accumulators_pairs import ByExtreme, Moments, Statistic
from .accumulators_sketches import DistinctSketch, QuantileSketch
from .accumulators_user import PerRow, PerRowSigned, PerSegment
from .aggregate_classes import Aggregate, AggregateClass, SegmentAggregate, can_retract
from .multisets import MultisetResult

ALIASES = {
    "mean": "avg",
    "first_value": "first",
    "last_value": "last",
    "var": "var_samp",
    "variance": "var_samp",
    "stddev": "stddev_samp",
    "percentile_cont": "quantile",
    "every": "bool_and",
    "arg_min": "min_by",
    "arg_max": "max_by",
    "listagg": "string_agg",
    "approx_distinct": "approx_count_distinct",
    "approx_percentile_cont": "approx_quantile",
    "approx_median": "approx_quantile",
}
_SPREADS = {
    "var_samp": (True, False),
    "var_pop": (False, False),
    "stddev_samp": (True, True),
    "stddev_pop": (False, True),
}
_BITS = {"bit_and": "and", "bit_or": "or", "bit_xor": "xor"}
STATISTICS: tuple[str, ...] = get_args(Statistic)
PAIRS = ("min_by", "max_by", *STATISTICS)
"""They take two columns."""
FUNCTIONS = (
    "count", "count_distinct", "sum", "min", "max", "avg", "first", "last", *_SPREADS,
    "bool_and", "bool_or", "quantile", "median", "min_by", "max_by", "approx_count_distinct",
    "approx_quantile", "array_agg", "string_agg", *_BITS, *STATISTICS,
)  # fmt: skip
"""All of them, beside their other names."""
FRACTIONS = ("quantile", "approx_quantile")
"""They take a number from 0 to 1 behind the column."""
KEEP_NULLS = ("array_agg", "first", "last")
"""A row that FILTER leaves out must differ from a null."""
_USAGE = {
    **{name: f"{name}(x, 0.99)" for name in FRACTIONS},
    **{name: f"{name}(x, y)" for name in ("min_by", "max_by")},
    **{name: f"{name}(y, x)" for name in STATISTICS},
    "string_agg": "string_agg(x, ', ')",
}


def usage(name: str) -> str:
    """How a call of it is written."""
    return _USAGE.get(name, f"{name}(x)")


@dataclass(frozen=True)
class Packed:
    """A struct of argument columns. A row is null where column `where` is, or with `strict` any."""

    columns: tuple[int, ...]
    where: int | None = None
    strict: bool = False

    def kind(self, kinds: list[pa.DataType]) -> pa.DataType:
        """The type of the struct."""
        return pa.struct([pa.field(f"v{i}", kinds[at]) for i, at in enumerate(self.columns)])

    def pack(self, columns: list[pa.Array]) -> pa.Array:
        """The struct column."""
        checked = [*self.columns] if self.strict else []
        if self.where is not None:
            checked.append(self.where)
        masks = [valid for at in checked if (valid := validity(columns[at])) is not None]
        mask = pa.array(~np.logical_and.reduce(masks)) if masks else None
        fields = [columns[at] for at in self.columns]
        names = [f"v{i}" for i in range(len(fields))]
        return pa.StructArray.from_arrays(fields, names, mask=mask)


@dataclass(frozen=True)
class Found:
    """A call as it was read. Columns are numbers of arguments."""

    name: str
    columns: tuple[int, ...]
    where: int | None = None
    distinct: bool = False
    constant: float | str | None = None
    item: AggregateClass | None = None

    @property
    def packed(self) -> Packed | None:
        """The struct it takes, if it takes one."""
        if self.item is not None:
            return Packed(self.columns, self.where, strict=not self.item.takes_nulls)
        if self.name in PAIRS:
            return Packed(self.columns, strict=True)
        if self.name == "array_agg" or (self.name in KEEP_NULLS and self.where is not None):
            return Packed(self.columns, self.where)
        return None


@dataclass(frozen=True)
class AggregateCall:
    """One call. `argument` is the number of the argument column, None for count(*).

    `multiset` is the number of the multiset it reads; None for accumulators.
    """

    text: str
    argument: int | None
    accumulator: Accumulator | None
    multiset: int | None = None
    reading: MultisetResult | None = None

    @property
    def field(self) -> pa.Field:
        """Type and nullability of the result."""
        made = self.accumulator or self.reading
        assert made is not None
        return pa.field(self.text, made.result, made.nullable)


class Maker:
    """Makes what computes a call; raises PlanError for arguments of types it does not take."""

    def __init__(self, who: str, location: str, timed: bool) -> None:
        self._who, self._location, self._timed = who, location, timed

    def reading(self, text: str, found: Found, kinds: list[pa.DataType]) -> MultisetResult | None:
        """How it reads a multiset of its values, if that is what it needs."""
        name, kind = found.name, kinds[0]
        if name in ("quantile", "median"):
            self._check(text, kind, _is_number(kind), "numbers")
            fraction = found.constant if isinstance(found.constant, float) else 0.5
            return MultisetResult("quantile", fraction)
        if name == "count_distinct":
            self._check_plain(text, kind)
            return MultisetResult("distinct")
        accumulator = self.accumulator(text, found, kinds)
        if not found.distinct or not accumulator.repeats_matter:
            return None
        for each in kinds:
            self._check_plain(text, each)
        return MultisetResult("accumulate", accumulator=accumulator, once=True)

    def accumulator(self, text: str, found: Found, kinds: list[pa.DataType]) -> Accumulator:
        """The accumulator over values of these types."""
        if found.item is not None:
            return self._of_class(text, found.item)
        name, kind = found.name, kinds[0]
        if name == "count":
            return Count(text=text)
        if name in ("sum", "avg"):
            total = Sum(text=text, kind=self._total_kind(text, kind))
            return total if name == "sum" else Average(text=text, total=total)
        if name in _SPREADS:
            self._check(text, kind, _is_number(kind), "numbers")
            sample, root = _SPREADS[name]
            return Spread(text=text, sample=sample, root=root)
        if name in _BITS:
            self._check(text, kind, pt.is_integer(kind), "integers")
            function: Any = _BITS[name]
            return Bits(text=text, kind=kind, function=function)
        if name in ("bool_and", "bool_or"):
            self._check(text, kind, pt.is_boolean(kind), "booleans")
            return Extreme(text=text, kind=kind, least=name == "bool_and")
        if name in STATISTICS:
            return self._statistic(text, name, kinds)
        if name in ("array_agg", "string_agg"):
            return self._list(text, found, kind)
        return self._of_order(text, found, kinds)

    def _of_order(self, text: str, found: Found, kinds: list[pa.DataType]) -> Accumulator:
        """What compares values, or hashes them."""
        name, kind = found.name, kinds[0]
        for each in kinds:
            self._check_plain(text, each)
        if name in ("first", "last"):
            if not self._timed:
                raise self._error(f"{text} needs event time, which says what is {name}")
            edge = Edge(text=text, kind=kind, first=name == "first")
            return edge if found.where is None else Filtered(text=text, inner=edge)
        if name in ("min_by", "max_by"):
            return ByExtreme(text=text, kind=kind, by=kinds[1], least=name == "min_by")
        if name == "approx_count_distinct":
            return DistinctSketch(text=text)
        if name == "approx_quantile":
            self._check(text, kind, _is_number(kind), "numbers")
            fraction = found.constant if isinstance(found.constant, float) else 0.5
            return QuantileSketch(text=text, fraction=fraction)
        return Extreme(text=text, kind=kind, least=name == "min")

    def _statistic(self, text: str, name: Any, kinds: list[pa.DataType]) -> Accumulator:
        for each in kinds:
            self._check(text, each, _is_number(each), "numbers")
        return Moments(text=text, statistic=name, nullable=name != "regr_count")

    def _list(self, text: str, found: Found, kind: pa.DataType) -> Accumulator:
        if found.name == "string_agg":
            is_text = pt.is_string(kind) or pt.is_large_string(kind) or pt.is_string_view(kind)
            self._check(text, kind, is_text, "text: write CAST(x AS VARCHAR)")
            separator = found.constant if isinstance(found.constant, str) else ","
            return Joined(text=text, kind=kind, timed=self._timed, separator=separator)
        self._check_hashable(text, kind)
        return ListOf(text=text, kind=kind, timed=self._timed)

    def _of_class(self, text: str, item: AggregateClass) -> Accumulator:
        kind = item.result_type()
        if isinstance(item, Aggregate):
            made = PerRowSigned if can_retract(item) else PerRow
            return made(text=text, aggregate=item, kind=kind)
        assert isinstance(item, SegmentAggregate)
        inner = PerSegment(text=text, aggregate=item, kind=kind)
        return Filtered(text=text, inner=inner, unwrap=False)

    def _total_kind(self, text: str, kind: pa.DataType) -> pa.DataType:
        if pt.is_decimal(kind):
            self._check(text, kind, kind.bit_width <= 128, "decimals of up to 38 digits")
            return pa.decimal128(38, kind.scale)
        if pt.is_floating(kind):
            return pa.float64()
        if kind == pa.uint64():
            return pa.uint64()
        self._check(text, kind, pt.is_integer(kind), "numbers")
        return pa.int64()

    def _check_plain(self, text: str, kind: pa.DataType) -> None:
        self._check(text, kind, not pt.is_nested(kind), "plain values")
        self._check_hashable(text, kind)

    def _check_hashable(self, text: str, kind: pa.DataType) -> None:
        try:
            refuse_unhashable(kind)
        except TypeError:
            self._check(text, kind, False, "values that can be compared")

    def _check(self, text: str, kind: pa.DataType, fits: Any, wanted: str) -> None:
        if not fits:
            raise self._error(f"{text} takes {wanted}, not {type_text(kind)}")

    def _error(self, reason: str) -> PlanError:
        return PlanError(f"{self._who}: {reason}  {self._location}".rstrip())


def _is_number(kind: pa.DataType) -> bool:
    return bool(pt.is_integer(kind) or pt.is_floating(kind) or pt.is_decimal(kind))
