"""A subtask for simulations: the real alignment and progress around toy operators.

Sources read their splits, middles count rows, log them and emit one total at the end, sinks stage
rows and publish them at commit. Channels are queues, commands and events are the protocol's own.
A step does one thing; whoever schedules the steps decides the interleaving.
"""

from __future__ import annotations

import pickle
import random
import zlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from penstock.elements.errors import StateError
from penstock.elements.keygroup import owned_groups
from penstock.elements.signals import BarrierFlag
from penstock.runtime.alignment import Alignment, TakeSnapshot
from penstock.runtime.alignment import Command as AlignmentCommand
from penstock.runtime.messages import (
    AbortCheckpoint,
    Acknowledge,
    Command,
    Commit,
    CommitDone,
    Decline,
    Drain,
    Event,
    Failed,
    Failure,
    InputEnded,
    RunRef,
    Started,
    SubtaskDeployment,
    SubtaskKey,
    TriggerCheckpoint,
)
from penstock.runtime.progress import Advance, Ended, Progress
from penstock.state.store import Store

from .simulated_log import SealedNumbers, SimulatedLog

ROW, WATERMARK, BARRIER, END = "row", "watermark", "barrier", "end"
Item = tuple[str, Any]
SPLIT_ROWS = 8
"""Rows of every split; row j of split i is the number 100 i + j, its time is j."""


@dataclass
class Surroundings:
    """What a simulated subtask uses of its world."""

    store: Store
    rng: random.Random
    publish: Callable[[str, int, int, SubtaskKey, list[Any]], None]
    """(run id, checkpoint id staged at, checkpoint id that is complete, sink, rows)."""
    token: Callable[[], str]
    slow_commit: float = 0.0
    inline: float = 0.5


@dataclass
class _Sealed:
    checkpoint_id: int
    body: bytes
    finished: bool
    watermark: int
    seen: dict[str, list[str]]
    owes: bool
    log: SealedNumbers | None


