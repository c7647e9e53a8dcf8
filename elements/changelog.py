"""Updating streams: rows that are added and taken back, told apart by the column `_change`.

An updating stream has `_change`, int8 and never null, just before `_time` (or last, without event
time): +1 adds the row, -1 takes an equal row back. Equal means equal in all of the user's columns;
`_time` says when the change became known. An update is a -1 row with a +1 row behind it, in one
batch. The result table is the multiset sum; a -1 may come before its +1 where streams are mixed,
so readers count and never assume.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from .buffers import fixed_values
from .errors import PlanError
from .signals import TIME_COLUMN

CHANGE = "_change"
CHANGE_FIELD = pa.field(CHANGE, pa.int8(), nullable=False)
ADDED = 1
TAKEN_BACK = -1
HIDDEN = frozenset({CHANGE, TIME_COLUMN})
"""Columns that ride along by themselves; users' columns may not have these names."""

Weights = npt.NDArray[np.int8]


def is_updating(schema: pa.Schema) -> bool:
    """Whether rows may be taken back."""
    return CHANGE in schema.names


def with_change(schema: pa.Schema) -> pa.Schema:
    """`schema` of the updating stream: `_change` behind the user's columns, `_time` last.

    >>> with_change(pa.schema([("n", pa.int64()), ("_time", pa.int64())])).names
    ['n', '_change', '_time']
    """
    if is_updating(schema):
        return schema
    if CHANGE.lower() in (name.lower() for name in schema.names):
        raise PlanError(f"column name {CHANGE!r} is reserved; rename the column where it is made")
    at = schema.names.index(TIME_COLUMN) if TIME_COLUMN in schema.names else len(schema)
    return schema.insert(at, CHANGE_FIELD)


def without_change(schema: pa.Schema) -> pa.Schema:
    """`schema` without `_change`."""
    return pa.schema([field for field in schema if field.name != CHANGE])


def weights_of(batch: pa.RecordBatch) -> Weights:
    """+1 or -1 per row; all +1 for append-only rows. A view where there is such a column."""
    if CHANGE not in batch.schema.names:
        return np.ones(batch.num_rows, np.int8)
    weights: Weights = fixed_values(batch.column(CHANGE))
    return weights


def weight_array(weights: npt.NDArray[np.integer]) -> pa.Array:
    """A `_change` column."""
    return pa.array(weights.astype(np.int8, copy=False))
