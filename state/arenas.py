"""Append-only storage for values without a fixed width; rows are numbered from 0.

Promises: what was appended is copied and never moves under a frozen arena, so freezing is O(1).
`take` of row -1 gives null.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Rows = npt.NDArray[np.int64]

CHUNK_BYTES_MAX = 1 << 30
"""Chunks are not merged beyond this: lists and structs keep 32-bit offsets inside."""
_BYTES_MIN = 1024
_ROWS_MIN = 64


class Arena(ABC):
    """Rows of one type."""

    kind: pa.DataType
    rows: int

    @property
    @abstractmethod
    def size_bytes(self) -> int:
        """Bytes held, garbage included."""

    @abstractmethod
    def append(self, array: pa.Array) -> int:
        """Copy the rows of `array` behind the others; the number of its first row."""

    @abstractmethod
    def take(self, rows: Rows) -> pa.Array:
        """These rows, in `kind`; owned memory."""

    @abstractmethod
    def freeze(self) -> Arena:
        """The present rows; safe to read in another thread while this one grows."""


class ByteArena(Arena):
    """Text or binary in Arrow's own layout inside doubling buffers, so `take` is Arrow's."""

    def __init__(self, kind: pa.DataType) -> None:
        self.kind = kind
        self.rows = 0
        self._offsets = np.zeros(_ROWS_MIN + 1, np.int64)
        self._data = np.zeros(_BYTES_MIN, np.uint8)

    @property
    def size_bytes(self) -> int:
        return int(self._offsets[self.rows])

    def append(self, array: pa.Array) -> int:
        if array.type != self.kind:
            array = array.cast(self.kind)
        count = len(array)
        first = self.rows
        if count == 0:
            return first
        _, offsets_buffer, values = array.buffers()
        offsets = np.frombuffer(offsets_buffer, np.int64, count + 1, array.offset * 8)
        low, high = int(offsets[0]), int(offsets[-1])
        start = self.size_bytes
        self._reserve(first + count, start + high - low)
        if high > low:
            self._data[start : start + high - low] = np.frombuffer(
                values, np.uint8, high - low, low
            )
        self._offsets[first + 1 : first + count + 1] = offsets[1:] + (start - low)
        self.rows = first + count
        return first

    def _reserve(self, rows: int, size: int) -> None:
        # Always new buffers, never resized ones: frozen arenas read the old.
        if rows + 1 > len(self._offsets):
            grown = np.zeros(max(rows + 1, 2 * len(self._offsets)), np.int64)
            grown[: self.rows + 1] = self._offsets[: self.rows + 1]
            self._offsets = grown
        if size > len(self._data):
            data = np.empty(max(size, 2 * len(self._data)), np.uint8)
            data[: self.size_bytes] = self._data[: self.size_bytes]
            self._data = data

    def take(self, rows: Rows) -> pa.Array:
        buffers = [None, pa.py_buffer(self._offsets), pa.py_buffer(self._data)]
        view = pa.Array.from_buffers(self.kind, self.rows, buffers, 0)
        return view.take(_indices(rows))

    def freeze(self) -> ByteArena:
        frozen = ByteArena(self.kind)
        frozen.rows = self.rows
        frozen._offsets = self._offsets
        frozen._data = self._data
        return frozen


class ChunkArena(Arena):
    """Any other type: immutable Arrow chunks, merged so that there are few of them."""

    def __init__(self, kind: pa.DataType) -> None:
        self.kind = kind
        self.rows = 0
        self._chunks: list[pa.Array] = []

    @property
    def size_bytes(self) -> int:
        return sum(int(chunk.nbytes) for chunk in self._chunks)

    def append(self, array: pa.Array) -> int:
        first = self.rows
        if len(array) == 0:
            return first
        self.rows += len(array)
        chunk = array.take(pa.array(np.arange(len(array))))  # a copy that owns its memory
        chunks = list(self._chunks)
        while chunks and len(chunks[-1]) < 2 * len(chunk):
            if chunks[-1].nbytes + chunk.nbytes > CHUNK_BYTES_MAX:
                break
            chunk = pa.concat_arrays([chunks.pop(), chunk])
        chunks.append(chunk)
        self._chunks = chunks
        return first

    def take(self, rows: Rows) -> pa.Array:
        if not self._chunks:
            return pa.nulls(len(rows), self.kind)
        if len(self._chunks) == 1:
            return self._chunks[0].take(_indices(rows))
        starts = np.cumsum([0, *(len(chunk) for chunk in self._chunks)])
        owner = np.searchsorted(starts, rows, side="right") - 1  # -1 for row -1
        parts, places = [], []
        for index in range(-1, len(self._chunks)):
            here = np.flatnonzero(owner == index)
            if len(here) == 0:
                continue
            places.append(here)
            if index < 0:
                parts.append(pa.nulls(len(here), self.kind))
            else:
                parts.append(self._chunks[index].take(pa.array(rows[here] - starts[index])))
        if not parts:
            return pa.array([], self.kind)
        back = np.empty(len(rows), np.int64)
        back[np.concatenate(places)] = np.arange(len(rows))
        return pa.concat_arrays(parts).take(pa.array(back))

    def freeze(self) -> ChunkArena:
        frozen = ChunkArena(self.kind)
        frozen.rows = self.rows
        frozen._chunks = self._chunks
        return frozen


def _indices(rows: Rows) -> pa.Array:
    if len(rows) and int(rows.min()) < 0:
        return pa.array(rows, mask=rows < 0)
    return pa.array(rows)
