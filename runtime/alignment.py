"""Barrier alignment of one subtask: pure, signals in, commands out (hazards 9, 10).

1. Checkpoint ids only grow; a barrier at or below the last settled id is dropped.
2. A snapshot is taken once every input has delivered the barrier; END delivers every barrier.
3. A newer barrier on any input gives up the older alignment, which is reported as declined.
4. Channels are blocked only between their own barrier and the end of that alignment.
"""

from __future__ import annotations

from dataclasses import dataclass

from penstock.elements.signals import BarrierFlag


@dataclass(frozen=True)
class TakeSnapshot:
    """The cut stands here: seal, forward the barrier, acknowledge."""

    checkpoint_id: int
    flags: BarrierFlag


@dataclass(frozen=True)
class Block:
    """Read no more from this channel until it is unblocked."""

    channel: int


@dataclass(frozen=True)
class Unblock:
    """Read this channel again; the loop must scan it even if no bell rings (hazard 1)."""

    channel: int


@dataclass(frozen=True)
class Declined:
    """Tell the coordinator that this subtask will not take part."""

    checkpoint_id: int
    reason: str


Command = TakeSnapshot | Block | Unblock | Declined


class Alignment:
    """`inputs` channels, numbered from 0; a source has none and is only ever triggered."""

    def __init__(self, inputs: int) -> None:
        self._inputs = inputs
        self._ended: set[int] = set()
        self._delivered: set[int] = set()
        self._aligning: int | None = None
        self._flags = BarrierFlag.NONE
        self._settled = 0

    @property
    def aligning(self) -> int | None:
        """The checkpoint whose barrier some inputs still owe."""
        return self._aligning

    def is_blocked(self, channel: int) -> bool:
        """Whether the channel has delivered a barrier that others still owe."""
        return channel in self._delivered

    def on_barrier(self, channel: int, checkpoint_id: int, flags: BarrierFlag) -> list[Command]:
        """Requires: the channel is neither blocked nor ended."""
        assert 0 <= channel < self._inputs
        assert channel not in self._ended
        assert channel not in self._delivered
        if checkpoint_id <= self._settled:
            return []
        if self._aligning is not None and checkpoint_id < self._aligning:
            return []
        commands = self._give_up_before(checkpoint_id)
        if self._aligning is None:
            self._aligning, self._flags = checkpoint_id, flags
        self._delivered.add(channel)
        if self._complete():
            return commands + self._take(except_channel=channel)
        return [*commands, Block(channel)]

    def on_end(self, channel: int) -> list[Command]:
        """END counts as having delivered every barrier."""
        assert channel not in self._ended
        self._ended.add(channel)
        if self._aligning is not None and self._complete():
            return self._take(except_channel=channel)
        return []

    def on_trigger(self, checkpoint_id: int, flags: BarrierFlag) -> list[Command]:
        """The coordinator starts the barrier here.

        Requires: no unfinished inputs. Those of a subtask that was restored as FINISHED may still
        hold their END.
        """
        if checkpoint_id <= self._settled:
            return []
        assert self._aligning is None
        self._settled = checkpoint_id
        return [TakeSnapshot(checkpoint_id, flags)]

    def on_abort(self, checkpoint_id: int) -> list[Command]:
        """The coordinator gave this checkpoint, and with it all older ones, up."""
        if checkpoint_id <= self._settled:
            return []
        commands: list[Command] = []
        if self._aligning is not None and self._aligning <= checkpoint_id:
            commands = self._unblock_all()
        self._settled = checkpoint_id
        return commands

    def _complete(self) -> bool:
        return len(self._ended | self._delivered) == self._inputs

    def _take(self, except_channel: int) -> list[Command]:
        assert self._aligning is not None
        self._settled = self._aligning
        snapshot = TakeSnapshot(self._aligning, self._flags)
        # The channel that completed the alignment was never blocked.
        self._delivered.discard(except_channel)
        return [snapshot, *self._unblock_all()]

    def _give_up_before(self, checkpoint_id: int) -> list[Command]:
        if self._aligning is None or self._aligning >= checkpoint_id:
            return []
        old = self._aligning
        self._settled = old
        reason = f"superseded by checkpoint {checkpoint_id}"
        return [*self._unblock_all(), Declined(old, reason)]

    def _unblock_all(self) -> list[Command]:
        commands: list[Command] = [Unblock(c) for c in sorted(self._delivered - self._ended)]
        self._delivered.clear()
        self._aligning = None
        return commands
