"""One connection, many channels: isolation, order, ends and aborts."""

from __future__ import annotations

import threading
from random import Random

import pyarrow as pa
import pytest
from channel_entries import random_rows
from net_pair import PATIENCE_S, Pair, Wire, bell, eventually, numbers

from penstock.elements.errors import ChannelAborted, EngineError
from penstock.elements.signals import Kind
from penstock.runtime.channel import Message
from penstock.runtime.net.credits import Report
from penstock.runtime.slab import DESCRIPTOR_COUNT, HEAD, ROWS_LIMIT, TAIL
from penstock.testing.batches import rows_of


def take(wire: Wire) -> Message:
    """The next message, waiting by the doorbell's law."""
    while True:
        for _ in range(2):
            if (message := wire.receiver.poll()) is not None:
                return message
            wire.reading.drain()
        assert wire.reading.wait(PATIENCE_S)


def take_flushing(wire: Wire) -> Message:
    """The next message, where the thread that waits for it is also the one that sends."""
    found: list[Message] = []

    def step() -> bool:
        wire.sender.flush()
        if (message := wire.receiver.poll()) is not None:
            found.append(message)
        return bool(found)

    eventually(step)
    return found[0]


def flush(wire: Wire) -> None:
    while not wire.sender.flush():
        wire.writing.drain()
        if wire.sender.flush():
            return
        assert wire.writing.wait(PATIENCE_S), "nobody rang the sender"


def test_a_stalled_reader_holds_up_no_other_channel() -> None:
    pair = Pair(4, slots=2)
    stalled, *others = pair.wires
    stalled.sender.offer(numbers(0, 5000))
    stalled.sender.offer(numbers(0, 5000))
    eventually(lambda: stalled.sender.flush() and stalled.at_target(HEAD) == 2)
    while stalled.sender.flush():
        stalled.sender.offer(numbers(0, 5000))
    for i in range(200):
        for wire in others:
            wire.sender.offer(numbers(i * 10, 10))
            flush(wire)
        for wire in others:
            message = take(wire)
            assert message.batch is not None
            assert message.batch.equals(numbers(i * 10, 10))
    assert not stalled.sender.flush()
    assert stalled.at_target(TAIL) == 0
    pair.close()


def test_reading_rings_a_sender_that_waits_on_another_node() -> None:
    """Two subtasks, each with its own bell and nothing else to wake it for 20 s."""
    pair = Pair(slots=2)
    (wire,) = pair.wires
    failed: list[BaseException] = []

    def send() -> None:
        try:
            for i in range(300):
                wire.sender.offer(numbers(i * 6000, 6000))
                flush(wire)
        except BaseException as error:
            failed.append(error)
            raise

    sending = threading.Thread(target=send)
    sending.start()
    for i in range(300):
        message = take(wire)
        assert message.batch is not None
        assert message.batch.equals(numbers(i * 6000, 6000))
        del message
    sending.join(PATIENCE_S)
    assert not failed
    assert wire.sender.statistics().waits > 0
    assert wire.receiver.statistics().copies == 0
    pair.close()


def test_only_the_latest_unsent_watermark_is_kept() -> None:
    pair = Pair()
    (wire,) = pair.wires
    for i in range(DESCRIPTOR_COUNT):
        wire.sender.offer_signal(Kind.BARRIER, i + 1)
        flush(wire)
    eventually(lambda: wire.quiet, pair.near_bell.ring)
    for watermark in range(1, 1001):
        wire.sender.offer_signal(Kind.WATERMARK, watermark)
        flush(wire)
    wire.sender.offer(numbers(0, 5))
    wire.sender.offer_signal(Kind.WATERMARK, 2000)
    flush(wire)
    eventually(lambda: wire.at_source(HEAD) - wire.at_source(TAIL) == 3, pair.near_bell.ring)
    assert [take(wire).value for _ in range(DESCRIPTOR_COUNT)] == list(range(1, 257))
    assert [(m.kind, m.value) for m in (take(wire), take(wire), take(wire))] == [
        (Kind.WATERMARK, 1000),
        (Kind.BATCH, 0),
        (Kind.WATERMARK, 2000),
    ]
    pair.close()


def test_a_sender_without_slots_is_woken_for_several_but_never_left_asleep() -> None:
    """Waking costs as much as sending; what counts is that the last chance is not missed."""
    wire = Wire(0, numbers(0, 1).schema, 8, 65536, one_bell=False)
    wire.attach(bell(), bell())
    for n in range(9):
        wire.sender.offer(numbers(n, 1))
    assert not wire.sender.flush()
    outbound, rung = wire.outbound, wire.writing
    outbound.open(3)

    def leave() -> bool:
        """One more message goes; whether the sender was rung."""
        rung.drain()
        assert outbound.next_frame() is not None
        outbound.release()
        return rung.wait(0)

    assert [leave() for _ in range(3)] == [False, True, False]
    assert outbound.next_frame() is None, "no credit: messages are left, so there is a next time"
    outbound.credit(Report(3, 3, 3, 0))
    assert leave()
    outbound.open(8)
    while outbound.next_frame() is not None:
        pass
    rung.drain()
    outbound.release()
    assert rung.wait(0), "nothing is left to send"
    wire.close()


