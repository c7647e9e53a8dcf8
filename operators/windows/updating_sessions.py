"""Sessions given early and refined late: an updating stream.

1. A session that changes, or is merged with others, is given anew: what was given of it and of
   them is taken back with just the columns that were given. When: live_windows.py.
2. Without `early` readers have the sessions that are over: one that a late row lets go on is taken
   back at the next watermark or cut, and given when it is over again.
3. A row that lies in no session still kept, and could only begin one that is final, is late.
A session is a live group named by its key and an anchor, the time of one of its rows: live sessions
of a key share no instant. What is given of it holds its bounds, which change, as results do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from penstock.elements.buffers import fixed_values
from penstock.elements.hash import Hashes, hash_arrays
from penstock.elements.signals import WATERMARK_MAX
from penstock.operators.accumulators import Accumulator, Numbers
from penstock.operators.aggregates import Aggregation
from penstock.operators.event_times import TIME_TYPE, time_array, times_of
from penstock.operators.grouping import Groups
from penstock.operators.processor import ProcessorContext
from penstock.operators.segments import spread
from penstock.operators.updating_calls import UpdatingCalls
from penstock.operators.updating_groups import Mask, Slots
from penstock.operators.updating_values import within_group

from .descriptors import Session
from .due_slots import DueSlots
from .live_sessions import LiveSessions
from .live_windows import LiveWindows
from .partials import ONLY_KEY
from .results import END, START
from .session_store import session_groups

ANCHOR = pa.field("__anchor", pa.int64(), nullable=False)


@dataclass(frozen=True, kw_only=True)
class Earliest(Accumulator):
    """When a session begins: kept like an aggregate, and read by nobody's item."""

    text: str = START

    @property
    def stored(self) -> tuple[pa.DataType, ...]:
        return (pa.int64(),)

    @property
    def result(self) -> pa.DataType:
        return TIME_TYPE

    def partial(
        self, groups: Groups, argument: pa.Array | None, times_ns: Numbers
    ) -> list[pa.Array]:
        return [pa.array(groups.reduce(np.minimum, times_ns))]

    def merge(self, groups: Groups, parts: list[pa.Array]) -> list[pa.Array]:
        return [pa.array(groups.reduce(np.minimum, fixed_values(parts[0])))]

    def final(self, parts: list[pa.Array]) -> pa.Array:
        return parts[0].cast(TIME_TYPE)


class SessionCalls(UpdatingCalls):
    """The calls of an aggregation, with a session's begin as the last of the stored columns."""

    def __init__(self, aggregation: Aggregation, who: str, location: str) -> None:
        super().__init__(aggregation, False, who, location)
        self.accumulators.append((None, Earliest()))


@dataclass(frozen=True)
class Touched:
    """The sessions that the rows of a batch are in, numbered; what was there of them before."""

    rows: Groups
    owners: Slots
    """The number of each session's key."""
    live: Slots
    """Slots of sessions that are to be one with the rows."""
    live_in: Slots
    """Which session each of them is in."""


