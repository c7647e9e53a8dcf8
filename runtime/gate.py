"""All inputs of a subtask as one: round robin, small messages gathered, aligned inputs skipped.

A channel that alignment has blocked is not read; what lies in it stays there. Rows that wait on
one channel are handed over together, up to a target, so that small messages cost little (R2).
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from penstock.elements.signals import Kind

from .channel import Message, Receiver

GATHERED_ROWS = 8 * 1024
"""Rows handed over together, at most, unless one message has more."""
SMALL_ROWS = 2 * 1024
"""A larger message goes on alone: joining copies it, which costs more than a call of the chain."""
GATHERED_MESSAGES = 64
"""Messages read from one channel before the next has its turn."""


class Gate:
    """Inputs by index; each has the port of the head operator that it feeds."""

    def __init__(self, receivers: Sequence[Receiver], ports: Sequence[int]) -> None:
        self._receivers = list(receivers)
        self._ports = list(ports)
        self._kept: list[Message | None] = [None] * len(receivers)
        self._blocked = [False] * len(receivers)
        self._ended = [False] * len(receivers)
        self._turn = 0
        self._gathered_rows = GATHERED_ROWS

    def __len__(self) -> int:
        return len(self._receivers)

    def port(self, channel: int) -> int:
        """The head operator's input that this channel feeds."""
        return self._ports[channel]

    def block(self, channel: int) -> None:
        """Alignment waits for other channels: read no more from this one."""
        self._blocked[channel] = True

    def unblock(self, channel: int) -> None:
        """Read again; the loop scans anew, so no token is needed (hazard 1)."""
        self._blocked[channel] = False

    def limit_rows(self, rows: int) -> None:
        """Share `rows` of unread input among the channels (hazard 8), and gather less than that."""
        self._gathered_rows = max(1, min(GATHERED_ROWS, rows // 4))
        share = max(1, rows // max(1, len(self._receivers)))
        for receiver in self._receivers:
            receiver.limit_rows(share)

    def take(self) -> tuple[int, Message] | None:
        """The next message of an eligible channel and the channel's index; None: all are empty."""
        count = len(self._receivers)
        for step in range(count):
            channel = (self._turn + step) % count
            if self._blocked[channel] or self._ended[channel]:
                continue
            message = self._poll(channel)
            if message is None:
                continue
            self._turn = (channel + 1) % count
            if message.kind is Kind.BATCH:
                message = self._gather(channel, message)
            elif message.kind is Kind.END:
                self._ended[channel] = True
            return channel, message
        return None

    def _poll(self, channel: int) -> Message | None:
        kept = self._kept[channel]
        if kept is not None:
            self._kept[channel] = None
            return kept
        return self._receivers[channel].poll()

    def _gather(self, channel: int, first: Message) -> Message:
        assert first.batch is not None
        rows = first.batch.num_rows
        if rows >= min(SMALL_ROWS, max(2, self._gathered_rows // 4)):
            return first
        batches = [first.batch]
        while rows < self._gathered_rows and len(batches) < GATHERED_MESSAGES:
            message = self._receivers[channel].poll()
            if message is None:
                break
            if message.kind is not Kind.BATCH:
                self._kept[channel] = message
                break
            assert message.batch is not None
            batches.append(message.batch)
            rows += message.batch.num_rows
        if len(batches) == 1:
            return first
        return Message(Kind.BATCH, batch=pa.concat_batches(batches))
