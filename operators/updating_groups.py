"""The live groups of an aggregate without a window: a slot per key, updated in place (R1).

Beside the accumulators it keeps what was last given of each group, which is what an update takes
back. Its values need no place in state: changes are given before each cut, so after a restart what
was given last is what the accumulators say. Where some groups only are given by then, state says
which. State gets all groups at each cut behind a change, as they lie here: finding them again, one
by one, would take longer than copying them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penstock.elements.buffers import fixed_values, grown
from penstock.elements.hash import Hashes
from penstock.state.backend import StateBackend
from penstock.state.columns import Column, column_for

from .grouping import Groups
from .kernels.slot_index import SlotIndex
from .updating_calls import UpdatingCalls

Slots = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
T = TypeVar("T", bound=np.generic)
HashesOf = Callable[[pa.RecordBatch], Hashes]
"""The frozen hashes of keys, by which rows were routed."""
TOUCHED, GIVEN = "__touched", "__given"
MARKS_PER_SLOT = 8
"""So many marks are looked at in the time in which one slot is sorted."""


class Marked:
    """A set of slots that is added to per batch and taken out whole."""

    def __init__(self) -> None:
        self._marks = np.zeros(0, np.bool_)
        self._lists: list[Slots] = []
        self._torn = False

    def __bool__(self) -> bool:
        return bool(self._lists)

    def room(self, room: int) -> None:
        """Make room for slots below this number."""
        self._marks = grown(self._marks, room)

    def add(self, slots: Slots) -> None:
        """Requires: no slot twice."""
        first = slots[~self._marks[slots]]
        self._marks[first] = True
        if len(first):
            self._lists.append(first)

    def remove(self, slots: Slots) -> None:
        """Leave them out."""
        if self._marks[slots].any():
            self._marks[slots] = False
            self._torn = True

    def holds(self, slots: Slots) -> Mask:
        """Which of these slots are in the set."""
        return self._marks[slots]

    def take(self) -> Slots:
        """All of them, ascending; none is left."""
        if not self._lists:
            return np.zeros(0, np.int64)
        lists, self._lists = self._lists, []
        torn, self._torn = self._torn, False
        if MARKS_PER_SLOT * sum(map(len, lists)) > len(self._marks):
            slots = np.flatnonzero(self._marks)
        else:
            slots = np.sort(np.concatenate(lists))
            if torn:
                # A slot that was left out and came back is in two lists.
                slots = np.unique(slots[self._marks[slots]])
        self._marks[slots] = False
        return slots


class LiveGroups:
    """Groups by key, in slots."""

    def __init__(
        self,
        calls: UpdatingCalls,
        keys: pa.Schema,
        results: Sequence[pa.Field],
        some_given: bool = False,
    ) -> None:
        """`some_given`: at a cut readers have some groups only; state says which."""
        self._calls = calls
        self._key_schema = keys
        self._some_given = some_given
        marks = [pa.field(TOUCHED, pa.int64(), nullable=False)]
        marks += [pa.field(GIVEN, pa.bool_(), nullable=False)] if some_given else []
        self.value_schema: pa.Schema = pa.schema([*calls.stored, *marks])
        self.index = SlotIndex(keys)
        self._parts: list[Column] = [column_for(field.type) for field in calls.stored]
        self._given: list[Column] = [column_for(field.type) for field in results]
        self.touched = np.zeros(0, np.int64)
        """When each slot was last written to, as the TTL counts."""
        self.is_given = np.zeros(0, np.bool_)
        """Whether readers have a row of it."""
        self.changed = Marked()
        """Slots written since changes were given."""
        self._saved = True
        self._room()

    def _room(self) -> None:
        room = self.index.capacity
        if len(self.touched) >= room:
            return
        for column in (*self._parts, *self._given):
            column.resize(room)
        self.touched = grown(self.touched, room)
        self.is_given = grown(self.is_given, room)
        self.changed.room(room)

    # Writing ----------------------------------------------------------------------------------

    def slots_of(self, keys: pa.RecordBatch, hashes: Hashes) -> tuple[Slots, Groups, Slots, Mask]:
        """(slot per row, groups of rows, slot per group, which groups are new)."""
        slots, new = self.index.add(keys, hashes)
        self._room()
        codes, distinct = self.index.number(slots)
        fresh = np.zeros(len(distinct), np.bool_)
        fresh[codes[new]] = True
        return slots, Groups(codes, len(distinct)), distinct, fresh

    def merge(self, slots: Slots, fresh: Mask, parts: list[pa.Array], touched: Slots) -> None:
        """Add partial results, one per slot; `fresh` slots had nothing."""
        self._write_touched(slots, fresh, touched)
        if fresh.all():
            merged = parts
        elif not fresh.any():
            merged = self._added(slots, parts)
        else:
            old = np.flatnonzero(~fresh)
            rows = np.flatnonzero(fresh)
            at = pa.array(rows)
            for column, part in zip(self._parts, parts, strict=True):
                column.write(slots[rows], part.take(at))
            at = pa.array(old)
            slots, merged = slots[old], self._added(slots[old], [p.take(at) for p in parts])
        for column, part in zip(self._parts, merged, strict=True):
            column.write(slots, part)

    def _write_touched(self, slots: Slots, fresh: Mask, touched: Slots) -> None:
        self.touched[slots] = np.where(fresh, touched, np.maximum(self.touched[slots], touched))
        self.is_given[slots[fresh]] = False
        self.changed.add(slots)
        self._saved = False

    def _added(self, slots: Slots, parts: list[pa.Array]) -> list[pa.Array]:
        twice = pairs(len(slots))
        both = [
            pa.concat_arrays([as_kind(column.take(slots), part.type), part])
            for column, part in zip(self._parts, parts, strict=True)
        ]
        return self._calls.merge(twice, both)

    # Changes ----------------------------------------------------------------------------------

    def parts_of(self, slots: Slots) -> list[pa.Array]:
        """The stored columns."""
        return [
            as_kind(column.take(slots), field.type)
            for column, field in zip(self._parts, self._calls.stored, strict=True)
        ]

    def part_of(self, at: int, slots: Slots) -> pa.Array:
        """One of the stored columns."""
        return as_kind(self._parts[at].take(slots), self._calls.stored[at].type)

    def given_of(self, slots: Slots, kinds: Sequence[pa.DataType]) -> list[pa.Array]:
        """What readers have."""
        return [
            as_kind(column.take(slots), kind)
            for column, kind in zip(self._given, kinds, strict=True)
        ]

    def same_as_given(self, slots: Slots, results: Sequence[pa.Array]) -> Mask:
        """Which slots have just these results with readers, if they have any."""
        same = np.ones(len(slots), np.bool_)
        rows = np.arange(len(slots))
        for column, array in zip(self._given, results, strict=True):
            same &= column.equal(slots, array, rows)
        return same

    def give(self, slots: Slots, results: Sequence[pa.Array]) -> None:
        """Readers have these now."""
        for column, array in zip(self._given, results, strict=True):
            column.write(slots, array)
        self._say_given(slots, True)

    def take_back(self, slots: Slots) -> None:
        """Readers have nothing of these any more."""
        self._say_given(slots, False)

    def _say_given(self, slots: Slots, given: bool) -> None:
        if self._some_given and len(slots):
            self._saved = False
        self.is_given[slots] = given

    def remove(self, slots: Slots) -> None:
        """Forget groups."""
        if not len(slots):
            return
        self._saved = False
        self.changed.remove(slots)
        self.is_given[slots] = False
        self.index.remove(slots)

    # State ------------------------------------------------------------------------------------

    def open(self, state: StateBackend, hashes_of: HashesOf) -> None:
        """Find the groups of the checkpoint; `save` brings them back."""
        self._table = state.table("groups", self._key_schema, self.value_schema)
        self._hashes_of = hashes_of
        for batch in self._table.scan():
            keys = batch.select(self._key_schema.names).cast(self._key_schema)
            slots, _ = self.index.add(keys, hashes_of(keys))
            self._room()
            for column, field in zip(self._parts, self._calls.stored, strict=True):
                column.write(slots, batch.column(field.name))
            self.touched[slots] = fixed_values(batch.column(TOUCHED))
            if self._some_given:
                self.is_given[slots] = fixed_values(batch.column(GIVEN))

    def save(self) -> None:
        """Bring the groups into state, if there was any change since the last cut."""
        if self._saved:
            return
        self._saved = True
        slots = self.index.live
        keys = self.index.keys_of(slots)
        columns = [*self.parts_of(slots), pa.array(self.touched[slots])]
        columns += [pa.array(self.is_given[slots])] if self._some_given else []
        values = pa.RecordBatch.from_arrays(columns, schema=self.value_schema)
        self._table.replace(keys, values, self._hashes_of(keys))


def pairs(count: int) -> Groups:
    """The groups of `count` rows with `count` more behind them, row i going with row count + i."""
    rows = np.arange(count)
    groups = Groups(np.concatenate([rows, rows]), count)
    order = np.empty(2 * count, np.int64)
    order[0::2], order[1::2] = rows, rows + count
    # Known without sorting.
    vars(groups).update(order=order, starts=2 * rows, sizes=np.full(count, 2))
    return groups


def as_kind(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """State holds text and bytes with wide offsets; streams do not."""
    return array if array.type == kind else array.cast(kind)
