"""The checkpoints of one attempt: pure, from trigger to commit (hazards 9, 10, 12, 17).

1. At most one is under way; ids only grow.
2. A barrier starts at every subtask none of whose upstream subtasks is unfinished, also when that
   becomes so while the checkpoint is under way.
3. It is stored once every subtask, finished ones too, has acknowledged; commits are sent only once
   it is in the log, are cumulative, and are owed until the subtask has reported them done.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from penstock.elements.signals import BarrierFlag

from .messages import (
    AbortCheckpoint,
    Acknowledge,
    Command,
    Commit,
    SubtaskKey,
    TriggerCheckpoint,
)


@dataclass(frozen=True)
class Send:
    """Say something to one subtask."""

    key: SubtaskKey
    command: Command


@dataclass(frozen=True)
class StoreCheckpoint:
    """Verify the runs, write the manifest, append the log entry; then on_stored or on_refused."""

    checkpoint_id: int
    flags: BarrierFlag
    acknowledged: dict[SubtaskKey, Acknowledge]


@dataclass(frozen=True)
class CheckpointFailed:
    """It was given up; `in_a_row` counts those since the last complete one."""

    checkpoint_id: int
    flags: BarrierFlag
    reason: str
    in_a_row: int


Action = Send | StoreCheckpoint | CheckpointFailed


@dataclass
class _Pending:
    checkpoint_id: int
    flags: BarrierFlag
    since_ns: int
    acknowledged: dict[SubtaskKey, Acknowledge] = field(default_factory=dict)
    triggered: set[SubtaskKey] = field(default_factory=set)


@dataclass(frozen=True)
class Owed:
    """Commits that a subtask has not reported as done: staged at cuts `first` to `last`."""

    first: int
    last: int


class Checkpoints:
    """Requires: events of this attempt only; the caller drops all others."""

    def __init__(
        self, upstream: Mapping[SubtaskKey, frozenset[SubtaskKey]], complete: int, last_id: int
    ) -> None:
        """`complete` was restored from (0: none); ids begin above `last_id`."""
        self._upstream = upstream
        self._pending: _Pending | None = None
        self._ended: set[SubtaskKey] = set()
        self.complete = complete
        self.complete_flags = BarrierFlag.NONE
        self.completed = 0
        self.last_id = last_id
        self.failures_in_a_row = 0
        self.owed: dict[SubtaskKey, Owed] = {}

    @property
    def under_way(self) -> int | None:
        """The checkpoint that is not decided yet."""
        return self._pending.checkpoint_id if self._pending else None

    @property
    def since_ns(self) -> int | None:
        """When the one under way was triggered, while acknowledgements are missing."""
        return self._pending.since_ns if self._pending else None

    @property
    def all_ended(self) -> bool:
        """Every subtask has passed END on: the data is at its end."""
        return len(self._ended) == len(self._upstream)

    @property
    def owed_since(self) -> int | None:
        """The oldest cut with a commit that is not reported done."""
        return min((owed.first for owed in self.owed.values()), default=None)

    def missing(self) -> list[SubtaskKey]:
        """Who has not acknowledged the checkpoint under way."""
        if self._pending is None:
            return []
        return [key for key in self._upstream if key not in self._pending.acknowledged]

    def trigger(self, flags: BarrierFlag, now_ns: int) -> list[Action]:
        """Start the next one. Requires: none is under way."""
        assert self._pending is None
        self.last_id += 1
        self._pending = _Pending(self.last_id, flags, now_ns)
        return self._start_barriers()

    def on_ended(self, key: SubtaskKey) -> list[Action]:
        """A subtask has sent END on; barriers may have to start behind it."""
        self._ended.add(key)
        return self._start_barriers()

    def on_acknowledge(self, key: SubtaskKey, ack: Acknowledge) -> list[Action]:
        """Late and repeated ones change nothing."""
        pending = self._pending
        if pending is None or ack.checkpoint_id != pending.checkpoint_id:
            return []
        if key in pending.acknowledged or key not in self._upstream:
            return []
        pending.acknowledged[key] = ack
        if len(pending.acknowledged) < len(self._upstream):
            return []
        return [StoreCheckpoint(pending.checkpoint_id, pending.flags, dict(pending.acknowledged))]

    def on_decline(self, key: SubtaskKey, checkpoint_id: int, reason: str) -> list[Action]:
        """One subtask that does not take part is enough."""
        if self._pending is None or checkpoint_id != self._pending.checkpoint_id:
            return []
        if key in self._pending.acknowledged:
            return []
        return self._give_up(f"{key} declined: {reason}")

    def on_timeout(self) -> list[Action]:
        """The one under way takes too long."""
        missing = self.missing()
        shown = ", ".join(str(key) for key in missing[:5])
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        return self._give_up(f"timed out waiting for {shown}{more}")

    def on_refused(self, checkpoint_id: int, reason: str) -> list[Action]:
        """It could not be stored, and certainly is not in the log."""
        assert self.under_way == checkpoint_id
        return self._give_up(reason)

    def on_stored(self, checkpoint_id: int) -> list[Action]:
        """It is in the log: it counts, for ever. Commit what it covers."""
        pending = self._pending
        assert pending is not None
        assert pending.checkpoint_id == checkpoint_id
        assert len(pending.acknowledged) == len(self._upstream)
        self._pending = None
        self.complete, self.complete_flags = checkpoint_id, pending.flags
        self.completed += 1
        self.failures_in_a_row = 0
        for key, ack in pending.acknowledged.items():
            if ack.owes_commit:
                first = self.owed[key].first if key in self.owed else checkpoint_id
                self.owed[key] = Owed(first, checkpoint_id)
        # Everyone is told, since the completed cut is what users see as the epoch.
        return [Send(key, Commit(checkpoint_id)) for key in self._upstream]

    def on_commit_done(self, key: SubtaskKey, checkpoint_id: int) -> list[Action]:
        """All that the subtask had staged at cuts up to this one is published."""
        owed = self.owed.get(key)
        if owed is not None and checkpoint_id >= owed.last:
            del self.owed[key]
        elif owed is not None and checkpoint_id >= owed.first:
            self.owed[key] = Owed(checkpoint_id + 1, owed.last)
        return []

    def repeat_commits(self) -> list[Action]:
        """Say it again to those who owe: a message or a try may have been lost (hazard 12)."""
        return [Send(key, Commit(self.complete)) for key in self.owed]

    def _start_barriers(self) -> list[Action]:
        pending = self._pending
        if pending is None:
            return []
        command = TriggerCheckpoint(pending.checkpoint_id, int(pending.flags))
        actions: list[Action] = []
        for key, upstream in self._upstream.items():
            if key in pending.triggered or key in pending.acknowledged:
                continue
            if upstream <= self._ended:
                pending.triggered.add(key)
                actions.append(Send(key, command))
        return actions

    def _give_up(self, reason: str) -> list[Action]:
        pending = self._pending
        assert pending is not None
        self._pending = None
        self.failures_in_a_row += 1
        abort = AbortCheckpoint(pending.checkpoint_id)
        failed = CheckpointFailed(
            pending.checkpoint_id, pending.flags, reason, self.failures_in_a_row
        )
        return [*(Send(key, abort) for key in self._upstream), failed]
