"""WindowJoinProcessor: pairs of rows with equal keys that lie in the same window.

Pairs are given as they arrive, once per window that holds both. What depends on the whole window
(rows without a match; semi and anti joins) is given when the window is complete, with
`_time` = its end - 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from penstock.elements.hash import Hashes
from penstock.elements.signals import WATERMARK_MAX, WATERMARK_MIN

from .event_times import times_of
from .grouping import Mask, group_rows
from .join_condition import JoinCondition
from .join_processor import JoinProcessor
from .join_rows import Pairs
from .join_sides import LEFT, RIGHT, Numbers, without_null_keys
from .processor import ProcessorContext
from .windows.assign import PaneGrid, expand, grid_of
from .windows.descriptors import PaneWindow

PAIRS_MAX = 1 << 17
"""Pairs that are compared at a time when windows are settled by a condition."""


class WindowJoinProcessor(JoinProcessor):
    """Rows of both sides in one tumbling, hopping or cumulating window."""

    def __init__(
        self,
        window: PaneWindow,
        keys: Sequence[str],
        how: str,
        left: pa.Schema,
        right: pa.Schema,
        condition: JoinCondition | None = None,
        who: str = "join",
        location: str = "",
    ) -> None:
        super().__init__(keys, how, left, right, condition, who, location)
        self._grid: PaneGrid = grid_of(window)

    def open(self, ctx: ProcessorContext) -> None:
        """Find the rows of the checkpoint."""
        super().open(ctx)
        self._done = ctx.watermark
        self._panes: set[int] = set()
        if self._settles:
            for kept in self._kept:
                self._note(kept.times[kept.all_slots()])

    def _counts(self, port: int) -> bool:
        # A row of several windows may have a match in some of them: those are settled by pane.
        return self._grid.single and self._needs_alone(port)

    @property
    def _settles(self) -> bool:
        """Whether windows are compared as a whole when they are complete."""
        return self._how != "inner" and not self._grid.single

    def _note(self, times: Numbers) -> None:
        if self._settles and len(times):
            self._panes.update(np.unique(self._grid.panes(times)).tolist())

    def _late(self, times: Numbers, port: int) -> Mask:
        late: Mask = times < self._grid.unused_before(self._done, 0)
        if late.any():
            # What falls into a gap between windows belongs to none, and is not late for any.
            panes = self._grid.panes(times)
            late &= self._grid.first_ends(panes) <= self._grid.last_ends(panes)
        return late

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """Match rows with the other side, then keep them."""
        super().process(batch, port)
        self._note(times_of(batch))

    def _matches(
        self, batch: pa.RecordBatch, times: Numbers, hashes: Hashes, port: int
    ) -> Iterator[Pairs]:
        if self._settles and self._how in ("semi", "anti"):
            return
        yield from super()._matches(batch, times, hashes, port)

    def _range(self, times: Numbers, port: int) -> tuple[Numbers, Numbers]:
        panes = self._grid.panes(times)
        if self._grid.single:
            # Rows of complete windows were set apart as late.
            return panes, self._grid.pane_ends(panes) - 1
        first = self._grid.next_ends(panes, self._done)
        return self._grid.starts(first), self._grid.last_ends(panes) - 1

    def _collect_pairs(self, left: pa.RecordBatch, right: pa.RecordBatch) -> None:
        if self._grid.single:
            super()._collect_pairs(left, right)
            return
        shared = self._windows_of_pairs(times_of(left), times_of(right))
        rows = pa.array(np.repeat(np.arange(left.num_rows), shared))
        if len(rows):
            super()._collect_pairs(left.take(rows), right.take(rows))

    def _windows_shared(self, mine: Numbers, theirs: Numbers) -> Numbers | None:
        return None if self._grid.single else self._windows_of_pairs(mine, theirs)

    def _windows_of_pairs(self, mine: Numbers, theirs: Numbers) -> Numbers:
        """In how many windows that are not complete both rows are."""
        panes = [self._grid.panes(times) for times in (mine, theirs)]
        low = np.maximum(*(self._grid.next_ends(each, self._done) for each in panes))
        high = np.minimum(*(self._grid.last_ends(each) for each in panes))
        return self._grid.count_ends(low, high)

    # Windows that are complete ----------------------------------------------------------------

    def on_watermark(self, watermark: int) -> None:
        """Settle windows that are complete, and forget what lies in no other."""
        edge = self._grid.unused_before(watermark, 0)
        if self._settles and any(pane < watermark for pane in self._panes):
            self._settle(watermark, edge)
        if self._paired is not None:
            self._paired.cut((edge, edge))
            self._done = watermark
            return
        for port in (LEFT, RIGHT):
            kept = self._kept[port]
            slots = kept.older(edge)
            if len(slots) and self._counts(port):
                matched = kept.matches[slots] > 0
                given = slots[matched if self._how == "semi" else ~matched]
                ends = self._grid.last_ends(self._grid.panes(kept.times[given]))
                self._collect_alone(kept.take(given), port, ends - 1)
            kept.remove(slots)
        self._done = watermark

    def _settle(self, watermark: int, edge: int) -> None:
        after = self._done if self._done == WATERMARK_MIN else self._done + 1
        upto = WATERMARK_MAX if watermark == WATERMARK_MAX else watermark + 1
        panes = np.array(sorted(self._panes), np.int64)
        self._panes = {pane for pane in self._panes if pane >= edge}
        if not len(expand(self._grid, panes, after, upto)[0]):
            return
        sides = [self._expanded(port, after, upto) for port in (LEFT, RIGHT)]
        matched = self._matched(sides)
        for port in (LEFT, RIGHT):
            rows, ends = sides[port]
            if not rows.num_rows or not self._needs_alone(port):
                continue
            given = matched[port] if self._how == "semi" else ~matched[port]
            order = np.argsort(ends[given], kind="stable")
            chosen = rows.take(pa.array(np.flatnonzero(given)[order]))
            self._collect_alone(chosen, port, ends[given][order] - 1)

    def _expanded(self, port: int, after: int, upto: int) -> tuple[pa.RecordBatch, Numbers]:
        """Each row once per window that is complete now, and the windows' ends."""
        kept = self._kept[port]
        slots = kept.all_slots()
        at, ends = expand(self._grid, self._grid.panes(kept.times[slots]), after, upto)
        return kept.take(slots[at]), ends

    def _matched(self, sides: list[tuple[pa.RecordBatch, Numbers]]) -> tuple[Mask, Mask]:
        """Which rows have a row with the same key and window on the other side."""
        (left, left_ends), (right, right_ends) = sides
        none = (np.zeros(len(left_ends), np.bool_), np.zeros(len(right_ends), np.bool_))
        if not len(left_ends) or not len(right_ends):
            return none
        columns = [pa.concat_arrays([left.column(name), right.column(name)]) for name in self._keys]
        ends = pa.array(np.concatenate([left_ends, right_ends]))
        groups = group_rows([ends, *columns], len(ends))
        usable = [without_null_keys(side, self._keys) for side in (left, right)]
        codes = [groups.codes[: len(left_ends)], groups.codes[len(left_ends) :]]
        if self._condition is not None:
            return self._matched_by_condition(left, right, codes, usable, none)
        there = []
        for side in (LEFT, RIGHT):
            present = np.zeros(groups.count, np.bool_)
            present[codes[side][usable[side]]] = True
            there.append(present)
        return (
            there[RIGHT][codes[LEFT]] & usable[LEFT],
            there[LEFT][codes[RIGHT]] & usable[RIGHT],
        )

    def _matched_by_condition(
        self,
        left: pa.RecordBatch,
        right: pa.RecordBatch,
        codes: list[Numbers],
        usable: list[Mask],
        matched: tuple[Mask, Mask],
    ) -> tuple[Mask, Mask]:
        """Compares all pairs of a key and window, some at a time."""
        assert self._condition is not None
        ours = np.flatnonzero(usable[LEFT])
        theirs = np.flatnonzero(usable[RIGHT])
        theirs = theirs[np.argsort(codes[RIGHT][theirs], kind="stable")]
        ordered = codes[RIGHT][theirs]
        begin = np.searchsorted(ordered, codes[LEFT][ours], side="left")
        counts = np.searchsorted(ordered, codes[LEFT][ours], side="right") - begin
        upto = np.cumsum(counts)
        total = int(upto[-1]) if len(upto) else 0
        for start in range(0, total, PAIRS_MAX):
            pair = np.arange(start, min(total, start + PAIRS_MAX))
            row = np.searchsorted(upto, pair, side="right")
            mine = ours[row]
            other = theirs[begin[row] + pair - (upto[row] - counts[row])]
            true = self._condition.holds(left.take(pa.array(mine)), right.take(pa.array(other)))
            matched[LEFT][mine[true]] = True
            matched[RIGHT][other[true]] = True
        return matched
