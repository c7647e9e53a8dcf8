"""Aggregates over tumbling, hopping and cumulating windows, by key.

1. A window gives its results once, when the watermark has reached its end - 1; only then does the
   watermark go on. A key without rows in a window gives none.
2. Within `lateness_ns` behind that, late rows still count: the groups they touch are given again,
   whole, at the next watermark or barrier.
3. A row that is too late for all its windows goes to LATE as it came and is counted, never lost.
4. What survives is the panes in state; windows that were complete before a restart are known by
   the restored watermark (hazard 23).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from penstock.elements.signals import WATERMARK_MAX, WATERMARK_MIN
from penstock.operators.aggregates import Aggregation
from penstock.operators.event_times import times_of
from penstock.operators.processor import LATE, Processor, ProcessorContext

from .assign import PaneGrid, expand, grid_of
from .descriptors import PaneWindow
from .pane_store import PaneStore
from .partials import Folding, MultisetRows, Numbers, Partials, concat, match_rows
from .results import result_batch, result_schema

EXPANDED_ROWS_MAX = 1 << 20
"""Partials times windows handled at once when many windows complete together."""


class WindowAggregateProcessor(Processor):
    """Input: rows with `_time`. Outputs: MAIN with `out_schema`, LATE with `in_schema`."""

    def __init__(
        self,
        window: PaneWindow,
        keys: Sequence[str],
        aggregation: Aggregation,
        in_schema: pa.Schema,
        lateness_ns: int = 0,
        who: str = "aggregate",
        location: str = "",
    ) -> None:
        assert lateness_ns >= 0
        fields = [in_schema.field(name) for name in keys]
        self.in_schema = in_schema
        self.out_schema = result_schema(fields, aggregation, who, location)
        self._grid: PaneGrid = grid_of(window)
        self._folding = Folding(aggregation, fields)
        self._lateness_ns = lateness_ns

    def open(self, ctx: ProcessorContext) -> None:
        """Find the panes of the checkpoint."""
        self._ctx = ctx
        self._fired = ctx.watermark
        self._store = PaneStore(self._folding, ctx.state)
        self._touched: list[Partials] = []
        self._next_end = self._earliest_end(self._store.panes)

    def _earliest_end(self, panes: Numbers) -> int:
        ends = self._grid.next_ends(panes, self._fired)
        ends = ends[ends <= self._grid.last_ends(panes)]
        return int(ends.min()) if len(ends) else WATERMARK_MAX

    # Rows ------------------------------------------------------------------------------------

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """Fold rows into their panes; send those on that are too late."""
        panes = self._grid.panes(times_of(batch))
        if self._grid.block_ns > self._grid.size_ns:
            # Windows with gaps between them: what falls into a gap belongs to no window.
            inside = self._grid.first_ends(panes) <= self._grid.last_ends(panes)
            batch, panes = batch.filter(pa.array(inside)), panes[inside]
        if not batch.num_rows:
            return
        edge = self._grid.unused_before(self._fired, self._lateness_ns)
        if int(panes.min()) < edge:
            late = panes < edge
            self._send_late(batch.filter(pa.array(late)))
            batch, panes = batch.filter(pa.array(~late)), panes[~late]
        if batch.num_rows:
            self._fold(batch, panes)

    def _send_late(self, rows: pa.RecordBatch) -> None:
        self._ctx.count("late", rows.num_rows)
        self._ctx.collect(rows, LATE)

    def _fold(self, batch: pa.RecordBatch, panes: Numbers) -> None:
        folding = self._folding
        arguments = folding.aggregation.argument_columns(batch)
        keys = folding.keys_of(batch)
        groups = folding.groups(keys, panes)
        partials = folding.from_rows(keys, groups, panes, arguments, times_of(batch))
        for at, multiset in enumerate(folding.aggregation.multisets):
            self._store.add_values(at, keys, panes, arguments[multiset.argument])
        self._keep(partials)

    def _keep(self, partials: Partials) -> None:
        self._store.add(partials)
        first_ends = self._grid.first_ends(partials.times)
        if self._lateness_ns and self._fired != WATERMARK_MIN:
            touched = np.flatnonzero(first_ends - 1 <= self._fired)
            if len(touched):
                self._touched.append(partials.take(touched))
        if int(first_ends.min()) < self._next_end:
            self._next_end = min(self._next_end, self._earliest_end(np.unique(partials.times)))

    # Time ------------------------------------------------------------------------------------

    def on_watermark(self, watermark: int) -> None:
        """Give the results of windows that are complete now, in the order of their ends."""
        self._again()
        if watermark >= self._next_end - 1:
            self._fire(watermark)
        self._fired = watermark
        if watermark >= self._next_end - 1:
            self._next_end = self._earliest_end(self._store.panes)

    def before_snapshot(self, checkpoint_id: int) -> None:
        """Give again what late rows touched; bring the rest into state."""
        self._again()
        self._store.spill()

    def _fire(self, watermark: int) -> None:
        upto = WATERMARK_MAX if watermark == WATERMARK_MAX else watermark + 1
        edge = self._grid.unused_before(watermark, self._lateness_ns)
        found = [self._store.take_before(edge)]
        kept = self._store.panes
        if len(kept) and int(self._grid.first_ends(kept[:1])[0]) <= upto:
            found.append(self._store.read())
        partials = [each for each, _ in found if each is not None]
        if not partials:
            return
        sets = [
            _joined([values[at] for _, values in found])
            for at in range(len(self._folding.aggregation.multisets))
        ]
        after = self._fired if self._fired == WATERMARK_MIN else self._fired + 1
        self._give(concat(partials), sets, after, upto, None)

    def _again(self) -> None:
        """Give the groups again that late rows have touched since the last time."""
        if not self._touched:
            return
        touched = self._folding.merge(concat(self._touched))
        self._touched = []
        # A window that no longer takes late rows is not given again.
        closed = self._fired - self._lateness_ns
        upto = self._fired + 1
        rows, ends = expand(self._grid, touched.times, closed + 1, upto)
        if not len(rows):
            return
        wanted = touched.take(rows)
        wanted.times = ends
        partials, sets = self._store.read()
        assert partials is not None
        self._give(partials, sets, closed + 1, upto, self._folding.merge(wanted))

    def _give(
        self,
        partials: Partials,
        sets: list[MultisetRows | None],
        after: int,
        upto: int,
        only: Partials | None,
    ) -> None:
        """Collect the results of all windows that end in (after, upto], or of `only` these."""
        for low, high in self._slices(partials.times, after, upto):
            rows, ends = expand(self._grid, partials.times, low, high)
            if not len(rows):
                continue
            windows = partials.take(rows)
            windows.times = ends
            if only is not None:
                wanted = match_rows(self._folding, only, windows.keys, ends) >= 0
                windows = windows.take(np.flatnonzero(wanted))
            if not len(windows):
                continue
            merged = self._folding.merge(windows)
            values = [self._values_in(each, low, high, merged) for each in sets]
            items = self._folding.results(merged, values)
            keys = self._folding.result_keys(merged.keys)
            starts = self._grid.starts(merged.times)
            self._ctx.collect(result_batch(self.out_schema, keys, starts, merged.times, items))

    def _values_in(
        self, values: MultisetRows | None, low: int, high: int, merged: Partials
    ) -> MultisetRows:
        """The values of the windows in `merged`."""
        if values is None:
            empty = np.zeros(0, np.int64)
            nothing = [pa.nulls(0, field.type) for field in self._folding.key_schema]
            return MultisetRows(nothing, empty, pa.nulls(0), pa.array(empty))
        rows, ends = expand(self._grid, values.times, low, high)
        found = values.take(rows)
        found.times = ends
        known = match_rows(self._folding, merged, found.keys, ends) >= 0
        return found if known.all() else found.take(np.flatnonzero(known))

    def _slices(self, panes: Numbers, after: int, upto: int) -> list[tuple[int, int]]:
        """(after, upto] in pieces of about EXPANDED_ROWS_MAX rows, so that a last watermark over
        many windows does not need the memory of all of them."""
        if len(panes) * self._grid.windows_per_pane <= EXPANDED_ROWS_MAX:
            return [(after, upto)]
        distinct, counts = np.unique(panes, return_counts=True)
        rows, ends = expand(self._grid, distinct, after, upto)
        order = np.argsort(ends, kind="stable")
        piece = np.cumsum(counts[rows][order]) // EXPANDED_ROWS_MAX
        # A window is never cut: the last end of each piece closes it.
        borders = ends[order][np.flatnonzero(np.diff(piece, append=piece[-1:] + 1))]
        cuts = [after, *np.unique(borders).tolist()]
        return list(itertools.pairwise(cuts))


def _joined(pieces: list[MultisetRows | None]) -> MultisetRows | None:
    there = [piece for piece in pieces if piece is not None]
    if len(there) < 2:
        return there[0] if there else None
    return MultisetRows(
        [pa.concat_arrays(columns) for columns in zip(*(p.keys for p in there), strict=True)],
        np.concatenate([p.times for p in there]),
        pa.concat_arrays([p.content for p in there]),
        pa.concat_arrays([p.counts for p in there]),
    )