def test_a_rows_limit_reaches_the_sender_on_the_other_node() -> None:
    pair = Pair()
    (wire,) = pair.wires
    wire.receiver.limit_rows(500)
    eventually(lambda: wire.at_source(ROWS_LIMIT) == 500)
    wire.sender.offer(numbers(0, 8000))
    assert not wire.sender.flush()
    read = 0
    while read < 8000:
        message = take_flushing(wire)
        assert message.batch is not None
        assert message.batch.num_rows <= 500
        assert wire.sender.statistics().queued_rows >= 8000 - read - message.batch.num_rows
        read += message.batch.num_rows
    pair.close()


def test_closing_after_the_end_of_all_data_is_no_loss() -> None:
    pair = Pair(2)
    for wire in pair.wires:
        wire.sender.offer(numbers(0, 10))
        wire.sender.offer_signal(Kind.END)
        flush(wire)
        assert take(wire).kind is Kind.BATCH
        assert take(wire).kind is Kind.END
    eventually(lambda: all(w.outbound.ended and w.inbound.ended for w in pair.wires))
    pair.far.close()
    eventually(lambda: pair.ends == {"a": None, "b": None})
    for wire in pair.wires:
        assert wire.receiver.poll() is None
        assert wire.sender.flush()
    pair.close()


def test_end_of_data_that_was_not_read_yet_is_lost_with_the_connection() -> None:
    pair = Pair()
    (wire,) = pair.wires
    wire.sender.offer_signal(Kind.END)
    flush(wire)
    eventually(lambda: wire.at_target(HEAD) == 1)
    pair.far.close()
    eventually(lambda: set(pair.ends) == {"a", "b"})
    assert all(isinstance(error, EngineError) for error in pair.ends.values())
    with pytest.raises(ChannelAborted):
        wire.sender.flush()
    pair.close()


@pytest.mark.parametrize("side", ["here", "there"])
def test_an_abort_on_one_node_aborts_all_channels_of_the_pair_on_both(side: str) -> None:
    pair = Pair(3)
    first = pair.wires[0]
    if side == "here":
        first.here.abort(0)
        pair.near_bell.ring()
    else:
        first.there.abort(1)
        pair.far_bell.ring()
    eventually(lambda: set(pair.ends) == {"a", "b"})
    for wire in pair.wires:
        assert wire.writing.wait(PATIENCE_S), "an abort rings"
        assert wire.reading.wait(PATIENCE_S), "an abort rings"
        with pytest.raises(ChannelAborted):
            wire.sender.flush()
        with pytest.raises(ChannelAborted):
            wire.receiver.poll()
    pair.close()


@pytest.mark.parametrize("side", ["here", "there"])
def test_a_subtask_that_leaves_after_the_end_takes_no_other_channel_with_it(side: str) -> None:
    """Its agent aborts all channels of a process that is gone, whatever it had done."""
    pair = Pair(2)
    first, second = pair.wires
    first.sender.offer_signal(Kind.END)
    flush(first)
    assert take(first).kind is Kind.END
    if side == "here":
        first.here.abort(0)
        pair.near_bell.ring()
    else:
        first.there.abort(1)
        pair.far_bell.ring()
    for n in range(50):
        second.sender.offer(numbers(n, 1))
        flush(second)
        assert take(second).batch == numbers(n, 1)
    assert not pair.ends
    pair.close()


def test_a_sender_of_another_schema_than_announced_is_found() -> None:
    pair = Pair()
    (wire,) = pair.wires
    wire.outbound.fingerprint += 1
    wire.sender.offer(numbers(0, 1))
    wire.sender.flush()
    eventually(lambda: set(pair.ends) == {"a", "b"})
    assert "writes another schema" in str(pair.ends["a"])
    pair.close()


@pytest.mark.parametrize("compression", ["", "zstd"])
@pytest.mark.parametrize("seed", range(8))
def test_random_types_in_random_slices_arrive_unchanged(seed: int, compression: str) -> None:
    whole, offered = random_rows(seed)
    pair = Pair(3, whole.schema, slots=2, slot_bytes=1 << 20, compression=compression)
    r = Random(seed)
    sent = {wire.number: 0 for wire in pair.wires}
    got: dict[int, list[object]] = {wire.number: [] for wire in pair.wires}
    expected = [rows_of(o) if isinstance(o, pa.RecordBatch) else o for o in offered]
    done = 0
    kept: list[Message] = []
    while done < len(pair.wires):
        for wire in r.sample(pair.wires, len(pair.wires)):
            if sent[wire.number] < len(offered):
                each = offered[sent[wire.number]]
                sent[wire.number] += 1
                if isinstance(each, tuple):
                    wire.sender.offer_signal(*each)
                else:
                    wire.sender.offer(each)
            wire.sender.flush()
            message = wire.receiver.poll()
            if message is None:
                continue
            kept = [*kept[-2:], message]
            if message.batch is not None:
                message.batch.validate(full=True)
                got[wire.number].append(rows_of(message.batch))
            else:
                got[wire.number].append((message.kind, message.value))
                done += message.kind is Kind.END
    assert all(each == expected for each in got.values())
    pair.close()
