"""Tumbling, hopping and growing windows given early and refined late: an updating stream.

Every row counts in all of its windows that are not final. A row that is too late for all of them
goes to LATE as it came. When windows are given and forgotten: live_windows.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from penstock.elements.hash import Hashes, hash_arrays
from penstock.elements.signals import WATERMARK_MAX, WATERMARK_MIN
from penstock.operators.aggregates import Aggregation
from penstock.operators.event_times import time_array, times_of
from penstock.operators.updating_groups import Slots
from penstock.operators.updating_values import within_group

from .assign import PaneGrid, expand, grid_of
from .descriptors import PaneWindow
from .live_windows import LiveWindows
from .results import END


class UpdatingWindowProcessor(LiveWindows):
    """Input: rows with `_time`. Outputs: MAIN with `out_schema`, LATE with `in_schema`.

    A group is a key in a window; it is as old as the window's last instant.
    """

    def __init__(
        self,
        window: PaneWindow,
        keys: Sequence[str],
        aggregation: Aggregation,
        in_schema: pa.Schema,
        early_ns: int | None,
        lateness_ns: int = 0,
        who: str = "aggregate",
        location: str = "",
    ) -> None:
        """`early_ns` None: windows give their results when they are complete."""
        super().__init__(keys, aggregation, in_schema, early_ns, lateness_ns, who, location)
        self._grid: PaneGrid = grid_of(window)

    def _hashes(self, keys: pa.RecordBatch) -> Hashes:
        # Windows of a key go where the key's rows are routed.
        routed = hash_arrays([keys.column(name) for name in self._user_keys], keys.num_rows)
        return within_group(routed, keys.column(END))

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """Count rows in their windows; send those on that are too late for all."""
        grid = self._grid
        panes = grid.panes(times_of(batch))
        if grid.block_ns > grid.size_ns:
            # Windows with gaps between them: what falls into a gap belongs to no window.
            inside = grid.first_ends(panes) <= grid.last_ends(panes)
            batch, panes = batch.filter(pa.array(inside)), panes[inside]
        late = panes < grid.unused_before(self._watermark, self._lateness_ns)
        if late.any():
            self._send_late(batch.filter(pa.array(late)))
            batch, panes = batch.filter(pa.array(~late)), panes[~late]
        if batch.num_rows:
            self._expand(batch, panes)

    def _expand(self, batch: pa.RecordBatch, panes: Slots) -> None:
        after = WATERMARK_MIN
        if self._watermark != WATERMARK_MIN:
            after = self._watermark - self._lateness_ns + 1
        rows, ends = expand(self._grid, panes, after, WATERMARK_MAX)
        if not len(rows):
            return
        if not self._grid.single:
            batch = batch.take(pa.array(rows))
        keys = [batch.column(name) for name in self._user_keys]
        bounds = [time_array(self._grid.starts(ends)), time_array(ends)]
        grouped = pa.RecordBatch.from_arrays([*keys, *bounds], schema=self._keys)
        self._add(batch, grouped, times_of(batch), ends - 1)
        self._expect_end(int(ends.min()) - 1)
