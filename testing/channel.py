"""The laws of a channel, for every implementation of Sender and Receiver.

`check_channel(make)` runs them all; CHANNEL_LAWS names them one by one, for pytest's parametrize.
The contract is penstock.runtime.channel; a maker opens one fresh channel per call.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pyarrow as pa

from penstock.elements.errors import ChannelAborted
from penstock.elements.signals import WATERMARK_MAX, WATERMARK_MIN, Kind
from penstock.elements.wire import wire_schema
from penstock.runtime.channel import Message

from .batches import NESTED, SIMPLE, random_batch, random_kinds, rows_of
from .channel_drive import (
    NUMBERS,
    PATIENCE_S,
    SLOT_BYTES,
    SLOTS,
    ChannelEnds,
    Drive,
    MakeChannel,
    batches,
    numbers,
    values,
)

__all__ = ["CHANNEL_LAWS", "ChannelEnds", "MakeChannel", "check_channel"]


def check_channel(make: MakeChannel) -> None:
    """Hold a channel to every law; raises AssertionError at the first that is broken."""
    for law in CHANNEL_LAWS:
        law(make)


# Order ----------------------------------------------------------------------------------------


def order_is_kept_among_rows_and_signals(make: MakeChannel) -> None:
    """Whatever the sizes and wherever flushes fall, the reader sees what was offered, in order."""
    for seed in range(12):
        _check_schedule(make, seed)


class _Story:
    """What passed, however it was cut: barriers, and how many rows had passed by then."""

    def __init__(self) -> None:
        self.rows = 0
        self.barriers: list[tuple[int, int]] = []

    def barrier(self, number: int) -> None:
        self.barriers.append((self.rows, number))


def _check_schedule(make: MakeChannel, seed: int) -> None:
    """One random schedule: offers of all kinds, polls in between, some views held for a while."""
    r = Random(seed)
    offered, got = _Story(), _Story()
    held: list[pa.RecordBatch] = []

    def note(message: Message) -> None:
        if message.batch is None:
            got.barrier(message.value)
            return
        batch = message.batch
        assert batch.equals(numbers(got.rows, batch.num_rows)), f"seed {seed}"
        got.rows += batch.num_rows
        held.append(batch)
        if len(held) > r.randint(0, 6):
            del held[: r.randint(1, len(held))]

    with Drive(make, NUMBERS, r.randint(2, 6)) as drive:
        for step in range(200):
            choice = r.random()
            if choice < 0.5:
                rows = r.choice((0, 1, 10, 3000, 30_000))
                drive.offer(numbers(offered.rows, rows))
                offered.rows += rows
            elif choice < 0.6:
                drive.offer((Kind.BARRIER, step + 1))
                offered.barrier(step + 1)
            elif choice < 0.7:
                drive.ends.receiver.limit_rows(r.choice((1, 500, 100_000)))
            drive.ends.sender.flush()
            message = drive.ends.receiver.poll() if r.random() < 0.6 else None
            if message is not None:
                note(message)
        drive.ends.receiver.limit_rows(1_000_000)
        drive.offer((Kind.END, 0))
        while (message := drive.next()).kind is not Kind.END:
            note(message)
    assert (got.rows, got.barriers) == (offered.rows, offered.barriers), f"seed {seed}"


def watermarks_merge_while_they_wait(make: MakeChannel) -> None:
    """Latest wins among those that wait behind the same rows; none overtakes rows."""
    with Drive(make, NUMBERS) as drive:
        drive.fill(lambda: numbers(0, 5000))
        for watermark in range(1000):
            drive.offer((Kind.WATERMARK, watermark))
        drive.offer(numbers(0, 1), (Kind.WATERMARK, 2000))
        end = [(m.kind, m.value) for m in drive.until_end()][-4:]
        assert end == [
            (Kind.BATCH, 0),
            (Kind.WATERMARK, 999),
            (Kind.BATCH, 0),
            (Kind.WATERMARK, 2000),
        ]


def watermarks_do_not_merge_across_a_barrier(make: MakeChannel) -> None:
    """The watermark before a cut belongs to the cut; likewise what IDLE separates."""
    offered = [
        (Kind.WATERMARK, 1),
        (Kind.BARRIER, 9),
        (Kind.WATERMARK, 2),
        (Kind.IDLE, 0),
        (Kind.WATERMARK, 3),
    ]
    with Drive(make, NUMBERS) as drive:
        drive.offer(*offered)
        assert [(m.kind, m.value) for m in drive.until_end()] == offered


def signals_keep_their_values(make: MakeChannel) -> None:
    """Watermarks are signed; a barrier's word uses all its 64 bits."""
    offered = [(Kind.WATERMARK, w) for w in (WATERMARK_MIN, -1, 0, 1, WATERMARK_MAX)]
    offered += [(Kind.BARRIER, b) for b in (1, (1 << 48) - 1, 1 << 63 | 5, (1 << 64) - 1)]
    with Drive(make, NUMBERS) as drive:
        for signal in offered:
            drive.offer(signal)
            drive.wait_flushed()
            received = drive.receive()
            assert (received.kind, received.value) == signal


