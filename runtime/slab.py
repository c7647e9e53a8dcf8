"""The layout of a slab channel in shared memory (docs/formats/slab.md): constants, no behaviour.

A segment is one memfd: a table of regions, then the regions. A region is one channel: words in
cache lines of their own, one state byte per slot, a ring of descriptors, the slots. Every word is
a u64, little endian, 8-byte aligned, written by one side only and by a single store.
"""

from __future__ import annotations

from dataclasses import dataclass

MAGIC = 0x0001_4241_4C53_5350
"""Version 1 in the top 16 bits, then "PSSLAB" read as bytes."""
PAGE_BYTES = 4096
WORD_BYTES = 8

# The segment's table ------------------------------------------------------------------------

TABLE_WORDS = 2
"""Magic, number of regions; then per region three words: offset, slots, bytes of a slot."""
TABLE_REGION_WORDS = 3

# A region's words, by byte offset within the region ------------------------------------------

HEAD = 64
"""Sender: descriptors published, monotone."""
ROWS_SENT = 72
"""Sender: rows published, monotone."""
TAIL = 128
"""Receiver: descriptors taken, monotone."""
ROWS_TAKEN = 136
"""Receiver: rows taken, monotone."""
ROWS_LIMIT = 144
"""Receiver: rows that may lie unread, 0 for any number (hazard 8)."""
WAITING = 192
"""Sender: what it waits for, one of the WAITS_ values."""
ABORT = 256
"""Supervisor: not 0 once the other end is dead or the attempt is cancelled."""
SCHEMA = 320
"""Sender: fingerprint of the schema it writes."""
STATES = 1024
"""A byte per slot: FREE or USED. Only the sender makes it USED, only the receiver FREE."""
DESCRIPTORS = 4096
SLOTS = 8192

FREE = 0
USED = 1

WAITS_FOR_NOTHING = 0
WAITS_FOR_SLOT = 1
"""All slots are used: whoever frees one rings the sender."""
WAITS_FOR_READ = 2
"""The descriptor ring is full or ROWS_LIMIT is reached: whoever takes a message rings."""

DESCRIPTOR_COUNT = 256
"""Messages in flight, at most; a power of two."""
DESCRIPTOR_WORDS = 2
"""w0 = kind << 56 | slot << 32 | bytes; w1 = rows, watermark, barrier word or jumbo's total."""
KIND_SHIFT = 56
SLOT_SHIFT = 32
SLOT_MASK = (1 << (KIND_SHIFT - SLOT_SHIFT)) - 1
SIZE_MASK = (1 << SLOT_SHIFT) - 1

SLOT_COUNT_MIN = 2
"""One slot being filled while the other is read."""
SLOT_COUNT_MAX = DESCRIPTORS - STATES
SLOT_BYTES_MAX = 1 << 30
JUMBO_BYTES_MAX = 2 * 1024**3 - 1
"""One row in Arrow IPC form; the format's own offsets end here."""


@dataclass(frozen=True)
class RegionSize:
    """What one channel takes: `slots` of `slot_bytes` each; whole pages."""

    slots: int
    slot_bytes: int

    def __post_init__(self) -> None:
        assert SLOT_COUNT_MIN <= self.slots <= SLOT_COUNT_MAX
        assert 0 < self.slot_bytes <= SLOT_BYTES_MAX
        assert self.slot_bytes % PAGE_BYTES == 0

    @property
    def total_bytes(self) -> int:
        """Words, states, descriptors and slots."""
        return SLOTS + self.slots * self.slot_bytes


@dataclass(frozen=True)
class Region:
    """Where one channel lies in its segment."""

    offset: int
    size: RegionSize

    def word(self, field: int) -> int:
        """The index of a word among the segment's u64 words."""
        return (self.offset + field) // WORD_BYTES

    def slot_offset(self, slot: int) -> int:
        """Where a slot begins, in bytes from the segment's start."""
        return self.offset + SLOTS + slot * self.size.slot_bytes
