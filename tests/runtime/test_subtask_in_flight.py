"""The loop of a subtask whose operator has rows in flight: what waits for them, and what not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import test_subtask
from test_subtask import SCHEMA, Driven, Sum, barrier, rows

from penstock.elements.signals import BarrierFlag, Kind, barrier_word
from penstock.operators.processor import ProcessorContext
from penstock.runtime.channel import Message
from penstock.runtime.messages import InputEnded, TriggerCheckpoint


class Slow(Sum):
    """Rows come back when the test lets them; watermarks go on behind them."""

    holds_watermarks = True

    def open(self, ctx: ProcessorContext) -> None:
        super().open(ctx)
        self.flying: list[Any] = []
        self.full = False

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        self.flying.append(pa.record_batch([batch["n"].to_pylist()], schema=SCHEMA))

    def on_watermark(self, watermark: int) -> None:
        if watermark < 2**63 - 1:
            self.flying.append(watermark)

    def on_end(self) -> None:
        self.ended = True

    def busy(self) -> bool:
        return bool(self.flying)

    def saturated(self) -> bool:
        return self.full

    def land(self) -> None:
        """From another thread in real life."""
        self._ctx.wake()

    def on_processing_time(self, now_ns: int) -> None:
        flying, self.flying = self.flying, []
        for item in flying:
            if isinstance(item, int):
                self._ctx.forward_watermark(item)
            else:
                self._ctx.collect(item)


@pytest.fixture
def driven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Driven:
    monkeypatch.setattr(test_subtask, "Sum", Slow)
    return Driven(tmp_path)


def land(driven: Driven) -> None:
    assert isinstance(driven.processor, Slow)
    driven.processor.land()
    driven.settle()


def watermark(value: int) -> Message:
    return Message(Kind.WATERMARK, value)


def test_a_watermark_goes_on_behind_the_rows_before_it(driven: Driven) -> None:
    driven.give(0, rows(1), watermark(50))
    driven.give(1, watermark(50), rows(2))
    assert driven.target.sent == []
    land(driven)
    driven.settle()
    assert driven.target.sent == [[1], (Kind.WATERMARK, 50), [2]]


def test_a_barrier_does_not_wait_for_rows_in_flight(driven: Driven) -> None:
    driven.give(0, rows(1), barrier(1))
    driven.give(1, barrier(1))
    assert driven.target.sent[-1] == (Kind.BARRIER, barrier_word(1, BarrierFlag.NONE))
    assert driven.acknowledged().checkpoint_id == 1
    land(driven)
    assert driven.target.sent[-1] == [1]


def test_the_end_waits_for_rows_in_flight_and_a_checkpoint_does_not(driven: Driven) -> None:
    driven.give(0, rows(1), Message(Kind.END))
    driven.give(1, Message(Kind.END))
    assert driven.processor.ended
    assert (Kind.END, 0) not in driven.target.sent
    driven.link.commands.append(TriggerCheckpoint(3, int(BarrierFlag.NONE)))
    driven.settle()
    acknowledged = driven.acknowledged()
    assert (acknowledged.checkpoint_id, acknowledged.finished) == (3, False)
    assert not [e for e in driven.link.events if isinstance(e, InputEnded)]
    land(driven)
    assert driven.target.sent[-2:] == [[1], (Kind.END, 0)]
    assert driven.link.last(InputEnded) == InputEnded()


def test_silence_is_passed_on_when_nothing_is_in_flight(driven: Driven) -> None:
    driven.give(0, rows(1), Message(Kind.IDLE))
    driven.give(1, Message(Kind.IDLE))
    assert (Kind.IDLE, 0) not in driven.target.sent
    land(driven)
    assert driven.target.sent[-2:] == [[1], (Kind.IDLE, 0)]


def test_silence_that_is_over_before_the_rows_are_back_is_not_passed_on(driven: Driven) -> None:
    driven.give(0, rows(1), Message(Kind.IDLE))
    driven.give(1, Message(Kind.IDLE))
    driven.give(0, rows(2))
    land(driven)
    assert (Kind.IDLE, 0) not in driven.target.sent


def test_inputs_are_left_unread_while_an_operator_wants_no_more(driven: Driven) -> None:
    assert isinstance(driven.processor, Slow)
    driven.processor.full = True
    driven.give(0, rows(1))
    assert len(driven.inputs[0].messages) == 1
    driven.processor.full = False
    land(driven)
    assert not driven.inputs[0].messages
