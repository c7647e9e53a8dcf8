"""Measures of a match: `first(a.price)`, `last(b.ts)`, `count(b)`, `avg(b.price)`, or `a.price`.

Of a variable without any row, count is 0 and all others are null. `a.price` is `last(a.price)`.
Nulls are left out by sum, min, max and avg.
"""

from __future__ import annotations

import decimal
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.types as pt

from penstock.elements.buffers import fixed_dtype, fixed_values
from penstock.elements.errors import PlanError, StateError
from penstock.expressions.types import type_text

from .match_runs import Captured

_CALL = re.compile(
    r"(first|last|min|max|sum|avg|count)\s*\(\s*(\w+)\s*(?:\.\s*(\w+)|\.\s*\*)?\s*\)", re.I
)
_PLAIN = re.compile(r"(\w+)\s*\.\s*(\w+)")
_EXACT = decimal.Context(prec=80)
"""More digits than the sum of all decimals that columns can hold."""


@dataclass(frozen=True)
class Measure:
    """One column of the result. `column` is an index into what is kept of each row."""

    name: str
    function: str
    variable: str
    column: int | None
    kind: pa.DataType


def parse_measures(
    texts: dict[str, str],
    variables: Sequence[str],
    schema: pa.Schema,
    who: str,
    location: str = "",
) -> tuple[list[Measure], list[str]]:
    """(measures, the columns that they need); raises PlanError."""
    columns: list[str] = []
    measures = []
    for name, text in texts.items():
        call, plain = _CALL.fullmatch(text.strip()), _PLAIN.fullmatch(text.strip())
        if call is not None:
            function, variable, column = call.group(1).lower(), call.group(2), call.group(3)
        elif plain is not None:
            function, variable, column = "last", plain.group(1), plain.group(2)
        else:
            raise PlanError(
                f"{who}: cannot read the measure {name}={text!r}  {location}".rstrip()
                + "\n  Write  first(a.price), last, min, max, sum or avg of one, or  count(a) ."
            )
        if variable not in variables:
            known = ", ".join(variables)
            raise PlanError(f"{who}: {text!r}: the pattern has {known}  {location}".rstrip())
        if column is None and function != "count":
            raise PlanError(f"{who}: {text!r} names no column  {location}".rstrip())
        if column is not None and column not in schema.names:
            raise PlanError(f'{who}: no column "{column}" in {text!r}  {location}'.rstrip())
        kind = pa.int64() if column is None else schema.field(column).type
        if function in ("sum", "avg") and not (
            pt.is_integer(kind) or pt.is_floating(kind) or pt.is_decimal(kind)
        ):
            raise PlanError(f"{who}: {text!r} takes numbers, not {type_text(kind)}  {location}")
        at = None
        if column is not None:
            if column not in columns:
                columns.append(column)
            at = columns.index(column)
        measures.append(Measure(name, function, variable, at, result_type(function, kind)))
    return measures, columns


def result_type(function: str, kind: pa.DataType) -> pa.DataType:
    """The type of `function` over values of `kind`."""
    if function == "count":
        return pa.int64()
    if function == "avg" or (function == "sum" and pt.is_floating(kind)):
        return pa.float64()
    if function == "sum":
        return pa.decimal128(38, kind.scale) if pt.is_decimal(kind) else pa.int64()
    return kind


def python_values(column: pa.Array) -> list[Any]:
    """Values to keep: of times their stored integers, which Python's types would round."""
    if pt.is_temporal(column.type) and fixed_dtype(column.type) is not None:
        stored: list[Any] = fixed_values(column).tolist()
        if not column.null_count:
            return stored
        return [v if ok else None for v, ok in zip(stored, column.is_valid().to_pylist())]
    values: list[Any] = column.to_pylist()
    return values


def column_of(measure: Measure, matches: Sequence[Captured], who: str) -> pa.Array:
    """The measure of each match."""
    values = [_value(measure, rows) for rows in matches]
    kind = measure.kind
    try:
        if pt.is_temporal(kind) and fixed_dtype(kind) is not None:
            width = pa.int64() if kind.bit_width == 64 else pa.int32()
            return pa.array(values, width).view(kind)
        return pa.array(values, kind)
    except (OverflowError, pa.ArrowInvalid):
        raise StateError(
            f"{who}: the measure {measure.name} does not fit in {type_text(kind)}\n"
            "  Measure something smaller, or cast to double before."
        ) from None


def _value(measure: Measure, rows: Captured) -> Any:
    mine = [kept for variable, kept in rows if variable == measure.variable]
    if measure.column is None:
        return len(mine)
    values = [kept[measure.column] for kept in mine]
    if measure.function in ("first", "last"):
        return (values[0] if measure.function == "first" else values[-1]) if values else None
    values = [value for value in values if value is not None]
    if measure.function == "count":
        return len(values)
    if not values:
        return None
    if measure.function in ("min", "max"):
        return extreme(values, measure.function == "max")
    total = values[0]
    for value in values[1:]:
        total = added(total, value)
    return float(total) / len(values) if measure.function == "avg" else total


def added(total: Any, value: Any) -> Any:
    """The sum; of decimals without rounding, which Python would do to 28 digits."""
    return _EXACT.add(total, value) if isinstance(value, decimal.Decimal) else total + value


def extreme(values: list[Any], greatest: bool) -> Any:
    """NaN is greater than every number, as everywhere."""
    numbers = [value for value in values if value == value]
    if not numbers or (greatest and len(numbers) < len(values)):
        return float("nan")
    return max(numbers) if greatest else min(numbers)
