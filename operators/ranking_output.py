"""What a running top N gives: rows with their rank and change, whoever found them.

Promises: no change is late, whatever row caused it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penstock.elements.changelog import CHANGE, weight_array, with_change
from penstock.elements.errors import PlanError
from penstock.elements.signals import TIME_COLUMN

from .event_times import time_array
from .row_order import Numbers


def top_schema(schema: pa.Schema, rank: str | None, who: str, location: str = "") -> pa.Schema:
    """The columns of append-only `schema`, the rank if it is named, `_change` and `_time`."""
    if rank is None:
        return with_change(schema)
    if rank in schema.names:
        raise PlanError(f'{who}: there is a column "{rank}" already  {location}'.rstrip())
    timed = TIME_COLUMN in schema.names
    at = len(schema) - 1 if timed else len(schema)
    return with_change(schema.insert(at, pa.field(rank, pa.int64(), nullable=False)))


def top_changes(
    schema: pa.Schema,
    rank: str | None,
    rows: pa.RecordBatch,
    ranks: Numbers,
    weights: npt.NDArray[np.int8],
    times: Numbers | None,
    watermark: int,
) -> pa.RecordBatch:
    """`rows` with `schema`; `ranks` count from 0. `times` None: there is no event time."""
    extra = {} if rank is None else {rank: pa.array(ranks + 1)}
    extra[CHANGE] = weight_array(weights)
    if times is not None:
        # A row that came too late changes what is given as well: from now on.
        extra[TIME_COLUMN] = time_array(np.maximum(times, watermark + 1))
    columns = [extra[name] if name in extra else rows.column(name) for name in schema.names]
    return pa.RecordBatch.from_arrays(columns, schema=schema)
