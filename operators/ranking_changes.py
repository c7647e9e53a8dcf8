"""The first N rows of each key of an updating stream, whose rows may be taken back.

1. After each batch the net of the changes is the first N of the rows that are there. Rows that a
   batch adds and takes back are none. What goes is taken back just before what takes its place.
2. Rows equal under the order go by content: when a change became known says nothing about a row.
3. `_time` of a change and the TTL are as in ranking.py. A row taken back before it came is waited
   for; UNMATCHED counts those that a TTL forgot.
The first rows of a key, its front, are sorted when one of them changes or one comes to them; the
rest is, when the front has run short, which takes as many losses as the front has rows to spare.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from penstock.elements.changelog import HIDDEN, is_updating, weights_of, without_change
from penstock.elements.signals import TIME_COLUMN, WATERMARK_MAX, WATERMARK_MIN

from .event_times import times_of
from .found_again import UNMATCHED, refuse_unfindable
from .key_slots import Keys
from .processor import Processor, ProcessorContext
from .ranking import TOP_ROWS_MAX, leading_words
from .ranking_held import FRONT, REST, Arrived, HeldRows
from .ranking_moves import first_of, rank_moves, row_moves, sums_before
from .ranking_output import top_changes, top_schema
from .ranking_rows import NO_BAR
from .row_order import Numbers, RowOrder, has_words

LOOKS_PER_TTL = 8
"""Keys are forgotten at most this part of the TTL too late."""


def rows_schema(schema: pa.Schema) -> pa.Schema:
    """What makes a row of an updating stream: the user's columns. Orders are made for it."""
    return pa.schema([field for field in schema if field.name not in HIDDEN])


