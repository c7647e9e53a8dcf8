"""Connections for simulations: ordered both ways while they live, and then cut, late, or mute.

As TCP does it: what was sent before a cut may or may not arrive, nothing arrives after what was
lost, and each end learns of the cut at its own time, or, where packets vanish, never.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field


@dataclass
class Stream:
    """One direction. `ended` and nothing left: the receiver has been told of the end."""

    items: deque[bytes] = field(default_factory=deque)
    ended: bool = False
    mute: bool = False
    """Packets vanish: neither messages nor the end get through any more."""
    told: bool = False

    def send(self, body: bytes) -> None:
        """Queue it, if anybody can still get it."""
        if not (self.ended or self.mute):
            self.items.append(body)

    @property
    def news(self) -> bool:
        """There is something to receive."""
        return bool(self.items) or (self.ended and not self.mute and not self.told)

    def receive(self) -> bytes | None:
        """The next message, or None for the end. Requires: there is news."""
        if self.items:
            return self.items.popleft()
        self.told = True
        return None


class SimulatedLink:
    """One connection of a node agent to the controller; also what Coordination holds of it."""

    def __init__(self, rng: random.Random, node: str) -> None:
        self._rng = rng
        self.peer = node
        self.up, self.down = Stream(), Stream()

    def send(self, body: bytes) -> None:
        """From the controller to the node."""
        self.down.send(body)

    def cut(self, reason: str) -> None:
        """The end, by whichever side; what is under way may be lost from some point on."""
        del reason
        for stream in (self.up, self.down):
            if not stream.ended:
                stream.ended = True
                for _ in range(self._rng.randrange(len(stream.items) + 1)):
                    stream.items.pop()

    def close(self, reason: str) -> None:
        """The controller ends it after what it has said."""
        del reason
        self.down.ended = self.up.ended = True

    def silence(self) -> None:
        """From now on packets vanish, one way or both."""
        which = self._rng.randrange(3)
        self.up.mute = self.up.mute or which != 0
        self.down.mute = self.down.mute or which != 1
