"""The loop of a subtask, driven turn by turn without a process."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from penstock.dataflow.plan import Edge, OperatorSpec, Plan, Vertex
from penstock.dataflow.settings import JobSettings
from penstock.elements.clock import ManualClock
from penstock.elements.signals import BarrierFlag, Kind, barrier_word
from penstock.operators.processor import MAIN, Processor, ProcessorContext
from penstock.runtime.channel import ChannelStatistics, Message
from penstock.runtime.messages import (
    Acknowledge,
    Commit,
    CommitDone,
    Event,
    InputEnded,
    RunRef,
    Started,
    SubtaskDeployment,
    SubtaskKey,
    TriggerCheckpoint,
)
from penstock.runtime.setup import Inbound, Outbound, SubtaskSetup
from penstock.runtime.subtask import Subtask

SCHEMA = pa.schema([("n", pa.int64())])


class Sum(Processor):
    """Passes rows on, keeps their sum, commits what it sealed."""

    def open(self, ctx: ProcessorContext) -> None:
        self._ctx = ctx
        self._list = ctx.state.operator_list("sum", "list")
        self.total = sum(int(item) for item in self._list.items())
        self.owed: list[int] = []
        self.watermarks: list[int] = []
        self.ended = False

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        self.total += sum(batch["n"].to_pylist())
        self._ctx.collect(batch)

    def on_watermark(self, watermark: int) -> None:
        self.watermarks.append(watermark)

    def on_end(self) -> None:
        self.ended = True
        self._ctx.collect(pa.record_batch([[self.total]], schema=SCHEMA))

    def before_snapshot(self, checkpoint_id: int) -> None:
        self._list.replace([str(self.total).encode()])
        self.owed.append(checkpoint_id)

    def on_commit(self, checkpoint_id: int) -> None:
        self.owed = [n for n in self.owed if n > checkpoint_id]

    def pending_commits(self) -> list[int]:
        return self.owed


class Input:
    """A receiver that a test fills by hand."""

    def __init__(self) -> None:
        self.messages: deque[Message] = deque()

    def poll(self) -> Message | None:
        return self.messages.popleft() if self.messages else None

    def limit_rows(self, rows: int) -> None:
        pass

    def statistics(self) -> ChannelStatistics:
        return ChannelStatistics(0, 0, 0, 0, 0, 0)


class Target:
    """A sender that remembers; `room` is what flush says."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.room = True
        self.unread_limit = 0
        self.trimmed = 0

    def trim(self) -> int:
        self.trimmed += 1
        return 0

    def offer(self, batch: pa.RecordBatch) -> None:
        self.sent.append(batch["n"].to_pylist())

    def offer_signal(self, kind: Kind, value: int = 0) -> None:
        self.sent.append((kind, value))

    def flush(self) -> bool:
        return self.room

    def statistics(self) -> ChannelStatistics:
        return ChannelStatistics(0, 0, 0, 0, 0, 0)


class Link:
    """Both ends of the control link."""

    def __init__(self) -> None:
        self.commands: deque[Any] = deque()
        self.events: list[Event] = []

    def receive(self) -> Any:
        return self.commands.popleft() if self.commands else None

    def send(self, event: Event) -> None:
        self.events.append(event)

    def last(self, kind: type) -> Any:
        return next(e for e in reversed(self.events) if isinstance(e, kind))


class Bell:
    """Rings into the void; a test never sleeps."""

    def ring(self) -> None:
        pass

    def drain(self) -> None:
        pass


class Word:
    """A progress word."""

    def set(self, state: str) -> None:
        pass


class Driven:
    """A middle subtask with two inputs and one output."""

    def __init__(self, root: Path, restored: list[RunRef] | None = None, **settings: Any) -> None:
        self.processor = Sum()
        operator = OperatorSpec("sum", "sum", self.processor, {MAIN: SCHEMA}, stateful=True)
        vertex = Vertex("middle", "sum", (operator,), (), 1)
        ends = [Vertex(name, name, (), (), 1) for name in ("a", "b", "z")]
        into = [Edge(f"{v.id}-m", v.id, 0, MAIN, "middle", 0, "forward", SCHEMA) for v in ends[:2]]
        out = Edge("m-z", "middle", 0, MAIN, "z", 0, "forward", SCHEMA)
        self.inputs = [Input(), Input()]
        self.target, self.link = Target(), Link()
        finished = settings.pop("finished", False)
        commit = settings.pop("commit_up_to", 0)
        deployment = SubtaskDeployment(
            SubtaskKey("middle", 0), "t", restored or [], {}, True, finished, commit
        )
        self.subtask = Subtask(
            SubtaskSetup(
                job="j", generation=1, attempt=1, run_id="r", store_root=str(root),
                settings=JobSettings(batch_rows=1, **settings), deployment=deployment,
                plan=Plan("j", (vertex, *ends), (*into, out)), vertex=vertex,
                receivers=[Inbound(e, 0, i) for e, i in zip(into, self.inputs, strict=True)],
                senders=[Outbound(out, 0, self.target)], doorbell=Bell(),  # type: ignore[arg-type]
                link=self.link, scratch_dir=str(root), progress=Word(),  # type: ignore[arg-type]
                clock=ManualClock(1), pid=1,
            )
        )  # fmt: skip
        self.subtask.open()

    def give(self, channel: int, *messages: Message) -> None:
        self.inputs[channel].messages.extend(messages)
        self.settle()

    def settle(self) -> None:
        while self.subtask.turn():
            pass

    def acknowledged(self) -> Acknowledge:
        """The snapshot thread needs a moment."""
        for _ in range(5000):
            found = [e for e in self.link.events if isinstance(e, Acknowledge)]
            if found:
                return found[-1]
            Driven._pause.wait(0.001)
        raise AssertionError("no acknowledgement")

    import threading

    _pause = threading.Event()


