"""The slab channel keeps the laws of channels, and some of its own."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from itertools import count

import pyarrow as pa
import pytest

from penstock.elements.errors import EngineError, ProtocolError
from penstock.elements.signals import Kind
from penstock.runtime.doorbell import Doorbell, doorbell_name
from penstock.runtime.fence import full_fence, no_fence, order_fence
from penstock.runtime.segment import Segment
from penstock.runtime.slab import RegionSize
from penstock.runtime.slab_receiver import SlabReceiver
from penstock.runtime.slab_sender import SlabSender
from penstock.testing.channel import CHANNEL_LAWS, ChannelEnds, MakeChannel, check_channel

NUMBERS = pa.schema([("n", pa.int64())])
_ordinals = count()


def bell() -> Doorbell:
    made = Doorbell.create(doorbell_name(0, next(_ordinals)))
    made.unlink()
    return made


class Slab:
    """A channel whose ends have mapped the same memory twice, as two processes do."""

    def __init__(
        self,
        schema: pa.Schema = NUMBERS,
        slots: int = 4,
        slot_bytes: int = 65536,
        fenced: bool = False,
    ) -> None:
        # The channel under test lies between two others.
        sizes = [RegionSize(2, 4096), RegionSize(slots, slot_bytes), RegionSize(2, 4096)]
        self.segment = Segment.create(sizes)
        self.reading, self.writing = bell(), bell()
        here, there = (Segment.attach(os.dup(self.segment.fd)) for _ in range(2))
        fence = full_fence() if fenced else None
        self.sender = SlabSender(here, 1, schema, self.reading, self.writing, fence)
        self.receiver = SlabReceiver(there, 1, schema, self.reading, self.writing, fence)

    def ends(self) -> ChannelEnds:
        return ChannelEnds(
            self.sender,
            self.receiver,
            self.writing,
            self.reading,
            abort=lambda: self.segment.abort(1),
            close=self.segment.close,
        )


def maker(fenced: bool) -> MakeChannel:
    return lambda schema, slots, slot_bytes: Slab(schema, slots, slot_bytes, fenced).ends()


def numbers(first: int, rows: int) -> pa.RecordBatch:
    return pa.record_batch([pa.array(range(first, first + rows), pa.int64())], schema=NUMBERS)


@pytest.mark.parametrize("law", CHANNEL_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("fenced", [False, True], ids=["ordered-machine", "weak-machine"])
def test_a_slab_channel_keeps_the_law(law: Callable[[MakeChannel], None], fenced: bool) -> None:
    law(maker(fenced))


def test_check_channel_finds_a_channel_that_breaks_a_law() -> None:
    class Forgetful(SlabSender):
        def offer(self, batch: pa.RecordBatch) -> None:
            if batch.num_rows != 10:
                super().offer(batch)

    def make(schema: pa.Schema, slots: int, slot_bytes: int) -> ChannelEnds:
        slab = Slab(schema, slots, slot_bytes)
        slab.sender.__class__ = Forgetful
        return slab.ends()

    with pytest.raises(AssertionError, match="seed 0"):
        check_channel(make)


def test_a_reader_that_keeps_nothing_copies_nothing() -> None:
    slab = Slab(slots=8)
    for i in range(500):
        slab.sender.offer(numbers(i, 4000))
    last = None
    while not slab.sender.flush():
        while (message := slab.receiver.poll()) is not None:
            assert message.batch is not None
            last = message.batch.column(0)[3999].as_py()
            del message
    assert slab.receiver.statistics().copies == 0
    assert last is not None
    assert slab.sender.statistics().waits > 10, "the run was not saturated"


def test_messages_are_copied_only_while_half_of_the_slots_are_held() -> None:
    slab = Slab(slots=8)
    for i in range(8):
        slab.sender.offer(numbers(i, 100))
    assert slab.sender.flush()
    kept = [slab.receiver.poll() for _ in range(8)]
    assert slab.receiver.held_slots == 4
    assert slab.receiver.statistics().copies == 4
    kept.clear()
    assert slab.receiver.held_slots == 0
    slab.sender.offer(numbers(0, 100))
    slab.sender.flush()
    assert slab.receiver.poll() is not None
    assert slab.receiver.statistics().copies == 4


def test_slots_are_free_in_the_order_in_which_views_die() -> None:
    slab = Slab(slots=8)
    for i in range(3):
        slab.sender.offer(numbers(i, 10))
    slab.sender.flush()
    first, second, third = (slab.receiver.poll() for _ in range(3))
    assert second
    assert second.batch
    view = second.batch.column(0).to_numpy()
    assert slab.receiver.held_slots == 3
    del third, first
    assert slab.receiver.held_slots == 1
    del second
    assert slab.receiver.held_slots == 1, "a NumPy view is a view as well"
    assert view[0] == 1
    del view
    assert slab.receiver.held_slots == 0


def test_a_view_that_dies_in_another_thread_wakes_a_waiting_sender() -> None:
    slab = Slab(slots=2)
    slab.sender.offer(numbers(0, 10))
    slab.sender.flush()
    held = [slab.receiver.poll()]
    for i in range(3):
        slab.sender.offer(numbers(i, 10))
    assert not slab.sender.flush()
    slab.writing.drain()
    before = slab.sender.statistics().messages
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join()
    assert slab.writing.wait(20)
    slab.sender.flush()
    assert slab.sender.statistics().messages == before + 1


def test_nobody_rings_a_sender_that_does_not_wait() -> None:
    slab = Slab(slots=8)
    for i in range(5):
        slab.sender.offer(numbers(i, 10))
        assert slab.sender.flush()
        assert slab.receiver.poll() is not None
    assert not slab.writing.wait(0)
    assert slab.reading.wait(0)


def test_batches_are_cut_to_the_rows_limit_rather_than_held_whole() -> None:
    slab = Slab()
    slab.receiver.limit_rows(500)
    slab.sender.offer(numbers(0, 8000))
    assert not slab.sender.flush()
    assert slab.sender.statistics().rows == 500
    message = slab.receiver.poll()
    assert message
    assert message.batch
    assert message.batch.num_rows == 500


def test_two_ends_that_disagree_on_the_schema_do_not_exchange_rows() -> None:
    slab = Slab()
    other = pa.schema([("m", pa.int64())])
    receiver = SlabReceiver(slab.segment, 1, other, slab.reading, slab.writing)
    slab.sender.offer(numbers(0, 1))
    slab.sender.flush()
    with pytest.raises(ProtocolError, match="disagree on its schema"):
        receiver.poll()


def test_rows_of_another_schema_are_refused_and_leave_no_trace() -> None:
    slab = Slab()
    slab.sender.offer(pa.record_batch({"m": ["x"]}))
    with pytest.raises(ProtocolError, match=r"channel: n: int64\n  rows:    m: string"):
        slab.sender.flush()
    assert slab.receiver.poll() is None


def test_a_schema_too_large_for_its_channel_is_said_at_the_start() -> None:
    wide = pa.schema([(f"column_{i}" * 5, pa.int64()) for i in range(5000)])
    with pytest.raises(EngineError, match="a schema of 5000 columns"):
        Slab(wide)


def test_a_row_too_large_for_any_channel_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.runtime.slab_sender.JUMBO_BYTES_MAX", 100_000)
    text = pa.schema([("text", pa.utf8())])
    slab = Slab(text)
    slab.sender.offer(pa.record_batch([pa.array(["x" * 200_000])], schema=text))
    with pytest.raises(EngineError, match=r"one row takes 200,\d+ bytes.*keep large objects"):
        slab.sender.flush()


def test_only_one_huge_row_is_in_flight() -> None:
    text = pa.schema([("text", pa.utf8())])
    slab = Slab(text, slots=2)
    rows = [chr(97 + i) * 300_000 for i in range(3)]
    slab.sender.offer(pa.record_batch([pa.array(rows)], schema=text))
    got: list[str] = []
    while len(got) < 3:
        slab.sender.flush()
        message = slab.receiver.poll()
        if message is not None:
            assert message.batch is not None
            got += message.batch.column(0).to_pylist()
    assert got == rows
    assert slab.receiver.held_slots == 0


def test_trimming_frees_memory_of_idle_slots_and_harms_no_view() -> None:
    slab = Slab(slots=8, slot_bytes=1 << 20)
    for i in range(8):
        slab.sender.offer(numbers(i, 100_000))
    slab.sender.flush()
    kept = [slab.receiver.poll() for _ in range(4)]
    copied = [slab.receiver.poll() for _ in range(4)]
    resident = os.fstat(slab.segment.fd).st_blocks
    assert slab.sender.trim() == 4
    assert resident - os.fstat(slab.segment.fd).st_blocks >= 4 * 700_000 // 512
    for i, message in enumerate([*kept, *copied]):
        assert message
        assert message.batch
        assert message.batch.equals(numbers(i, 100_000))
    del message
    kept.clear()
    assert slab.sender.trim() == 6
    assert slab.sender.trim() == 0
    for i in range(8):
        slab.sender.offer(numbers(i, 100_000))
    slab.sender.flush()
    again = [slab.receiver.poll() for _ in range(8)]
    assert all(m and m.batch and m.batch.equals(numbers(i, 100_000)) for i, m in enumerate(again))


def test_a_signal_is_no_merge_partner_once_published() -> None:
    slab = Slab()
    for watermark in range(5):
        slab.sender.offer_signal(Kind.WATERMARK, watermark)
        slab.sender.flush()
    assert [m.value for m in iter(slab.receiver.poll, None) if m] == [0, 1, 2, 3, 4]


def test_weak_machines_get_a_fence_and_x86_none() -> None:
    assert order_fence("x86_64") is no_fence
    for machine in ("aarch64", "riscv64", "ppc64le"):
        fence = order_fence(machine)
        assert fence is not no_fence
        for _ in range(3):
            fence()
