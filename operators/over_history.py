"""What `over` remembers of each key: running values, and the arguments of its last rows.

Running values are the results of the last row; they stand in front of the next rows of the key as
if they were one. Both lie in columns by key slot; a barrier writes the slots that changed (R1).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from penstock.elements.buffers import fixed_values, grown
from penstock.state.backend import StateBackend
from penstock.state.columns import Column, column_for
from penstock.state.keyed_rows import take_declared

from .key_slots import Keys, KeySlots
from .row_order import Numbers
from .running import Stretches

ROWS = "rows"


class History:
    """`carried` are types of running values, `kept` those of arguments, `depth` rows of each."""

    def __init__(
        self,
        keys: Keys,
        carried: Sequence[pa.DataType],
        kept: Sequence[pa.DataType],
        depth: int,
        state: StateBackend,
    ) -> None:
        self.depth = depth
        self._carried = pa.schema([(f"c{at}", kind) for at, kind in enumerate(carried)])
        self._kept = pa.schema([(f"h{at}", kind) for at, kind in enumerate(kept if depth else ())])
        lists = [pa.field(field.name, pa.list_(field.type)) for field in self._kept]
        self._stored = pa.schema([(ROWS, pa.int64()), *self._carried, *lists])
        self._table = state.table("keys", keys.schema, self._stored)
        self._slots = KeySlots(keys)
        self._rows = np.zeros(0, np.int64)
        self._dirty = np.zeros(0, np.bool_)
        self._values: list[Column] = [column_for(field.type) for field in self._carried]
        self._past: list[Column] = [column_for(field.type) for field in self._kept]
        for batch in self._table.scan():
            self._restore(batch, len(keys.schema))

    def _restore(self, batch: pa.RecordBatch, key_count: int) -> None:
        slots = self.slots(batch.columns[:key_count])
        self._rows[slots] = fixed_values(batch.column(ROWS))
        for column, field in zip(self._values, self._carried, strict=True):
            column.write(slots, batch.column(field.name))
        for column, field in zip(self._past, self._kept, strict=True):
            column.write(self._places(slots), batch.column(field.name).flatten())

    def slots(self, columns: Sequence[pa.Array]) -> Numbers:
        """The slot of each key."""
        slots = self._slots.add(columns)
        room = self._slots.capacity
        if room > len(self._rows):
            self._rows, self._dirty = grown(self._rows, room), grown(self._dirty, room)
            for column in self._values:
                column.resize(room)
            for column in self._past:
                column.resize(room * self.depth)
        return slots

    def rows(self, slots: Numbers) -> Numbers:
        """How many rows each key has had."""
        return self._rows[slots]

    def filled(self, slots: Numbers) -> Numbers:
        """How many of its last rows are known."""
        return np.minimum(self._rows[slots], self.depth)

    def carried(self, slots: Numbers) -> list[pa.Array]:
        """The running values; null for keys without any row."""
        fresh = pa.array(np.arange(len(slots)), mask=self._rows[slots] == 0)
        found = take_declared(self._values, self._carried, slots)
        return [values.take(fresh) for values in found]

    def past(self, slots: Numbers) -> list[pa.Array]:
        """The arguments of the last rows, oldest first, key behind key."""
        return take_declared(self._past, self._kept, self._places(slots))

    def _places(self, slots: Numbers) -> Numbers:
        filled = self.filled(slots)
        starts = np.repeat(slots * self.depth, filled)
        within = np.arange(len(starts)) - np.repeat(np.cumsum(filled) - filled, filled)
        return starts + within

    def put(
        self,
        slots: Numbers,
        rows: Numbers,
        carried: Sequence[pa.Array],
        known: Stretches,
        arguments: Sequence[pa.Array],
    ) -> None:
        """`rows` more were seen of each; `arguments` are of `known`: the last rows and new ones."""
        self._rows[slots] += rows
        self._dirty[slots] = True
        for column, values in zip(self._values, carried, strict=True):
            column.write(slots, values)
        if self._past:
            # The newest rows of each stretch, as many as are kept.
            newest = known.nth >= np.repeat(known.lengths - self.filled(slots), known.lengths)
            at, places = pa.array(np.flatnonzero(newest)), self._places(slots)
            for column, values in zip(self._past, arguments, strict=True):
                column.write(places, values.take(at))

    def store(self) -> None:
        """Write the keys that changed."""
        slots = np.flatnonzero(self._dirty[: self._slots.count])
        if not len(slots):
            return
        offsets = pa.array(np.concatenate([[0], np.cumsum(self.filled(slots))]).astype(np.int32))
        values = pa.RecordBatch.from_arrays(
            [
                pa.array(self._rows[slots]),
                *take_declared(self._values, self._carried, slots),
                *(pa.ListArray.from_arrays(offsets, flat) for flat in self.past(slots)),
            ],
            schema=self._stored,
        )
        self._table.upsert(self._slots.batch(slots), values, self._slots.hashes(slots))
        self._dirty[:] = False
