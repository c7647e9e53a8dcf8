"""Aggregates over sessions: per key, rows closer together than the gap, in any order of arrival.

1. A session gives its result once, when the watermark has reached its last row + gap - 1; rows
   that close the distance between two sessions merge them before that.
2. Within `lateness_ns` behind that, a late row makes its session, merged, give its result again.
3. A row that lies in no session still kept, and could only begin one that is over, is late.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from penstock.elements.signals import WATERMARK_MAX
from penstock.operators.aggregates import Aggregation
from penstock.operators.event_times import times_of
from penstock.operators.grouping import Groups, Mask
from penstock.operators.processor import LATE, Processor, ProcessorContext

from .descriptors import Session
from .partials import Folding, Numbers
from .results import result_batch, result_schema
from .session_store import SessionStore, Stretches, concat_stretches, session_groups

PENDING_ROWS_MAX = 32 * 1024
"""Stretches gathered before they are merged and appended to state."""


class SessionAggregateProcessor(Processor):
    """Input: rows with `_time`. Outputs: MAIN with `out_schema`, LATE with `in_schema`."""

    def __init__(
        self,
        window: Session,
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
        self._folding = Folding(aggregation, fields)
        self._gap_ns = window.gap_ns
        self._lateness_ns = lateness_ns

    def open(self, ctx: ProcessorContext) -> None:
        """Find the sessions of the checkpoint."""
        self._ctx = ctx
        self._store = SessionStore(self._folding, ctx.state)
        self._pending: list[Stretches] = []
        self._pending_rows = 0

    # Rows ------------------------------------------------------------------------------------

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """Fold rows into stretches; rows that may be late are compared with what is kept."""
        ends = times_of(batch) + (self._gap_ns - 1 + self._lateness_ns)
        doubtful = ends <= self._ctx.watermark
        if not doubtful.any():
            self._fold(batch)
            return
        self._fold(batch.filter(pa.array(~doubtful)))
        self._sort_out(batch.filter(pa.array(doubtful)))

    def _sort_out(self, batch: pa.RecordBatch) -> None:
        """Keep those rows that touch a session, then those that touch these, and so on."""
        while batch.num_rows:
            self._spill()
            keys = self._folding.keys_of(batch)
            near, since = self._store.touching(keys, times_of(batch), self._gap_ns)
            if not len(near):
                break
            rest = np.ones(batch.num_rows, np.bool_)
            rest[near] = False
            self._fold(batch.take(pa.array(near)), since)
            batch = batch.filter(pa.array(rest))
        if batch.num_rows:
            self._ctx.count("late", batch.num_rows)
            self._ctx.collect(batch, LATE)

    def _fold(self, batch: pa.RecordBatch, since: Numbers | None = None) -> None:
        if not batch.num_rows:
            return
        folding, times = self._folding, times_of(batch)
        keys = folding.keys_of(batch)
        arguments = folding.aggregation.argument_columns(batch)
        groups = session_groups(folding.result_keys(keys), times, times, self._gap_ns)
        firsts = groups.reduce(np.minimum, times)
        lasts = groups.reduce(np.maximum, times)
        kept_at = firsts if since is None else groups.reduce(np.minimum, since)
        partials = folding.from_rows(keys, groups, firsts[groups.codes], arguments, times)
        given = np.zeros(len(lasts), np.bool_)
        self._pending.append(Stretches(partials, lasts, kept_at, given))
        self._pending_rows += len(lasts)
        for at, multiset in enumerate(folding.aggregation.multisets):
            values = arguments[multiset.argument]
            self._store.add_values(at, keys, kept_at[groups.codes], values)
        if self._pending_rows >= PENDING_ROWS_MAX:
            self._spill()

    def _spill(self) -> None:
        if not self._pending:
            return
        merged = self._merged(concat_stretches(self._pending))
        self._pending, self._pending_rows = [], 0
        self._store.append(merged, merged.lasts + (self._gap_ns - 1))

    def _merged(self, stretches: Stretches) -> Stretches:
        """One row per session."""
        partials = stretches.partials
        keys = self._folding.result_keys(partials.keys)
        groups = session_groups(keys, partials.times, stretches.lasts, self._gap_ns)
        return self._merge_groups(stretches, groups)

    def _merge_groups(self, stretches: Stretches, groups: Groups) -> Stretches:
        """One row per group; it counts as given if all of it was."""
        if groups.count == len(stretches):
            return stretches.take(groups.order)
        merged = self._folding.merge_groups(stretches.partials, groups)
        merged.times = groups.reduce(np.minimum, stretches.partials.times)
        lasts = groups.reduce(np.maximum, stretches.lasts)
        since = groups.reduce(np.minimum, stretches.since)
        return Stretches(merged, lasts, since, groups.reduce(np.logical_and, stretches.given))

    # Time ------------------------------------------------------------------------------------

    def on_watermark(self, watermark: int) -> None:
        """Give the results of sessions that are over now, in the order of their ends."""
        self._spill()
        due = self._store.take_due(watermark)
        if due is not None:
            self._settle(due, watermark)
            self._store.trim_values()

    def before_snapshot(self, checkpoint_id: int) -> None:
        """Bring what is pending into state."""
        self._spill()

    def _settle(self, due: Stretches, watermark: int) -> None:
        others = self._store.others(due)
        rows = due if others is None else concat_stretches([due, others])
        keys = self._folding.result_keys(rows.partials.keys)
        groups = session_groups(keys, rows.partials.times, rows.lasts, self._gap_ns)
        is_due = np.arange(len(rows)) < len(due)
        over_at = groups.reduce(np.maximum, rows.lasts) + (self._gap_ns - 1)
        # Sessions without a stretch that is due wait for their own time.
        concerned = groups.any(is_due)
        over = (over_at <= watermark) & concerned
        fresh = groups.any(is_due & ~rows.given)
        self._give(rows, groups, over & fresh)
        self._keep(rows, groups, is_due, over, over_at, watermark)

    def _give(self, rows: Stretches, groups: Groups, which: Mask) -> None:
        chosen = np.flatnonzero(which[groups.codes])
        if not len(chosen):
            return
        sessions = self._merged(rows.take(chosen))
        partials = sessions.partials
        items = self._folding.results(partials, self._store.values_of(sessions))
        keys = self._folding.result_keys(partials.keys)
        ends = sessions.lasts + self._gap_ns
        self._ctx.collect(result_batch(self.out_schema, keys, partials.times, ends, items))

    def _keep(
        self,
        rows: Stretches,
        groups: Groups,
        is_due: Mask,
        over: Mask,
        over_at: Numbers,
        watermark: int,
    ) -> None:
        """Put back the stretches whose sessions go on, or that late rows may still reach."""
        # Saturated: the last watermark plus the lateness must not wrap around.
        closed_at = np.minimum(over_at, WATERMARK_MAX - self._lateness_ns) + self._lateness_ns
        again_at = np.where(over, closed_at, over_at)
        stays = np.flatnonzero(is_due & (again_at[groups.codes] > watermark))
        if watermark == WATERMARK_MAX or not len(stays):
            return
        # Stretches of one session become one row, although what joins them may lie in others.
        sessions, numbers = np.unique(groups.codes[stays], return_inverse=True)
        kept = rows.take(stays)
        kept.given = over[groups.codes[stays]]
        merged = self._merge_groups(kept, Groups(numbers, len(sessions)))
        self._store.append(merged, again_at[sessions])
