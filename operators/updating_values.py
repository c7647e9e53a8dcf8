"""The values behind aggregates that need every one of them, per live group, with how often.

In state each (key, value) is a row of its own, addressed by a hash whose key group is the key's,
so that a rescale takes values where their group goes. The values of a group are found through a
list, when changes are given, not per batch.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penstock.elements.buffers import fixed_values, grown
from penstock.elements.hash import Hashes, hash_array
from penstock.state.backend import StateBackend

from .kernels.owned_slots import new_owned_slots
from .kernels.slot_index import SlotIndex
from .updating_groups import HashesOf, LiveGroups, Marked, Slots

VALUE = "__value"
TIMES = "__times"
GROUP_BITS = np.uint64(0xFFF) << np.uint64(52)
"""The bits of a hash that say where it is routed (elements/keygroup.py)."""
SPREAD = np.uint64(0x9E3779B97F4A7C15)
VALUE_SCHEMA = pa.schema([pa.field(TIMES, pa.int64(), nullable=False)])


class LiveValues:
    """The multiset of one argument, for all groups."""

    def __init__(self, name: str, keys: pa.Schema, kind: pa.DataType) -> None:
        self._name = name
        self._keys = keys
        self._schema: pa.Schema = keys.append(pa.field(VALUE, kind))
        self._index = SlotIndex(self._schema)
        self._times = np.zeros(0, np.int64)
        self._owned = new_owned_slots()
        self._saved = np.zeros(0, np.bool_)
        self._unsaved = Marked()

    def _room(self) -> None:
        room = self._index.capacity
        self._owned.reserve(self._groups.index.capacity, room)
        self._times = grown(self._times, room)
        self._saved = grown(self._saved, room)
        self._unsaved.room(room)

    def add(
        self,
        owners: Slots,
        keys: pa.RecordBatch,
        hashes: Hashes,
        values: pa.Array,
        weights: npt.NDArray[np.int64],
    ) -> None:
        """Count values of the groups in slots `owners`; nulls are left out."""
        if values.null_count:
            rows = np.flatnonzero(values.is_valid().to_numpy(zero_copy_only=False))
            at = pa.array(rows)
            keys, values = keys.take(at), values.take(at)
            owners, hashes, weights = owners[rows], hashes[rows], weights[rows]
        if not len(values):
            return
        both = pa.RecordBatch.from_arrays([*keys.columns, values], schema=self._schema)
        slots, new = self._index.add(both, within_group(hashes, values))
        self._room()
        fresh = slots[new]
        self._times[fresh], self._saved[fresh] = 0, False
        self._owned.link(fresh, owners[new])
        np.add.at(self._times, slots, weights)
        _, distinct = self._index.number(slots)
        self._unsaved.add(distinct)

    def of(self, groups: Slots) -> tuple[Slots, pa.Array, pa.Array]:
        """(which of `groups`, value, how often) of what is there; values once per group."""
        numbers, slots = self._of(groups)
        there = self._times[slots] > 0
        slots = slots[there]
        content = self._index.keys_of(slots).column(VALUE)
        return numbers[there], content, pa.array(self._times[slots])

    def any_of(self, groups: Slots) -> npt.NDArray[np.bool_]:
        """Which of `groups` have values that count, or that were taken back too early."""
        numbers, slots = self._of(groups)
        found = np.zeros(len(groups), np.bool_)
        found[numbers[self._times[slots] != 0]] = True
        return found

    def remove(self, groups: Slots) -> None:
        """Forget all values of these groups."""
        self._drop(self._of(groups)[1])

    def _of(self, groups: Slots) -> tuple[Slots, Slots]:
        # Groups may have come since, all of whose values are null.
        self._room()
        return self._owned.of(groups)

    def _drop(self, slots: Slots) -> None:
        saved = slots[self._saved[slots]]
        if len(saved):
            keys = self._index.keys_of(saved)
            self._table.delete(keys, self._hashes(keys))
        self._unsaved.remove(slots)
        self._owned.unlink(slots)
        self._index.remove(slots)

    # State ------------------------------------------------------------------------------------

    def open(self, state: StateBackend, groups: LiveGroups, hashes_of: HashesOf) -> None:
        """Find the values of the checkpoint. Requires: `groups` are open."""
        self._table = state.table(self._name, self._schema, VALUE_SCHEMA)
        self._hashes_of = hashes_of
        self._groups = groups
        self._room()
        for batch in self._table.scan():
            both = batch.select(self._schema.names).cast(self._schema)
            slots, _ = self._index.add(both, self._hashes(both))
            self._room()
            self._times[slots] = fixed_values(batch.column(TIMES))
            keys = both.select(self._keys.names)
            self._owned.link(slots, groups.index.find(keys, hashes_of(keys)))
            self._saved[slots] = True

    def save(self) -> None:
        """Bring what changed into state; values that count no more are forgotten."""
        slots = self._unsaved.take()
        none = self._times[slots] == 0
        self._drop(slots[none])
        slots = slots[~none]
        if len(slots):
            keys = self._index.keys_of(slots)
            times = pa.RecordBatch.from_arrays([pa.array(self._times[slots])], schema=VALUE_SCHEMA)
            self._table.upsert(keys, times, self._hashes(keys))
            self._saved[slots] = True

    def _hashes(self, both: pa.RecordBatch) -> Hashes:
        return within_group(self._hashes_of(both.select(self._keys.names)), both.column(VALUE))


def within_group(hashes: Hashes, values: pa.Array) -> Hashes:
    """Hashes of (key, value) that are routed as the key is."""
    mixed = (hashes * SPREAD) ^ hash_array(values)
    mixed *= SPREAD
    mixed ^= mixed >> np.uint64(29)
    found: Hashes = (hashes & GROUP_BITS) | (mixed & ~GROUP_BITS)
    return found
