"""What travels on a channel beside rows, and the limits of event time.

Event time is an int64 of nanoseconds since the epoch. A watermark W promises that every later
row on that channel has `_time` > W.
"""

from __future__ import annotations

from enum import IntEnum, IntFlag

TIME_COLUMN = "_time"
"""The reserved column with each row's event time: timestamp[ns, UTC], non-null, last."""

WATERMARK_MIN = -(2**63)
"""No promise yet."""
WATERMARK_MAX = 2**63 - 1
"""No further row of any time: what END implies. Adding lateness to it must saturate."""


class Kind(IntEnum):
    """The kinds of descriptor on a channel; the numbers are part of the wire format."""

    BATCH = 1
    JUMBO = 2
    WATERMARK = 3
    IDLE = 4
    BARRIER = 5
    END = 6
    SCHEMA = 7


class BarrierFlag(IntFlag):
    """Flags in the top 16 bits of a barrier's word; the low 48 bits are the checkpoint id."""

    NONE = 0
    STOP = 1
    SAVEPOINT = 2
    FINAL = 4


CHECKPOINT_ID_BITS = 48


def barrier_word(checkpoint_id: int, flags: BarrierFlag) -> int:
    """The u64 that a barrier carries.

    >>> barrier_flags(barrier_word(7, BarrierFlag.STOP)) == (7, BarrierFlag.STOP)
    True
    """
    assert 0 < checkpoint_id < 1 << CHECKPOINT_ID_BITS
    return int(flags) << CHECKPOINT_ID_BITS | checkpoint_id


def barrier_flags(word: int) -> tuple[int, BarrierFlag]:
    """Checkpoint id and flags of a barrier's word."""
    return word & ((1 << CHECKPOINT_ID_BITS) - 1), BarrierFlag(word >> CHECKPOINT_ID_BITS)


class InputStatus(IntEnum):
    """The status of one input: any row or watermark makes it ACTIVE again, except after END."""

    ACTIVE = 0
    IDLE = 1
    ENDED = 2
