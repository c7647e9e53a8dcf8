"""KeySlots: a number per key, for operators that keep columns by key above the state interfaces.

The key columns of rows, or one key for all where a stream has none; their hashes as they were
routed; and the slot of each. A slot is dense, and forgotten only by `keep`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from penstock.elements.hash import Hashes, hash_arrays

from .kernels.slot_index import SlotIndex
from .row_order import Numbers
from .windows.partials import ONLY_KEY


class Keys:
    """The key columns of a schema; with none, all rows have one key."""

    def __init__(self, schema: pa.Schema, names: Sequence[str]) -> None:
        self.names = tuple(names)
        fields = [schema.field(name) for name in names]
        self.schema: pa.Schema = pa.schema(fields or [ONLY_KEY])

    def columns(self, batch: pa.RecordBatch) -> list[pa.Array]:
        """The key columns, a constant where there is none."""
        if not self.names:
            return [pa.array(np.zeros(batch.num_rows, np.int8))]
        return [batch.column(name) for name in self.names]

    def batch(self, columns: Sequence[pa.Array]) -> pa.RecordBatch:
        """Key columns as state wants them."""
        return pa.RecordBatch.from_arrays(list(columns), schema=self.schema)

    def hashes(self, columns: Sequence[pa.Array]) -> Hashes:
        """The frozen hash of the keys, by which rows were routed."""
        return hash_arrays(columns if self.names else [], len(columns[0]))


ROOM_MIN = 64
"""Slots that there is room for at least, in columns beside the index."""


class KeySlots:
    """Slots 0, 1, 2, … by key."""

    def __init__(self, keys: Keys) -> None:
        self.keys = keys
        self._index = SlotIndex(keys.schema)

    @property
    def count(self) -> int:
        """Slots in use."""
        return self._index.rows

    @property
    def capacity(self) -> int:
        """The room that columns beside it need: a power of two."""
        return max(ROOM_MIN, 1 << max(0, self.count - 1).bit_length())

    def find(self, columns: Sequence[pa.Array]) -> Numbers:
        """The slot of each key, or -1."""
        return self._index.find(self.keys.batch(columns), self.keys.hashes(columns))

    def add(self, columns: Sequence[pa.Array]) -> Numbers:
        """The slot of each key; new keys get the next ones."""
        return self._index.add(self.keys.batch(columns), self.keys.hashes(columns))[0]

    def distinct(self, slots: Numbers) -> bool:
        """Whether no slot is there twice."""
        return len(slots) == len(self._index.number(slots)[1])

    def batch(self, slots: Numbers) -> pa.RecordBatch:
        """The keys of these slots."""
        return self._index.keys_of(slots)

    def hashes(self, slots: Numbers) -> Hashes:
        """The hashes of these slots' keys."""
        return self.keys.hashes(self.batch(slots).columns)

    def keep(self, slots: Numbers) -> None:
        """Forget all others; these are renumbered in this order."""
        kept = self.batch(slots)
        self._index = SlotIndex(self.keys.schema)
        again, _ = self._index.add(kept, self.keys.hashes(kept.columns))
        assert (again == np.arange(len(slots))).all()
