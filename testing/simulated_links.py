"""Connections for simulations: ordered both ways while they live; slow, cut for one side, or mute.

As TCP does it: what was sent before a cut may or may not arrive, nothing arrives after what was
lost, and each end learns of the cut at its own time, or, where packets vanish, never.
"""

from __future__ import annotations

import random
from collections import deque
from typing import Protocol


class Surroundings(Protocol):
    """What links need of their world."""

    rng: random.Random
    now_ns: int


class Stream:
    """One direction. Messages arrive `lag_ns` after they were sent, in order."""

    def __init__(self, world: Surroundings) -> None:
        self._world = world
        self._items: deque[tuple[int, bytes]] = deque()
        self.ended = False
        self.mute = False
        """Packets vanish: neither messages nor the end get through any more."""
        self._told = False
        self.lag_ns = 0

    def send(self, body: bytes) -> None:
        """Queue it, if anybody can still get it."""
        if not (self.ended or self.mute):
            self._items.append((self._world.now_ns + self.lag_ns, body))

    @property
    def due_ns(self) -> int | None:
        """When there is news at the latest; None: nothing is under way."""
        if self._items:
            return self._items[0][0]
        return 0 if self.ended and not self.mute and not self._told else None

    @property
    def news(self) -> bool:
        """There is something to receive."""
        due_ns = self.due_ns
        return due_ns is not None and due_ns <= self._world.now_ns

    def receive(self) -> bytes | None:
        """The next message, or None for the end. Requires: there is news."""
        if self._items:
            return self._items.popleft()[1]
        self._told = True
        return None

    def end(self) -> None:
        """Nothing more is sent, and what is under way may be lost from some point on."""
        if not self.ended:
            self.ended = True
            for _ in range(self._world.rng.randrange(len(self._items) + 1)):
                self._items.pop()


class SimulatedLink:
    """One connection of a node agent to the controller; also what Coordination holds of it."""

    def __init__(self, world: Surroundings, node: str) -> None:
        self._world = world
        self.peer = node
        self.up, self.down = Stream(world), Stream(world)

    def send(self, body: bytes) -> None:
        """From the controller to the node."""
        self.down.send(body)

    def cut(self, reason: str) -> None:
        """The end, by whichever side."""
        del reason
        self.up.end()
        self.down.end()

    def close(self, reason: str) -> None:
        """The controller ends it after what it has said."""
        del reason
        self.down.ended = self.up.ended = True

    def silence(self) -> None:
        """From now on packets vanish, one way or both."""
        which = self._world.rng.randrange(3)
        self.up.mute = self.up.mute or which != 0
        self.down.mute = self.down.mute or which != 1

    def reset(self) -> None:
        """One side is told of an end that the other does not hear of."""
        told, deaf = self._world.rng.sample([self.up, self.down], 2)
        told.end()
        deaf.mute = True

    def slow_down(self, lag_ns: int) -> None:
        """From now on messages take longer, one way or both."""
        for stream in self._world.rng.sample([self.up, self.down], self._world.rng.randint(1, 2)):
            stream.lag_ns = lag_ns
