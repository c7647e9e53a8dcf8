"""The parts that hold now of each live group: the second stage of an aggregate with split keys.

A row of a part replaces the one before, so the last word of each first-stage subtask counts, and
no sum of differences can drift. In state each (key, salt) is a row of its own, addressed by a hash
whose key group is the key's, so that a rescale takes parts where their key goes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penstock.elements.buffers import fixed_values, grown
from penstock.elements.hash import Hashes
from penstock.state.backend import StateBackend
from penstock.state.columns import Column, column_for

from .kernels.owned_slots import new_owned_slots
from .kernels.slot_index import SlotIndex
from .split_parts import SALT, SALT_FIELD
from .updating_groups import HashesOf, LiveGroups, Marked, Mask, Slots, as_kind
from .updating_values import within_group


class LiveParts:
    """Parts by (key, salt), found by the slot of their key."""

    def __init__(self, keys: pa.Schema, fields: Sequence[pa.Field]) -> None:
        """`fields` are the columns of a part, the row count first."""
        self._keys = keys
        self._schema: pa.Schema = keys.append(SALT_FIELD)
        self._values: pa.Schema = pa.schema(list(fields))
        self._index = SlotIndex(self._schema)
        self._columns: list[Column] = [column_for(field.type) for field in fields]
        self._owned = new_owned_slots()
        self._saved = np.zeros(0, np.bool_)
        self._unsaved = Marked()

    def _room(self) -> None:
        room = self._index.capacity
        self._owned.reserve(self._groups.index.capacity, room)
        if len(self._saved) < room:
            for column in self._columns:
                column.resize(room)
            self._saved = grown(self._saved, room)
            self._unsaved.room(room)

    def put(
        self,
        owners: Slots,
        keys: pa.RecordBatch,
        hashes: Hashes,
        salts: pa.Array,
        weights: npt.NDArray[np.int8],
        parts: Sequence[pa.Array],
    ) -> None:
        """The last row of each part holds from now on; if that takes it back, there is none."""
        both = pa.RecordBatch.from_arrays([*keys.columns, salts], schema=self._schema)
        slots, new = self._index.add(both, within_group(hashes, salts))
        self._room()
        self._saved[slots[new]] = False
        self._owned.link(slots[new], owners[new])
        distinct, from_end = np.unique(slots[::-1], return_index=True)
        last = len(slots) - 1 - from_end
        there = weights[last] > 0
        kept, rows = distinct[there], pa.array(last[there])
        for column, part in zip(self._columns, parts, strict=True):
            column.write(kept, part.take(rows))
        self._unsaved.add(kept)
        self._drop(distinct[~there])

    def of(self, groups: Slots) -> tuple[Slots, list[pa.Array]]:
        """(which of `groups`, the columns of the part), in the order of salts within a group."""
        numbers, slots = self._of(groups)
        salts = fixed_values(self._index.keys_of(slots).column(SALT))
        # The same order after a restart, so that sums of floats are the same.
        order = np.lexsort((salts, numbers))
        numbers, slots = numbers[order], slots[order]
        return numbers, self._parts_of(slots)

    def _parts_of(self, slots: Slots) -> list[pa.Array]:
        return [
            as_kind(column.take(slots), field.type)
            for column, field in zip(self._columns, self._values, strict=True)
        ]

    def any_of(self, groups: Slots) -> Mask:
        """Which of `groups` have parts."""
        found = np.zeros(len(groups), np.bool_)
        found[self._of(groups)[0]] = True
        return found

    def remove(self, groups: Slots) -> None:
        """Forget the parts of these groups."""
        self._drop(self._of(groups)[1])

    def _of(self, groups: Slots) -> tuple[Slots, Slots]:
        self._room()
        return self._owned.of(groups)

    def _drop(self, slots: Slots) -> None:
        if not len(slots):
            return
        saved = slots[self._saved[slots]]
        if len(saved):
            keys = self._index.keys_of(saved)
            self._table.delete(keys, self._hashes(keys))
        self._unsaved.remove(slots)
        self._owned.unlink(slots)
        self._index.remove(slots)

    # State ------------------------------------------------------------------------------------

    def open(self, state: StateBackend, groups: LiveGroups, hashes_of: HashesOf) -> None:
        """Find the parts of the checkpoint. Requires: `groups` are open."""
        self._table = state.table("parts", self._schema, self._values)
        self._hashes_of = hashes_of
        self._groups = groups
        self._room()
        for batch in self._table.scan():
            both = batch.select(self._schema.names).cast(self._schema)
            slots, _ = self._index.add(both, self._hashes(both))
            self._room()
            for column, field in zip(self._columns, self._values, strict=True):
                column.write(slots, batch.column(field.name))
            keys = both.select(self._keys.names)
            self._owned.link(slots, groups.index.find(keys, hashes_of(keys)))
            self._saved[slots] = True

    def save(self) -> None:
        """Bring what changed since the last cut into state."""
        slots = self._unsaved.take()
        if len(slots):
            keys = self._index.keys_of(slots)
            values = pa.RecordBatch.from_arrays(self._parts_of(slots), schema=self._values)
            self._table.upsert(keys, values, self._hashes(keys))
            self._saved[slots] = True

    def _hashes(self, both: pa.RecordBatch) -> Hashes:
        return within_group(self._hashes_of(both.select(self._keys.names)), both.column(SALT))
