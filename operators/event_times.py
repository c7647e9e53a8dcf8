"""The `_time` column: its field, and how a source computes it from the user's rows.

A date or timestamp of any unit becomes timestamp[ns, UTC]; naive values are UTC. Rows whose time
is null, outside the years 1778 to 2161 or fails to evaluate are bad rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penstock.elements.buffers import fixed_values, validity
from penstock.elements.errors import PlanError
from penstock.elements.signals import TIME_COLUMN
from penstock.expressions.failures import ExpressionError
from penstock.expressions.functions import NONE, Functions
from penstock.expressions.projection import Projection
from penstock.expressions.types import type_text

TIME_TYPE = pa.timestamp("ns", "UTC")
TIME_FIELD = pa.field(TIME_COLUMN, TIME_TYPE, nullable=False)

Times = npt.NDArray[np.int64]
Usable = npt.NDArray[np.bool_] | None
"""Which times can be used; None: all."""
EARLIEST_NS, LATEST_NS = -6_058_886_400 * 10**9, 6_058_972_800 * 10**9 - 1
"""1778 to 2161: the longest duration less at both ends than 64 bits can say, so that the ends of
windows that hold such a row, and its time with a lateness or a TTL, can be said too."""
_TICKS_NS = {"s": 10**9, "ms": 10**6, "us": 1000, "ns": 1}


def with_time(schema: pa.Schema) -> pa.Schema:
    """`schema` with `_time` as its last column."""
    if TIME_COLUMN in schema.names:
        raise PlanError(f"column name {TIME_COLUMN!r} is reserved; rename the column in the source")
    return schema.append(TIME_FIELD)


def times_of(batch: pa.RecordBatch) -> Times:
    """`_time` as nanoseconds, without a copy."""
    return cast(Times, batch.column(TIME_COLUMN).view(pa.int64()).to_numpy())


def time_array(times_ns: Times) -> pa.Array:
    """Nanoseconds as a `_time` array."""
    return pa.array(times_ns, pa.int64()).view(TIME_TYPE)


def is_time_type(kind: pa.DataType) -> bool:
    """Whether values of this type can be event times."""
    return bool(pa.types.is_timestamp(kind) or pa.types.is_date(kind))


def to_times(values: pa.Array) -> tuple[Times, Usable]:
    """(nanoseconds, which are usable): nulls and times outside the range are not."""
    kind = values.type
    assert is_time_type(kind)
    scale = _scale(kind)
    low, high = -(-EARLIEST_NS // scale), LATEST_NS // scale
    numbers = fixed_values(values)
    valid = validity(values)
    if valid is None and _all_within(numbers, low, high):
        # As nearly always: nothing to look for row by row.
        wide = numbers.astype(np.int64, copy=False)
        return (wide if scale == 1 else wide * np.int64(scale)), None
    usable = np.ones(len(values), np.bool_) if valid is None else valid
    # What lies under a null is arbitrary and may be out of range.
    numbers = np.where(usable, numbers, 0).astype(np.int64)
    in_range = (numbers >= low) & (numbers <= high)
    usable = usable & in_range
    times = np.where(in_range, numbers, 0) * np.int64(scale)
    return times, None if usable.all() else usable


def _scale(kind: pa.DataType) -> int:
    """Nanoseconds of one tick."""
    if pa.types.is_date32(kind):
        return 86400 * 10**9
    if pa.types.is_date64(kind):
        return 10**6
    return _TICKS_NS[kind.unit]


def _all_within(numbers: npt.NDArray[Any], low: int, high: int) -> bool:
    return not len(numbers) or (low <= int(numbers.min()) and int(numbers.max()) <= high)


def time_projection(
    items: Sequence[str],
    schema: pa.Schema,
    functions: Functions = NONE,
    who: str = "event time",
    location: str = "",
) -> Projection:
    """Computes times from `items`, columns or expressions; refuses what is not a time."""
    named = [(f"t{at}", sql) for at, sql in enumerate(items)]
    projection = Projection(named, schema, functions, who=who, location=location)
    for sql, field in zip(items, projection.schema, strict=True):
        _refuse_other_types(field.type, sql, who, location)
    return projection


def _refuse_other_types(kind: pa.DataType, sql: str, who: str, location: str) -> None:
    if is_time_type(kind):
        return
    raise PlanError(
        f"{who}: {sql!r} is {type_text(kind)}, not a date or a timestamp  {location}".rstrip()
        + f'\n  Convert it, for example with "to_timestamp_millis({sql})" for epoch milliseconds'
        f' or "CAST({sql} AS TIMESTAMP)" for text.'
    )


def evaluate_rows(
    projection: Projection, batch: pa.RecordBatch
) -> tuple[list[tuple[Times, Usable]], dict[int, str]]:
    """Each item's (times, usable), and why single rows failed to evaluate, by row.

    A batch that raises is halved until the rows at fault stand alone.
    """
    try:
        return [to_times(column) for column in projection(batch).columns], {}
    except ExpressionError as error:
        if batch.num_rows == 1:
            bad: tuple[Times, Usable] = (np.zeros(1, np.int64), np.zeros(1, np.bool_))
            return [bad for _ in projection.schema], {0: str(error)}
    half = batch.num_rows // 2
    left, left_errors = evaluate_rows(projection, batch.slice(0, half))
    right, right_errors = evaluate_rows(projection, batch.slice(half))
    errors = left_errors | {half + row: text for row, text in right_errors.items()}
    joined: list[Any] = [
        (np.concatenate([a[0], b[0]]), np.concatenate([_mask(a), _mask(b)]))
        for a, b in zip(left, right, strict=True)
    ]
    return joined, errors


def _mask(found: tuple[Times, Usable]) -> npt.NDArray[np.bool_]:
    times, usable = found
    return np.ones(len(times), np.bool_) if usable is None else usable
