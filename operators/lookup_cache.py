"""LookupCache: what a lookup function said of keys, bounded in rows, forgotten after a while.

Two generations: what is used lives in the young one; when that is half of the bound, the old one is
dropped and the young one becomes old. So rows that are asked for stay, with no work per row.
A key without rows is remembered as well. Scratch: nothing of it survives the process.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penstock.elements.buffers import grown
from penstock.elements.hash import Hashes
from penstock.state.columns import Column, column_for

from .kernels.slot_index import SlotIndex

Numbers = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Answers:
    """Rows by key: those of key i are `counts[i]` rows of `rows` from `starts[i]` on."""

    starts: Numbers
    counts: Numbers
    rows: pa.RecordBatch

    def of(self, keys: Numbers) -> tuple[Numbers, Numbers]:
        """(place in `keys`, row of `rows`) of every row of these keys."""
        return spread(self.starts[keys], self.counts[keys])


def spread(starts: Numbers, counts: Numbers) -> tuple[Numbers, Numbers]:
    """(which stretch, place) of every element of stretches that begin at `starts`."""
    index = np.repeat(np.arange(len(counts)), counts)
    within = np.arange(len(index)) - np.repeat(np.cumsum(counts) - counts, counts)
    return index, np.repeat(starts, counts) + within


class _Generation:
    """Keys and their rows, only ever added to."""

    def __init__(self, keys: pa.Schema, values: pa.Schema) -> None:
        self._index = SlotIndex(keys)
        self._values = values
        self._columns: list[Column] = [column_for(field.type) for field in values]
        self._starts = np.zeros(0, np.int64)
        self._counts = np.zeros(0, np.int64)
        self._since = np.zeros(0, np.int64)
        self._rows = self._room = 0

    @property
    def size(self) -> int:
        """Rows, and keys without any."""
        return self._rows + self._index.rows

    def find(self, keys: pa.RecordBatch, hashes: Hashes, since: int) -> Numbers:
        """The slot of each key that was asked for at `since` or later, else -1."""
        slots = self._index.find(keys, hashes)
        there = slots >= 0
        if there.any():
            slots[there] = np.where(self._since[slots[there]] >= since, slots[there], -1)
        return slots

    def answers(self, slots: Numbers) -> tuple[Answers, Numbers]:
        """What is known of these slots, and since when."""
        counts = self._counts[slots]
        _, at = spread(self._starts[slots], counts)
        arrays = [
            _cast(column.take(at), field.type)
            for column, field in zip(self._columns, self._values, strict=True)
        ]
        rows = pa.RecordBatch.from_arrays(arrays, schema=self._values)
        return Answers(np.cumsum(counts) - counts, counts, rows), self._since[slots]

    def put(self, keys: pa.RecordBatch, hashes: Hashes, told: Answers, since: Numbers) -> None:
        """Remember distinct keys; what was known of them is replaced."""
        slots, _ = self._index.add(keys, hashes)
        if self._index.capacity > len(self._starts):
            self._starts = grown(self._starts, self._index.capacity)
            self._counts = grown(self._counts, self._index.capacity)
            self._since = grown(self._since, self._index.capacity)
        _, at = spread(told.starts, told.counts)
        places = np.arange(self._rows, self._rows + len(at))
        self._rows += len(at)
        if self._rows > self._room:
            self._room = max(1024, 2 * self._room, self._rows)
            for column in self._columns:
                column.resize(self._room)
        rows = told.rows.take(pa.array(at))
        for column, array in zip(self._columns, rows.columns, strict=True):
            column.write(places, array)
        begins = np.cumsum(told.counts) - told.counts
        self._starts[slots] = places[0] + begins if len(at) else 0
        self._counts[slots] = told.counts
        self._since[slots] = since


class LookupCache:
    """At most about `rows_max` rows and keys of the schemas; `ttl_ns` None: for ever."""

    def __init__(
        self, keys: pa.Schema, values: pa.Schema, rows_max: int, ttl_ns: int | None
    ) -> None:
        self._schemas = (keys, values)
        self._rows_max, self._ttl_ns = rows_max, ttl_ns
        self._young, self._old = _Generation(*self._schemas), _Generation(*self._schemas)

    def get(self, keys: pa.RecordBatch, hashes: Hashes, now_ns: int) -> tuple[Mask, Answers]:
        """(which of the distinct keys are known, what is known of those)."""
        since = -(2**62) if self._ttl_ns is None else now_ns - self._ttl_ns
        young = self._young.find(keys, hashes, since)
        old = np.where(young < 0, self._old.find(keys, hashes, since), -1)
        if (old >= 0).any():
            rows = pa.array(np.flatnonzero(old >= 0))
            told, at = self._old.answers(old[old >= 0])
            self._young.put(keys.take(rows), hashes[old >= 0], told, at)
            young = self._young.find(keys, hashes, since)
        known: Mask = young >= 0
        told, _ = self._young.answers(young[known])
        self._turn()
        return known, told

    def put(self, keys: pa.RecordBatch, hashes: Hashes, told: Answers, now_ns: int) -> None:
        """Remember what a lookup said of distinct keys."""
        self._young.put(keys, hashes, told, np.full(keys.num_rows, now_ns, np.int64))
        self._turn()

    @property
    def size(self) -> int:
        """Rows and keys that are remembered."""
        return self._young.size + self._old.size

    def _turn(self) -> None:
        if 2 * self._young.size >= self._rows_max:
            self._young, self._old = _Generation(*self._schemas), self._young
            if self._old.size > self._rows_max:
                self._old = _Generation(*self._schemas)


def _cast(array: pa.Array, kind: pa.DataType) -> pa.Array:
    return array if array.type == kind else array.cast(kind)
