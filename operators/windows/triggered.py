"""One window per key that never ends, given whenever its trigger fires.

By rows: with each N-th row of a key, in order of arrival, the result of all its rows so far. By an
interval of processing time: the results that changed. Results are appended, nothing is taken back;
at the end of data an interval fires once more, a number of rows does not. Keys that had no row for
the TTL are forgotten in silence and begin anew.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from penstock.elements.changelog import without_change
from penstock.operators.aggregates import Aggregation
from penstock.operators.event_times import time_array, times_of
from penstock.operators.updating_aggregate import UpdatingAggregateProcessor
from penstock.operators.updating_groups import Slots

from .descriptors import GlobalWindow


class GlobalWindowProcessor(UpdatingAggregateProcessor):
    """Input: rows. Output: MAIN with `out_schema`: keys, items, `_time` where rows have it."""

    def __init__(
        self,
        window: GlobalWindow,
        keys: Sequence[str],
        aggregation: Aggregation,
        in_schema: pa.Schema,
        who: str = "aggregate",
        location: str = "",
    ) -> None:
        interval_ns = window.trigger_ns
        super().__init__(
            keys, aggregation, in_schema, window.ttl_ns, interval_ns or 0, who, location
        )
        self.out_schema = without_change(self.out_schema)
        self._every = window.trigger_rows

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """Add rows; fire by their number."""
        if self._every is None:
            super().process(batch, port)
        elif batch.num_rows:
            self._fire_by_rows(batch, self._every)

    def _fire_by_rows(self, batch: pa.RecordBatch, every: int) -> None:
        """A key's rows go in up to each row that fires; all keys side by side."""
        keys = self._keys_of(batch)
        slots = self._groups.index.find(keys, self._hashes(keys))
        known = slots >= 0
        before = np.zeros(len(slots), np.int64)
        before[known] = self._rows(slots[known])
        groups = self._groups_of(keys)
        within = np.empty(len(slots), np.int64)
        within[groups.order] = np.arange(len(slots)) - np.repeat(groups.starts, groups.sizes)
        step = (before + within) // every - before // every
        times = times_of(batch) if self._timed else self._now(batch.num_rows)
        for at in range(int(step.max()) + 1):
            rows = np.flatnonzero(step == at)
            index = pa.array(rows)
            mine = keys.take(index)
            self._add(batch.take(index), mine, times[rows], times[rows])
            touched = np.unique(self._groups.index.find(mine, self._hashes(mine)))
            self._append(touched[self._rows(touched) % every == 0])
        # Nothing waits for a flush: what has fired has been given.
        self._groups.changed.take()
        self._flush_at = None

    def _append(self, slots: Slots) -> None:
        if len(slots):
            results = self._results(slots)
            self._collect(slots, np.zeros(0, np.int64), np.arange(len(slots)), results)

    def _collect(self, slots: Slots, back: Slots, added: Slots, new: list[pa.Array]) -> None:
        """Only what is added."""
        if not len(added):
            return
        mine = slots[added]
        columns = [] if self._keyless else self._groups.index.keys_of(mine).columns
        columns = [*columns, *new]
        if self._timed:
            touched = np.maximum(self._groups.touched[mine], self._watermark + 1)
            columns.append(time_array(touched))
        self._ctx.collect(pa.RecordBatch.from_arrays(columns, schema=self.out_schema))
