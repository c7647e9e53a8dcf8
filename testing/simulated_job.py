"""A whole job under a seeded scheduler: leaders, agents, subtasks, a store, and what kills them.

Everything that decides is real (job, checkpoint, log, manifest, retention, alignment, progress,
splits); processes, sockets, disks and clocks are not. `simulate(seed)` runs one schedule to its
end and raises AssertionError if an invariant breaks:
1. every row reaches the sinks exactly once, states and totals included;
2. nothing is published before its checkpoint is in the log, durably;
3. no checkpoint id is triggered by two attempts, and a completed checkpoint never leaves history;
4. no restored run is missing or damaged, whatever was collected;
5. once faults cease, the job finishes.
"""

from __future__ import annotations

import hashlib
import random
from collections import deque
from collections.abc import Iterable
from typing import Any

from penstock.elements.errors import StateError
from penstock.runtime.log import read_history
from penstock.runtime.messages import SubtaskKey

from .simulated_leader import Leader
from .simulated_plan import PARALLELISM, SPLITS, require_injected
from .simulated_subtask import SPLIT_ROWS, Surroundings
from .store import DroppingStore

STEPS_MAX = 60_000
"""Far more than the longest schedule takes; reaching it means that the job hangs."""
FAULTS = (
    *("subtask", "subtask", "raise", "agent", "leader", "zombie", "power"),
    *(
        "put-crash",
        "put-crash",
        "put-error",
        "put-lost",
        "drop",
        "drop",
        "jump",
        "age",
        "stray",
        "stop",
    ),
)


class Crash(Exception):
    """The process that touched the store has died there."""


class World:
    """One schedule. `trace` is what happened, for comparing replays."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.now_ns = 0
        self.trace: list[str] = []
        self.faults_left = self.rng.choice((0, 1, 2, 3, 5, 8))
        self.store = DroppingStore(seed)
        self.store.fail, self.store.fail_after = self._before_put, self._after_put
        self._put_fault: str | None = None
        self._tokens = 0
        self._published: dict[tuple[str, int, SubtaskKey], list[Any]] = {}
        self._triggered: dict[int, tuple[int, int]] = {}
        self._completed: list[int] = []
        self.around = Surroundings(
            self.store,
            self.rng,
            self.publish,
            self.token,
            slow_commit=self.rng.choice((0.0, 0.0, 0.5)),
            inline=self.rng.choice((0.0, 0.5, 1.0)),
        )
        self.leaders: deque[Leader] = deque(maxlen=3)
        self.finished = False

    def note(self, text: str) -> None:
        """Add to the trace."""
        self.trace.append(f"{self.now_ns} {text}")

    def token(self) -> str:
        """Unique, and the same in a replay."""
        self._tokens += 1
        return f"token{self._tokens}"

    # The schedule --------------------------------------------------------------------------------

    def run(self) -> None:
        """To the end."""
        for _ in range(STEPS_MAX):
            if self.finished:
                break
            self._step()
        assert self.finished, "the job hangs: " + "; ".join(self.trace[-8:])
        self._check_end()

    def _step(self) -> None:
        self.now_ns += self.rng.random() < 0.2
        if self.faults_left and self.rng.random() < 0.02:
            self.faults_left -= 1
            self._fault()
        living = [leader for leader in self.leaders if leader.alive]
        if not [leader for leader in living if not leader.forsaken]:
            self._guard(Leader(self, len(self.trace)))
            return
        leader = self.rng.choice(living)
        try:
            if not leader.step():
                # Nothing is left to do but wait.
                self.now_ns += 5
        except Crash:
            self.note("crash at the store")
            leader.die()

    def _guard(self, leader: Leader) -> None:
        self.leaders.append(leader)
        try:
            leader.take_over()
        except (Crash, StateError) as error:
            self.note(f"takeover failed: {error}")
            leader.die()
            if not isinstance(error, Crash):
                require_injected(error)

    # Faults --------------------------------------------------------------------------------------

    def _fault(self) -> None:
        leader = self.rng.choice([*self.leaders]) if self.leaders else None
        kind = self.rng.choice(FAULTS)
        self.note(f"fault {kind}")
        if kind.startswith("put-"):
            self._put_fault = kind
        elif kind == "jump":
            self.now_ns += 250
        elif kind == "age":
            self.store.advance_ns(40 * 60 * 1_000_000_000)
        elif kind == "power":
            for one in self.leaders:
                one.die()
            self.store.lose_power()
        elif leader is not None and leader.alive:
            leader.suffer(kind)

    def _before_put(self, name: str) -> None:
        if self._put_fault == "put-error":
            if self.rng.random() < 0.2:
                self._put_fault = None
            raise StateError("injected: no space")
        if self._put_fault == "put-crash" and self.rng.random() < 0.2:
            self._put_fault = None
            raise Crash("before " + name)

    def _after_put(self, name: str) -> None:
        if self._put_fault == "put-lost" and self.rng.random() < 0.3:
            self._put_fault = None
            raise StateError("injected: reply lost")
        if self._put_fault == "put-crash" and self.rng.random() < 0.2:
            self._put_fault = None
            raise Crash("after " + name)

    # Invariants ----------------------------------------------------------------------------------

    def triggered(self, checkpoint_id: int, generation: int, attempt: int) -> None:
        """A leader triggers; ids belong to one attempt for ever."""
        owner = self._triggered.setdefault(checkpoint_id, (generation, attempt))
        assert owner == (generation, attempt), f"id {checkpoint_id} was used twice"

    def completed(self, checkpoint_id: int) -> None:
        """A leader was told that this checkpoint counts."""
        self._completed.append(checkpoint_id)

    def publish(
        self, run_id: str, checkpoint_id: int, upto: int, sink: SubtaskKey, rows: Iterable[Any]
    ) -> None:
        """A sink commits what it staged at `checkpoint_id`, told that `upto` is complete."""
        rows = list(rows)
        known = {entry.id for entry in read_history(self.store).line}
        assert upto in known, f"{upto} was committed, but is not in history"
        before = self._published.setdefault((run_id, checkpoint_id, sink), rows)
        assert before == rows, f"transaction {checkpoint_id} of {sink} was repeated differently"
        self.note(f"publish {checkpoint_id} {sink} {rows}")

    def _check_end(self) -> None:
        history = read_history(self.store)
        line = [entry.id for entry in history.line]
        assert history.finished is not None
        assert set(self._completed) <= set(line), "a completed checkpoint left history"
        assert line == sorted(set(line))
        rows = [row for published in self._published.values() for row in published]
        values = sorted(row[0] for row in rows if row[0] != "total")
        wanted = [100 * split + j for split in range(SPLITS) for j in range(SPLIT_ROWS)]
        assert values == wanted, f"rows {values}"
        for index in range(PARALLELISM):
            counts = sorted(row[2] for row in rows if row[0] != "total" and row[1] == index)
            assert counts == list(range(1, len(counts) + 1)), f"middle {index} counted {counts}"
            totals = [row[2] for row in rows if row[0] == "total" and row[1] == index]
            assert totals == [len(counts)], f"totals of middle {index}: {totals}"


def simulate(seed: int) -> str:
    """Run one schedule; a digest of everything that happened in it."""
    world = World(seed)
    try:
        world.run()
    except AssertionError as error:
        raise AssertionError(f"seed {seed}: {error}") from error
    return hashlib.sha256("\n".join(world.trace).encode()).hexdigest()
