"""What idle means at barriers, before the first watermark, and for outputs without rows (hazard 5).

An input that is idle must stay so across checkpoints, or its old watermark would hold event time
back for ever; an input that is active again must say so on every channel, also before it has any
watermark, or others would go on without it.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
from test_output import RecordingSender, channel, rows
from test_subtask import Driven

from penstock.elements.signals import WATERMARK_MIN, BarrierFlag, Kind, barrier_word
from penstock.runtime.channel import Message
from penstock.runtime.output import Output, Outputs

IDLE = ("IDLE", 0)


def two_channels() -> tuple[Outputs, Output, list[RecordingSender]]:
    """An edge whose rows all go to the first of two channels."""
    made = [channel(batch_rows=1) for _ in range(2)]
    channels = [one for one, _ in made]

    def router(batch: pa.RecordBatch) -> list[tuple[int, pa.RecordBatch]]:
        return [(0, batch)]

    return Outputs(channels), Output(router, channels), [sender for _, sender in made]


def test_a_barrier_does_not_wake_an_idle_output() -> None:
    output, sender = channel()
    outputs = Outputs([output])
    outputs.watermark(10, 0)
    outputs.signal(Kind.IDLE)
    outputs.signal(Kind.BARRIER, 7)
    assert sender.offered == [("WATERMARK", 10), IDLE, ("BARRIER", 7)]


def test_rows_for_one_channel_wake_every_channel_of_an_idle_output() -> None:
    outputs, edge, (first, second) = two_channels()
    outputs.watermark(10, 0)
    outputs.signal(Kind.IDLE)
    edge.send(rows(1), 0)
    assert first.offered == [("WATERMARK", 10), IDLE, ("WATERMARK", 10), [1]]
    assert second.offered == [("WATERMARK", 10), IDLE, ("WATERMARK", 10)]
    outputs.signal(Kind.BARRIER, 7)
    assert second.offered[-2:] == [("WATERMARK", 10), ("BARRIER", 7)]


def test_an_output_without_a_watermark_wakes_too() -> None:
    outputs, edge, (_, second) = two_channels()
    outputs.signal(Kind.IDLE)
    edge.send(rows(1), 0)
    assert second.offered == [IDLE, ("WATERMARK", WATERMARK_MIN)]


def test_event_time_goes_on_behind_a_checkpoint_although_an_input_is_idle(tmp_path: Path) -> None:
    driven = Driven(tmp_path)
    barrier = Message(Kind.BARRIER, barrier_word(1, BarrierFlag.NONE))
    driven.give(0, Message(Kind.WATERMARK, 10), Message(Kind.IDLE))
    driven.give(1, Message(Kind.WATERMARK, 20))
    driven.give(0, barrier)
    driven.give(1, barrier, Message(Kind.WATERMARK, 30))
    assert driven.processor.watermarks[-1] == 30


def test_a_subtask_whose_inputs_are_all_idle_stays_idle_across_a_checkpoint(tmp_path: Path) -> None:
    driven = Driven(tmp_path)
    word = barrier_word(1, BarrierFlag.NONE)
    for number in (0, 1):
        driven.give(number, Message(Kind.WATERMARK, 10), Message(Kind.IDLE))
    for number in (0, 1):
        driven.give(number, Message(Kind.BARRIER, word))
    assert driven.target.sent[-2:] == [(Kind.IDLE, 0), (Kind.BARRIER, word)]