def rows(*numbers: int) -> Message:
    return Message(Kind.BATCH, batch=pa.record_batch([list(numbers)], schema=SCHEMA))


def barrier(checkpoint_id: int) -> Message:
    return Message(Kind.BARRIER, barrier_word(checkpoint_id, BarrierFlag.NONE))


@pytest.fixture
def driven(tmp_path: Path) -> Driven:
    return Driven(tmp_path)


def test_it_starts_by_saying_so(driven: Driven) -> None:
    assert isinstance(driven.link.events[0], Started)


def test_rows_pass_and_the_least_watermark_follows_them(driven: Driven) -> None:
    driven.give(0, rows(1, 2), Message(Kind.WATERMARK, 50))
    driven.give(1, rows(3), Message(Kind.WATERMARK, 40))
    assert driven.target.sent == [[1, 2], [3], (Kind.WATERMARK, 40)]
    assert driven.processor.watermarks == [40]


def test_a_barrier_waits_for_all_inputs_and_cuts_between_before_and_after(driven: Driven) -> None:
    driven.give(0, rows(1), barrier(1), rows(100))
    assert [1] in driven.target.sent
    assert [100] not in driven.target.sent
    driven.give(1, rows(2), barrier(1))
    driven.settle()
    at = driven.target.sent.index((Kind.BARRIER, barrier_word(1, BarrierFlag.NONE)))
    assert driven.target.sent[:at] == [[1], [2]]
    assert driven.target.sent[at + 1 :] == [[100]]
    assert driven.acknowledged().checkpoint_id == 1


def test_a_restored_subtask_goes_on_from_the_cut(driven: Driven, tmp_path: Path) -> None:
    driven.give(0, rows(1), barrier(1), rows(100))
    driven.give(1, rows(2), barrier(1))
    run = driven.acknowledged().run
    assert run is not None
    again = Driven(tmp_path, [run])
    assert again.processor.total == 3


def test_a_commit_is_passed_on_and_answered_once_nothing_is_owed(driven: Driven) -> None:
    driven.give(0, barrier(1))
    driven.give(1, barrier(1))
    assert driven.acknowledged().owes_commit
    driven.link.commands.append(Commit(1))
    driven.settle()
    assert driven.link.last(CommitDone) == CommitDone(1)


def test_end_on_all_inputs_flushes_and_the_subtask_lives_on_for_the_last_checkpoint(
    driven: Driven,
) -> None:
    driven.give(0, rows(1), Message(Kind.END))
    driven.link.commands.append(TriggerCheckpoint(7, int(BarrierFlag.FINAL)))
    driven.settle()
    assert not [e for e in driven.link.events if isinstance(e, InputEnded)]
    driven.give(1, rows(2), Message(Kind.END))
    assert driven.target.sent[-2:] == [[3], (Kind.END, 0)]
    assert driven.link.last(InputEnded) == InputEnded()
    found = driven.acknowledged()
    assert (found.checkpoint_id, found.finished) == (7, True)


def test_a_subtask_that_had_finished_sends_end_again_but_does_not_flush_twice(
    tmp_path: Path,
) -> None:
    again = Driven(tmp_path, finished=True)
    assert again.target.sent == [(Kind.END, 0)]
    assert not again.processor.ended
    assert isinstance(again.link.events[-1], InputEnded)


def test_a_full_output_stops_the_reading_of_inputs_but_not_of_commands(driven: Driven) -> None:
    driven.target.room = False
    driven.inputs[0].messages.append(rows(1))
    driven.subtask.turn()
    assert len(driven.inputs[0].messages) == 1
    driven.link.commands.append(Commit(3))
    assert driven.subtask.turn()
    driven.target.room = True
    driven.settle()
    assert driven.target.sent == [[1]]


def test_idle_inputs_hold_nobody_back_and_a_return_is_announced(driven: Driven) -> None:
    driven.give(0, Message(Kind.IDLE))
    driven.give(1, Message(Kind.WATERMARK, 10), Message(Kind.IDLE))
    assert driven.target.sent == [(Kind.WATERMARK, 10), (Kind.IDLE, 0)]
    driven.give(1, Message(Kind.WATERMARK, 10))
    assert driven.target.sent[-1] == (Kind.WATERMARK, 10)
