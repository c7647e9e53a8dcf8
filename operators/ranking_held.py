"""HeldRows: every row of every key, with how often it is there, for a top N whose rows may go.

1. A row is the content of all its columns; equal rows are one, counted. A count below 0 is of rows
   taken back before they came, and cancels when they come.
2. Each row lies in the front or in the rest of its key. No row of the rest is before one of the
   front, and the front is never sorted here: who sorts it decides what lies there.
3. In state a row is addressed by a hash whose key group is its key's, so that it moves with it.
Fronts are not in state: after a restart all rows lie in the rest, and their keys are `cold`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penstock.elements.buffers import fixed_values, grown
from penstock.elements.hash import Hashes, hash_arrays
from penstock.elements.signals import WATERMARK_MIN
from penstock.state.backend import StateBackend

from .kernels.owned_slots import new_owned_slots
from .kernels.slot_index import SlotIndex
from .key_slots import Keys
from .ranking_rows import NO_BAR
from .row_order import Numbers
from .updating_groups import Marked
from .updating_values import GROUP_BITS

Mask = npt.NDArray[np.bool_]

FRONT, REST, NOWHERE = 0, 1, 2
PLACES = 2
COUNT_SCHEMA = pa.schema([pa.field("__count", pa.int64(), nullable=False)])
NEWEST_SCHEMA = pa.schema([pa.field("__newest", pa.int64(), nullable=False)])


class Arrived(NamedTuple):
    """The rows of a batch, by what they are."""

    keys: Numbers
    """The key slot of each row of the batch."""
    codes: Numbers
    """Which of `slots` each is."""
    slots: Numbers
    added: Numbers
    """How often each slot was added more than taken back."""
    fresh: Mask
    """Whether a slot was not there before."""


class HeldRows:
    """Rows of `schema`, the user's columns, by key; columns by key slot and by row slot."""

    def __init__(self, schema: pa.Schema, keys: Keys) -> None:
        self._schema, self._keys = schema, keys
        self.key_index, self._index = SlotIndex(keys.schema), SlotIndex(schema)
        # By key slot.
        self.newest = np.zeros(0, np.int64)
        self.sizes = np.zeros(0, np.int64)
        """Rows, each counted once."""
        self.rest = np.zeros(0, np.int64)
        """Of those, how many lie in the rest."""
        self.bar = np.zeros(0, np.int64)
        """What is behind this word is behind the front; NO_BAR: not known of any."""
        self.cold = np.zeros(0, np.bool_)
        # By row slot.
        self.counts = np.zeros(0, np.int64)
        self.owners = np.zeros(0, np.int64)
        self.added = np.zeros(0, np.int64)
        """For the rows of the batch at hand: how their counts have changed."""
        self.place = np.zeros(0, np.int8)
        self._saved = np.zeros(0, np.bool_)
        self._unsaved = Marked()
        self._lists = new_owned_slots()  # of each key one per place
        self._touched = False

    def _room(self) -> None:
        keys, rows = self.key_index.capacity, self._index.capacity
        self.newest, self.sizes = grown(self.newest, keys), grown(self.sizes, keys)
        self.rest, self.bar = grown(self.rest, keys), grown(self.bar, keys)
        self.cold = grown(self.cold, keys)
        self.counts, self.owners = grown(self.counts, rows), grown(self.owners, rows)
        self.added, self.place = grown(self.added, rows), grown(self.place, rows)
        self._saved = grown(self._saved, rows)
        self._unsaved.room(rows)
        self._lists.reserve(PLACES * keys, rows)

    # Rows -------------------------------------------------------------------------------------

    def arrive(self, batch: pa.RecordBatch, weights: Numbers) -> Arrived:
        """Find rows, or give slots to them, which lie nowhere; their counts are as before."""
        columns = self._keys.columns(batch)
        rows = pa.RecordBatch.from_arrays(
            [batch.column(name) for name in self._schema.names], schema=self._schema
        )
        keys, slots, new = self._slots_of(columns, rows)
        codes, distinct = self._index.number(slots)
        added = np.zeros(len(distinct), np.int64)
        np.add.at(added, codes, weights)
        fresh = np.zeros(len(distinct), np.bool_)
        fresh[codes[new]] = True
        return Arrived(keys, codes, distinct, added, fresh)

    def _slots_of(
        self, columns: list[pa.Array], rows: pa.RecordBatch
    ) -> tuple[Numbers, Numbers, Mask]:
        """(key slot, row slot, which rows are the first of what was not there)."""
        hashes = self._keys.hashes(columns)
        keys, new_keys = self.key_index.add(self._keys.batch(columns), hashes)
        slots, new = self._index.add(rows, _within_key(hashes, rows))
        self._room()
        begun = keys[new_keys]
        self.newest[begun], self.bar[begun] = WATERMARK_MIN, NO_BAR
        self.sizes[begun] = self.rest[begun] = 0
        self.cold[begun] = False
        fresh = slots[new]
        self.counts[fresh], self.place[fresh], self._saved[fresh] = 0, NOWHERE, False
        self.owners[fresh] = keys[new]
        np.add.at(self.sizes, keys[new], 1)
        return keys, slots, new

    def count(self, arrived: Arrived) -> None:
        """Let the counts be what the batch makes of them; `forget_batch` comes in the end."""
        self.counts[arrived.slots] += arrived.added
        self.added[arrived.slots] = arrived.added
        self._unsaved.add(arrived.slots[arrived.added != 0])

    def forget_batch(self, arrived: Arrived) -> None:
        """Drop rows that are there no more, and keys without rows."""
        self.added[arrived.slots] = 0
        self.drop(arrived.slots[self.counts[arrived.slots] == 0])
        _, keys = self.key_index.number(arrived.keys)
        self.key_index.remove(keys[self.sizes[keys] == 0])

    def rows(self, slots: Numbers) -> pa.RecordBatch:
        """The content of these slots, copied."""
        return self._index.keys_of(slots)

    def of(self, place: int, keys: Numbers) -> tuple[Numbers, Numbers]:
        """(which of `keys`, slot) of what lies there, by key. Requires: no key twice."""
        return self._lists.of(PLACES * keys + place)

    def move(self, slots: Numbers, place: int) -> None:
        """Let these slots lie there, wherever they lay."""
        slots = slots[self.place[slots] != place]
        was = self.place[slots]
        self._lists.unlink(slots[was != NOWHERE])
        np.subtract.at(self.rest, self.owners[slots[was == REST]], 1)
        if place != NOWHERE:
            self._lists.link(slots, PLACES * self.owners[slots] + place)
        if place == REST:
            np.add.at(self.rest, self.owners[slots], 1)
        self.place[slots] = place

    def drop(self, slots: Numbers) -> None:
        """Forget rows, each given once."""
        if not len(slots):
            return
        self.move(slots, NOWHERE)
        np.subtract.at(self.sizes, self.owners[slots], 1)
        saved = slots[self._saved[slots]]
        if len(saved):
            keys, hashes = self._stored(saved)
            self._table.delete(keys, hashes)
        self._unsaved.remove(slots)
        self._index.remove(slots)

    def forget(self, keys: Numbers) -> int:
        """Drop keys with all their rows; how many had been taken back that had never come."""
        slots = np.concatenate([self.of(place, keys)[1] for place in (FRONT, REST)])
        unmatched = -int(np.minimum(self.counts[slots], 0).sum())
        self.drop(slots)
        self.key_index.remove(keys)
        self._touched = True
        return unmatched

    # Times ------------------------------------------------------------------------------------

    def touch(self, keys: Numbers, times: Numbers) -> None:
        """Rows of these keys came at these times."""
        np.maximum.at(self.newest, keys, times)
        self._touched = True

    def silent(self, until: int, unknown: int) -> Numbers:
        """Keys whose newest row is not after `until`; where no time is known, it was `unknown`."""
        keys = self.key_index.live
        lost = keys[self.newest[keys] == WATERMARK_MIN]
        self.newest[lost] = unknown
        self._touched |= len(lost) > 0
        return keys[self.newest[keys] <= until]

    # State ------------------------------------------------------------------------------------

    def open(self, state: StateBackend, timed: bool) -> None:
        """Find the rows of the checkpoint; `timed`: times of keys are kept as well."""
        self._table = state.table("rows", self._schema, COUNT_SCHEMA)
        self._times = state.table("newest", self._keys.schema, NEWEST_SCHEMA)
        self._timed = timed
        for batch in self._table.scan():
            rows = batch.select(self._schema.names).cast(self._schema)
            keys, slots, _ = self._slots_of(self._keys.columns(rows), rows)
            self.counts[slots] = fixed_values(batch.column(COUNT_SCHEMA.names[0]))
            self._saved[slots] = True
            self.move(slots, REST)
            self.cold[keys] = True
        for batch in self._times.scan():
            columns = batch.select(self._keys.schema.names).cast(self._keys.schema)
            keys = self.key_index.find(columns, self._keys.hashes(columns.columns))
            self.newest[keys] = fixed_values(batch.column(NEWEST_SCHEMA.names[0]))
        self._touched = bool(self._times.rows) and not timed

    def save(self) -> None:
        """Bring what changed into state."""
        slots = self._unsaved.take()
        if len(slots):
            keys, hashes = self._stored(slots)
            counts = pa.RecordBatch.from_arrays([pa.array(self.counts[slots])], schema=COUNT_SCHEMA)
            self._table.upsert(keys, counts, hashes)
            self._saved[slots] = True
        if self._touched:
            self._touched = False
            live = self.key_index.live if self._timed else np.zeros(0, np.int64)
            keys = self.key_index.keys_of(live)
            newest = pa.RecordBatch.from_arrays([pa.array(self.newest[live])], schema=NEWEST_SCHEMA)
            self._times.replace(keys, newest, self._keys.hashes(keys.columns))

    def _stored(self, slots: Numbers) -> tuple[pa.RecordBatch, Hashes]:
        rows = self.rows(slots)
        return rows, _within_key(self._keys.hashes(self._keys.columns(rows)), rows)


def _within_key(hashes: Hashes, rows: pa.RecordBatch) -> Hashes:
    """Hashes of whole rows that are routed as their keys are."""
    contents = hash_arrays(rows.columns, rows.num_rows)
    found: Hashes = (hashes & GROUP_BITS) | (contents & ~GROUP_BITS)
    return found
