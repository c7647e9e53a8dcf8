"""An agent without processes: simulated subtasks, stepped by one thread."""

from __future__ import annotations

import itertools
import queue
import random
import threading
from collections import defaultdict, deque
from typing import Any

from penstock.runtime.agent_handle import AgentLost
from penstock.runtime.messages import (
    AgentReady,
    AttemptGone,
    CancelAttempt,
    Deploy,
    FromSubtask,
    Shutdown,
    Statistics,
    SubtaskKey,
    ToAgent,
    ToController,
    ToSubtask,
    decode_command,
    encode,
)
from penstock.state.store import LocalStore
from penstock.testing.simulated_subtask import Item, SimulatedSubtask, Surroundings

Published = dict[tuple[str, int, SubtaskKey], list[Any]]
_numbers = itertools.count()


class ToyAgent:
    """Sources wait while `held` is set. `deployed` are all Deploy messages so far."""

    pid = 4711

    def __init__(self, published: Published, held: threading.Event) -> None:
        self._published = published
        self._held = held
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._told: Deploy | None = None
        self._store: LocalStore | None = None
        self.deployed: list[Deploy] = []
        self.subtasks: dict[SubtaskKey, SimulatedSubtask] = {}
        self.send_error: Exception | None = None
        self._thread = threading.Thread(target=self._pump, name="toy agent")

    def start(self, events: queue.SimpleQueue[ToController | AgentLost]) -> None:
        self.events = events
        events.put(AgentReady(self.pid, 8, 4712))
        self._thread.start()

    def send(self, message: ToAgent) -> None:
        if self.send_error is not None:
            raise self.send_error
        with self._lock:
            if isinstance(message, Deploy):
                self._deploy(message)
            elif isinstance(message, ToSubtask):
                if message.key in self.subtasks:
                    self.subtasks[message.key].commands.append(decode_command(message.command))
            elif isinstance(message, CancelAttempt):
                self.subtasks.clear()
                self.events.put(AttemptGone(message.generation, message.attempt))
            elif isinstance(message, Shutdown):
                self.subtasks.clear()

    def kill(self) -> None:
        with self._lock:
            self.subtasks.clear()
        self._closed.set()
        self.events.put(AgentLost(self.pid, -9, "it was killed by SIGKILL", all_gone=True))

    def close(self) -> None:
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._store is not None:
            self._store.close()
            self._store = None

    def fail(self, key: SubtaskKey, identity: str) -> None:
        """The operator of one subtask raises."""
        with self._lock:
            self.subtasks[key].fail(identity)

    def _deploy(self, message: Deploy) -> None:
        self.deployed.append(message)
        self._told = message
        if self._store is None:
            self._store = LocalStore(message.store_root, "process")
        number = next(_numbers)
        tokens = itertools.count()
        around = Surroundings(
            self._store,
            random.Random(number),
            self._publish,
            lambda: f"toy-{number}-{next(tokens)}",
        )
        inputs: dict[SubtaskKey, list[deque[Item]]] = defaultdict(list)
        outputs: dict[SubtaskKey, list[deque[Item]]] = defaultdict(list)
        for channel in message.channels:
            items: deque[Item] = deque()
            inputs[channel.target].append(items)
            outputs[channel.source].append(items)
        self.subtasks = {
            told.key: SimulatedSubtask(
                told.key, told, message.run_id, inputs[told.key], outputs[told.key], around
            )
            for told in message.subtasks
        }

    def _publish(
        self, run_id: str, checkpoint_id: int, upto: int, sink: SubtaskKey, rows: list[Any]
    ) -> None:
        before = self._published.setdefault((run_id, checkpoint_id, sink), list(rows))
        assert before == list(rows)

    def _pump(self) -> None:
        while not self._closed.is_set():
            with self._lock:
                moved = self._step_all()
            if not moved:
                self._closed.wait(0.001)

    def _step_all(self) -> bool:
        moved = False
        assert self._told is not None or not self.subtasks
        for key, subtask in self.subtasks.items():
            subtask.held = self._held.is_set()
            moved = subtask.step() or moved
            while subtask.events:
                assert self._told is not None
                generation, attempt = self._told.generation, self._told.attempt
                event = subtask.events.popleft()
                self.events.put(FromSubtask(generation, attempt, key, encode(event)))
                counters = {key.vertex: {"rows_in": 5, "rows_out": 7, "late": 1}}
                statistics = Statistics(5, 7, 99, 0.5, 0.25, counters)
                self.events.put(FromSubtask(generation, attempt, key, encode(statistics)))
        return moved
