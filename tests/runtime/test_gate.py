"""The gate: fair turns, gathered rows, blocked channels left alone."""

from __future__ import annotations

from collections import deque

import pyarrow as pa

from penstock.elements.signals import Kind
from penstock.runtime.channel import ChannelStatistics, Message
from penstock.runtime.gate import Gate


class Scripted:
    """A receiver that gives what it was told to."""

    def __init__(self, *messages: Message) -> None:
        self.messages = deque(messages)
        self.limit = 0

    def poll(self) -> Message | None:
        return self.messages.popleft() if self.messages else None

    def limit_rows(self, rows: int) -> None:
        self.limit = rows

    def statistics(self) -> ChannelStatistics:
        return ChannelStatistics(0, 0, 0, 0, 0, 0)


def batch(*numbers: int) -> Message:
    return Message(Kind.BATCH, batch=pa.record_batch({"n": list(numbers)}))


def taken(gate: Gate) -> list[object]:
    found: list[object] = []
    while (item := gate.take()) is not None:
        channel, message = item
        what = message.kind.name if message.batch is None else message.batch["n"].to_pylist()
        found.append((channel, what))
    return found


def test_rows_waiting_on_one_channel_are_handed_over_together_up_to_a_signal() -> None:
    gate = Gate([Scripted(batch(1), batch(2), Message(Kind.BARRIER, 1), batch(3))], [0])
    assert taken(gate) == [(0, [1, 2]), (0, "BARRIER"), (0, [3])]


def test_channels_take_turns() -> None:
    gate = Gate(
        [
            Scripted(Message(Kind.WATERMARK, 1), Message(Kind.WATERMARK, 2)),
            Scripted(Message(Kind.WATERMARK, 1), Message(Kind.WATERMARK, 2)),
        ],
        [0, 1],
    )
    assert [channel for channel, _ in taken(gate)] == [0, 1, 0, 1]  # type: ignore[misc]


def test_a_blocked_channel_is_not_read_until_it_is_unblocked() -> None:
    first = Scripted(batch(1))
    gate = Gate([first, Scripted(batch(2))], [0, 0])
    gate.block(0)
    assert taken(gate) == [(1, [2])]
    assert len(first.messages) == 1
    gate.unblock(0)
    assert taken(gate) == [(0, [1])]


def test_a_signal_found_while_gathering_is_kept_even_if_the_channel_gets_blocked() -> None:
    gate = Gate([Scripted(batch(1), Message(Kind.BARRIER, 9))], [0])
    assert gate.take() is not None
    gate.block(0)
    assert gate.take() is None
    gate.unblock(0)
    assert taken(gate) == [(0, "BARRIER")]


def test_the_limit_of_waiting_rows_is_shared_among_channels_and_bounds_gathering() -> None:
    receivers = [Scripted(batch(1), batch(2), batch(3)), Scripted()]
    gate = Gate(receivers, [0, 0])
    gate.limit_rows(8)
    assert [r.limit for r in receivers] == [4, 4]
    assert taken(gate) == [(0, [1, 2]), (0, [3])]
