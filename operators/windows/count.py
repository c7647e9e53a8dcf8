"""Aggregates over each N rows of a key, in order of arrival.

The result of a window is given with its last row. `window_start` and `window_end` are the least
and one nanosecond behind the greatest event time of its rows; `_time` is the greatest. Windows
that are not full when the data ends give nothing, and are counted as `incomplete_rows`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from penstock.elements.buffers import fixed_values
from penstock.elements.errors import PlanError
from penstock.elements.signals import TIME_COLUMN
from penstock.operators.aggregates import Aggregation
from penstock.operators.event_times import times_of
from penstock.operators.grouping import Groups, Mask, group_rows
from penstock.operators.processor import Processor, ProcessorContext
from penstock.state.backend import Table

from .descriptors import CountWindow
from .partials import Folding, Numbers, Partials, concat
from .results import result_batch, result_schema

_SPAN = pa.schema([("__first", pa.int64()), ("__last", pa.int64())])


class CountAggregateProcessor(Processor):
    """Input: rows with `_time`. Output: MAIN with `out_schema`."""

    def __init__(
        self,
        window: CountWindow,
        keys: Sequence[str],
        aggregation: Aggregation,
        in_schema: pa.Schema,
        who: str = "aggregate",
        location: str = "",
    ) -> None:
        if aggregation.multisets:
            raise PlanError(
                f"{who}: quantile, median and DISTINCT are not there for count windows"
                f"  {location}".rstrip()
            )
        fields = [in_schema.field(name) for name in keys]
        self.in_schema = in_schema
        self._timed = TIME_COLUMN in in_schema.names
        if not self._timed:
            raise PlanError(f"{who}: a count window needs a stream with event time  {location}")
        self.out_schema = result_schema(fields, aggregation, who, location)
        self._folding = Folding(aggregation, fields)
        self._rows = window.rows

    def open(self, ctx: ProcessorContext) -> None:
        """Find the windows that have begun."""
        self._ctx = ctx
        values = pa.schema([*self._folding.value_schema, *_SPAN])
        self._table: Table = ctx.state.table("begun", self._folding.key_schema, values)
        self._values = values

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """Number the rows of each key, give full windows, keep the begun ones."""
        if not batch.num_rows:
            return
        folding = self._folding
        keys, times = folding.keys_of(batch), times_of(batch)
        by_key = group_rows(folding.result_keys(keys), batch.num_rows)
        firsts = pa.array(by_key.firsts)
        owners = [key.take(firsts) for key in keys]
        found, stored = self._begun(owners)
        counts = np.where(found, fixed_values(stored.column("__rows")), 0)
        # The number of each row within its key, counted on from what is stored.
        within = np.empty(batch.num_rows, np.int64)
        within[by_key.order] = np.arange(batch.num_rows) - np.repeat(by_key.starts, by_key.sizes)
        windows = (within + counts[by_key.codes]) // self._rows
        groups = group_rows([pa.array(by_key.codes), pa.array(windows)], batch.num_rows)
        arguments = folding.aggregation.argument_columns(batch)
        partials = folding.from_rows(keys, groups, windows, arguments, times)
        spans = np.stack([groups.reduce(np.minimum, times), groups.reduce(np.maximum, times)])
        owner = by_key.codes[groups.firsts]
        self._settle(partials, spans, owner, owners, found, stored)

    def _begun(self, owners: list[pa.Array]) -> tuple[Mask, pa.RecordBatch]:
        keys = self._key_batch(owners)
        found, stored = self._table.get(keys, self._folding.hashes(owners, keys.num_rows))
        return found, stored

    def _settle(
        self,
        partials: Partials,
        spans: Numbers,
        owner: Numbers,
        owners: list[pa.Array],
        found: Mask,
        stored: pa.RecordBatch,
    ) -> None:
        """Join new partials with the stored beginnings: those are of window 0 of their key."""
        begun = np.flatnonzero(found)
        names = self._folding.value_schema.names
        at = pa.array(begun)
        old = Partials(
            [key.take(at) for key in owners],
            np.zeros(len(begun), np.int64),
            [stored.column(name).take(at) for name in names],
        )
        lows = [fixed_values(stored.column(name).take(at)) for name in _SPAN.names]
        both = concat([old, partials]) if len(begun) else partials
        numbers = np.concatenate([begun, owner])
        groups = group_rows([pa.array(numbers), pa.array(both.times)], len(both))
        merged = both if groups.count == len(both) else self._folding.merge_groups(both, groups)
        if merged is both:
            groups = Groups(np.arange(len(both)), len(both))
        starts = groups.reduce(np.minimum, np.concatenate([lows[0], spans[0]]))
        lasts = groups.reduce(np.maximum, np.concatenate([lows[1], spans[1]]))
        full = fixed_values(merged.parts[0]) == self._rows
        self._give(merged, starts, lasts, np.flatnonzero(full))
        self._store(merged, starts, lasts, full, owners, numbers[groups.firsts])

    def _give(self, merged: Partials, starts: Numbers, lasts: Numbers, full: Numbers) -> None:
        if not len(full):
            return
        windows = merged.take(full)
        items = self._folding.results(windows, [])
        keys = self._folding.result_keys(windows.keys)
        last = lasts[full]
        self._ctx.collect(result_batch(self.out_schema, keys, starts[full], last + 1, items, last))

    def _store(
        self,
        merged: Partials,
        starts: Numbers,
        lasts: Numbers,
        full: Mask,
        owners: list[pa.Array],
        owner: Numbers,
    ) -> None:
        begun = np.flatnonzero(~full)
        done = np.ones(len(owners[0]), np.bool_)
        done[owner[begun]] = False
        gone = [key.filter(pa.array(done)) for key in owners]
        count = int(done.sum())
        if count:
            self._table.delete(self._key_batch(gone), self._folding.hashes(gone, count))
        if len(begun):
            kept = merged.take(begun)
            columns = [*kept.parts, pa.array(starts[begun]), pa.array(lasts[begun])]
            values = pa.RecordBatch.from_arrays(columns, schema=self._values)
            hashes = self._folding.hashes(kept.keys, len(begun))
            self._table.upsert(self._key_batch(kept.keys), values, hashes)

    def on_end(self) -> None:
        """Say how many rows are left over."""
        left = sum(int(fixed_values(b.column("__rows")).sum()) for b in self._table.scan())
        self._ctx.count("incomplete_rows", left)

    def _key_batch(self, keys: list[pa.Array]) -> pa.RecordBatch:
        return pa.RecordBatch.from_arrays(keys, schema=self._folding.key_schema)
