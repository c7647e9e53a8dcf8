"""One channel driven from one thread: what the laws of testing/channel.py share.

This works because neither end may block. Between steps it follows the law of the doorbell (scan,
drain, scan once more, wait), so a channel that forgets to ring fails by patience, never by a hang.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import pyarrow as pa

from penstock.elements.clock import SystemClock
from penstock.elements.signals import Kind
from penstock.runtime.channel import Message, Receiver, Sender

PATIENCE_S = 20.0
"""A channel that has neither delivered nor rung for so long has lost something."""
SLOTS = 4
SLOT_BYTES = 64 * 1024

NUMBERS = pa.schema([("n", pa.int64())])
"""One int64 column: what most laws send."""


class Bell(Protocol):
    """What an end's owner sleeps on; penstock.runtime.doorbell.Doorbell is one."""

    def drain(self) -> None: ...

    def wait(self, timeout_s: float) -> bool: ...


@dataclass
class ChannelEnds:
    """One open channel. `abort` does what the supervisor does; `close` is the end of a law."""

    sender: Sender
    receiver: Receiver
    sender_bell: Bell
    receiver_bell: Bell
    abort: Callable[[], None]
    close: Callable[[], None]
    settle: Callable[[], None] = lambda: None
    """Returns once what either end has said so far has reached the other."""


MakeChannel = Callable[[pa.Schema, int, int], ChannelEnds]
"""(schema, slots, bytes of a slot) -> a fresh channel of about that capacity."""

Offer: TypeAlias = "pa.RecordBatch | tuple[Kind, int]"


class Drive:
    """Both ends of a fresh channel in one thread; a context manager that closes it."""

    def __init__(self, make: MakeChannel, schema: pa.Schema, slots: int = SLOTS) -> None:
        self.ends = make(schema, slots, SLOT_BYTES)
        self._clock = SystemClock()

    def __enter__(self) -> Drive:
        return self

    def __exit__(self, *_: object) -> None:
        self.ends.close()

    def offer(self, *offered: Offer) -> None:
        """Offer batches and signals in this order."""
        for each in offered:
            if isinstance(each, tuple):
                self.ends.sender.offer_signal(*each)
            else:
                self.ends.sender.offer(each)

    def _until(self, done: Callable[[], bool], bell: Bell, what: str) -> None:
        """The doorbell's law: scan, drain, scan once more, and only then wait."""
        end_ns = self._clock.monotonic_ns() + int(PATIENCE_S * 1e9)
        while not done():
            bell.drain()
            if done():
                return
            assert bell.wait(PATIENCE_S) or done(), f"nobody rang: {what}"
            assert self._clock.monotonic_ns() < end_ns or done(), f"too many rings in vain: {what}"

    def fill(self, make_batch: Callable[[], pa.RecordBatch]) -> int:
        """Offer until the channel is full; how many batches it took, the waiting one included."""
        for count in range(1, 100_000):
            self.offer(make_batch())
            if not self.ends.sender.flush():
                return count
        raise AssertionError("a channel that is never full holds nobody back")

    def receive(self) -> Message:
        """The next message, waiting for it."""
        found: list[Message] = []

        def poll() -> bool:
            self.ends.sender.flush()
            message = self.ends.receiver.poll()
            if message is not None:
                found.append(message)
            return bool(found)

        self._until(poll, self.ends.receiver_bell, "the reader waits for a message")
        return found[0]

    def wait_flushed(self) -> None:
        """Flush all, waiting for room."""
        self._until(self.ends.sender.flush, self.ends.sender_bell, "the sender waits for room")

    def next(self) -> Message:
        """The next message, flushing what stands before it."""
        self.ends.sender.flush()
        message = self.ends.receiver.poll()
        return self.receive() if message is None else message

    def until_end(self) -> list[Message]:
        """Offer END, then all messages up to it, with their memory held."""
        self.offer((Kind.END, 0))
        received: list[Message] = []
        while (message := self.next()).kind is not Kind.END:
            received.append(message)
        return received


def numbers(first: int, rows: int) -> pa.RecordBatch:
    """`rows` rows of NUMBERS that count up from `first`."""
    return pa.record_batch([pa.array(np.arange(first, first + rows))], schema=NUMBERS)


def batches(messages: list[Message]) -> list[pa.RecordBatch]:
    """The batches among messages."""
    return [message.batch for message in messages if message.batch is not None]


def values(messages: list[Message]) -> list[int]:
    """The numbers of all batches among messages."""
    return [n for batch in batches(messages) for n in batch.column(0).to_pylist()]
