"""Where a channel to another node begins: the net process reads a slab region in its name.

`next_frame` takes what may be sent, `release` gives its memory back once the kernel has it. What
the remote reader has read and the rows it lets lie unread are written into the local region, so
the sending subtask sees its true reader: ROWS_TAKEN and ROWS_LIMIT are end to end.

The writer thread of the connection does all but `credit`, which is its reader thread's.
"""

from __future__ import annotations

from typing import NamedTuple

from penstock.elements.errors import ChannelAborted, ProtocolError
from penstock.elements.signals import Kind
from penstock.runtime.doorbell import Doorbell
from penstock.runtime.fence import full_fence, order_fence
from penstock.runtime.segment import Segment
from penstock.runtime.slab import (
    ABORT,
    DESCRIPTOR_COUNT,
    DESCRIPTOR_WORDS,
    DESCRIPTORS,
    FREE,
    HEAD,
    KIND_SHIFT,
    ROWS_LIMIT,
    ROWS_SENT,
    ROWS_TAKEN,
    SCHEMA,
    SIZE_MASK,
    SLOT_MASK,
    SLOT_SHIFT,
    TAIL,
    WAITING,
    WAITS_FOR_NOTHING,
    WAITS_FOR_READ,
    WAITS_FOR_SLOT,
)

from .credits import Allowance, Report
from .frames import SIGNAL_KINDS, SLOT_KINDS

RING_FRACTION = 4
"""A sender that waits for slots is rung once a quarter of them has become free."""


class Departure(NamedTuple):
    """One message on its way: `body` is the slot's own memory, empty for a signal."""

    kind: int
    meta: int
    body: memoryview


_NO_BODY = memoryview(b"")


class Outbound:
    """One channel that begins on this node.

    Requires: no other receiver attaches to the region, and the connection's bell is what the
    sending subtask rings as its receiver's bell.
    """

    def __init__(
        self, number: int, segment: Segment, region: int, fingerprint: int, bell: Doorbell
    ) -> None:
        """`bell` is the sending subtask's; `fingerprint` that of the channel's wire schema."""
        place = segment.regions[region]
        self.number = number
        self.fingerprint = fingerprint
        self.size = place.size
        self.bell = bell
        self._end_sent = False
        self._segment, self._region, self._place = segment, region, place
        self._bytes, self._words = segment.bytes, segment.words
        self._states = segment.states(region)
        self._head_at, self._tail_at = place.word(HEAD), place.word(TAIL)
        self._rows_taken_at, self._rows_limit_at = place.word(ROWS_TAKEN), place.word(ROWS_LIMIT)
        self._rows_sent_at = place.word(ROWS_SENT)
        self._waiting_at, self._abort_at = place.word(WAITING), place.word(ABORT)
        self._schema_at = place.word(SCHEMA)
        self._descriptors_at = place.word(DESCRIPTORS)
        self._order, self._full = order_fence(), full_fence()
        self._allowance = Allowance(0)
        self._tail = 0
        self._leaving: list[int] = []
        self._unreleased = False
        self._freed = 0
        self.sent_bytes = 0

    def open(self, remote_slots: int) -> None:
        """The peer has said what it takes; before the threads start."""
        self._allowance = Allowance(remote_slots)

    # The writer thread ------------------------------------------------------------------------

    def next_frame(self) -> Departure | None:
        """The next message if it is there and may go; it counts as sent."""
        words = self._words
        if words[self._abort_at] and not self._end_sent:
            raise ChannelAborted(f"channel {self.number} was aborted on this node")
        head = words[self._head_at]
        if head == self._tail:
            return None
        self._order()
        if not self._tail:
            self._check_schema()
        at = self._descriptor()
        kind = words[at] >> KIND_SHIFT
        while kind == Kind.WATERMARK and self._tail + 1 != head:
            # Latest wins among those that wait behind each other, whether or not they may go.
            following = self._descriptor(1)
            if words[following] >> KIND_SHIFT != Kind.WATERMARK:
                break
            self._tail += 1
            self._unreleased = True
            at = following
        if not self._allowance.allows(kind in SLOT_KINDS):
            return None
        return self._depart(kind, words[at], words[at + 1])

    def _depart(self, kind: int, descriptor: int, meta: int) -> Departure:
        body = _NO_BODY
        if kind in SLOT_KINDS:
            slot, size = descriptor >> SLOT_SHIFT & SLOT_MASK, descriptor & SIZE_MASK
            begin = self._place.slot_offset(slot)
            body = self._bytes[begin : begin + size]
            self._leaving.append(slot)
            self.sent_bytes += size
        elif kind not in SIGNAL_KINDS:
            raise ProtocolError(f"channel {self.number} carries a message of unknown kind {kind}")
        self._end_sent = kind == Kind.END
        self._allowance.sent(kind in SLOT_KINDS)
        self._tail += 1
        self._unreleased = True
        return Departure(kind, meta, body)

    def release(self) -> None:
        """The kernel has all that `next_frame` returned: its slots and places are free again."""
        if not self._unreleased:
            return
        self._unreleased = False
        self._order()
        for slot in self._leaving:
            self._states[slot] = FREE
        self._freed += len(self._leaving)
        self._leaving.clear()
        words = self._words
        words[self._tail_at] = self._tail
        self._full()
        waiting = words[self._waiting_at]
        if waiting == WAITS_FOR_NOTHING:
            return
        # Waking a process costs as much as sending 50 kB. While messages of this channel are left,
        # there will be a next time, so a sender that wants slots is rung for several at once.
        if (
            waiting == WAITS_FOR_SLOT
            and self._freed * RING_FRACTION < self.size.slots
            and words[self._head_at] != self._tail
        ):
            return
        self._freed = 0
        self.bell.ring()

    def _descriptor(self, ahead: int = 0) -> int:
        place = self._tail + ahead & (DESCRIPTOR_COUNT - 1)
        return self._descriptors_at + DESCRIPTOR_WORDS * place

    def _check_schema(self) -> None:
        written = self._words[self._schema_at]
        if written != self.fingerprint:
            raise ProtocolError(
                f"the sender of channel {self.number} writes another schema ({written:#x}) than "
                f"was announced to the peer ({self.fingerprint:#x})"
            )

    # The reader thread ------------------------------------------------------------------------

    def credit(self, report: Report) -> None:
        """The peer's account: mirror what concerns the sending subtask, and wake it."""
        self._allowance.grant(report)
        words = self._words
        if not words[self._rows_taken_at] <= report.rows <= words[self._rows_sent_at]:
            raise ProtocolError(f"a credit says {report.rows:,} rows of channel {self.number} read")
        if words[self._rows_taken_at] == report.rows and words[self._rows_limit_at] == report.limit:
            return
        words[self._rows_taken_at] = report.rows
        words[self._rows_limit_at] = report.limit
        self._full()
        if words[self._waiting_at] == WAITS_FOR_READ:
            self.bell.ring()

    # Either -----------------------------------------------------------------------------------

    @property
    def ended(self) -> bool:
        """Whether END was the last to go, and the peer's subtask has read it."""
        return self._end_sent and self._allowance.settled

    @property
    def aborted(self) -> bool:
        """Whether the supervisor has ended the channel."""
        return self._words[self._abort_at] != 0

    def abort(self) -> None:
        """Tell the subtask that nothing more is taken."""
        self._segment.abort(self._region)
        self.bell.ring()
