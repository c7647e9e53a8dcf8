"""KeySlots: a number per key, for operators that keep columns by key above the state interfaces.

The key columns of rows, or one key for all where a stream has none; their hashes as they were
routed; and the slot of each. A slot is dense, and forgotten only by `keep`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from penstock.elements.hash import Hashes, hash_arrays
from penstock.state.keyed_rows import take_declared
from penstock.state.slot_index import SlotIndex

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


class KeySlots:
    """Slots 0, 1, 2, … by key."""

    def __init__(self, keys: Keys) -> None:
        self.keys = keys
        self._index = SlotIndex(keys.schema)

    @property
    def count(self) -> int:
        """Slots in use."""
        return self._index.count

    @property
    def capacity(self) -> int:
        """The room that columns beside it need."""
        return self._index.capacity

    def find(self, columns: Sequence[pa.Array]) -> Numbers:
        """The slot of each key, or -1."""
        return self._index.find(self.keys.hashes(columns), columns)

    def add(self, columns: Sequence[pa.Array]) -> Numbers:
        """The slot of each key; new keys get the next ones."""
        return self._index.find_or_insert(self.keys.hashes(columns), columns)[0]

    def batch(self, slots: Numbers) -> pa.RecordBatch:
        """The keys of these slots."""
        return self.keys.batch(take_declared(self._index.keys.columns, self.keys.schema, slots))

    def hashes(self, slots: Numbers) -> Hashes:
        """The hashes of these slots' keys."""
        return self._index.hashes[slots]

    def keep(self, slots: Numbers) -> None:
        """Forget all others; these are renumbered in this order."""
        self._index.rebuild(slots)
