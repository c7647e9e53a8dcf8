"""Which live sessions a key has, and which sessions became part of which: slots, no results.

A session is a slot of its owner's groups. One that was merged into another keeps its slot until
what was given of it is taken back, which happens when the other one gives.
Not: when sessions begin and end; that is with the groups, and lives in state there.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from penstock.elements.buffers import grown
from penstock.elements.hash import Hashes
from penstock.operators.kernels.owned_slots import new_owned_slots
from penstock.operators.kernels.slot_index import SlotIndex
from penstock.operators.updating_groups import Mask, Slots


class LiveSessions:
    """Slots of sessions by key. Keys are there while they have sessions."""

    def __init__(self, keys: pa.Schema) -> None:
        self._keys = SlotIndex(keys)
        self._owned = new_owned_slots()
        self._owner = np.zeros(0, np.int64)
        self._live = np.zeros(0, np.bool_)
        self._merged = np.zeros(0, np.bool_)
        self._into = np.zeros(0, np.int64)

    def room(self, slots: int) -> None:
        """Make room for sessions below this number."""
        self._owned.reserve(self._keys.capacity, slots)
        self._owner = grown(self._owner, slots)
        self._live = grown(self._live, slots)
        self._merged = grown(self._merged, slots)
        self._into = grown(self._into, slots)

    @property
    def keys(self) -> int:
        """Keys that have sessions."""
        return self._keys.rows

    def owners_of(self, keys: pa.RecordBatch, hashes: Hashes) -> Slots:
        """A number per key; `drop_idle` those to which no session is linked after all."""
        owners, _ = self._keys.add(keys, hashes)
        self._owned.reserve(self._keys.capacity, len(self._owner))
        return owners

    def of(self, owners: Slots) -> tuple[Slots, Slots]:
        """(row of `owners`, session) of all that are not merged. Requires: no owner twice."""
        return self._owned.of(owners)

    def link(self, slots: Slots, owners: Slots) -> None:
        """New sessions of these keys."""
        self._owner[slots], self._live[slots] = owners, True
        self._owned.link(slots, owners)

    def drop_idle(self, owners: Slots) -> None:
        """Forget those of the keys that have no session. Requires: no owner twice."""
        idle = np.ones(len(owners), np.bool_)
        idle[self._owned.of(owners)[0]] = False
        self._keys.remove(owners[idle])

    def is_live(self, slots: Slots) -> Mask:
        """Which of these slots are sessions, and not merged."""
        return self._live[slots]

    # Merging ----------------------------------------------------------------------------------

    def is_merged(self, slots: Slots) -> Mask:
        """Which of these sessions are part of others."""
        return self._merged[slots]

    def roots(self, slots: Slots) -> Slots:
        """Each session, or the one that it is part of."""
        return np.where(self._merged[slots], self._into[slots], slots)

    def merged_into(self, slots: Slots) -> Slots:
        """All sessions that are part of these."""
        merged = np.flatnonzero(self._merged)
        return merged[np.isin(self._into[merged], slots)]

    def merge(self, slots: Slots, into: Slots) -> None:
        """Sessions are part of others from now on, and with them what was part of them."""
        self._owned.unlink(slots)
        elder = np.flatnonzero(self._merged)
        if len(elder):
            order = np.argsort(slots)
            at = np.minimum(np.searchsorted(slots[order], self._into[elder]), len(slots) - 1)
            follow = slots[order][at] == self._into[elder]
            self._into[elder[follow]] = into[order][at[follow]]
        self._live[slots], self._merged[slots] = False, True
        self._into[slots] = into

    def forget(self, slots: Slots) -> None:
        """Sessions end, or are no longer needed as parts of others."""
        live = slots[self._live[slots]]
        self._owned.unlink(live)
        self.drop_idle(np.unique(self._owner[live]))
        self._live[slots] = self._merged[slots] = False
