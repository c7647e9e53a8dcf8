"""The first N rows of each key under an order, of rows that stay: an updating stream.

1. After each batch the net of the changes is the first N of all rows so far. A row that falls out
   or changes its rank is taken back just before what takes its place is added.
2. `_time` of a change is the latest event time among the rows that caused it, or just behind the
   watermark where that has passed it: no change is late.
3. With a TTL a key is forgotten, its rows staying in the result, once the watermark lies that far
   behind its newest row; what is then added stands beside them.
The live rows lie in columns by key slot; a barrier hands them to state (R1). Where a word per row
says which is first, rows contend in compiled code, and only ties are sorted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penstock.elements.changelog import ADDED, TAKEN_BACK
from penstock.elements.signals import TIME_COLUMN, WATERMARK_MAX, WATERMARK_MIN

from .event_times import times_of
from .kernels.compile import uses_reference
from .kernels.top_contest import CONTEST_COUNT_MAX, Contest, Said
from .key_slots import Keys
from .processor import Processor, ProcessorContext
from .ranking_output import top_changes, top_schema
from .ranking_rows import NO_BAR, TopRows, counting
from .row_order import Numbers, has_words, sort_words

TOP_ROWS_MAX = 10_000
"""The most rows per key that are kept in order."""


class Order(Protocol):
    """An order of rows: RowOrder, or that of arrival."""

    columns_read: frozenset[str]

    @property
    def leading(self) -> tuple[pa.DataType, bool] | None: ...

    @property
    def leading_column(self) -> tuple[str, bool] | None: ...

    def values(self, batch: pa.RecordBatch) -> list[pa.Array]: ...

    def sort(self, batch: pa.RecordBatch, groups: Sequence[Numbers]) -> Numbers: ...


class NewestArrival:
    """What came last comes first; whoever sorts puts older rows in front of newer ones."""

    columns_read: frozenset[str] = frozenset()
    leading = None
    leading_column = None

    def values(self, batch: pa.RecordBatch) -> list[pa.Array]:
        """Nothing to compare."""
        return []

    def sort(self, batch: pa.RecordBatch, groups: Sequence[Numbers]) -> Numbers:
        """The rows of each group, the last one first."""
        return np.lexsort([-np.arange(batch.num_rows), *groups[::-1]])


def leading_words(order: Order, batch: pa.RecordBatch) -> Numbers:
    """What sorts as `order` does, as far as one word says. Requires: its leading type has words."""
    leading = order.leading
    assert leading is not None
    words = sort_words(order.values(batch)[0], leading[1])
    # A null is last: it is behind every bar but that of a null, which is none.
    return words[0] if len(words) == 1 else np.where(words[0] == 1, NO_BAR, words[1])


class RunningTopProcessor(Processor):
    """Input: rows. Output: MAIN with `out_schema`, updating."""

    keeps_by_key_only = True

    def __init__(
        self,
        keys: Sequence[str],
        order: Order,
        count: int,
        in_schema: pa.Schema,
        rank: str | None = None,
        ttl_ns: int | None = None,
        who: str = "top",
        location: str = "",
    ) -> None:
        assert 0 < count <= TOP_ROWS_MAX
        self.in_schema = in_schema
        self.out_schema = top_schema(in_schema, rank, who, location)
        self._order, self._count, self._rank, self._ttl_ns = order, count, rank, ttl_ns
        self._keys = Keys(in_schema, keys)
        self._timed = TIME_COLUMN in in_schema.names
        leading = order.leading
        self._has_words = leading is not None and has_words(leading[0])

    def open(self, ctx: ProcessorContext) -> None:
        """Find the rows of the checkpoint."""
        self._ctx = ctx
        self._contest: Contest | None = None
        if self._has_words and self._count <= CONTEST_COUNT_MAX and not uses_reference():
            self._contest = Contest(self._count, self._rank is not None)
        self._rows = TopRows(self.in_schema, self._keys, self._count, self._contest)
        self._bar = np.zeros(0, np.int64)
        self._looked_ns = WATERMARK_MIN
        slots = self._rows.open(ctx.state, self._keys)
        self._grow()
        self._note_words(slots)

    def _grow(self) -> None:
        self._rows.grow()
        before, room = len(self._bar), len(self._rows.filled)
        if before < room:
            self._bar = _kept(self._bar, np.arange(before), room)

    # Rows ------------------------------------------------------------------------------------

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """Let the rows contend; give what changes."""
        slots = self._rows.slots.add(self._keys.columns(batch))
        self._grow()
        times = times_of(batch) if self._timed else np.zeros(batch.num_rows, np.int64)
        if self._ttl_ns is not None:
            # Also rows that change nothing keep their key alive.
            np.maximum.at(self._rows.newest, slots, times)
            self._rows.dirty = True
        if self._contest is not None:
            words, rows = self._leading_words(batch), self._rows
            said = self._contest.hold(slots, words, times, rows.filled)
            if len(said.cells):
                rows.dirty = True
                self._say(batch, said)
            if not len(said.tied_rows):
                return
            at = said.tied_rows
            batch, slots, times = batch.take(pa.array(at)), slots[at], times[at]
        else:
            at = self._contenders(batch, slots)
            if len(at) < batch.num_rows:
                batch, slots, times = batch.take(pa.array(at)), slots[at], times[at]
        if batch.num_rows:
            self._contend(batch, slots, times)

    def _say(self, batch: pa.RecordBatch, said: Said) -> None:
        """Give the changes, and store the rows that have come."""
        fresh = said.froms >= 0
        old = np.flatnonzero(~fresh)
        stored = self._rows.values_at(-1 - said.froms[old])
        if len(said.slots):
            order = np.empty(len(fresh), np.int64)
            order[old] = np.arange(len(old))
            order[fresh] = np.arange(len(old), len(fresh))
            at, new = pa.array(order), pa.array(said.froms[fresh])
            values = [
                pa.concat_arrays([before, batch.column(field.name).take(new)]).take(at)
                for before, field in zip(stored, self._rows.values, strict=True)
            ]
            given = self._rows.batch(said.slots, values)
            self._collect(given, said.ranks, said.weights, said.times if self._timed else None)
        self._rows.write(said.cells, batch, said.rows)

    def _contenders(self, batch: pa.RecordBatch, slots: Numbers) -> Numbers:
        """Rows that are not plainly behind the last row of a full key: few, after a while."""
        bars = self._bar[slots]
        if not self._has_words or not (bars < NO_BAR).any():
            return np.arange(batch.num_rows)
        return np.flatnonzero(self._leading_words(batch) <= bars)

    def _leading_words(self, batch: pa.RecordBatch) -> Numbers:
        return leading_words(self._order, batch)

    def _contend(self, batch: pa.RecordBatch, slots: Numbers, times: Numbers) -> None:
        """Sort the rows of the slots at hand, those that are kept among them."""
        rows = self._rows
        touched, group = np.unique(slots, return_inverse=True)
        filled = rows.filled[touched]
        old_rank = counting(filled)
        kept = rows.rows_at(touched, filled)
        whole = pa.concat_batches([kept, batch]) if len(old_rank) else batch
        latest = np.full(len(touched), WATERMARK_MIN)
        np.maximum.at(latest, group, times)
        group = np.concatenate([np.repeat(np.arange(len(touched)), filled), group])
        order = self._order.sort(whole, [group])
        # Per row of `whole`: the rank it had, and the one it has; as many as N is none.
        before = np.full(len(group), self._count)
        before[: len(old_rank)] = old_rank
        sizes = np.bincount(group, minlength=len(touched))
        after = np.empty(len(group), np.int64)
        after[order] = np.minimum(counting(sizes), self._count)
        moved = np.flatnonzero((after < self._count) & (after != before))
        if not len(moved):
            return
        self._give(whole, group, before, after, latest)
        if self._contest is not None:
            # Their places become their ranks again, whoever moved.
            moved = np.flatnonzero(after < self._count)
            cells = touched[group[moved]] * self._count + after[moved]
            self._contest.places[cells] = after[moved]
            self._contest.best[cells] = self._leading_words(whole)[moved]
        rows.write(touched[group[moved]] * self._count + after[moved], whole, moved)
        rows.filled[touched] = np.minimum(sizes, self._count)
        rows.dirty = True
        if self._contest is None:
            self._note_words(touched)

    def _give(
        self,
        whole: pa.RecordBatch,
        group: Numbers,
        before: Numbers,
        after: Numbers,
        times: Numbers,
    ) -> None:
        none = self._count
        if self._rank is None:
            # A row that only moves within the first N is the same row.
            gone = np.flatnonzero((before < none) & (after == none))
            come = np.flatnonzero((before == none) & (after < none))
        else:
            gone = np.flatnonzero((before < none) & (after != before))
            come = np.flatnonzero((after < none) & (after != before))
        rows = np.concatenate([gone, come])
        ranks = np.concatenate([before[gone], after[come]])
        weights = np.repeat(np.array([TAKEN_BACK, ADDED], np.int8), [len(gone), len(come)])
        place = (
            ranks
            if self._rank is not None
            else np.concatenate([_nth(group[gone]), _nth(group[come])])
        )
        order = np.lexsort([weights, place, group[rows]])
        rows = rows[order]
        given = whole.take(pa.array(rows))
        latest = times[group[rows]] if self._timed else None
        self._collect(given, ranks[order], weights[order], latest)

    def _collect(
        self,
        given: pa.RecordBatch,
        ranks: Numbers,
        weights: npt.NDArray[np.int8],
        times: Numbers | None,
    ) -> None:
        context = self._ctx
        context.collect(
            top_changes(
                self.out_schema, self._rank, given, ranks, weights, times, context.watermark
            )
        )

    def _note_words(self, slots: Numbers) -> None:
        """What a row must reach to contend, of slots that were written without asking for it."""
        if not self._has_words or not len(slots):
            return
        count, filled = self._count, self._rows.filled
        if self._contest is not None:
            cells = np.repeat(slots * count, filled[slots]) + counting(filled[slots])
            rows = self._rows.rows_at(slots, filled[slots])
            self._contest.best[cells] = self._leading_words(rows)
            return
        full = slots[filled[slots] == count]
        if len(full):
            last = self._rows.values_at(full * count + count - 1)
            self._bar[full] = self._leading_words(self._rows.batch(full, last))

    # Time and cuts ---------------------------------------------------------------------------

    def on_watermark(self, watermark: int) -> None:
        """Forget keys that have been silent for the TTL."""
        ttl_ns = self._ttl_ns
        if ttl_ns is None or watermark == WATERMARK_MAX:
            return
        if self._looked_ns != WATERMARK_MIN and watermark - self._looked_ns < ttl_ns // 8:
            return
        self._looked_ns = watermark
        silent = self._rows.newest[: self._rows.slots.count] <= watermark - ttl_ns
        if silent.any():
            self._rows.forget(silent)
            self._bar = _kept(self._bar, np.flatnonzero(~silent), len(self._rows.filled))

    def before_snapshot(self, checkpoint_id: int) -> None:
        """Hand the rows over."""
        self._rows.save()


def _kept(bars: Numbers, slots: Numbers, room: int) -> Numbers:
    larger = np.full(room, NO_BAR, np.int64)
    larger[: len(slots)] = bars[slots]
    return larger


def _nth(groups: Numbers) -> Numbers:
    """The how-manieth of its group each is; equal groups lie together."""
    order = np.argsort(groups, kind="stable")
    nth = np.empty(len(groups), np.int64)
    _, sizes = np.unique(groups, return_counts=True)
    nth[order] = counting(sizes)
    return nth
