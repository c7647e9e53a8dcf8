"""The `_time` column of batches in processors: taken off for users, put back on their rows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penstock.elements.signals import TIME_COLUMN

TIME_FIELD = pa.field(TIME_COLUMN, pa.timestamp("ns", "UTC"), nullable=False)


def has_time(schema: pa.Schema) -> bool:
    """Whether rows of this stream carry event time."""
    return TIME_COLUMN in schema.names


def times_of(batch: pa.RecordBatch) -> npt.NDArray[np.int64]:
    """A copy of `_time` as nanoseconds: batches may lie in memory that is given back."""
    stored = batch.column(TIME_COLUMN).cast(pa.int64())
    return np.array(stored.to_numpy(), dtype=np.int64)


def with_time_field(schema: pa.Schema) -> pa.Schema:
    """`schema` with `_time` as its last column."""
    return schema if has_time(schema) else schema.append(TIME_FIELD)


def without_time_field(schema: pa.Schema) -> pa.Schema:
    """`schema` as users see it."""
    return schema.remove(schema.get_field_index(TIME_COLUMN)) if has_time(schema) else schema


def with_times(batch: pa.RecordBatch, times: npt.NDArray[np.int64]) -> pa.RecordBatch:
    """`batch` with these event times."""
    column = pa.array(times, pa.int64()).cast(TIME_FIELD.type)
    schema = batch.schema.append(TIME_FIELD)
    return pa.RecordBatch.from_arrays([*batch.columns, column], schema=schema)
