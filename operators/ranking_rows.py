"""TopRows: the first rows of each key, in columns by (key slot, place), and how they survive.

Promises: after a change a barrier hands all slots to state. Up to STORED_BY_RANK_MAX rows per key
are a column per rank and value, which costs what the values cost; more of them are lists.
Not: who is among the first; that is ranking.py's.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penstock.elements.buffers import fixed_values, grown
from penstock.elements.signals import WATERMARK_MIN
from penstock.state.backend import StateBackend, Table
from penstock.state.columns import Column, column_for
from penstock.state.keyed_rows import take_declared

from .grouping import Mask
from .kernels.top_contest import Contest
from .key_slots import Keys, KeySlots
from .row_order import Numbers

STORED_BY_RANK_MAX = 8
NO_BAR = np.int64(2**63 - 1)
"""The leading word behind which no row is plainly behind all that are kept."""
NEWEST, FILLED = "__newest", "__filled"


class TopRows:
    """Slots by key; `filled` of the `count` rows of a slot are there."""

    def __init__(self, schema: pa.Schema, keys: Keys, count: int, contest: Contest | None) -> None:
        """With a contest rows lie where its `places` say, else by rank."""
        self._schema, self._count, self.contest = schema, count, contest
        self.values: pa.Schema = pa.schema([f for f in schema if f.name not in keys.names])
        self.slots = KeySlots(keys)
        self._columns: list[Column] = [column_for(f.type) for f in self.values]
        self.filled = np.zeros(0, np.int64)
        self.newest = np.zeros(0, np.int64)
        self.dirty = False
        """Whether something is not in state yet."""

    def grow(self) -> None:
        """Make room for all slots."""
        room, before = self.slots.capacity, len(self.filled)
        if room <= before:
            return
        for column in self._columns:
            column.resize(room * self._count)
        self.filled, self.newest = grown(self.filled, room), grown(self.newest, room)
        self.newest[before:] = WATERMARK_MIN
        if self.contest is not None:
            self.contest.room(room)

    # Reading and writing ----------------------------------------------------------------------

    def cells(self, slots: Numbers, lengths: Numbers) -> Numbers:
        """Where the first rows of each slot lie, by rank, as many as `lengths` says."""
        first = np.repeat(slots * self._count, lengths)
        ranks = first + counting(lengths)
        return ranks if self.contest is None else first + self.contest.places[ranks]

    def values_at(self, cells: Numbers) -> list[pa.Array]:
        """What lies there, in the order of `values`."""
        return take_declared(self._columns, self.values, cells)

    def rows_at(self, slots: Numbers, lengths: Numbers) -> pa.RecordBatch:
        """The first rows of each slot, by rank."""
        return self.batch(np.repeat(slots, lengths), self.values_at(self.cells(slots, lengths)))

    def batch(self, slots: Numbers, values: list[pa.Array]) -> pa.RecordBatch:
        """Rows of these keys and values."""
        found = dict(zip(self.values.names, values, strict=True))
        keys = None
        columns = []
        for name in self._schema.names:
            if name not in found:
                keys = self.slots.batch(slots) if keys is None else keys
                columns.append(keys.column(name))
            else:
                columns.append(found[name])
        return pa.RecordBatch.from_arrays(columns, schema=self._schema)

    def write(self, cells: Numbers, batch: pa.RecordBatch, rows: Numbers) -> None:
        """Put rows of a batch there."""
        at = pa.array(rows)
        for column, field in zip(self._columns, self.values, strict=True):
            column.write(cells, batch.column(field.name).take(at))

    def keep(self, slots: Numbers) -> None:
        """Forget all other slots; these are renumbered in this order."""
        self.slots.keep(slots)
        room, count = self.slots.capacity, self._count
        cells = (slots[:, None] * count + np.arange(count)).reshape(-1)
        for column in self._columns:
            column.compact(cells, room * count)
        self.filled = grown(self.filled[slots], room)
        newest = np.full(room, WATERMARK_MIN, np.int64)
        newest[: len(slots)] = self.newest[slots]
        self.newest, self.dirty = newest, True
        if self.contest is not None:
            self.contest.keep(slots, room)

    # State ------------------------------------------------------------------------------------

    def open(self, state: StateBackend, keys: Keys) -> Numbers:
        """Find the rows of the checkpoint; gives their slots."""
        lists = [pa.field(f.name, pa.list_(f.type)) for f in self.values]
        shape = pa.schema([*lists, pa.field(NEWEST, pa.int64())])
        self._by_rank = self._count <= STORED_BY_RANK_MAX
        if self._by_rank:
            ranks = [
                pa.field(f"{rank}.{f.name}", f.type)
                for rank in range(self._count)
                for f in self.values
            ]
            words = [pa.field(FILLED, pa.int64()), pa.field(NEWEST, pa.int64())]
            self._table: Table = state.table("ranks", keys.schema, pa.schema([*ranks, *words]))
            for batch in self._table.scan():
                self._restore_ranks(batch, len(keys.schema))
        # Fewer rows, too, lay in lists once: who finds such brings them into columns.
        if not self._by_rank or "top" in state.undeclared():
            lay_in = state.table("top", keys.schema, shape)
            for batch in lay_in.scan():
                self._restore_lists(batch, len(keys.schema))
            if self._by_rank:
                self.dirty = True
                lay_in.replace(_no_rows(keys.schema), _no_rows(shape))
            else:
                self._table = lay_in
        return np.arange(self.slots.count)

    def _restore_ranks(self, batch: pa.RecordBatch, keys: int) -> None:
        slots = self.slots.add(batch.columns[:keys])
        self.grow()
        self.newest[slots] = fixed_values(batch.column(NEWEST))
        lengths = fixed_values(batch.column(FILLED))
        self.filled[slots] = lengths
        for rank in range(self._count):
            rows = np.flatnonzero(lengths > rank)
            at, cells = pa.array(rows), slots[rows] * self._count + rank
            for column, field in zip(self._columns, self.values, strict=True):
                column.write(cells, batch.column(f"{rank}.{field.name}").take(at))

    def _restore_lists(self, batch: pa.RecordBatch, keys: int) -> None:
        slots = self.slots.add(batch.columns[:keys])
        self.grow()
        self.newest[slots] = fixed_values(batch.column(NEWEST))
        for column, field in zip(self._columns, self.values, strict=True):
            rows = batch.column(field.name)
            lengths = fixed_values(rows.value_lengths()).astype(np.int64)
            column.write(self.cells(slots, lengths), rows.flatten())
            self.filled[slots] = lengths

    def save(self) -> None:
        """Hand all rows over, if something changed."""
        if not self.dirty:
            return
        self.dirty = False
        slots = np.arange(self.slots.count)
        values = self._ranks(slots) if self._by_rank else self._lists(slots)
        self._table.replace(self.slots.batch(slots), values, self.slots.hashes(slots))

    def _ranks(self, slots: Numbers) -> pa.RecordBatch:
        base = slots * self._count
        columns: list[pa.Array] = []
        names: list[str] = []
        for rank in range(self._count):
            # Cells that no row has had are null.
            place = rank if self.contest is None else self.contest.places[base + rank]
            columns += self.values_at(base + place)
            names += [f"{rank}.{name}" for name in self.values.names]
        columns += [pa.array(self.filled[slots]), pa.array(self.newest[slots])]
        return pa.RecordBatch.from_arrays(columns, [*names, FILLED, NEWEST])

    def _lists(self, slots: Numbers) -> pa.RecordBatch:
        lengths = self.filled[slots]
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
        flat = self.values_at(self.cells(slots, lengths))
        lists = [pa.ListArray.from_arrays(offsets, values) for values in flat]
        columns = [*lists, pa.array(self.newest[slots])]
        return pa.RecordBatch.from_arrays(columns, [*self.values.names, NEWEST])

    def forget(self, silent: Mask) -> None:
        """Drop these slots."""
        self.keep(np.flatnonzero(~silent))


def _no_rows(schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array([], f.type) for f in schema], schema=schema)


def counting(lengths: npt.NDArray[np.int64]) -> Numbers:
    """0, 1, 2, … for each length."""
    return np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
