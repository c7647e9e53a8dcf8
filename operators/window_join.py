"""WindowJoinProcessor: pairs of rows with equal keys that lie in the same window.

Pairs are given as they arrive, once per window that holds both. What depends on the whole window
(rows without a match; semi and anti joins) is given when the window is complete, with
`_time` = its end - 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from penstock.elements.errors import PlanError
from penstock.elements.hash import Hashes
from penstock.elements.signals import TIME_COLUMN, WATERMARK_MAX, WATERMARK_MIN

from .event_times import times_of
from .grouping import Mask, group_rows
from .join_processor import JoinProcessor
from .join_sides import LEFT, RIGHT, Numbers, without_null_keys
from .processor import ProcessorContext
from .windows.assign import PaneGrid, expand, grid_of
from .windows.descriptors import PaneWindow


class WindowJoinProcessor(JoinProcessor):
    """Rows of both sides in one tumbling, hopping or cumulating window."""

    def __init__(
        self,
        window: PaneWindow,
        keys: Sequence[str],
        how: str,
        left: pa.Schema,
        right: pa.Schema,
        who: str = "join",
        location: str = "",
    ) -> None:
        for side, schema in (("left", left), ("right", right)):
            if TIME_COLUMN not in schema.names:
                raise PlanError(f"{who}: the {side} side has no event time  {location}".rstrip())
        super().__init__(keys, how, left, right, who, location)
        self._grid: PaneGrid = grid_of(window)

    def open(self, ctx: ProcessorContext) -> None:
        """Find the rows of the checkpoint."""
        super().open(ctx)
        self._done = ctx.watermark
        self._panes: set[int] = set()
        if self._how != "inner":
            for kept in self._kept:
                rows = kept.read()
                if rows is not None:
                    self._note(times_of(rows))

    def _note(self, times: Numbers) -> None:
        self._panes.update(np.unique(self._grid.panes(times)).tolist())

    def _late(self, times: Numbers, port: int) -> Mask:
        late: Mask = times < self._grid.unused_before(self._done, 0)
        if late.any():
            # What falls into a gap between windows belongs to none, and is not late for any.
            panes = self._grid.panes(times)
            late &= self._grid.first_ends(panes) <= self._grid.last_ends(panes)
        return late

    def _keep(self, batch: pa.RecordBatch, times: Numbers, port: int, hashes: Hashes) -> None:
        super()._keep(batch, times, port, hashes)
        if self._how != "inner":
            self._note(times)

    def _range(self, times: Numbers, port: int) -> tuple[Numbers, Numbers]:
        panes = self._grid.panes(times)
        first = self._grid.next_ends(panes, self._done)
        return self._grid.starts(first), self._grid.last_ends(panes) - 1

    def _collect_pairs(self, left: pa.RecordBatch, right: pa.RecordBatch) -> None:
        if self._grid.single:
            super()._collect_pairs(left, right)
            return
        panes = [self._grid.panes(times_of(side)) for side in (left, right)]
        low = np.maximum(*(self._grid.next_ends(each, self._done) for each in panes))
        high = np.minimum(*(self._grid.last_ends(each) for each in panes))
        shared = np.maximum(0, (high - low) // self._grid.step_ns + 1)
        rows = pa.array(np.repeat(np.arange(left.num_rows), shared))
        if len(rows):
            super()._collect_pairs(left.take(rows), right.take(rows))

    def on_watermark(self, watermark: int) -> None:
        """Settle windows that are complete, and forget what lies in no other."""
        edge = self._grid.unused_before(watermark, 0)
        if self._how == "inner":
            for kept in self._kept:
                kept.take_before(edge)
        elif any(pane < watermark for pane in self._panes):
            self._settle(watermark, edge)
        self._done = watermark

    def _settle(self, watermark: int, edge: int) -> None:
        after = self._done if self._done == WATERMARK_MIN else self._done + 1
        upto = WATERMARK_MAX if watermark == WATERMARK_MAX else watermark + 1
        panes = np.array(sorted(self._panes), np.int64)
        if not len(expand(self._grid, panes, after, upto)[0]):
            return
        stays = any(pane >= edge for pane in self._panes)
        self._panes = {pane for pane in self._panes if pane >= edge}
        sides = []
        for kept in self._kept:
            pieces = [kept.take_before(edge)]
            if stays and not self._grid.single:
                pieces.append(kept.read())
            sides.append(self._expanded([p for p in pieces if p is not None], after, upto))
        matched = self._matched(sides)
        for port in (LEFT, RIGHT):
            rows, ends = sides[port]
            if rows is None or not self._needs_alone(port):
                continue
            given = matched[port] if self._how == "semi" else ~matched[port]
            order = np.argsort(ends[given], kind="stable")
            chosen = rows.take(pa.array(np.flatnonzero(given)[order]))
            self._collect_alone(chosen, port, ends[given][order] - 1)

    def _expanded(
        self, pieces: list[pa.RecordBatch], after: int, upto: int
    ) -> tuple[pa.RecordBatch | None, Numbers]:
        """Each row once per window that is complete now, and the windows' ends."""
        if not pieces:
            return None, np.zeros(0, np.int64)
        rows = pa.concat_batches(pieces)
        at, ends = expand(self._grid, self._grid.panes(times_of(rows)), after, upto)
        return rows.take(pa.array(at)), ends

    def _matched(self, sides: list[tuple[pa.RecordBatch | None, Numbers]]) -> tuple[Mask, Mask]:
        """Which rows have a row with the same key and window on the other side."""
        (left, left_ends), (right, right_ends) = sides
        none = (np.zeros(len(left_ends), np.bool_), np.zeros(len(right_ends), np.bool_))
        if left is None or right is None or not len(left_ends) or not len(right_ends):
            return none
        columns = [pa.concat_arrays([left.column(name), right.column(name)]) for name in self._keys]
        ends = pa.array(np.concatenate([left_ends, right_ends]))
        groups = group_rows([ends, *columns], len(ends))
        usable = [without_null_keys(side, self._keys) for side in (left, right)]
        codes = [groups.codes[: len(left_ends)], groups.codes[len(left_ends) :]]
        there = []
        for side in (LEFT, RIGHT):
            present = np.zeros(groups.count, np.bool_)
            present[codes[side][usable[side]]] = True
            there.append(present)
        return (
            there[RIGHT][codes[LEFT]] & usable[LEFT],
            there[LEFT][codes[RIGHT]] & usable[RIGHT],
        )
