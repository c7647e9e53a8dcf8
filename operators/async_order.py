"""What is in flight in a map_async, and in which order it may go on: pure, no threads, no clock.

1. Ordered: results go on in the order of the calls. Otherwise as they come, but never past a
   watermark: between two of them only (hazard 25).
2. A watermark goes on when everything that came before it has.
3. At most `concurrency` calls run at once; the others wait for their turn, in order.
4. `unfinished` is what a snapshot must keep: every call whose result has not gone on, in order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

C = TypeVar("C")
R = TypeVar("R")


@dataclass
class _Stage(Generic[C, R]):
    """Calls between two watermarks, by number, and the watermark behind them."""

    calls: dict[int, C] = field(default_factory=dict)
    results: dict[int, R] = field(default_factory=dict)
    watermark: int | None = None


class AsyncOrder(Generic[C, R]):
    """Calls of type C go in, results of type R come back in any order."""

    def __init__(self, concurrency: int, ordered: bool) -> None:
        assert concurrency > 0
        self._concurrency, self._ordered = concurrency, ordered
        self._stages: deque[_Stage[C, R]] = deque([_Stage()])
        self._stage_of: dict[int, _Stage[C, R]] = {}
        self._waiting: deque[tuple[int, C]] = deque()
        self._running = 0
        self._next = 0

    @property
    def waiting(self) -> int:
        """Calls whose turn has not come."""
        return len(self._waiting)

    @property
    def busy(self) -> bool:
        """Whether anything has not gone on."""
        return bool(self._stage_of) or len(self._stages) > 1

    def call(self, item: C) -> None:
        """A call, behind all that came before."""
        stage = self._stages[-1]
        stage.calls[self._next] = item
        self._stage_of[self._next] = stage
        self._waiting.append((self._next, item))
        self._next += 1

    def watermark(self, value: int) -> None:
        """A watermark, behind all calls so far; of several without calls between, the last."""
        if not self._stages[-1].calls and len(self._stages) > 1:
            self._stages[-2].watermark = value
            return
        self._stages[-1].watermark = value
        self._stages.append(_Stage())

    def start(self) -> list[tuple[int, C]]:
        """The calls to begin now."""
        begun = []
        while self._waiting and self._running < self._concurrency:
            begun.append(self._waiting.popleft())
            self._running += 1
        return begun

    def done(self, number: int, result: R) -> None:
        """A call has come to its end."""
        self._stage_of[number].results[number] = result
        self._running -= 1

    def ready(self) -> Iterator[tuple[C, R] | int]:
        """Calls with their results, and watermarks, in the order in which they go on now."""
        while True:
            stage = self._stages[0]
            for number in self._finished(stage):
                del self._stage_of[number]
                yield stage.calls.pop(number), stage.results.pop(number)
            if stage.calls or stage.watermark is None:
                return
            self._stages.popleft()
            yield stage.watermark

    def _finished(self, stage: _Stage[C, R]) -> list[int]:
        if not self._ordered:
            return list(stage.results)
        found = []
        for number in stage.calls:
            if number not in stage.results:
                break
            found.append(number)
        return found

    def unfinished(self) -> list[C]:
        """Calls whose result has not gone on; done or not, they are made again after a restart."""
        return [item for stage in self._stages for item in stage.calls.values()]
