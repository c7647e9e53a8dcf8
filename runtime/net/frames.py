"""The head of a frame and what may stand in it (docs/formats/frame.md): pure, no sockets.

A frame is a head of 24 bytes and a body whose size is bounded by its kind. Heads are numbered per
connection and direction, so a frame that is lost, repeated or torn is noticed at the next head.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

from penstock.elements.errors import ProtocolError
from penstock.elements.signals import Kind
from penstock.runtime.slab import SLOT_BYTES_MAX

PROTOCOL_VERSION = 1
HEAD = struct.Struct("<IIIHBBQ")
"""Bytes on the wire, bytes once plain, sequence, channel, kind, flags, meta."""
HEAD_BYTES = HEAD.size
SEQUENCE_MASK = (1 << 32) - 1
CHANNEL_MAX = (1 << 16) - 1
"""Channels of one connection and direction are numbered up to this."""
COMPRESSED = 1
"""The only flag: the body is compressed as the two ends agreed in HELLO."""
HELLO_BYTES_MAX = 16 * 1024 * 1024
"""65,536 channels with their fingerprints take about 3 MB."""
REFUSAL_BYTES_MAX = 4096

_WORD = (1 << 64) - 1


class Control(IntEnum):
    """The kinds that are not descriptors: they cost no credit. Numbers beside Kind's."""

    CREDIT = 16
    HELLO = 17
    REFUSAL = 18


SLOT_KINDS = frozenset({int(Kind.BATCH), int(Kind.JUMBO)})
"""These have a body that goes into a slot, and cost a slot credit beside their descriptor."""
SIGNAL_KINDS = frozenset({int(Kind.WATERMARK), int(Kind.IDLE), int(Kind.BARRIER), int(Kind.END)})

CREDIT = struct.Struct("<HxxxxxxQQQQ")
"""One channel's account: channel; descriptors taken, slots freed, rows taken (all three since the
channel was opened), rows limit. Totals, so that none can be lost or counted twice."""
CREDIT_BYTES_MAX = CREDIT.size * (CHANNEL_MAX + 1)


class Head(NamedTuple):
    """A head that has passed `read_head`: sizes within bounds, kind known, sequence as expected."""

    wire_bytes: int
    plain_bytes: int
    channel: int
    kind: int
    compressed: bool
    meta: int


def write_head(
    wire_bytes: int,
    plain_bytes: int,
    sequence: int,
    channel: int,
    kind: int,
    meta: int,
    flags: int = 0,
) -> bytes:
    """The head's bytes; `meta` may be negative (a watermark)."""
    return HEAD.pack(
        wire_bytes, plain_bytes, sequence & SEQUENCE_MASK, channel, kind, flags, meta & _WORD
    )


def read_head(data: bytes | bytearray | memoryview, sequence: int) -> Head:
    """Check a head before anything is done about it; raises ProtocolError.

    `sequence` is the number the next head must have.
    """
    wire, plain, number, channel, kind, flags, meta = HEAD.unpack(data)
    if number != sequence & SEQUENCE_MASK:
        raise ProtocolError(
            f"a frame has the number {number} where {sequence & SEQUENCE_MASK} was due: "
            "the stream was damaged, or frames were repeated"
        )
    if flags & ~COMPRESSED:
        raise ProtocolError(f"a frame has unknown flags: {flags:#x}")
    if flags and kind not in SLOT_KINDS:
        raise ProtocolError(f"a frame of kind {kind} cannot be compressed")
    if not flags and wire != plain:
        raise ProtocolError(f"a plain frame says {wire:,} and {plain:,} bytes")
    if wire > _bytes_max(kind):
        raise ProtocolError(
            f"a frame of kind {kind} announces {wire:,} bytes, more than {_bytes_max(kind):,}"
        )
    if flags and not 0 < wire < plain <= SLOT_BYTES_MAX:
        raise ProtocolError(f"a compressed frame says {wire:,} bytes for {plain:,}")
    if kind == Control.CREDIT and (wire == 0 or wire % CREDIT.size):
        raise ProtocolError(f"a credit frame has {wire:,} bytes, no multiple of {CREDIT.size}")
    return Head(wire, plain, channel, kind, bool(flags), meta)


def _bytes_max(kind: int) -> int:
    if kind in SLOT_KINDS:
        return SLOT_BYTES_MAX
    if kind in SIGNAL_KINDS:
        return 0
    if kind == Control.CREDIT:
        return CREDIT_BYTES_MAX
    if kind == Control.HELLO:
        return HELLO_BYTES_MAX
    if kind == Control.REFUSAL:
        return REFUSAL_BYTES_MAX
    raise ProtocolError(f"a frame has the unknown kind {kind}")
