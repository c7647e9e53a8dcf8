"""Where a channel from another node ends: the net process writes a slab region in its name.

Two threads share it. The connection's reader thread finds the slot and publishes, the writer
thread looks at what the subtask has read and freed, and says when it is to ring. Each word of the
region and each counter here has one writing thread. Nothing blocks: a frame that finds no room
was not paid for, which is the peer's error and never a reason to wait (hazard 6).
"""

from __future__ import annotations

from penstock.elements.errors import ProtocolError
from penstock.elements.signals import Kind
from penstock.runtime.doorbell import Doorbell
from penstock.runtime.fence import full_fence, order_fence
from penstock.runtime.segment import Segment
from penstock.runtime.slab import (
    ABORT,
    DESCRIPTOR_COUNT,
    DESCRIPTOR_WORDS,
    DESCRIPTORS,
    HEAD,
    JUMBO_BYTES_MAX,
    KIND_SHIFT,
    ROWS_LIMIT,
    ROWS_SENT,
    ROWS_TAKEN,
    SCHEMA,
    SLOT_SHIFT,
    STATES,
    TAIL,
    USED,
    WAITING,
    WAITS_FOR_SLOT,
)

from .credits import Account, Report
from .frames import Head

_FREE_STATE = b"\0"


class Inbound:
    """One channel that ends on this node.

    Requires: the region is fresh, no other sender attaches to it, `ring` of the connection is
    what the subtask at the other end rings as its sender's bell.
    """

    def __init__(
        self, number: int, segment: Segment, region: int, fingerprint: int, bell: Doorbell
    ) -> None:
        """`bell` is the reading subtask's; `fingerprint` that of the channel's wire schema."""
        place = segment.regions[region]
        self.number = number
        self.fingerprint = fingerprint
        self.size = place.size
        self.bell = bell
        self._segment, self._region, self._place = segment, region, place
        self._map, self._bytes, self._words = segment.map, segment.bytes, segment.words
        self._states = segment.states(region)
        self._states_at = place.offset + STATES
        self._head_at, self._tail_at = place.word(HEAD), place.word(TAIL)
        self._rows_sent_at, self._rows_taken_at = place.word(ROWS_SENT), place.word(ROWS_TAKEN)
        self._rows_limit_at, self._waiting_at = place.word(ROWS_LIMIT), place.word(WAITING)
        self._abort_at, self._descriptors_at = place.word(ABORT), place.word(DESCRIPTORS)
        self._order, self._full = order_fence(), full_fence()
        self._account = Account(place.size.slots)
        self._head = 0
        self._filled = 0
        self._rows = 0
        self._bytes_taken = 0
        self._jumbo_total = 0
        self._jumbo_have = 0
        self._armed = 0
        self._end_seen = False
        self._slot = -1
        self._words[place.word(SCHEMA)] = fingerprint

    # The reader thread ------------------------------------------------------------------------

    def slot_for(self, head: Head) -> memoryview:
        """The memory that the body of a BATCH or JUMBO goes into; `publish` follows."""
        if head.plain_bytes > self.size.slot_bytes or not head.plain_bytes:
            raise ProtocolError(
                f"channel {self.number}: {head.plain_bytes:,} bytes do not fit a slot of "
                f"{self.size.slot_bytes:,}"
            )
        self._expect_room()
        if head.kind == Kind.JUMBO:
            self._check_chunk(head)
        elif self._jumbo_total:
            raise ProtocolError(f"channel {self.number}: a batch between the parts of a large row")
        found = self._map.find(_FREE_STATE, self._states_at, self._states_at + self.size.slots)
        if found < 0:
            raise ProtocolError(
                f"channel {self.number}: a message without a slot credit; all {self.size.slots} "
                "slots are in use"
            )
        self._order()
        self._slot = found - self._states_at
        begin = self._place.slot_offset(self._slot)
        return self._bytes[begin : begin + head.plain_bytes]

    def publish(self, head: Head) -> bool:
        """The body is in its slot: let the subtask see it. True: the writer thread must look."""
        rows = head.meta
        if head.kind == Kind.JUMBO:
            self._jumbo_have += head.plain_bytes
            rows = 1 if self._jumbo_have == self._jumbo_total else 0
            if rows:
                self._jumbo_total = self._jumbo_have = 0
        self._states[self._slot] = USED
        self._filled += 1
        self._bytes_taken += head.plain_bytes
        if rows:
            self._rows += rows
            self._words[self._rows_sent_at] = self._rows
        return self._publish(head, self._slot)

    def signal(self, head: Head) -> bool:
        """A WATERMARK, IDLE, BARRIER or END. True: the writer thread must look."""
        self._expect_room()
        if self._jumbo_total:
            raise ProtocolError(f"channel {self.number}: a signal between the parts of a large row")
        return self._publish(head, 0)

    def _expect_room(self) -> None:
        if self._head - self._words[self._tail_at] >= DESCRIPTOR_COUNT:
            raise ProtocolError(
                f"channel {self.number}: a message without a credit; {DESCRIPTOR_COUNT} are unread"
            )

    def _check_chunk(self, head: Head) -> None:
        if not self._jumbo_total:
            if not head.plain_bytes <= head.meta <= JUMBO_BYTES_MAX:
                raise ProtocolError(f"channel {self.number}: a row of {head.meta:,} bytes")
            self._jumbo_total = head.meta
        left = self._jumbo_total - self._jumbo_have
        if head.meta != self._jumbo_total or head.plain_bytes > left:
            raise ProtocolError(f"channel {self.number}: the parts of a large row do not add up")

    def _publish(self, head: Head, slot: int) -> bool:
        words = self._words
        at = self._descriptors_at + DESCRIPTOR_WORDS * (self._head & (DESCRIPTOR_COUNT - 1))
        words[at] = head.kind << KIND_SHIFT | slot << SLOT_SHIFT | head.plain_bytes
        words[at + 1] = head.meta
        self._order()
        words[self._head_at] = self._head = self._head + 1
        self._end_seen = head.kind == Kind.END
        self.bell.ring()
        return self._armed == WAITS_FOR_SLOT and self._rings() != WAITS_FOR_SLOT

    # The writer thread ------------------------------------------------------------------------

    def account(self, everything: bool) -> Report | None:
        """What the peer is to be told now, if anything; it counts as told."""
        report = self._report()
        told = self._account.told
        if report == told:
            return None
        if not everything and not self._account.due(report, self._head, self._filled):
            return None
        self._account.told = report
        return report

    def owes(self) -> bool:
        """Whether the peer does not know all yet."""
        return self._report() != self._account.told

    def arm(self) -> bool:
        """Say what the subtask is to ring for. True if that changed: then look again before
        sleeping, since whoever made room before the word was visible did not ring."""
        wanted = self._rings()
        if wanted == self._armed:
            return False
        self._words[self._waiting_at] = self._armed = wanted
        self._full()
        return True

    def _rings(self) -> int:
        return self._account.rings(self._head, self._filled, self._rows)

    def _report(self) -> Report:
        words = self._words
        # Filled before the states: a slot filled in between then counts as in use, never as free.
        filled = self._filled
        freed = filled - self._map_used()
        taken, rows = words[self._tail_at], words[self._rows_taken_at]
        told = self._account.told
        return Report(taken, max(told.freed, freed), rows, words[self._rows_limit_at])

    def _map_used(self) -> int:
        return bytes(self._states).count(USED)

    # Either -----------------------------------------------------------------------------------

    @property
    def ended(self) -> bool:
        """Whether END was the last to come, was read, and the peer has been told so."""
        return self._end_seen and self._account.told.taken == self._head

    @property
    def aborted(self) -> bool:
        """Whether the supervisor has ended the channel."""
        return self._words[self._abort_at] != 0

    @property
    def cut_short(self) -> bool:
        """Whether it has done so before END came: a subtask may leave once it has read that."""
        return self.aborted and not self._end_seen

    def abort(self) -> None:
        """Tell the subtask that nothing more comes."""
        self._segment.abort(self._region)
        self.bell.ring()

    @property
    def received_bytes(self) -> int:
        """Bytes of messages, as they are in the slots."""
        return self._bytes_taken