class UpdatingSessionProcessor(LiveWindows):
    """Input: rows with `_time`. Outputs: MAIN with `out_schema`, LATE with `in_schema`."""

    def __init__(
        self,
        window: Session,
        keys: Sequence[str],
        aggregation: Aggregation,
        in_schema: pa.Schema,
        early_ns: int | None,
        lateness_ns: int = 0,
        who: str = "aggregate",
        location: str = "",
    ) -> None:
        """`early_ns` None: sessions give their results when they are over."""
        super().__init__(keys, aggregation, in_schema, early_ns, lateness_ns, who, location)
        self._gap_ns = window.gap_ns
        self._calls = SessionCalls(aggregation, who, location)
        fields = [in_schema.field(name) for name in keys]
        self._key_schema: pa.Schema = pa.schema(fields or [ONLY_KEY])
        self._keys: pa.Schema = pa.schema([*fields, ANCHOR])
        bounds = [pa.field(name, TIME_TYPE, nullable=False) for name in (START, END)]
        self._result_fields = [*bounds, *aggregation.results]

    def open(self, ctx: ProcessorContext) -> None:
        """Find the sessions of the checkpoint."""
        self._sessions = LiveSessions(self._key_schema)
        self._ends, self._finals = DueSlots(), DueSlots()
        self._over_at = WATERMARK_MAX
        super().open(ctx)
        self._over_at = ctx.watermark
        self._room()
        live = self._groups.index.live
        if len(live):
            keys = self._groups.index.keys_of(live)
            heads = self._routed([keys.column(name) for name in self._user_keys], len(live))
            self._sessions.link(live, self._sessions.owners_of(*heads))
            self._expect_times(live)

    def _room(self) -> None:
        room = self._groups.index.capacity
        for each in (self._sessions, self._ends, self._finals):
            each.room(room)

    def _hashes(self, keys: pa.RecordBatch) -> Hashes:
        # Sessions of a key go where the key's rows are routed.
        routed = hash_arrays([keys.column(name) for name in self._user_keys], keys.num_rows)
        return within_group(routed, keys.column(ANCHOR.name))

    def _routed(self, columns: list[pa.Array], rows: int) -> tuple[pa.RecordBatch, Hashes]:
        """The keys, and the hashes by which they were routed."""
        hashes = hash_arrays(columns, rows)
        if not columns:
            columns = [pa.array(np.zeros(rows, np.int8))]
        return pa.RecordBatch.from_arrays(columns, schema=self._key_schema), hashes

    def _shown_keys(self, slots: Slots) -> list[pa.Array]:
        return list(self._groups.index.keys_of(slots).columns[:-1])

    # Rows -------------------------------------------------------------------------------------

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """Put rows into their sessions; send those on that are too late for any."""
        if not batch.num_rows:
            return
        batch, touched = self._touched(batch)
        if batch.num_rows:
            self._extend(batch, touched)

    def _touched(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, Touched]:
        """(the rows that are not late, their sessions)."""
        times = times_of(batch)
        columns = [batch.column(name) for name in self._user_keys]
        near = session_groups(columns, times, times, self._gap_ns)
        firsts, lasts = near.reduce(np.minimum, times), near.reduce(np.maximum, times)
        at = pa.array(near.firsts)
        heads = self._routed([column.take(at) for column in columns], near.count)
        owners = self._sessions.owners_of(*heads)
        distinct, live, live_owners, begins, ends = self._live_near(owners, firsts, lasts)
        # Everything that is one session: stretches of rows, and live sessions between them.
        owners = np.concatenate([owners, live_owners])
        firsts, lasts = np.concatenate([firsts, begins]), np.concatenate([lasts, ends])
        whole = session_groups([pa.array(owners)], firsts, lasts, self._gap_ns)
        of_live = whole.codes[near.count :]
        kept = whole.reduce(np.maximum, lasts) + (self._gap_ns - 1) > (
            self._watermark - self._lateness_ns
        )
        kept[of_live] = True
        of_row = whole.codes[near.codes]
        if not kept.all():
            late = ~kept[of_row]
            self._send_late(batch.filter(pa.array(late)))
            batch, of_row = batch.filter(pa.array(~late)), of_row[~late]
            self._sessions.drop_idle(distinct[~np.isin(distinct, owners[kept[whole.codes]])])
        wanted = np.zeros(whole.count, np.bool_)
        wanted[of_row] = True
        number = np.cumsum(wanted) - 1
        there = wanted[of_live]
        return batch, Touched(
            Groups(number[of_row], int(wanted.sum())),
            owners[whole.firsts[wanted]],
            live[there],
            number[of_live[there]],
        )

    def _extend(self, batch: pa.RecordBatch, touched: Touched) -> None:
        rows, times = touched.rows, times_of(batch)
        slots, fresh, absorbed = self._slots(batch, touched, rows.reduce(np.minimum, times))
        arguments = self._calls.aggregation.argument_columns(batch)
        weights = np.ones(batch.num_rows, np.int64)
        parts = self._calls.from_rows(rows, arguments, times, weights)
        ages = rows.reduce(np.maximum, times) + (self._gap_ns - 1)
        merged = touched.live[absorbed]
        into = touched.live_in[absorbed]
        if len(merged):
            codes = np.concatenate([np.arange(rows.count), into])
            theirs = self._groups.parts_of(merged)
            both = [pa.concat_arrays(pair) for pair in zip(parts, theirs, strict=True)]
            parts = self._calls.merge(Groups(codes, rows.count), both)
            np.maximum.at(ages, into, self._groups.touched[merged])
        self._groups.merge(slots, fresh, parts, ages)
        self._add_values(slots, rows.codes, arguments)
        if len(merged):
            self._absorb(merged, slots[into])
        self._expect_times(slots)
        if self._flush_at is None:
            self._flush_at = self._ctx.clock.wall_ns() + self._flush_ns
        if self._early and not self._flush_ns:
            self._flush()

    def _slots(
        self, batch: pa.RecordBatch, touched: Touched, firsts: Slots
    ) -> tuple[Slots, Mask, Mask]:
        """(the slot of each session, which are new, which live ones another one takes in)."""
        # Of several that become one the largest stays: its values are not moved.
        rows = fixed_values(self._groups.part_of(0, touched.live))
        order = np.lexsort((touched.live, -rows, touched.live_in))
        numbers, at = np.unique(touched.live_in[order], return_index=True)
        stays = order[at]
        absorbed = np.ones(len(touched.live), np.bool_)
        absorbed[stays] = False
        slots = np.full(touched.rows.count, -1, np.int64)
        slots[numbers] = touched.live[stays]
        fresh = slots < 0
        if fresh.any():
            heads = batch.take(pa.array(touched.rows.firsts[fresh]))
            columns = [heads.column(name) for name in self._user_keys]
            columns.append(pa.array(firsts[fresh]))
            keys = pa.RecordBatch.from_arrays(columns, schema=self._keys)
            slots[fresh], *_ = self._groups.slots_of(keys, self._hashes(keys))
            self._room()
            self._sessions.link(slots[fresh], touched.owners[fresh])
        return slots, fresh, absorbed

    def _live_near(
        self, owners: Slots, firsts: Slots, lasts: Slots
    ) -> tuple[Slots, Slots, Slots, Slots, Slots]:
        """(keys; live sessions of theirs that rows may touch, and the key, begin and last row of
        each)."""
        distinct, numbers = np.unique(owners, return_inverse=True)
        by_key = Groups(numbers, len(distinct))
        at, live = self._sessions.of(distinct)
        begins = fixed_values(self._groups.part_of(-1, live))
        ends = self._groups.touched[live] - (self._gap_ns - 1)
        # A key may have many that are over and wait for late rows.
        near = begins < by_key.reduce(np.maximum, lasts)[at] + self._gap_ns
        near &= ends > by_key.reduce(np.minimum, firsts)[at] - self._gap_ns
        return distinct, live[near], distinct[at[near]], begins[near], ends[near]

    def _add_values(self, slots: Slots, of_row: Slots, arguments: list[pa.Array]) -> None:
        """Count the values of rows in their sessions."""
        if not self._values:
            return
        keys = self._groups.index.keys_of(slots)
        hashes = self._hashes(keys)[of_row]
        keys = keys.take(pa.array(of_row))
        weights = np.ones(len(of_row), np.int64)
        for values, (argument, _) in zip(self._values, self._calls.values, strict=True):
            values.add(slots[of_row], keys, hashes, arguments[argument], weights)

    def _absorb(self, merged: Slots, into: Slots) -> None:
        """Sessions are part of others: their values go over; what was given is to be taken back."""
        keys = self._groups.index.keys_of(into)
        hashes = self._hashes(keys)
        for values in self._values:
            numbers, content, times = values.of(merged)
            theirs = keys.take(pa.array(numbers))
            values.add(into[numbers], theirs, hashes[numbers], content, fixed_values(times))
            values.remove(merged)
        self._sessions.merge(merged, into)
        given = self._groups.is_given[merged]
        self._groups.changed.add(merged[given])
        self._forget(merged[~given])

    # Changes ----------------------------------------------------------------------------------

    def _expect_times(self, slots: Slots) -> None:
        """These sessions have changed, or are those of the checkpoint."""
        ages = self._groups.touched[slots]
        self._ends.expect(slots, ages)
        self._finals.expect(slots, _later(ages, self._lateness_ns))

    def _due(self, times: DueSlots, watermark: int, after_ns: int) -> Slots:
        """The sessions whose last instant is that long ago."""
        slots = times.take(watermark)
        slots = slots[self._sessions.is_live(slots)]
        due_at = _later(self._groups.touched[slots], after_ns)
        waits = due_at > watermark
        times.expect(slots[waits], due_at[waits])
        return slots[~waits]

    def _give_complete(self, watermark: int) -> None:
        self._over_at = watermark
        changed, touched = self._groups.changed, self._groups.touched
        over = self._due(self._ends, watermark, 0)
        if self._early:
            # What became part of another session is taken back when that one is given.
            over = over[changed.holds(over)]
            others = self._sessions.merged_into(over)
            changed.remove(np.concatenate([over, others]))
        else:
            others = changed.take()
            others = others[self._groups.is_given[others]]
            goes_on = self._sessions.is_merged(others) | (touched[others] > watermark)
            others = others[goes_on]
        # In the order of their ends, as windows that are given once.
        over = over[np.lexsort((over, touched[over]))]
        self._give(np.concatenate([others, over]))

    def _forget_final(self, watermark: int) -> None:
        self._forget(self._due(self._finals, watermark, self._lateness_ns))

    def _flush(self) -> None:
        if self._early:
            super()._flush()
        else:
            self._give_complete(WATERMARK_MAX)

    def _give(self, slots: Slots) -> None:
        merged = self._sessions.is_merged(slots)
        if merged.any():
            # What is taken back stands before what is given in its place.
            roots = self._sessions.roots(slots)
            slots = slots[np.lexsort((~merged, roots, self._groups.touched[roots]))]
        super()._give(slots)

    def _look(self, slots: Slots) -> tuple[list[pa.Array], Mask]:
        self._room()
        alive = np.flatnonzero(~self._sessions.is_merged(slots))
        there = np.zeros(len(slots), np.bool_)
        there[alive] = True
        if not self._early:
            there &= self._groups.touched[slots] <= self._over_at
        # Parts of others have no values any more: of these nothing can be computed.
        results = self._results(slots[alive])
        nothing = [pa.nulls(1, column.type) for column in results]
        return [
            spread(column, alive, len(slots), none)
            for column, none in zip(results, nothing, strict=True)
        ], there

    def _results(self, slots: Slots) -> list[pa.Array]:
        begins = fixed_values(self._groups.part_of(-1, slots))
        bounds = [time_array(begins), time_array(self._groups.touched[slots] + 1)]
        return [*bounds, *super()._results(slots)]

    def _empty(self, slots: Slots) -> Mask:
        return self._sessions.is_merged(slots)

    def _forget(self, slots: Slots) -> None:
        self._sessions.forget(slots)
        super()._forget(slots)


def _later(times: Slots, by_ns: int) -> Slots:
    """Saturated: a session far ahead with a long lateness is not final at once."""
    later: Slots = np.minimum(times, WATERMARK_MAX - by_ns) + by_ns
    return later
