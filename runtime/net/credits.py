"""The two accounts of a channel over TCP: pure, integers in, decisions out.

`Allowance` is the sender's: what it may still send. `Account` is the receiver's: when to tell the
sender what became free, and what the reader is to ring for meanwhile. All figures are totals since
the channel was opened; the receiver's slab is the only source of them, so a frame that was paid
for always finds a free descriptor and, if it needs one, a free slot (hazard 6).
"""

from __future__ import annotations

from typing import NamedTuple

from penstock.elements.errors import ProtocolError
from penstock.runtime.slab import DESCRIPTOR_COUNT, WAITS_FOR_READ, WAITS_FOR_SLOT


class Report(NamedTuple):
    """What a receiver tells its sender: totals, and the rows limit of hazard 8."""

    taken: int = 0
    freed: int = 0
    rows: int = 0
    limit: int = 0


class Allowance:
    """The sender's side. `sent` must be called before the frame's first byte leaves."""

    __slots__ = ("_descriptors_end", "_freed", "_slots_end", "_taken", "frames", "slot_frames")

    def __init__(self, slots: int) -> None:
        """`slots`: of the receiver's region."""
        self.frames = 0
        self.slot_frames = 0
        self._taken = 0
        self._freed = 0
        self._descriptors_end = DESCRIPTOR_COUNT
        self._slots_end = slots

    def allows(self, slot: bool) -> bool:
        """Whether one more frame may go, with or without a body."""
        return self.frames < self._descriptors_end and (
            not slot or self.slot_frames < self._slots_end
        )

    def sent(self, slot: bool) -> None:
        """One frame is paid for."""
        assert self.allows(slot)
        self.frames += 1
        if slot:
            self.slot_frames += 1

    @property
    def settled(self) -> bool:
        """Whether the receiver has taken all that was sent."""
        return self._taken == self.frames

    def grant(self, report: Report) -> None:
        """The receiver's totals; raises ProtocolError for totals that cannot be."""
        if not (
            self._taken <= report.taken <= self.frames
            and self._freed <= report.freed <= self.slot_frames
        ):
            raise ProtocolError(
                f"a credit returns {report.taken:,} messages and {report.freed:,} slots; sent were "
                f"{self.frames:,} and {self.slot_frames:,}, returned before {self._taken:,} and "
                f"{self._freed:,}"
            )
        self._descriptors_end += report.taken - self._taken
        self._slots_end += report.freed - self._freed
        self._taken, self._freed = report.taken, report.freed


class Account:
    """The receiver's side: what the sender was told last, and what follows from it."""

    __slots__ = ("_slots", "told")

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self.told = Report()

    def due(self, report: Report, published: int, filled: int) -> bool:
        """Whether the sender must be told at once; anything else may wait for company."""
        told = self.told
        taken, freed = report.taken - told.taken, report.freed - told.freed
        rows = report.rows - told.rows
        if report.limit != told.limit or (rows > 0 and rows * 4 >= report.limit > 0):
            return True
        # A quarter at a time; and whatever there is to a sender that has nothing left.
        if taken * 4 >= DESCRIPTOR_COUNT or (
            taken > 0 and published - told.taken >= DESCRIPTOR_COUNT
        ):
            return True
        return freed * 4 >= self._slots or (freed > 0 and filled - told.freed >= self._slots)

    def rings(self, published: int, filled: int, rows_sent: int) -> int:
        """What the reader is to ring for: WAITS_FOR_READ or WAITS_FOR_SLOT.

        Taking a message comes before freeing its slot, so READ always leads to one more look;
        only when slots are what the sender will lack first is it SLOT.
        """
        told = self.told
        if (published - told.taken) * 2 >= DESCRIPTOR_COUNT:
            return WAITS_FOR_READ
        if told.limit and (rows_sent - told.rows) * 2 >= told.limit:
            return WAITS_FOR_READ
        if (filled - told.freed) * 2 >= self._slots:
            return WAITS_FOR_SLOT
        return WAITS_FOR_READ