@dataclass
class SimulatedSubtask:
    """One actor of an attempt. `inputs` and `outputs` are shared with its neighbours."""

    key: SubtaskKey
    deployment: SubtaskDeployment
    run_id: str
    inputs: list[deque[Item]]
    outputs: list[deque[Item]]
    around: Surroundings
    commands: deque[Command] = field(default_factory=deque)
    events: deque[Event] = field(default_factory=deque)
    alive: bool = True
    held: bool = False
    """A source that reads nothing for now."""

    def __post_init__(self) -> None:
        self.kind = self.key.vertex
        self._opened = False
        self._ended = self._paused = self._drained = False
        self._deferred: TriggerCheckpoint | None = None
        self._uploads: deque[_Sealed] = deque()
        self._alignment = Alignment(len(self.inputs))
        self._live_inputs = set(range(len(self.inputs)))
        self._state: dict[str, Any] = {"watermark": -(2**63)}
        self._buffer: list[Any] = []

    # Steps ---------------------------------------------------------------------------------------

    def step(self) -> bool:
        """Do one thing; False if there is nothing to do."""
        if not self.alive:
            return False
        if not self._opened:
            self._open()
            return True
        if self._uploads and self.around.rng.random() < 0.3:
            self._upload()
            return True
        if self.commands:
            self._serve(self.commands.popleft())
            return True
        return self._read() or self._poll() or self._upload()

    def fail(self, identity: str) -> None:
        """Its operator raises."""
        self.events.append(Failed(Failure("UserCodeError", f"boom {identity}", "op", identity)))
        self.alive = False

    def _open(self) -> None:
        self._opened = True
        if self.deployment.restored:
            self._state = self._restored()
        if self.kind == "source":
            self._state.setdefault("positions", {})
            for splits in self.deployment.splits.values():
                for split in splits:
                    assert split.id not in self._state["positions"], "a split was dealt twice"
                    self._state["positions"][split.id] = 0
        elif self.kind == "middle":
            self._state.setdefault("count", 0)
            groups = owned_groups(self.key.index, len(self.outputs))  # sinks are as many
            parts, young = self.deployment.restored_parts, self._state.pop("log", [])
            self._log = SimulatedLog(parts, young, groups, self.around.store)
            assert len(self._log.rows) == self._state["count"], "rows of the log were lost"
            assert len(set(self._log.rows)) == len(self._log.rows), "rows of the log came twice"
            self._state.setdefault("flushed", False)
        else:
            self._state.setdefault("pending", {})
        self._progress = Progress(len(self.inputs), self._state["watermark"])
        if self.deployment.commit_up_to:
            self._publish(self.deployment.commit_up_to)
        self.events.append(Started(1))
        if self.deployment.finished:
            self._finish(flush=False)

    def _restored(self) -> dict[str, Any]:
        run = self.deployment.restored[self.key.index]
        body = run.inline or self.around.store.get(run.name)
        assert zlib.crc32(body) == run.crc, "a damaged run was restored"
        state: dict[str, Any] = pickle.loads(body)
        return state

    # Rows and signals ----------------------------------------------------------------------------

    def _read(self) -> bool:
        ready = [
            channel
            for channel in sorted(self._live_inputs)
            if self.inputs[channel] and not self._alignment.is_blocked(channel)
        ]
        if not ready:
            return False
        channel = self.around.rng.choice(ready)
        kind, value = self.inputs[channel].popleft()
        if kind == ROW:
            assert value[1] > self._progress.watermark, "a row behind its watermark"
            self._process(value)
        elif kind == WATERMARK:
            for command in self._progress.on_watermark(channel, value):
                assert isinstance(command, Advance)
                self._send_all((WATERMARK, command.watermark))
        elif kind == BARRIER:
            self._follow(self._alignment.on_barrier(channel, *value))
        else:
            self._live_inputs.discard(channel)
            self._follow(self._alignment.on_end(channel))
            for progress in self._progress.on_end(channel):
                if isinstance(progress, Ended):
                    self._finish(flush=True)
                elif isinstance(progress, Advance):
                    self._send_all((WATERMARK, progress.watermark))
        return True

    def _process(self, row: tuple[int, int]) -> None:
        value, time = row
        if self.kind == "middle":
            self._state["count"] += 1
            self._log.append(value)
            self._route(value, time, (value, self.key.index, self._state["count"]))
        else:
            self._buffer.append(value)

    def _route(self, value: int, time: int, row: Any) -> None:
        self.outputs[value % len(self.outputs)].append((ROW, (row, time)))

    def _send_all(self, item: Item) -> None:
        for output in self.outputs:
            output.append(item)

    def _poll(self) -> bool:
        if self.kind != "source" or self._ended or self._paused or self.held:
            return False
        positions: dict[str, int] = self._state["positions"]
        open_splits = [split for split in sorted(positions) if positions[split] < SPLIT_ROWS]
        if not open_splits or self._drained:
            self._finish(flush=True)
            return True
        # The least position first, so that the promise below is true of all splits.
        split = min(open_splits, key=lambda name: (positions[name], name))
        position = positions[split]
        value = int(split) * 100 + position
        self.outputs[value % len(self.outputs)].append((ROW, (value, position)))
        positions[split] = position + 1
        self._send_all((WATERMARK, min(positions.values()) - 1))
        return True

    def _finish(self, flush: bool) -> None:
        if flush and self.kind == "middle" and not self._state["flushed"]:
            self._state["flushed"] = True
            total = ("total", self.key.index, self._state["count"])
            self._route(self.key.index, 2**62, total)
        self._ended = True
        self._send_all((END, None))
        self.events.append(InputEnded())
        if self._deferred is not None:
            self._serve(self._deferred)

    # Checkpoints ---------------------------------------------------------------------------------

    def _serve(self, command: Command) -> None:
        if isinstance(command, TriggerCheckpoint):
            if self.kind != "source" and not self._ended:
                self._deferred = command
                return
            flags = BarrierFlag(command.flags)
            self._follow(self._alignment.on_trigger(command.checkpoint_id, flags))
        elif isinstance(command, AbortCheckpoint):
            if self.kind == "middle":
                self._log.discard(command.checkpoint_id)
            self._follow(self._alignment.on_abort(command.checkpoint_id))
        elif isinstance(command, Commit):
            if self.kind == "middle":
                self._log.confirm(command.checkpoint_id)
            self._publish(command.checkpoint_id)
        elif isinstance(command, Drain):
            self._drained = True

    def _follow(self, commands: list[AlignmentCommand]) -> None:
        for command in commands:
            if isinstance(command, TakeSnapshot):
                self._snapshot(command.checkpoint_id, command.flags)

    def _snapshot(self, checkpoint_id: int, flags: BarrierFlag) -> None:
        if self.kind == "sink" and self._buffer:
            self._state["pending"][checkpoint_id] = self._buffer
            self._buffer = []
        self._state["watermark"] = self._progress.watermark
        seen = {}
        if self.kind == "source":
            seen["source"] = sorted(self._state["positions"])
        if not self._ended:
            self._send_all((BARRIER, (checkpoint_id, flags)))
        if BarrierFlag.STOP in flags:
            self._paused = True
        owes = bool(self._state.get("pending"))
        log = self._log.seal(checkpoint_id) if self.kind == "middle" else None
        body = pickle.dumps(self._state)
        watermark = self._progress.watermark
        self._uploads.append(_Sealed(checkpoint_id, body, self._ended, watermark, seen, owes, log))

    def _upload(self) -> bool:
        if not self._uploads:
            return False
        sealed = self._uploads.popleft()
        try:
            run = self._stored(sealed)
        except StateError as error:
            self.events.append(Decline(sealed.checkpoint_id, str(error)))
            return True
        self.events.append(
            Acknowledge(
                checkpoint_id=sealed.checkpoint_id,
                run=run,
                finished=sealed.finished,
                watermark=sealed.watermark,
                seen_splits=sealed.seen,
                owes_commit=sealed.owes,
                aligned_ms=0,
                sealed_ms=0,
                bytes=len(sealed.body),
                parts=(sealed.log.parts or []) if sealed.log else [],
            )
        )
        return True

    def _stored(self, sealed: _Sealed) -> RunRef:
        around, body = self.around, sealed.body
        if sealed.log is not None:
            self._log.upload(sealed.log, around.token, around.rng.random() < 0.7)
            if not sealed.log.written:
                body = pickle.dumps(pickle.loads(body) | {"log": sealed.log.young})
        crc = zlib.crc32(body)
        if around.rng.random() < around.inline:
            return RunRef("", len(body), crc, body)
        run = RunRef(f"run/{around.token()}", len(body), crc)
        around.store.put(run.name, body)
        return run

    def _publish(self, checkpoint_id: int) -> None:
        pending: dict[int, list[Any]] = self._state.get("pending", {})
        for owed in sorted(pending):
            if owed <= checkpoint_id and self.around.rng.random() >= self.around.slow_commit:
                rows = pending.pop(owed)
                self.around.publish(self.run_id, owed, checkpoint_id, self.key, rows)
        if not any(owed <= checkpoint_id for owed in pending):
            self.events.append(CommitDone(checkpoint_id))
