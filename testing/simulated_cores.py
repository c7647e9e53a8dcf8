"""Seeded schedules for one pure core at a time: alignment, progress, the log with rival leaders.

Each function runs one schedule, raises AssertionError if an invariant breaks, and returns what
happened, so that a seed can be seen to replay identically.
"""

from __future__ import annotations

import random
from collections import deque

from penstock.elements.errors import Fenced, StateError
from penstock.elements.signals import WATERMARK_MIN, BarrierFlag, InputStatus
from penstock.runtime.alignment import Alignment, Block, Declined, TakeSnapshot, Unblock
from penstock.runtime.log import Checkpointed, History, JobLog, UncertainLog, read_history
from penstock.runtime.progress import Advance, Ended, Idle, Progress

from .store import DroppingStore


class _Gate:
    """Channels with rows, barriers and END, read only where alignment lets them be read."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.count = rng.randrange(1, 5)
        self.alignment = Alignment(self.count)
        self.channels: list[deque[tuple[str, int]]] = []
        self.barrier_at: dict[tuple[int, int], int] = {}
        """Rows in front of the barrier, by channel and checkpoint id."""
        self.rows: list[int] = []
        self.consumed = [0] * self.count
        self.blocked: set[int] = set()
        self.ended: set[int] = set()
        self.taken: list[int] = []
        self.given_up: set[int] = set()
        self.log: list[str] = []
        for channel in range(self.count):
            self.channels.append(self._script(channel))

    def _script(self, channel: int) -> deque[tuple[str, int]]:
        script: deque[tuple[str, int]] = deque()
        rows = 0
        for checkpoint_id in range(1, 7):
            for _ in range(self.rng.randrange(3)):
                script.append(("row", 0))
                rows += 1
            # An upstream that declined a checkpoint never sends its barrier.
            if self.rng.random() < 0.85:
                script.append(("barrier", checkpoint_id))
                self.barrier_at[channel, checkpoint_id] = rows
        script.append(("end", 0))
        self.rows.append(rows)
        return script

    def run(self) -> None:
        while any(self.channels):
            readable = [c for c, s in enumerate(self.channels) if s and c not in self.blocked]
            if not readable or self.rng.random() < 0.05:
                # The coordinator gives up what cannot complete; else a blocked gate would hang.
                aligning = self.alignment.aligning
                assert readable or aligning is not None, "blocked without an alignment"
                if aligning is not None:
                    self.given_up.add(aligning)
                    self._follow(self.alignment.on_abort(aligning))
                continue
            self._read(self.rng.choice(readable))
        assert not self.blocked
        final = self.alignment.on_trigger(7, BarrierFlag.FINAL)
        assert final == [TakeSnapshot(7, BarrierFlag.FINAL)]

    def _read(self, channel: int) -> None:
        assert not self.alignment.is_blocked(channel)
        kind, value = self.channels[channel].popleft()
        if kind == "row":
            self.consumed[channel] += 1
        elif kind == "barrier":
            self._follow(self.alignment.on_barrier(channel, value, BarrierFlag.NONE))
        else:
            self.ended.add(channel)
            self._follow(self.alignment.on_end(channel))

    def _follow(self, commands: list[TakeSnapshot | Block | Unblock | Declined]) -> None:
        for command in commands:
            self.log.append(repr(command))
            if isinstance(command, Block):
                assert command.channel not in self.ended
                self.blocked.add(command.channel)
            elif isinstance(command, Unblock):
                self.blocked.remove(command.channel)
            elif isinstance(command, Declined):
                self.given_up.add(command.checkpoint_id)
            else:
                self._check_cut(command.checkpoint_id)
        assert self.blocked == {c for c in range(self.count) if self.alignment.is_blocked(c)}

    def _check_cut(self, checkpoint_id: int) -> None:
        assert checkpoint_id not in self.given_up, "a snapshot of what was given up"
        assert not self.taken or checkpoint_id > self.taken[-1], "snapshots out of order"
        self.taken.append(checkpoint_id)
        for channel in range(self.count):
            before = self.barrier_at.get((channel, checkpoint_id), self.rows[channel])
            if channel in self.ended:
                before = min(before, self.rows[channel])
                assert self.consumed[channel] == self.rows[channel]
            else:
                assert self.consumed[channel] == before, "rows behind the barrier are in the cut"


def simulate_alignment(seed: int) -> str:
    """One gate whose upstreams decline, end and abort at will."""
    gate = _Gate(random.Random(seed))
    gate.run()
    return "\n".join(gate.log)


def simulate_progress(seed: int) -> str:
    """Random signals against a model that knows only the rule of hazard 5."""
    rng = random.Random(seed)
    inputs = rng.randrange(1, 5)
    restored = rng.choice((WATERMARK_MIN, 20))
    progress = Progress(inputs, restored)
    status = [InputStatus.ACTIVE] * inputs
    promised = [WATERMARK_MIN] * inputs
    expected, told, told_idle = restored, restored, False
    log = []
    while InputStatus.ACTIVE in status or InputStatus.IDLE in status:
        channel = rng.choice([i for i in range(inputs) if status[i] is not InputStatus.ENDED])
        kind = rng.choice(("watermark", "watermark", "watermark", "rows", "idle", "end"))
        if kind == "watermark":
            status[channel] = InputStatus.ACTIVE
            promised[channel] = max(promised[channel], rng.randrange(100))
            commands = progress.on_watermark(channel, promised[channel])
        elif kind == "rows":
            status[channel] = InputStatus.ACTIVE
            commands = progress.on_active(channel)
        elif kind == "idle":
            status[channel] = InputStatus.IDLE
            commands = progress.on_idle(channel)
        elif rng.random() < 0.3:
            status[channel] = InputStatus.ENDED
            commands = progress.on_end(channel)
        else:
            continue
        log.append(f"{kind} {channel} {commands}")
        active = [promised[i] for i in range(inputs) if status[i] is InputStatus.ACTIVE]
        expected = max(expected, min(active, default=WATERMARK_MIN))
        for command in commands:
            if isinstance(command, Advance):
                assert command.watermark >= told, "the watermark regressed"
                assert command.again or command.watermark > told
                told, told_idle = command.watermark, False
            elif isinstance(command, Idle):
                assert not told_idle
                told_idle = True
            else:
                assert isinstance(command, Ended)
                assert all(one is InputStatus.ENDED for one in status)
                return "\n".join(log)
        assert progress.watermark == expected == told
        assert told_idle == (not active), "receivers wait for an idle subtask, or do not wait"
    raise AssertionError("all inputs ended, but Ended was not said")


def simulate_log(seed: int) -> str:
    """Rival leaders, lost replies and power failures over one log."""
    rng = random.Random(seed)
    store = DroppingStore(seed)
    fault = rng.choice((None, "lost", "refused"))
    story: list[str] = []
    counted: list[int] = []
    ids: set[int] = set()

    def before(name: str) -> None:
        if fault == "refused" and rng.random() < 0.3:
            raise StateError("refused")

    def after(name: str) -> None:
        if fault == "lost" and rng.random() < 0.3:
            raise StateError("reply lost")

    store.fail, store.fail_after = before, after
    leaders: list[tuple[JobLog, list[int]]] = []
    for step in range(40):
        if not leaders or rng.random() < 0.1:
            log = JobLog(store, f"writer {step}")
            try:
                takeover = log.take_over("run", _newest)
            except StateError:
                continue
            assert takeover is not None
            assert [entry.id for entry in log.history.line][-len(counted) :] == counted
            leaders.append((log, [log.first_id]))
            story.append(f"takeover {takeover.generation}")
        elif rng.random() < 0.03:
            leaders.clear()
            store.lose_power()
            story.append("power")
        else:
            log, next_id = rng.choice(leaders)
            checkpoint_id, next_id[0] = next_id[0], next_id[0] + 1
            try:
                log.reserve(checkpoint_id)
                assert checkpoint_id not in ids, "an id was triggered twice"
                ids.add(checkpoint_id)
                if rng.random() < 0.7:
                    log.append_checkpoint(1, checkpoint_id, f"chk/{checkpoint_id}", owes=True)
                    assert log is leaders[-1][0], "an old leader completed a checkpoint"
                    counted.append(checkpoint_id)
                    story.append(f"complete {checkpoint_id}")
            except (Fenced, UncertainLog) as error:
                story.append(type(error).__name__)
                leaders = [(one, n) for one, n in leaders if one is not log]
            except StateError:
                story.append("refused")
    store.fail = store.fail_after = lambda name: None
    line = [entry.id for entry in read_history(store).line]
    assert [one for one in line if one in set(counted)] == counted, "history lost a checkpoint"
    assert line == sorted(set(line))
    return "\n".join(story)


def _newest(history: History) -> Checkpointed | None:
    return history.last
