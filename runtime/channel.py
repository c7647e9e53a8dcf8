"""What every channel promises: FIFO from one subtask to one other, never blocking its caller.

Sender: `offer` puts rows or a signal behind what was offered before; `flush` publishes as much as
there is room for. A caller that gets False from flush waits on its own doorbell and tries again.
Receiver: `poll` takes the next message or says there is none. Both raise ChannelAborted once the
supervisor has declared the other end dead.

Laws (penstock.testing.channel holds every channel to them): order is kept among rows and signals;
nothing is lost, torn or duplicated; a full channel holds its sender and no one else; a message's
memory stays valid for as long as any view of it lives; watermarks that wait unsent are merged,
latest wins, and never overtake rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

from penstock.elements.signals import Kind


@dataclass(frozen=True, slots=True)
class Message:
    """`value` is the watermark (signed) or the barrier word (unsigned); `batch` for rows only."""

    kind: Kind
    value: int = 0
    batch: pa.RecordBatch | None = None


@dataclass(frozen=True, slots=True)
class ChannelStatistics:
    """Counters since the channel was opened."""

    messages: int
    rows: int
    bytes: int
    copies: int
    waits: int
    queued_rows: int


class Sender(Protocol):
    """The writing end."""

    def offer(self, batch: pa.RecordBatch) -> None:
        """Queue rows; splits what is larger than a slot."""
        ...

    def offer_signal(self, kind: Kind, value: int = 0) -> None:
        """Queue WATERMARK, IDLE, BARRIER or END."""
        ...

    def flush(self) -> bool:
        """Publish what fits and ring the receiver; True when nothing is left queued."""
        ...

    def trim(self) -> int:
        """Give memory that lies idle back to the system; how many slots (hazard 38)."""
        ...

    @property
    def unread_limit(self) -> int:
        """Rows that the receiver lets lie unread, as it said last (hazard 8); 0: any number."""
        ...

    def statistics(self) -> ChannelStatistics: ...


class Receiver(Protocol):
    """The reading end."""

    def poll(self) -> Message | None:
        """The next message, or None when there is none now."""
        ...

    def limit_rows(self, rows: int) -> None:
        """Ask the sender to keep at most `rows` unread (hazard 8); at least one batch passes."""
        ...

    def statistics(self) -> ChannelStatistics: ...
