"""What leaves a subtask: rows are routed, gathered per channel, and sent in order with signals.

The order of hazard 7, per channel: rows never overtake rows; BARRIER, END and IDLE push out the
gathered rows and then the pending watermark first; a WATERMARK waits behind gathered rows (latest
wins) and leaves with them, at the latest after the linger. Before a BARRIER each channel gets the
latest watermark, unless it was told IDLE since: that must outlast the barrier, or an old watermark
would hold everybody back again. Nothing is gathered at a cut, by construction.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from penstock.elements.signals import WATERMARK_MIN, Kind

from .channel import Sender
from .partition import Router

NEVER_NS = 2**63 - 1
SHARE_KEPT = 0.9
"""Of a channel's share of rows after a slice with a smaller one: it falls slowly, rises at once."""
SHARE_MIN = 1 / 16
"""Rows that were folded or left out so far may all come next time."""


class OutputChannel:
    """One sender with its gathering buffer."""

    __slots__ = ("_batch_rows", "_deadline_ns", "_held", "_idle", "_linger_ns", "_rows", "_sender",
                 "_sent", "_sent_before", "_share", "_watermark", "added")  # fmt: skip

    def __init__(self, sender: Sender, batch_rows: int, linger_ns: int) -> None:
        self._sender = sender
        self._batch_rows = batch_rows
        self._linger_ns = linger_ns
        self._held: list[pa.RecordBatch] = []
        self._rows = 0
        self._watermark = WATERMARK_MIN
        self._sent = WATERMARK_MIN
        self._idle = False
        self._sent_before = -1
        self._deadline_ns = NEVER_NS
        self._share = 1.0
        self.added = 0
        """Rows since the last slice was measured."""

    def add(self, batch: pa.RecordBatch, now_ns: int) -> None:
        """Gather rows; a full buffer is offered to the sender."""
        self.added += batch.num_rows
        target = self._target_rows()
        if not self._held and batch.num_rows >= target:
            self._sender.offer(batch)
            self._offer_watermark()
            return
        if not self._held:
            self._deadline_ns = now_ns + self._linger_ns
        self._held.append(batch)
        self._rows += batch.num_rows
        if self._rows >= target:
            self.release()

    def _target_rows(self) -> int:
        """What is gathered stands before the next barrier as much as what lies unread does."""
        limit = self._sender.unread_limit
        return min(self._batch_rows, max(1, limit // 2)) if limit else self._batch_rows

    def measured(self, rows: int) -> None:
        """A slice of `rows` is done: the share of it that came this way is remembered."""
        share = self.added / rows
        self.added = 0
        self._share = min(1.0, max(share, self._share * SHARE_KEPT, SHARE_MIN))

    def slice_rows(self, rows: int) -> int:
        """How many of `rows` to work on, if what comes of them must fit the reader's limit."""
        limit = self._sender.unread_limit
        return min(rows, max(1, int(limit / self._share))) if limit else rows

    def watermark(self, watermark: int, now_ns: int) -> None:
        """Hold behind gathered rows, or send."""
        self._watermark = watermark
        if not self._held:
            self._offer_watermark()

    def release(self) -> None:
        """Offer what is gathered, then the watermark that waited behind it."""
        if self._held:
            held, self._held, self._rows = self._held, [], 0
            self._deadline_ns = NEVER_NS
            self._sender.offer(held[0] if len(held) == 1 else pa.concat_batches(held))
        self._offer_watermark()

    def signal(self, kind: Kind, value: int) -> None:
        """BARRIER, END or IDLE: behind all rows and the latest watermark."""
        self.release()
        if kind is Kind.BARRIER and not self._idle:
            self.repeat_watermark()
        self._idle = self._idle or kind is Kind.IDLE
        self._sender.offer_signal(kind, value)

    def repeat_watermark(self) -> None:
        """Send the present watermark again, behind gathered rows: it ends an IDLE.

        For that it is sent even if there is none yet: the least one says "active", no more.
        """
        self.release()
        if self._idle or self._watermark != WATERMARK_MIN:
            self._idle = False
            self._sender.offer_signal(Kind.WATERMARK, self._watermark)

    def wake(self) -> None:
        """Rows leave on this edge: the reader must count on this subtask, rows or not."""
        if self._idle:
            self.repeat_watermark()

    def _offer_watermark(self) -> None:
        if self._watermark > self._sent:
            self._sent = self._watermark
            self._idle = False
            self._sender.offer_signal(Kind.WATERMARK, self._watermark)

    @property
    def deadline_ns(self) -> int:
        """When the linger ends; NEVER_NS when nothing is gathered."""
        return self._deadline_ns

    @property
    def reader_is_idle(self) -> bool:
        """The other end has read everything: waiting would only add latency."""
        return self._sender.statistics().queued_rows == 0

    def trim_if_idle(self) -> None:
        """Give slots back if nothing was sent since the last call."""
        sent = self._sender.statistics().messages
        if sent == self._sent_before:
            self._sender.trim()
        self._sent_before = sent

    def flush(self) -> bool:
        """Publish what was offered; False when the channel is full."""
        return self._sender.flush()


class Output:
    """An edge seen from one producing subtask: a router and its channels by target index."""

    def __init__(self, router: Router, channels: Sequence[OutputChannel]) -> None:
        self._router = router
        self._channels = channels

    def send(self, batch: pa.RecordBatch, now_ns: int) -> None:
        """Route rows to the channels; those without rows learn that an idle time is over."""
        for channel in self._channels:
            channel.wake()
        for target, rows in self._router(batch):
            self._channels[target].add(rows, now_ns)


class Outputs:
    """All channels of a subtask, for signals, lingers and back-pressure."""

    def __init__(self, channels: Sequence[OutputChannel]) -> None:
        self._channels = channels

    def watermark(self, watermark: int, now_ns: int) -> None:
        """Send or hold a watermark on every channel."""
        for channel in self._channels:
            channel.watermark(watermark, now_ns)

    def repeat_watermark(self) -> None:
        """Tell every reader that this subtask is active again."""
        for channel in self._channels:
            channel.repeat_watermark()

    def signal(self, kind: Kind, value: int = 0) -> None:
        """Send BARRIER, END or IDLE on every channel."""
        for channel in self._channels:
            channel.signal(kind, value)

    def slice_rows(self, rows: int) -> int:
        """How many of `rows` to work on before looking at the channels again (hazard 8).

        A batch that is far larger than what a slow reader lets lie unread would stand between it
        and the next barrier.
        """
        for channel in self._channels:
            rows = channel.slice_rows(rows)
        return rows

    def measured(self, rows: int) -> None:
        """A slice of `rows` is done."""
        for channel in self._channels:
            channel.measured(max(1, rows))

    def flush(self) -> bool:
        """Publish on every channel; False while any channel is full."""
        published = True
        for channel in self._channels:
            published = channel.flush() and published
        return published

    def release_due(self, now_ns: int) -> None:
        """Offer rows whose linger has ended."""
        for channel in self._channels:
            if channel.deadline_ns <= now_ns:
                channel.release()

    def release_idle(self) -> None:
        """With nothing else to do, do not keep an idle reader waiting (linger 0, row 60)."""
        for channel in self._channels:
            if channel.deadline_ns != NEVER_NS and channel.reader_is_idle:
                channel.release()

    def trim_idle(self) -> None:
        """For channels that were idle since the last call; once in a while, not in each turn."""
        for channel in self._channels:
            channel.trim_if_idle()

    def next_deadline_ns(self) -> int:
        """The earliest end of a linger."""
        return min((c.deadline_ns for c in self._channels), default=NEVER_NS)
