"""JoinRows: the rows of one side of a join, live in columns, found by key and time.

The live rows are a cache above the state interfaces (hazard R1): `store`, called before a cut,
writes what changed since the last one; opening reads it back. A removed row's slot is used again.
Not: null keys, which match nothing; whoever probes leaves them out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penstock.elements.buffers import fixed_dtype, grown
from penstock.elements.changelog import CHANGE
from penstock.elements.hash import Hashes, hash_arrays
from penstock.elements.signals import TIME_COLUMN, WATERMARK_MAX
from penstock.state.backend import StateBackend
from penstock.state.columns import Column, column_for

from .event_times import time_array
from .join_stored_rows import StoredRows
from .kernels.join_chain_choice import Chains, new_chains

Numbers = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Pairs = tuple[Numbers, Numbers]

SLOTS_MIN = 1024
BLOCK_BITS = 12
"""Slots per block, as a power of two: each block knows its earliest time, so that expiry reads only
blocks with something to expire."""


class JoinRows:
    """Rows with `schema`, by `keys`. `whole`: rows can also be found by all of their columns.

    `counted`: their matches are kept in state. Without `state` the rows are lost on restart.
    Rows that are neither are removed by time only: all that `older` gives.
    """

    def __init__(
        self,
        name: str,
        schema: pa.Schema,
        keys: Sequence[str],
        state: StateBackend | None,
        *,
        counted: bool = False,
        whole: bool = False,
    ) -> None:
        self.keys = list(keys)
        self.fields = [field for field in schema if field.name not in (CHANGE, TIME_COLUMN)]
        self._timed = TIME_COLUMN in schema.names
        self.schema = pa.schema([f for f in schema if f.name != CHANGE])
        self._columns: dict[str, Column] = {f.name: column_for(f.type) for f in self.fields}
        # Equal hashes of one word are equal keys, but for the hash of null.
        self._exact = len(keys) == 1 and fixed_dtype(schema.field(keys[0]).type) is not None
        self.capacity = 0
        self.rows = 0
        self._top = 0  # slots from here on were never used
        self._free = np.zeros(0, np.int64)
        self.times = np.zeros(0, np.int64)
        self.matches = np.zeros(0, np.int64)
        self.hashes = np.zeros(0, np.uint64)
        self._contents = np.zeros(0, np.uint64)
        self._alive = np.zeros(0, np.bool_)
        self._earliest = np.zeros(0, np.int64)  # per block; a bound from below
        self._by_key: Chains = new_chains()
        self._by_content: Chains | None = new_chains() if whole else None
        fixed = not (counted or whole)
        self._stored = None if state is None else StoredRows(self, name, state, counted, fixed)
        if self._stored is not None:
            self._stored.load()

    # Adding and finding -----------------------------------------------------------------------

    def insert(self, batch: pa.RecordBatch, times: Numbers, hashes: Hashes) -> Numbers:
        """Keep the rows; their slots. Copies."""
        slots = self._take_slots(batch.num_rows)
        for field in self.fields:
            self._columns[field.name].write(slots, batch.column(field.name))
        self.times[slots] = times
        self.matches[slots] = 0
        self.hashes[slots] = hashes
        self._alive[slots] = True
        np.minimum.at(self._earliest, slots >> BLOCK_BITS, times)
        if self._exact and batch.column(self.keys[0]).null_count:
            self._exact = False
        self._by_key.link(hashes, slots)
        if self._by_content is not None:
            contents = self._content_hashes(batch)
            self._contents[slots] = contents
            self._by_content.link(contents, slots)
        if self._stored is not None:
            self._stored.added(slots)
        self.rows += len(slots)
        return slots

    def probe(
        self, batch: pa.RecordBatch, hashes: Hashes, low: Numbers, high: Numbers
    ) -> Iterator[Pairs]:
        """(row of `batch`, slot) of rows with its key and low <= time <= high, in steps."""
        if not self.rows:
            return
        keys = [batch.column(name) for name in self.keys]
        for index, slots in self._by_key.probe(hashes, low, high, self.times):
            if not self._exact:
                same = self._equal(self.keys, keys, slots, index)
                if not same.all():
                    index, slots = index[same], slots[same]
            if len(index):
                yield index, slots

    def find(self, batch: pa.RecordBatch) -> Numbers:
        """A slot of its own for each row, equal in all columns; -1 where there is none.

        Of equal rows the oldest goes to the first.
        """
        found = np.full(batch.num_rows, -1, np.int64)
        if self._by_content is None or not self.rows or not batch.num_rows:
            return found
        hashes = self._content_hashes(batch)
        ordinal = ordinals(hashes)
        low = np.full(batch.num_rows, -WATERMARK_MAX, np.int64)
        high = np.full(batch.num_rows, WATERMARK_MAX, np.int64)
        names = [field.name for field in self.fields]
        arrays = [batch.column(name) for name in names]
        pairs = list(self._by_content.probe(hashes, low, high, self.times))
        if not pairs:
            return found
        index, slots = (np.concatenate(part) for part in zip(*pairs, strict=True))
        same = self._equal(names, arrays, slots, index)
        index, slots = index[same], slots[same]
        order = np.lexsort((self.times[slots], index))
        index, slots = index[order], slots[order]
        # Of rows that are equal to each other, the first takes the first candidate, and so on.
        nth = np.flatnonzero(_place_in_run(index) == ordinal[index])
        found[index[nth]] = slots[nth]
        return found

    def take(self, slots: Numbers, names: Sequence[str] | None = None) -> pa.RecordBatch:
        """These rows with `schema`, or only the columns `names`, copied."""
        wanted = self.schema.names if names is None else list(names)
        arrays = [self.array(name, slots) for name in wanted]
        fields = [self.schema.field(name) for name in wanted]
        return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))

    def note_matches(self, slots: Numbers, matches: Numbers) -> None:
        """Set how many results each of these rows is part of."""
        self.matches[slots] = matches
        if self._stored is not None:
            self._stored.changed(slots)

    # Removing ---------------------------------------------------------------------------------

    def remove(self, slots: Numbers) -> None:
        """Forget these rows."""
        if not len(slots):
            return
        if self._stored is not None:
            self._stored.removed(slots)
        self._by_key.unlink(self.hashes[slots], slots)
        if self._by_content is not None:
            self._by_content.unlink(self._contents[slots], slots)
        self._alive[slots] = False
        self.rows -= len(slots)
        if not self.rows:
            self._top, self._free = 0, np.zeros(0, np.int64)
        else:
            self._free = np.concatenate([self._free, slots])

    def older(self, before: int) -> Numbers:
        """Slots of the rows with time < before, by time."""
        blocks = np.flatnonzero(self._earliest[: (self._top >> BLOCK_BITS) + 1] < before)
        if not self.rows or not len(blocks):
            return np.zeros(0, np.int64)
        in_blocks = (blocks[:, None] << BLOCK_BITS) + np.arange(1 << BLOCK_BITS)
        slots: Numbers = in_blocks.reshape(-1)
        slots = slots[slots < self._top]
        slots = slots[self._alive[slots]]
        times = self.times[slots]
        due = times < before
        self._earliest[blocks] = WATERMARK_MAX
        np.minimum.at(self._earliest, slots[~due] >> BLOCK_BITS, times[~due])
        found: Numbers = slots[due][np.argsort(times[due], kind="stable")]
        return found

    def all_slots(self) -> Numbers:
        """Every row."""
        return np.flatnonzero(self._alive[: self._top])

    def store(self) -> None:
        """A cut comes: bring what changed into state."""
        if self._stored is not None:
            self._stored.store()

    # Inside -----------------------------------------------------------------------------------

    def array(self, name: str, slots: Numbers) -> pa.Array:
        if name == TIME_COLUMN:
            return time_array(np.take(self.times, slots))
        array = self._columns[name].take(slots)
        kind = self.schema.field(name).type
        return array if array.type == kind else array.cast(kind)

    def _equal(
        self, names: Sequence[str], arrays: Sequence[pa.Array], slots: Numbers, rows: Numbers
    ) -> Mask:
        same = np.ones(len(slots), np.bool_)
        for name, array in zip(names, arrays, strict=True):
            same &= self._columns[name].equal(slots, array, rows)
        return same

    def _content_hashes(self, batch: pa.RecordBatch) -> Hashes:
        return hash_arrays([batch.column(f.name) for f in self.fields], batch.num_rows)

    def _take_slots(self, count: int) -> Numbers:
        """Slots nobody uses: freed ones first, then new ones."""
        again = min(count, len(self._free))
        reused, self._free = self._free[:again], self._free[again:]
        fresh = np.arange(self._top, self._top + count - again)
        self._top += count - again
        if self._top > self.capacity:
            self._grow()
        return np.concatenate([reused, fresh]) if again else fresh

    def _grow(self) -> None:
        capacity = max(SLOTS_MIN, self.capacity)
        while capacity < self._top:
            capacity *= 2
        for column in self._columns.values():
            column.resize(capacity)
        self.times = grown(self.times, capacity)
        self.matches = grown(self.matches, capacity)
        self.hashes = grown(self.hashes, capacity)
        self._alive = grown(self._alive, capacity)
        blocks = np.full((capacity >> BLOCK_BITS) + 1, WATERMARK_MAX, np.int64)
        blocks[: len(self._earliest)] = self._earliest
        self._earliest = blocks
        self._by_key.resize(capacity)
        if self._by_content is not None:
            self._contents = grown(self._contents, capacity)
            self._by_content.resize(capacity)
        if self._stored is not None:
            self._stored.resize(capacity)
        self.capacity = capacity


def ordinals(codes: npt.NDArray[np.generic]) -> Numbers:
    """How many equal codes stand before each one.

    >>> ordinals(np.array([7, 8, 7, 7])).tolist()
    [0, 0, 1, 2]
    """
    order = np.argsort(codes, kind="stable")
    found = np.empty(len(codes), np.int64)
    found[order] = _place_in_run(codes[order])
    return found


def _place_in_run(sorted_codes: npt.NDArray[np.generic]) -> Numbers:
    """The place of each element in its run of equal ones."""
    at = np.arange(len(sorted_codes))
    begins = np.ones(len(sorted_codes), np.bool_)
    begins[1:] = sorted_codes[1:] != sorted_codes[:-1]
    return at - np.maximum.accumulate(np.where(begins, at, 0))