# Rows -----------------------------------------------------------------------------------------


def every_type_arrives_unchanged(make: MakeChannel) -> None:
    """Each Arrow type, with nulls, cut out of a longer batch; views and dictionaries plain."""
    for seed, kind in enumerate([*SIMPLE, *NESTED]):
        _check_batch(make, random_batch(seed, 5, [kind]))
    for seed in range(25):
        _check_batch(make, random_batch(seed, seed % 9, random_kinds(seed, seed % 5)))


def _check_batch(make: MakeChannel, batch: pa.RecordBatch) -> None:
    with Drive(make, batch.schema) as drive:
        drive.offer(batch)
        arrived = batches(drive.until_end())
        assert [rows_of(b) for b in arrived] == [rows_of(batch)]
        arrived[0].validate(full=True)
        assert arrived[0].schema == wire_schema(batch.schema)


def empty_and_zero_column_batches_keep_their_row_count(make: MakeChannel) -> None:
    """A count(*) after pruning reads rows without columns (hazard 44)."""
    nothing = pa.RecordBatch.from_struct_array(pa.array([{}] * 7, pa.struct([])))
    with Drive(make, nothing.schema) as drive:
        drive.offer(nothing, nothing.slice(0, 0), nothing.slice(2, 3))
        assert [b.num_rows for b in batches(drive.until_end())] == [7, 0, 3]


def what_is_larger_than_a_slot_arrives_whole(make: MakeChannel) -> None:
    """Large batches in parts, in order; a huge row as one row."""
    schema = pa.schema([("n", pa.int64()), ("text", pa.utf8())])
    sizes = [10, 3 * SLOT_BYTES, 0, SLOTS * SLOT_BYTES * 3, 5, 100, SLOT_BYTES - 400, SLOT_BYTES]
    texts = [chr(ord("a") + i) * size for i, size in enumerate(sizes)]
    huge = pa.record_batch([pa.array(range(len(sizes))), pa.array(texts)], schema=schema)
    words = [str(n) * 5 for n in range(20_000)]
    many = pa.record_batch([pa.array(range(20_000)), pa.array(words)], schema=schema)
    with Drive(make, schema) as drive:
        drive.offer(huge, (Kind.WATERMARK, 3), many, huge)
        received = drive.until_end()
        arrived = pa.Table.from_batches(batches(received))
        assert arrived.equals(pa.Table.from_batches([huge, many, huge]))
        before = [m.kind for m in received].index(Kind.WATERMARK)
        assert sum(b.num_rows for b in batches(received[:before])) == huge.num_rows


def memory_stays_valid_as_long_as_any_view(make: MakeChannel) -> None:
    """A reader may keep every message: none changes, and the channel does not stop for it."""
    count, rows = 60, 3000
    with Drive(make, NUMBERS) as drive:
        drive.offer(*[numbers(rows * i, rows) for i in range(count)])
        kept = drive.until_end()
        assert values(kept) == list(range(rows * count))
        views = [batch.column(0).slice(5, 2) for batch in batches(kept)]
        kept.clear()
        drive.offer(*[numbers(-rows, rows) for _ in range(count)])
        drive.until_end()
        assert [v.to_pylist() for v in views] == [[n, n + 1] for n in range(5, rows * count, rows)]


# Room -----------------------------------------------------------------------------------------


def a_full_channel_holds_its_sender_and_no_one_else(make: MakeChannel) -> None:
    """flush says no instead of blocking; other channels go on; reading wakes the sender."""
    with Drive(make, NUMBERS) as full, Drive(make, NUMBERS) as other:
        count = full.fill(lambda: numbers(0, 5000))
        assert count >= 2
        other.offer(numbers(7, 1))
        other.wait_flushed()
        assert values([other.receive()]) == [7]
        rows = 0
        while True:
            full.ends.sender_bell.drain()
            if full.ends.sender.flush():
                break
            while (message := full.ends.receiver.poll()) is not None:
                rows += sum(b.num_rows for b in batches([message]))
                del message
            assert full.ends.sender_bell.wait(PATIENCE_S), "reading must ring a waiting sender"
        rows += len(values(full.until_end()))
        assert rows == 5000 * count


def signals_alone_fill_a_channel_too(make: MakeChannel) -> None:
    """Every queue has an end: barriers that nobody reads hold their sender."""
    with Drive(make, NUMBERS) as drive:
        offered = 0
        while True:
            offered += 1
            assert offered < 1_000_000
            drive.offer((Kind.BARRIER, offered))
            if not drive.ends.sender.flush():
                break
        assert [m.value for m in drive.until_end()] == list(range(1, offered + 1))


