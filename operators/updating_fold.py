"""Folds rows per key and batch before the exchange of an aggregate without a window (hazard 71).

A hot key then crosses as one row per batch, whatever its share of the rows; a key with one row
crosses as it came. Keeps nothing: no state, no delay.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from penstock.elements.changelog import is_updating, weights_of
from penstock.elements.signals import TIME_COLUMN

from .aggregates import Aggregation
from .event_times import time_array, times_of
from .grouping import group_rows
from .processor import Processor, ProcessorContext
from .updating_aggregate import folded_schema
from .updating_calls import UpdatingCalls


class UpdatingFoldProcessor(Processor):
    """Input: rows; output: MAIN with `out_schema`, one row per key of the batch.

    `_time` of such a row is the latest of its rows'. Requires: the aggregation is foldable.
    """

    def __init__(
        self,
        keys: Sequence[str],
        aggregation: Aggregation,
        rows_schema: pa.Schema,
        who: str = "aggregate",
        location: str = "",
    ) -> None:
        self.in_schema = rows_schema
        self._keys = list(keys)
        self._timed = TIME_COLUMN in rows_schema.names
        self._calls = UpdatingCalls(aggregation, is_updating(rows_schema), who, location)
        assert self._calls.foldable
        self.out_schema: pa.Schema = folded_schema(rows_schema, keys, self._calls)

    def open(self, ctx: ProcessorContext) -> None:
        """Nothing to find."""
        self._ctx = ctx

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """Fold, and give at once."""
        if not batch.num_rows:
            return
        keys = [batch.column(name) for name in self._keys]
        groups = group_rows(keys, batch.num_rows)
        times = times_of(batch) if self._timed else np.zeros(batch.num_rows, np.int64)
        arguments = self._calls.aggregation.argument_columns(batch)
        weights = weights_of(batch).astype(np.int64)
        parts = self._calls.from_rows(groups, arguments, times, weights)
        firsts = pa.array(groups.firsts)
        columns = [*(key.take(firsts) for key in keys), *parts]
        if self._timed:
            columns.append(time_array(groups.reduce(np.maximum, times)))
        self._ctx.collect(pa.RecordBatch.from_arrays(columns, schema=self.out_schema))
