"""The first N rows of each key under an order, kept up to date as rows come: an updating stream.

1. After each batch the net of the changes is the first N of all rows so far. A row that falls out
   or changes its rank is taken back just before what takes its place is added.
2. `_time` of a change is the latest event time among the rows that caused it.
3. With a TTL a key is forgotten, its rows staying in the result, once the watermark lies that far
   behind its newest row; what is then added stands beside them.
The live rows lie in columns by (key slot, rank); a barrier writes the slots that changed (R1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penstock.elements.buffers import fixed_values
from penstock.elements.changelog import ADDED, CHANGE, TAKEN_BACK, weight_array, with_change
from penstock.elements.errors import PlanError
from penstock.elements.signals import TIME_COLUMN, WATERMARK_MAX, WATERMARK_MIN
from penstock.state.columns import Column, column_for
from penstock.state.keyed_rows import grown, take_declared

from .event_times import time_array, times_of
from .key_slots import Keys, KeySlots
from .processor import Processor, ProcessorContext
from .row_order import Numbers, has_words, sort_words

TOP_ROWS_MAX = 10_000
"""The most rows per key that are kept in order."""
NO_BAR = np.int64(2**63 - 1)
NEWEST = "__newest"


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


def top_schema(schema: pa.Schema, rank: str | None, who: str, location: str = "") -> pa.Schema:
    """The columns of `schema`, the rank if it is named, `_change` and `_time`."""
    if rank is None:
        return with_change(schema)
    if rank in schema.names:
        raise PlanError(f'{who}: there is a column "{rank}" already  {location}'.rstrip())
    timed = TIME_COLUMN in schema.names
    at = len(schema) - 1 if timed else len(schema)
    return with_change(schema.insert(at, pa.field(rank, pa.int64(), nullable=False)))


class RunningTopProcessor(Processor):
    """Input: rows. Output: MAIN with `out_schema`, updating."""

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
        self._values: pa.Schema = pa.schema([f for f in in_schema if f.name not in keys])
        self._timed = TIME_COLUMN in in_schema.names
        leading = order.leading
        self._bars_rows = leading is not None and has_words(leading[0])

    def open(self, ctx: ProcessorContext) -> None:
        """Find the rows of the checkpoint."""
        self._ctx = ctx
        lists = [pa.field(f.name, pa.list_(f.type)) for f in self._values]
        stored = pa.schema([*lists, pa.field(NEWEST, pa.int64())])
        self._table = ctx.state.table("top", self._keys.schema, stored)
        self._slots = KeySlots(self._keys)
        self._columns: list[Column] = [column_for(f.type) for f in self._values]
        self._filled = np.zeros(0, np.int64)
        self._newest = np.zeros(0, np.int64)
        self._bar = np.zeros(0, np.int64)
        self._dirty = np.zeros(0, np.bool_)
        self._looked_ns = WATERMARK_MIN
        for batch in self._table.scan():
            self._restore(batch)

    def _restore(self, batch: pa.RecordBatch) -> None:
        slots = self._slots.add(batch.columns[: len(self._keys.schema)])
        self._grow()
        self._newest[slots] = fixed_values(batch.column(NEWEST))
        for column, field in zip(self._columns, self._values, strict=True):
            rows = batch.column(field.name)
            lengths = fixed_values(rows.value_lengths()).astype(np.int64)
            column.write(self._positions(slots, lengths), rows.flatten())
            self._filled[slots] = lengths
        self._raise_bars(slots)

    def _grow(self) -> None:
        room = self._slots.capacity
        if room <= len(self._filled):
            return
        for column in self._columns:
            column.resize(room * self._count)
        before = len(self._bar)
        self._filled, self._newest = grown(self._filled, room), grown(self._newest, room)
        self._bar, self._dirty = grown(self._bar, room), grown(self._dirty, room)
        self._bar[before:] = NO_BAR
        self._newest[before:] = WATERMARK_MIN

    def _positions(self, slots: Numbers, lengths: Numbers) -> Numbers:
        """The places of the first rows of each slot, as many as `lengths` says."""
        starts = np.repeat(slots * self._count, lengths)
        return starts + _counting(lengths)

    # Rows ------------------------------------------------------------------------------------

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """Let the rows contend; give what changes."""
        slots = self._slots.add(self._keys.columns(batch))
        self._grow()
        if self._ttl_ns is not None:
            # Also rows that change nothing keep their key alive.
            np.maximum.at(self._newest, slots, times_of(batch))
            self._dirty[slots] = True
        batch, slots = self._contenders(batch, slots)
        if batch.num_rows:
            self._contend(batch, slots)

    def _contenders(self, batch: pa.RecordBatch, slots: Numbers) -> tuple[pa.RecordBatch, Numbers]:
        """Rows that are not plainly behind the last row of a full key: few, after a while."""
        bars = self._bar[slots]
        if not self._bars_rows or not (bars < NO_BAR).any():
            return batch, slots
        keep = self._leading_words(batch) <= bars
        if keep.all():
            return batch, slots
        return batch.take(pa.array(np.flatnonzero(keep))), slots[keep]

    def _leading_words(self, batch: pa.RecordBatch) -> Numbers:
        leading = self._order.leading
        assert leading is not None
        words = sort_words(self._order.values(batch)[0], leading[1])
        # A null is last: it is behind every bar but that of a null, which is none.
        return words[0] if len(words) == 1 else np.where(words[0] == 1, NO_BAR, words[1])

    def _contend(self, batch: pa.RecordBatch, slots: Numbers) -> None:
        touched, group = np.unique(slots, return_inverse=True)
        filled = self._filled[touched]
        old_rank = _counting(filled)
        kept = self._rows_at(touched, filled)
        whole = pa.concat_batches([kept, batch]) if len(old_rank) else batch
        group = np.concatenate([np.repeat(np.arange(len(touched)), filled), group])
        order = self._order.sort(whole, [group])
        # Per row of `whole`: the rank it had, and the one it has; as many as N is none.
        before = np.full(len(group), self._count)
        before[: len(old_rank)] = old_rank
        sizes = np.bincount(group, minlength=len(touched))
        after = np.empty(len(group), np.int64)
        after[order] = np.minimum(_counting(sizes), self._count)
        moved = np.flatnonzero((after < self._count) & (after != before))
        if not len(moved):
            return
        self._give(whole, group, before, after, self._times(batch, slots, touched))
        self._store(whole, touched, group[moved], after[moved], moved)
        self._filled[touched] = np.minimum(sizes, self._count)
        self._dirty[touched] = True
        self._raise_bars(touched)

    def _rows_at(self, slots: Numbers, lengths: Numbers) -> pa.RecordBatch:
        keys = self._slots.batch(np.repeat(slots, lengths))
        values = take_declared(self._columns, self._values, self._positions(slots, lengths))
        found = dict(zip(self._values.names, values, strict=True))
        columns = [
            found[name] if name in found else keys.column(name) for name in self.in_schema.names
        ]
        return pa.RecordBatch.from_arrays(columns, schema=self.in_schema)

    def _times(self, batch: pa.RecordBatch, slots: Numbers, touched: Numbers) -> Numbers | None:
        """When each touched key changed."""
        if not self._timed:
            return None
        times = np.full(len(touched), WATERMARK_MIN)
        np.maximum.at(times, np.searchsorted(touched, slots), times_of(batch))
        return times

    def _give(
        self,
        whole: pa.RecordBatch,
        group: Numbers,
        before: Numbers,
        after: Numbers,
        times: Numbers | None,
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
        weights = np.repeat([TAKEN_BACK, ADDED], [len(gone), len(come)])
        place = (
            ranks
            if self._rank is not None
            else np.concatenate([_nth(group[gone]), _nth(group[come])])
        )
        order = np.lexsort([weights, place, group[rows]])
        rows = rows[order]
        given = whole.take(pa.array(rows))
        extra = {} if self._rank is None else {self._rank: pa.array(ranks[order] + 1)}
        extra[CHANGE] = weight_array(weights[order])
        if times is not None:
            extra[TIME_COLUMN] = time_array(times[group[rows]])
        columns = [
            extra[name] if name in extra else given.column(name) for name in self.out_schema.names
        ]
        self._ctx.collect(pa.RecordBatch.from_arrays(columns, schema=self.out_schema))

    def _store(
        self, whole: pa.RecordBatch, touched: Numbers, group: Numbers, rank: Numbers, rows: Numbers
    ) -> None:
        places = touched[group] * self._count + rank
        at = pa.array(rows)
        for column, field in zip(self._columns, self._values, strict=True):
            column.write(places, whole.column(field.name).take(at))

    def _raise_bars(self, slots: Numbers) -> None:
        """What a row must reach to contend with the keys that have all their rows."""
        if not self._bars_rows:
            return
        full = slots[self._filled[slots] == self._count]
        if len(full):
            last = full * self._count + self._count - 1
            keys = self._slots.batch(full)
            values = take_declared(self._columns, self._values, last)
            found = dict(zip(self._values.names, values, strict=True))
            rows = [found[n] if n in found else keys.column(n) for n in self.in_schema.names]
            self._bar[full] = self._leading_words(
                pa.RecordBatch.from_arrays(rows, schema=self.in_schema)
            )

    # Time and cuts ---------------------------------------------------------------------------

    def on_watermark(self, watermark: int) -> None:
        """Forget keys that have been silent for the TTL."""
        ttl_ns = self._ttl_ns
        if ttl_ns is None or watermark == WATERMARK_MAX:
            return
        if self._looked_ns != WATERMARK_MIN and watermark - self._looked_ns < ttl_ns // 8:
            return
        self._looked_ns = watermark
        newest = self._newest[: self._slots.count]
        silent = newest <= watermark - ttl_ns
        if silent.any():
            gone = np.flatnonzero(silent)
            self._table.delete(self._slots.batch(gone), self._slots.hashes(gone))
            self._keep(np.flatnonzero(~silent))

    def _keep(self, slots: Numbers) -> None:
        self._slots.keep(slots)
        room = self._slots.capacity
        places = (slots[:, None] * self._count + np.arange(self._count)).reshape(-1)
        for column in self._columns:
            column.compact(places, room * self._count)
        self._filled, self._newest = (
            grown(self._filled[slots], room),
            _kept(self._newest, slots, room, WATERMARK_MIN),
        )
        self._bar, self._dirty = (
            _kept(self._bar, slots, room, NO_BAR),
            grown(self._dirty[slots], room),
        )

    def before_snapshot(self, checkpoint_id: int) -> None:
        """Write the keys that changed."""
        slots = np.flatnonzero(self._dirty[: self._slots.count])
        if not len(slots):
            return
        lengths = self._filled[slots]
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
        flat = take_declared(self._columns, self._values, self._positions(slots, lengths))
        lists = [pa.ListArray.from_arrays(offsets, values) for values in flat]
        names = [*self._values.names, NEWEST]
        values = pa.RecordBatch.from_arrays([*lists, pa.array(self._newest[slots])], names)
        self._table.upsert(self._slots.batch(slots), values, self._slots.hashes(slots))
        self._dirty[:] = False


def _kept(
    values: npt.NDArray[np.int64], slots: Numbers, room: int, empty: int | np.int64
) -> Numbers:
    larger = np.full(room, empty, np.int64)
    larger[: len(slots)] = values[slots]
    return larger


def _counting(lengths: Numbers) -> Numbers:
    """0, 1, 2, … for each length."""
    return np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)


def _nth(groups: Numbers) -> Numbers:
    """The how-manieth of its group each is; equal groups lie together."""
    order = np.argsort(groups, kind="stable")
    nth = np.empty(len(groups), np.int64)
    _, sizes = np.unique(groups, return_counts=True)
    nth[order] = _counting(sizes)
    return nth
