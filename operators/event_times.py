"""The `_time` column: its field, and how a source computes it from the user's rows.

A date or timestamp of any unit becomes timestamp[ns, UTC]; naive values are UTC. Rows whose time
is null, out of the range of nanoseconds (years 1677 to 2262) or fails to evaluate are bad rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from penstock.elements.errors import PlanError
from penstock.elements.signals import TIME_COLUMN

TIME_TYPE = pa.timestamp("ns", "UTC")
TIME_FIELD = pa.field(TIME_COLUMN, TIME_TYPE, nullable=False)

Times = npt.NDArray[np.int64]
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


def to_times(values: pa.Array) -> tuple[Times, npt.NDArray[np.bool_]]:
    """(nanoseconds, which are usable): nulls and times outside the range are not."""
    kind = values.type
    assert is_time_type(kind)
    usable = values.is_valid().to_numpy(zero_copy_only=False)
    if pa.types.is_date32(kind):
        ticks, scale = values.view(pa.int32()).cast(pa.int64()), 86400 * 10**9
    elif pa.types.is_date64(kind):
        ticks, scale = values.view(pa.int64()), 10**6
    else:
        ticks, scale = values.view(pa.int64()), _TICKS_NS[kind.unit]
    numbers = pc.fill_null(ticks, 0).to_numpy(zero_copy_only=False)
    if scale == 1:
        return numbers, usable
    limit = (2**63 - 1) // scale
    in_range = (numbers <= limit) & (numbers >= -limit)
    return np.where(in_range, numbers, 0) * np.int64(scale), usable & in_range


Evaluate = Callable[[pa.RecordBatch], pa.Array]


def evaluator(sql: str, schema: pa.Schema, what: str) -> Evaluate:
    """Computes `sql` per batch: a column is taken as it is, anything else is an expression."""
    if sql in schema.names:
        index = schema.names.index(sql)
        refuse_other_types(schema.field(index).type, sql, what)
        return lambda batch: batch.column(index)
    # Imported when needed: most sources name a column, and DataFusion takes time to load.
    from penstock.expressions.projection import Projection

    projection = Projection([(TIME_COLUMN, sql)], schema)
    return lambda batch: projection(batch).column(0)


def refuse_other_types(kind: pa.DataType, sql: str, what: str) -> None:
    """Raises PlanError unless `kind` can be event time."""
    if is_time_type(kind):
        return
    raise PlanError(
        f"{what}: {sql!r} is {kind}, not a date or a timestamp\n"
        f'  Convert it, for example with  event_time="to_timestamp_millis({sql})"  for epoch'
        f' milliseconds, or  "CAST({sql} AS TIMESTAMP)"  for text.'
    )


def evaluate_rows(
    evaluate: Sequence[Evaluate], batch: pa.RecordBatch
) -> tuple[list[tuple[Times, npt.NDArray[np.bool_]]], dict[int, str]]:
    """Each evaluator's (times, usable), and why single rows failed to evaluate, by row.

    A batch that raises is halved until the rows at fault stand alone.
    """
    try:
        return [to_times(one(batch)) for one in evaluate], {}
    except Exception as error:
        if batch.num_rows == 1:
            bad = (np.zeros(1, np.int64), np.zeros(1, np.bool_))
            return [bad for _ in evaluate], {0: f"{type(error).__name__}: {error}"}
    half = batch.num_rows // 2
    left, left_errors = evaluate_rows(evaluate, batch.slice(0, half))
    right, right_errors = evaluate_rows(evaluate, batch.slice(half))
    errors = left_errors | {half + row: text for row, text in right_errors.items()}
    joined: list[Any] = [
        (np.concatenate([a[0], b[0]]), np.concatenate([a[1], b[1]]))
        for a, b in zip(left, right, strict=True)
    ]
    return joined, errors
