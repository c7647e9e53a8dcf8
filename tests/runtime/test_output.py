"""The order of rows, watermarks and barriers on an output channel (hazard 7)."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from penstock.elements.signals import Kind
from penstock.runtime.channel import ChannelStatistics
from penstock.runtime.output import NEVER_NS, SHARE_MIN, OutputChannel, Outputs


class RecordingSender:
    """Remembers what was offered; `room` says whether flush succeeds."""

    def __init__(self) -> None:
        self.offered: list[Any] = []
        self.unread = 0
        self.room = True
        self.unread_limit = 0
        self.trimmed = 0

    def trim(self) -> int:
        self.trimmed += 1
        return 0

    def offer(self, batch: pa.RecordBatch) -> None:
        self.offered.append(batch.column(0).to_pylist())

    def offer_signal(self, kind: Kind, value: int = 0) -> None:
        self.offered.append((kind.name, value))

    def flush(self) -> bool:
        return self.room

    def statistics(self) -> ChannelStatistics:
        return ChannelStatistics(len(self.offered), 0, 0, 0, 0, self.unread)


def rows(*numbers: int) -> pa.RecordBatch:
    return pa.record_batch({"n": list(numbers)})


def channel(batch_rows: int = 4) -> tuple[OutputChannel, RecordingSender]:
    sender = RecordingSender()
    return OutputChannel(sender, batch_rows, linger_ns=1000), sender


def test_small_batches_are_gathered_up_to_the_target() -> None:
    output, sender = channel()
    output.add(rows(1, 2), 0)
    output.add(rows(3), 0)
    assert sender.offered == []
    output.add(rows(4, 5), 0)
    assert sender.offered == [[1, 2, 3, 4, 5]]


def test_a_watermark_waits_behind_gathered_rows_and_the_latest_wins() -> None:
    output, sender = channel()
    output.add(rows(1), 0)
    output.watermark(10, 0)
    output.watermark(20, 0)
    assert sender.offered == []
    output.release()
    assert sender.offered == [[1], ("WATERMARK", 20)]


def test_a_watermark_with_nothing_gathered_leaves_at_once_and_only_once() -> None:
    output, sender = channel()
    output.watermark(10, 0)
    output.watermark(10, 0)
    assert sender.offered == [("WATERMARK", 10)]


def test_a_barrier_pushes_out_rows_then_the_watermark_and_repeats_the_watermark() -> None:
    output, sender = channel()
    output.watermark(5, 0)
    output.add(rows(1), 0)
    output.watermark(10, 0)
    output.signal(Kind.BARRIER, 7)
    assert sender.offered == [
        ("WATERMARK", 5),
        [1],
        ("WATERMARK", 10),
        ("WATERMARK", 10),
        ("BARRIER", 7),
    ]


def test_end_and_idle_never_overtake_rows() -> None:
    for kind in (Kind.END, Kind.IDLE):
        output, sender = channel()
        output.add(rows(1), 0)
        output.signal(kind, 0)
        assert sender.offered == [[1], (kind.name, 0)]


def test_rows_leave_when_the_linger_is_over() -> None:
    output, sender = channel()
    outputs = Outputs([output])
    output.add(rows(1), 500)
    assert outputs.next_deadline_ns() == 1500
    outputs.release_due(1499)
    assert sender.offered == []
    outputs.release_due(1500)
    assert sender.offered == [[1]]
    assert outputs.next_deadline_ns() == NEVER_NS


def test_an_idle_reader_is_not_kept_waiting_and_a_busy_one_is() -> None:
    output, sender = channel()
    outputs = Outputs([output])
    output.add(rows(1), 0)
    sender.unread = 3
    outputs.release_idle()
    assert sender.offered == []
    sender.unread = 0
    outputs.release_idle()
    assert sender.offered == [[1]]


def test_one_full_channel_makes_the_subtask_wait() -> None:
    (first, full), (second, _) = channel(), channel()
    full.room = False
    assert not Outputs([first, second]).flush()


def test_no_more_is_gathered_than_a_slow_reader_can_have_before_it() -> None:
    output, sender = channel(batch_rows=100)
    sender.unread_limit = 4
    output.add(rows(1), 0)
    assert sender.offered == []
    output.add(rows(2), 0)
    assert sender.offered == [[1, 2]]
    assert Outputs([output]).slice_rows(100) == 4
    assert Outputs([output]).slice_rows(3) == 3


def test_rows_that_come_to_little_may_be_many_though_the_reader_is_slow() -> None:
    output, sender = channel(batch_rows=100)
    outputs = Outputs([output])
    sender.unread_limit = 8
    for _ in range(40):
        output.add(rows(1), 0)
        outputs.measured(1000)
    assert outputs.slice_rows(1000) == 8 / SHARE_MIN
    output.add(rows(*range(10)), 0)
    outputs.measured(10)
    assert outputs.slice_rows(1000) == 8  # at once, since more may follow


def test_an_idle_channel_gives_its_memory_back_and_a_busy_one_does_not() -> None:
    output, sender = channel()
    outputs = Outputs([output])
    outputs.trim_idle()
    output.watermark(1, 0)
    outputs.trim_idle()
    assert sender.trimmed == 0
    outputs.trim_idle()
    assert sender.trimmed == 1