def rows_limit_holds_back_all_but_that_many(make: MakeChannel) -> None:
    """At most so many rows lie unread (hazard 8), and with any limit rows still pass."""
    for limit, offered in ((1, 40), (10, 300), (4096, 9000)):
        with Drive(make, NUMBERS) as drive:
            drive.ends.receiver.limit_rows(limit)
            drive.ends.settle()
            third = offered // 3 + 1
            drive.offer(*[numbers(third * i, third) for i in range(3)], (Kind.END, 0))
            got: list[int] = []
            while (message := drive.next()).kind is not Kind.END:
                got += values([message])
                del message
                drive.ends.settle()
                drive.ends.sender.flush()
                drive.ends.settle()
                assert drive.ends.receiver.statistics().queued_rows <= limit
            assert got == list(range(3 * third))


def lifting_the_limit_wakes_the_sender(make: MakeChannel) -> None:
    """A sender knows the limit, and when it waits for it hears that it was raised."""
    with Drive(make, NUMBERS) as drive:
        assert drive.ends.sender.unread_limit == 0
        drive.ends.receiver.limit_rows(10)
        drive.ends.settle()
        assert drive.ends.sender.unread_limit == 10
        drive.offer(numbers(0, 1000))
        assert not drive.ends.sender.flush()
        drive.ends.sender_bell.drain()
        assert not drive.ends.sender.flush()
        drive.ends.receiver.limit_rows(5000)
        drive.wait_flushed()
        assert values(drive.until_end()) == list(range(1000))


def reading_wakes_a_sender_that_waits_for_it(make: MakeChannel) -> None:
    """Whatever it waits for: room for signals, or that unread rows become fewer than the limit."""
    with Drive(make, NUMBERS) as drive:
        for barrier in range(1, 1_000_000):
            drive.offer((Kind.BARRIER, barrier))
            if not drive.ends.sender.flush():
                break
        _read_until_rung(drive)
    with Drive(make, NUMBERS) as drive:
        drive.ends.receiver.limit_rows(10)
        drive.ends.settle()
        drive.offer(numbers(0, 25))
        _read_until_rung(drive)


def _read_until_rung(drive: Drive) -> None:
    assert not drive.ends.sender.flush()
    drive.ends.sender_bell.drain()
    assert not drive.ends.sender.flush()
    while drive.ends.receiver.poll() is not None:
        pass
    assert drive.ends.sender_bell.wait(PATIENCE_S), "reading must ring a waiting sender"


def queued_rows_counts_what_was_not_taken(make: MakeChannel) -> None:
    """The sender's own queue included; none once the reader has taken all."""
    with Drive(make, NUMBERS) as drive:
        drive.offer(*[numbers(0, 5000) for _ in range(20)])
        drive.ends.sender.flush()
        assert drive.ends.sender.statistics().queued_rows == 100_000
        drive.until_end()
        drive.ends.settle()
        drive.ends.sender.flush()
        assert drive.ends.sender.statistics().queued_rows == 0
        assert drive.ends.sender.statistics().rows == 100_000
        assert drive.ends.receiver.statistics().rows == 100_000


# The end --------------------------------------------------------------------------------------


def both_ends_raise_after_an_abort(make: MakeChannel) -> None:
    """With messages waiting, with nothing to send, and ever after."""
    with Drive(make, NUMBERS) as drive:
        drive.offer(numbers(0, 10))
        drive.ends.sender.flush()
        drive.ends.abort()
        for call in (drive.ends.sender.flush, drive.ends.receiver.poll) * 2:
            try:
                call()
            except ChannelAborted:
                continue
            raise AssertionError(f"{call} did not raise ChannelAborted")


CHANNEL_LAWS: tuple[Callable[[MakeChannel], None], ...] = (
    order_is_kept_among_rows_and_signals,
    watermarks_merge_while_they_wait,
    watermarks_do_not_merge_across_a_barrier,
    signals_keep_their_values,
    every_type_arrives_unchanged,
    empty_and_zero_column_batches_keep_their_row_count,
    what_is_larger_than_a_slot_arrives_whole,
    memory_stays_valid_as_long_as_any_view,
    a_full_channel_holds_its_sender_and_no_one_else,
    signals_alone_fill_a_channel_too,
    rows_limit_holds_back_all_but_that_many,
    lifting_the_limit_wakes_the_sender,
    reading_wakes_a_sender_that_waits_for_it,
    queued_rows_counts_what_was_not_taken,
    both_ends_raise_after_an_abort,
)
"""Every law; each takes the maker of channels."""
