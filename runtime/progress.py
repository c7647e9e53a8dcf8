"""Combines the event time of a subtask's inputs: pure, signals in, commands out (hazards 5, 23).

1. The watermark is the least over ACTIVE inputs and never regresses.
2. With no ACTIVE input it is held and the subtask is idle; with all ENDED the subtask has ended.
3. After a restore inputs begin ACTIVE without a promise, and the watermark stays at the restored
   value until the least of the inputs passes it.
"""

from __future__ import annotations

from dataclasses import dataclass

from penstock.elements.signals import WATERMARK_MIN, InputStatus


@dataclass(frozen=True)
class Advance:
    """Event time has passed `watermark`.

    `again` repeats the present value after an Idle: nothing fires, but it must be sent on, or
    receivers would go on without waiting for rows that this subtask now holds back.
    """

    watermark: int
    again: bool = False


@dataclass(frozen=True)
class Idle:
    """No input is active for now."""


@dataclass(frozen=True)
class Ended:
    """Every input has ended: flush and send END."""


Command = Advance | Idle | Ended


class Progress:
    """`restored` is the combined watermark at the cut that this subtask was restored from."""

    def __init__(self, inputs: int, restored: int = WATERMARK_MIN) -> None:
        self._status = [InputStatus.ACTIVE] * inputs
        self._watermarks = [WATERMARK_MIN] * inputs
        self._combined = restored
        self._idle = False

    @property
    def watermark(self) -> int:
        """The combined watermark."""
        return self._combined

    @property
    def idle(self) -> bool:
        """Whether Idle was the last word on this subtask's activity."""
        return self._idle

    def status(self, channel: int) -> InputStatus:
        """The status of one input."""
        return self._status[channel]

    def on_watermark(self, channel: int, watermark: int) -> list[Command]:
        """A promise; makes the input active."""
        self._activate(channel)
        self._watermarks[channel] = max(self._watermarks[channel], watermark)
        return self._settle()

    def on_active(self, channel: int) -> list[Command]:
        """Rows have come. Cheap when the input is active already."""
        if self._status[channel] is InputStatus.ACTIVE:
            return []
        self._activate(channel)
        return self._settle()

    def on_idle(self, channel: int) -> list[Command]:
        """Nothing is expected on this input for now: it holds back nobody."""
        assert self._status[channel] is not InputStatus.ENDED
        self._status[channel] = InputStatus.IDLE
        return self._settle()

    def on_end(self, channel: int) -> list[Command]:
        """The input has ended for good."""
        assert self._status[channel] is not InputStatus.ENDED
        self._status[channel] = InputStatus.ENDED
        if all(status is InputStatus.ENDED for status in self._status):
            return [Ended()]
        return self._settle()

    def _activate(self, channel: int) -> None:
        assert self._status[channel] is not InputStatus.ENDED
        self._status[channel] = InputStatus.ACTIVE

    def _settle(self) -> list[Command]:
        active = [
            watermark
            for watermark, status in zip(self._watermarks, self._status, strict=True)
            if status is InputStatus.ACTIVE
        ]
        if not active:
            was_idle, self._idle = self._idle, True
            return [] if was_idle else [Idle()]
        was_idle, self._idle = self._idle, False
        least = min(active)
        if least > self._combined:
            self._combined = least
            return [Advance(least)]
        return [Advance(self._combined, again=True)] if was_idle else []