class UpdatingTopProcessor(Processor):
    """Input: changes. Output: MAIN with `out_schema`, updating. `order` is of `rows_schema`."""

    keeps_by_key_only = True

    def __init__(
        self,
        keys: Sequence[str],
        order: RowOrder,
        count: int,
        in_schema: pa.Schema,
        rank: str | None = None,
        ttl_ns: int | None = None,
        who: str = "top",
        location: str = "",
    ) -> None:
        assert 0 < count <= TOP_ROWS_MAX
        assert is_updating(in_schema)
        refuse_unfindable(in_schema, who, location)
        self.in_schema = in_schema
        self.out_schema = top_schema(without_change(in_schema), rank, who, location)
        self._order, self._count, self._rank, self._ttl_ns = order, count, rank, ttl_ns
        self._keys = Keys(in_schema, keys)
        self._timed = TIME_COLUMN in in_schema.names
        self._has_words = has_words(order.leading[0])

    def open(self, ctx: ProcessorContext) -> None:
        """Find the rows of the checkpoint."""
        self._ctx = ctx
        self._held = HeldRows(rows_schema(self.in_schema), self._keys)
        self._held.open(ctx.state, self._ttl_ns is not None)
        self._looked_ns = WATERMARK_MIN

    # Rows -------------------------------------------------------------------------------------

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """Count rows in and out; give what changes among the first."""
        if not batch.num_rows:
            return
        held = self._held
        arrived = held.arrive(batch, weights_of(batch).astype(np.int64))
        times = times_of(batch) if self._timed else np.zeros(batch.num_rows, np.int64)
        if self._ttl_ns is not None:
            # Also rows that change nothing keep their key alive.
            held.touch(arrived.keys, times)
        self._warm(arrived)
        held.count(arrived)
        keys, fresh = self._contending(arrived)
        if len(keys):
            self._contend(keys, fresh, self._latest(arrived, keys, times))
        held.forget_batch(arrived)

    def _warm(self, arrived: Arrived) -> None:
        """Find the fronts of keys that nothing was done about since a restart."""
        held = self._held
        _, keys = held.key_index.number(arrived.keys)
        cold = keys[held.cold[keys]]
        if len(cold):
            numbers, slots = self._refill(cold, np.zeros(len(cold), np.int64))
            held.cold[cold] = False
            self._set_bars(cold, numbers, slots)

    def _contending(self, arrived: Arrived) -> tuple[Numbers, Numbers]:
        """(keys whose front may change, ascending; new rows that may come to a front).

        What is plainly behind the front goes to the rest without being sorted.
        """
        held = self._held
        changed = arrived.added != 0
        slots, fresh = arrived.slots[changed], arrived.fresh[changed]
        new, old = slots[fresh], slots[~fresh]
        if self._has_words and len(new):
            bars = held.bar[held.owners[new]]
            if (bars < NO_BAR).any():
                behind = leading_words(self._order, held.rows(new)) > bars
                held.move(new[behind], REST)
                new = new[~behind]
        touched = np.concatenate([old[held.place[old] == FRONT], new])
        _, keys = held.key_index.number(held.owners[touched])
        return np.sort(keys), new

    def _latest(self, arrived: Arrived, keys: Numbers, times: Numbers) -> Numbers:
        """The latest time among the changes of each key."""
        counts = np.flatnonzero(arrived.added[arrived.codes] != 0)
        at = np.searchsorted(keys, arrived.keys[counts])
        mine = keys[np.minimum(at, len(keys) - 1)] == arrived.keys[counts]
        latest = np.full(len(keys), WATERMARK_MIN)
        np.maximum.at(latest, at[mine], times[counts[mine]])
        return latest

    def _contend(self, keys: Numbers, fresh: Numbers, latest: Numbers) -> None:
        """Sort the fronts of these keys with what comes to them, and give the difference."""
        held = self._held
        numbers, slots = held.of(FRONT, keys)
        was = np.arange(len(slots) + len(fresh)) < len(slots)
        groups = np.concatenate([numbers, np.searchsorted(keys, held.owners[fresh])])
        slots = np.concatenate([slots, fresh])
        order = self._order.sort(held.rows(slots), [groups])
        slots, groups, was = slots[order], groups[order], was[order]
        # Behind the last row of the front may stand rows of the rest, which are not here.
        last = np.full(len(keys), -1)
        last[groups[was]] = np.flatnonzero(was)
        beyond = (np.arange(len(slots)) > last[groups]) & (held.rest[keys] > 0)[groups]
        if beyond.any():
            held.move(slots[beyond], REST)
            slots, groups, was = slots[~beyond], groups[~beyond], was[~beyond]
        after = np.maximum(held.counts[slots], 0)
        before = np.where(was, np.maximum(held.counts[slots] - held.added[slots], 0), 0)
        sums = np.zeros(len(keys), np.int64)
        np.add.at(sums, groups, after)
        short = np.flatnonzero((sums < self._count) & (held.rest[keys] > 0))
        if len(short):
            # What lay in the rest was not among the first, whatever it counted.
            numbers, more = self._refill(keys[short], sums[short])
            groups = np.concatenate([groups, short[numbers]])
            order = np.argsort(groups, kind="stable")
            groups, slots = groups[order], np.concatenate([slots, more])[order]
            after = np.maximum(held.counts[slots], 0)
            before = np.concatenate([before, np.zeros(len(more), np.int64)])[order]
        self._give(slots, groups, before, after, latest)
        self._settle(keys, groups, slots, after)

    def _give(
        self, slots: Numbers, groups: Numbers, before: Numbers, after: Numbers, latest: Numbers
    ) -> None:
        before = first_of(before, groups, self._count)
        after = first_of(after, groups, self._count)
        moves = (row_moves if self._rank is None else rank_moves)(groups, before, after)
        if not len(moves.rows):
            return
        self._ctx.collect(
            top_changes(
                self.out_schema,
                self._rank,
                self._held.rows(slots[moves.rows]),
                moves.ranks,
                moves.weights,
                latest[groups[moves.rows]] if self._timed else None,
                self._ctx.watermark,
            )
        )

    # Fronts -----------------------------------------------------------------------------------

    def _spare(self, keys: Numbers) -> Numbers:
        """How many rows a front has after it was made: the more, the rarer the rest is sorted."""
        return 2 * self._count + np.sqrt(self._held.sizes[keys]).astype(np.int64)

    def _settle(self, keys: Numbers, groups: Numbers, slots: Numbers, after: Numbers) -> None:
        """Let fronts be these rows, in order, but for what is too much."""
        held = self._held
        there = held.counts[slots] != 0
        groups, slots, after = groups[there], slots[there], after[there]
        room = self._spare(keys)
        much = np.bincount(groups, minlength=len(keys)) > 2 * room
        ones = np.ones(len(groups), np.int64)
        over = much[groups] & (sums_before(ones, groups) >= room[groups])
        over &= sums_before(after, groups) >= self._count
        held.move(slots[over], REST)
        held.move(slots[~over], FRONT)
        self._set_bars(keys, groups[~over], slots[~over])

    def _refill(self, keys: Numbers, have: Numbers) -> tuple[Numbers, Numbers]:
        """Bring the first rows of the rest to the front, until keys that `have` so many rows have
        enough, and some to spare; (which of `keys`, slot) of those, in order."""
        held = self._held
        numbers, slots = held.of(REST, keys)
        order = self._order.sort(held.rows(slots), [numbers])
        numbers, slots = numbers[order], slots[order]
        before = have[numbers] + sums_before(np.maximum(held.counts[slots], 0), numbers)
        nth = sums_before(np.ones(len(slots), np.int64), numbers)
        chosen = (before < self._count) | (nth < self._spare(keys)[numbers])
        numbers, slots = numbers[chosen], slots[chosen]
        held.move(slots, FRONT)
        return numbers, slots

    def _set_bars(self, keys: Numbers, numbers: Numbers, slots: Numbers) -> None:
        """Note what a row must reach to come to the front, where that has a rest behind it."""
        held = self._held
        held.bar[keys] = NO_BAR
        if not self._has_words:
            return
        last = np.full(len(keys), -1)
        last[numbers] = slots
        some = np.flatnonzero((held.rest[keys] > 0) & (last >= 0))
        if len(some):
            held.bar[keys[some]] = leading_words(self._order, held.rows(last[some]))

    # Time and cuts ----------------------------------------------------------------------------

    def on_watermark(self, watermark: int) -> None:
        """Forget keys that have been silent for the TTL."""
        ttl_ns = self._ttl_ns
        if ttl_ns is None or watermark == WATERMARK_MAX:
            return
        if (
            self._looked_ns != WATERMARK_MIN
            and watermark - self._looked_ns < ttl_ns // LOOKS_PER_TTL
        ):
            return
        self._looked_ns = watermark
        silent = self._held.silent(watermark - ttl_ns, watermark)
        if len(silent):
            unmatched = self._held.forget(silent)
            if unmatched:
                self._ctx.count(UNMATCHED, unmatched)

    def before_snapshot(self, checkpoint_id: int) -> None:
        """Bring what changed into state."""
        self._held.save()
