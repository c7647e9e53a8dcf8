"""Windowed aggregates in two phases, so that hot keys cross the shuffle as partials (hazard 71).

LocalAggregateProcessor stands before the shuffle: it folds rows and gives partials when a window
needs them, at a barrier, or when they are too many; it keeps nothing across a cut.
GlobalAggregateProcessor stands behind it and is the window operator on partials.

The first phase judges lateness by its own watermark and sends late rows on as they came, or leaves
that to the second phase, which counts what is late but cannot give the rows back. Rows are held
while an input that falls idle is left out of the second phase's watermark: plan two phases only
where inputs are never idle.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from penstock.elements.buffers import fixed_values
from penstock.elements.signals import WATERMARK_MAX

from .aggregates import Aggregation
from .event_times import TIME_FIELD, time_array, times_of
from .processor import LATE, Processor, ProcessorContext
from .windows.aggregate import WindowAggregateProcessor
from .windows.assign import PaneGrid, grid_of
from .windows.descriptors import PaneWindow
from .windows.partials import Folding, Numbers, Partials, concat

PENDING_ROWS_MAX = 32 * 1024
"""Partials gathered before they are merged."""
GAIN_MIN = 2
"""If merging shrinks them less than this many times, there is nothing to gain by waiting."""
PANE_FIELD = pa.field("__pane", pa.int64(), nullable=False)
FLOOR_BYTES = 8


def partial_schema(keys: Sequence[pa.Field], aggregation: Aggregation) -> pa.Schema:
    """What crosses the shuffle: keys, pane, row count, accumulators' columns, `_time`."""
    folding = Folding(aggregation, keys)
    return pa.schema([*keys, PANE_FIELD, *folding.value_schema, TIME_FIELD])


class LocalAggregateProcessor(Processor):
    """Input: rows with `_time`. Outputs: MAIN with `out_schema`, LATE with `in_schema`.

    Requires: the aggregation is associative. Without `judges` no row is late here, LATE stays
    empty, and there is no state. A partial's `_time` is the last instant of the
    earliest window that needs it, which lies behind every watermark sent before.
    """

    def __init__(
        self,
        window: PaneWindow,
        keys: Sequence[str],
        aggregation: Aggregation,
        in_schema: pa.Schema,
        lateness_ns: int = 0,
        *,
        judges: bool = True,
    ) -> None:
        assert aggregation.associative
        fields = [in_schema.field(name) for name in keys]
        self.in_schema = in_schema
        self.out_schema = partial_schema(fields, aggregation)
        self._grid: PaneGrid = grid_of(window)
        self._folding = Folding(aggregation, fields)
        self._lateness_ns = lateness_ns
        self._judges = judges

    def open(self, ctx: ProcessorContext) -> None:
        """Find how far the second phase's watermark was at the cut."""
        self._ctx = ctx
        self._pending: list[Partials] = []
        self._pending_rows = 0
        self._next_end = WATERMARK_MAX
        self._watermark = ctx.watermark
        if self._judges:
            self._find_floor()

    def _find_floor(self) -> None:
        # At a cut the second phase has the least of all first phases' watermarks (hazard 7);
        # a row behind it is late whatever this subtask's own watermark is after the restart.
        self._floors = self._ctx.state.operator_list("floor", "union")
        known = [int.from_bytes(item, "little", signed=True) for item in self._floors.items()]
        self._watermark = max(self._watermark, min(known, default=self._watermark))

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """Fold rows; send those on that are too late."""
        panes = self._grid.panes(times_of(batch))
        if self._grid.block_ns > self._grid.size_ns:
            inside = self._grid.first_ends(panes) <= self._grid.last_ends(panes)
            batch, panes = batch.filter(pa.array(inside)), panes[inside]
        if not batch.num_rows:
            return
        edge = self._grid.unused_before(self._watermark, self._lateness_ns)
        if self._judges and int(panes.min()) < edge:
            late = panes < edge
            rows = batch.filter(pa.array(late))
            self._ctx.count("late", rows.num_rows)
            self._ctx.collect(rows, LATE)
            batch, panes = batch.filter(pa.array(~late)), panes[~late]
        if batch.num_rows:
            self._fold(batch, panes)

    def _fold(self, batch: pa.RecordBatch, panes: Numbers) -> None:
        folding = self._folding
        keys = folding.keys_of(batch)
        groups = folding.groups(keys, panes)
        arguments = folding.aggregation.argument_columns(batch)
        partials = folding.from_rows(keys, groups, panes, arguments, times_of(batch))
        self._pending.append(partials)
        self._pending_rows += len(partials)
        self._next_end = min(self._next_end, int(self._grid.first_ends(partials.times).min()))
        if self._pending_rows >= PENDING_ROWS_MAX:
            merged = folding.merge(concat(self._pending))
            self._pending, self._pending_rows = [merged], len(merged)
            if len(merged) * GAIN_MIN >= PENDING_ROWS_MAX:
                self._give(WATERMARK_MAX)

    def on_watermark(self, watermark: int) -> None:
        """Give what the windows need that are complete behind the shuffle, once this passes it."""
        if watermark >= self._next_end - 1:
            self._give(watermark)
        self._watermark = max(self._watermark, watermark)

    def before_snapshot(self, checkpoint_id: int) -> None:
        """Give everything: it lies before the barrier."""
        self._give(WATERMARK_MAX)
        if self._judges:
            floor = self._watermark.to_bytes(FLOOR_BYTES, "little", signed=True)
            self._floors.replace([floor])

    def _give(self, watermark: int) -> None:
        """Give the partials of panes whose earliest window is complete at `watermark`."""
        if not self._pending:
            return
        merged = self._folding.merge(concat(self._pending))
        ends = self._grid.first_ends(merged.times)
        due = ends - 1 <= watermark
        rest = merged.take(np.flatnonzero(~due))
        self._pending, self._pending_rows = ([rest], len(rest)) if len(rest) else ([], 0)
        self._next_end = int(ends[~due].min()) if len(rest) else WATERMARK_MAX
        given = merged.take(np.flatnonzero(due))
        columns = [
            *self._folding.result_keys(given.keys),
            pa.array(given.times),
            *given.parts,
            time_array(ends[due] - 1),
        ]
        self._ctx.collect(pa.RecordBatch.from_arrays(columns, schema=self.out_schema))


class GlobalAggregateProcessor(WindowAggregateProcessor):
    """The second phase. Input: partials; output: MAIN as of WindowAggregateProcessor."""

    def __init__(
        self,
        window: PaneWindow,
        keys: Sequence[str],
        aggregation: Aggregation,
        rows_schema: pa.Schema,
        lateness_ns: int = 0,
        who: str = "aggregate",
        location: str = "",
    ) -> None:
        """`rows_schema` is that of the first phase's input."""
        super().__init__(window, keys, aggregation, rows_schema, lateness_ns, who, location)
        fields = [rows_schema.field(name) for name in keys]
        self.in_schema = partial_schema(fields, aggregation)

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """Keep partials; those that are late after all are counted by their rows."""
        folding = self._folding
        panes = fixed_values(batch.column(PANE_FIELD.name))
        parts = [batch.column(name) for name in folding.value_schema.names]
        partials = Partials(folding.keys_of(batch), panes, parts)
        on_time = panes >= self._grid.unused_before(self._fired, self._lateness_ns)
        if not on_time.all():
            self._ctx.count("late", int(fixed_values(parts[0])[~on_time].sum()))
        # Taking copies: the batch may lie in memory that is given back.
        owned = partials.take(np.flatnonzero(on_time))
        if len(owned):
            self._keep(owned)
