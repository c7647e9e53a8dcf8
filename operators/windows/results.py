"""The result rows of windows: keys, `window_start`, `window_end`, the aggregates, `_time`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from penstock.elements.errors import PlanError
from penstock.operators.aggregates import Aggregation
from penstock.operators.event_times import TIME_FIELD, TIME_TYPE, time_array
from penstock.operators.grouping import Groups, group_rows

from .partials import Numbers

START = "window_start"
END = "window_end"


def result_schema(
    keys: Sequence[pa.Field], aggregation: Aggregation, who: str, location: str = ""
) -> pa.Schema:
    """The schema of window results; raises PlanError if two columns have one name."""
    fields = [
        *keys,
        pa.field(START, TIME_TYPE, nullable=False),
        pa.field(END, TIME_TYPE, nullable=False),
        *aggregation.results,
    ]
    names = [field.name for field in fields]
    for name in names:
        if names.count(name) > 1:
            raise PlanError(f'{who}: two result columns are called "{name}"  {location}'.rstrip())
    return pa.schema([*fields, TIME_FIELD])


def result_batch(
    schema: pa.Schema,
    keys: list[pa.Array],
    starts: Numbers,
    ends: Numbers,
    items: list[pa.Array],
    times_ns: Numbers | None = None,
) -> pa.RecordBatch:
    """Rows in ascending order of `ends`; `_time` is one nanosecond before the end by default."""
    times = ends - 1 if times_ns is None else times_ns
    columns = [*keys, time_array(starts), time_array(ends), *items, time_array(times)]
    batch = pa.RecordBatch.from_arrays(columns, schema=schema)
    if (ends[1:] >= ends[:-1]).all():
        return batch
    # There are few ends: numbered in their order, rows are sorted by radix.
    groups = group_rows([pa.array(ends)], len(ends))
    numbers = np.empty(groups.count, np.int64)
    numbers[np.argsort(ends[groups.firsts])] = np.arange(groups.count)
    return batch.take(pa.array(Groups(numbers[groups.codes], groups.count).order))
