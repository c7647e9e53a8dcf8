"""When windows that are kept as live groups give, refine and forget: an updating stream of them.

1. Every `early_ns` of processing time, and before each cut, windows that have changed give what
   they have so far; what they gave before is taken back. Without it nothing is given early.
2. When the watermark reaches a window's end - 1 its result is given; within the lateness allowed
   behind that late rows refine it, at the next watermark or cut. Then it is final and forgotten.
`_time` is the window's end - 1, or just behind the watermark when that has passed. What a row's
windows are, subclasses know; a group's age (`touched`) is its window's last instant.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from penstock.elements.signals import WATERMARK_MAX, WATERMARK_MIN
from penstock.operators.aggregates import Aggregation
from penstock.operators.event_times import TIME_TYPE
from penstock.operators.processor import LATE, ProcessorContext
from penstock.operators.updating_aggregate import UpdatingAggregateProcessor
from penstock.operators.updating_groups import Slots

from .results import END, START


class LiveWindows(UpdatingAggregateProcessor):
    """Input: rows with `_time`. Outputs: MAIN with `out_schema`, LATE with `in_schema`."""

    # The watermark of a restart does not tell which: it is the least of several subtasks'.
    _some_given = True

    def __init__(
        self,
        keys: Sequence[str],
        aggregation: Aggregation,
        in_schema: pa.Schema,
        early_ns: int | None,
        lateness_ns: int,
        who: str,
        location: str,
    ) -> None:
        """`early_ns` None: windows give their results when they are complete."""
        super().__init__(keys, aggregation, in_schema, None, early_ns or 0, who, location)
        self._user_keys = list(keys)
        self._early = early_ns is not None
        self._lateness_ns = lateness_ns

    def group_fields(self, keys: list[pa.Field]) -> list[pa.Field]:
        """The keys and the window."""
        bounds = [pa.field(name, TIME_TYPE, nullable=False) for name in (START, END)]
        return [*keys, *bounds]

    def open(self, ctx: ProcessorContext) -> None:
        """Find the windows of the checkpoint."""
        super().open(ctx)
        live = self._groups.index.live
        ages = self._groups.touched[live]
        waiting = ~self._groups.is_given[live]
        self._groups.changed.add(live[waiting])
        self._next_end = _least(ages[waiting])
        self._next_gone = _least(ages)

    def _had_given(self, live: Slots) -> None:
        super()._had_given(live[self._groups.is_given[live]])

    # Rows -------------------------------------------------------------------------------------

    def _send_late(self, rows: pa.RecordBatch) -> None:
        self._ctx.count("late", rows.num_rows)
        self._ctx.collect(rows, LATE)

    def _expect_end(self, first: int) -> None:
        """Windows have changed whose first ends behind that instant."""
        self._next_end, self._next_gone = min(self._next_end, first), min(self._next_gone, first)
        if self._early and not self._flush_ns:
            self._flush()

    # Time -------------------------------------------------------------------------------------

    def on_watermark(self, watermark: int) -> None:
        """Give what is complete, refine what was; forget what is final."""
        if watermark == WATERMARK_MAX:
            self._flush()
        else:
            self._give_complete(watermark)
            self._forget_final(watermark)
        self._watermark = max(self._watermark, watermark)

    def _forget_final(self, watermark: int) -> None:
        if watermark - self._lateness_ns < self._next_gone:
            return
        live = self._groups.index.live
        ages = self._groups.touched[live]
        final = ages <= watermark - self._lateness_ns
        self._forget(live[final])
        self._next_gone = _least(ages[~final])

    def _give_complete(self, watermark: int) -> None:
        if watermark < self._next_end:
            return
        slots = self._groups.changed.take()
        ages = self._groups.touched[slots]
        # After a restart also windows may have been given that the watermark has yet to reach.
        due = (ages <= watermark) | (self._groups.is_given[slots] & (not self._early))
        self._groups.changed.add(slots[~due])
        self._next_end = _least(ages[~due])
        slots = slots[due]
        # In the order of their ends, as windows that are given once.
        self._give(slots[np.lexsort((slots, ages[due]))])

    def next_wakeup_ns(self) -> int | None:
        """When to give early results."""
        return super().next_wakeup_ns() if self._early else None

    def on_processing_time(self, now_ns: int) -> None:
        """Give early results."""
        if self._early:
            super().on_processing_time(now_ns)

    def before_snapshot(self, checkpoint_id: int) -> None:
        """Give what readers must have, if state is to say what they have; then keep the windows."""
        if not self._early:
            if self._groups.changed:
                self._next_end = WATERMARK_MIN  # to look at those that were given, too
            self._give_complete(self._watermark)
            self._save()
        else:
            super().before_snapshot(checkpoint_id)


def _least(ages: Slots) -> int:
    return int(ages.min()) if len(ages) else WATERMARK_MAX
