"""Slots by the time at which each is to be looked at: a look costs what is due, not what waits.

A slot has one time that counts, the earliest that was said since it was last taken. A time that
only grows need not be said again: whoever takes a slot too early says its time once more.
"""

from __future__ import annotations

import numpy as np

from penstock.elements.signals import WATERMARK_MAX
from penstock.operators.updating_groups import Slots

MERGE_FACTOR = 3
"""A run is merged with its elder while that one is less than this many times as large."""


class DueSlots:
    """Sorted runs of (time, slot). Requires `room` for every slot."""

    def __init__(self) -> None:
        self._times = np.zeros(0, np.int64)
        self._runs: list[tuple[Slots, Slots]] = []
        self._new: list[tuple[Slots, Slots]] = []
        self._first = WATERMARK_MAX

    def room(self, slots: int) -> None:
        """Make room for slots below this number."""
        if len(self._times) < slots:
            longer = np.full(slots, WATERMARK_MAX)
            longer[: len(self._times)] = self._times
            self._times = longer

    def expect(self, slots: Slots, times: Slots) -> None:
        """Look at these slots at these times, if not before. Requires: no slot twice."""
        earlier = times < self._times[slots]
        slots, times = slots[earlier], times[earlier]
        if len(slots):
            self._times[slots] = times
            self._new.append((times, slots))
            self._first = min(self._first, int(times.min()))

    def take(self, until: int) -> Slots:
        """The slots whose times have come; they have none any more."""
        if until < self._first:
            return np.zeros(0, np.int64)
        self._sort()
        taken, left = [], []
        for times, slots in self._runs:
            upto = int(np.searchsorted(times, until, side="right"))
            taken.append((times[:upto], slots[:upto]))
            if upto < len(times):
                left.append((times[upto:], slots[upto:]))
        self._runs = left
        self._first = min((int(times[0]) for times, _ in left), default=WATERMARK_MAX)
        times, slots = _joined(taken)
        due: Slots = np.unique(slots[self._times[slots] == times])
        self._times[due] = WATERMARK_MAX
        return due

    def _sort(self) -> None:
        if not self._new:
            return
        pieces, self._new = self._new, []
        count = sum(len(times) for times, _ in pieces)
        while self._runs and len(self._runs[-1][0]) < MERGE_FACTOR * count:
            pieces.append(self._runs.pop())
            count += len(pieces[-1][0])
        times, slots = _joined(pieces)
        order = np.argsort(times, kind="stable")
        self._runs.append((times[order], slots[order]))


def _joined(pieces: list[tuple[Slots, Slots]]) -> tuple[Slots, Slots]:
    none = np.zeros(0, np.int64)
    times = np.concatenate([none, *(piece[0] for piece in pieces)])
    return times, np.concatenate([none, *(piece[1] for piece in pieces)])
