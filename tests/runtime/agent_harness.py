"""Small plans, and a controller of a few lines, for the tests of the agent."""

from __future__ import annotations

import json
import os
import queue
import select
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any, TypeVar

import cloudpickle
import msgspec
import pyarrow as pa

from penstock.dataflow.plan import Edge, OperatorSpec, Partition, Plan, Vertex
from penstock.dataflow.settings import JobSettings
from penstock.runtime.agent_handle import AgentHandle, AgentLost, ToControllerOrLost
from penstock.runtime.deployment import channels_of, subtask_keys
from penstock.runtime.messages import (
    AgentFailure,
    CancelAttempt,
    Command,
    Decline,
    Deploy,
    FromSubtask,
    SubtaskDeployment,
    SubtaskKey,
    ToSubtask,
    decode_event,
    encode,
)

NUMBERS = pa.schema([("n", pa.int64())])
PATIENCE_S = 20.0
"""Nothing here waits for it unless something is broken."""
T = TypeVar("T")


def vertex(name: str, parallelism: int = 1, processor: Any = None) -> Vertex:
    spec = OperatorSpec(name, name, processor, {"main": NUMBERS})
    return Vertex(name, name, (spec,), (), parallelism)


def edge(source: str, target: str, partition: Partition = "forward", port: int = 0) -> Edge:
    return Edge(f"{source}-{target}", source, 0, "main", target, port, partition, NUMBERS)


def chain(*names: str, parallelism: int = 1, partition: Partition = "forward") -> Plan:
    """A plan of vertices in a row."""
    edges = [edge(a, b, partition) for a, b in pairwise(names)]
    return Plan("test", tuple(vertex(name, parallelism) for name in names), tuple(edges))


def deploy(entry: str, plan: Plan, attempt: int = 1, **settings: Any) -> Deploy:
    """As a controller would deploy it; each subtask runs `entry` of agent_entries."""
    chosen = JobSettings(**settings)
    return Deploy(
        job="test job",
        generation=1,
        attempt=attempt,
        run_id=entry,
        store_root="",
        plan=cloudpickle.dumps(plan),
        subtasks=[
            SubtaskDeployment(key, f"{key.vertex}[{key.index}]", [], {}, True, False, 0)
            for key in subtask_keys(plan)
        ],
        channels=channels_of(plan, chosen),
        settings=msgspec.json.encode(chosen),
        python_path=[os.path.dirname(__file__)],
        cwd="/",
    )


class Controller:
    """Starts an agent and listens to it."""

    def __init__(self) -> None:
        self.events: queue.SimpleQueue[ToControllerOrLost] = queue.SimpleQueue()
        self.handle = AgentHandle("agent_entries:entry_of_run_id")
        self.handle.start(self.events)
        self.heard: list[ToControllerOrLost] = []

    def wait_for(self, kind: type[T], which: Callable[[T], bool] = lambda _: True) -> T:
        """The next event of a kind, past others; all are kept in `heard`."""
        while True:
            event = self.events.get(timeout=PATIENCE_S)
            self.heard.append(event)
            if isinstance(event, kind) and which(event):
                return event
            wrong = isinstance(event, AgentLost | AgentFailure)
            assert not wrong, f"instead of {kind.__name__}: {self.heard}"

    def wait_for_event(self, kind: type[T], key: SubtaskKey | None = None) -> T:
        """The next event of a kind that a subtask (this one, or any) sends."""
        while True:
            relayed = self.wait_for(FromSubtask)
            event = decode_event(relayed.event)
            if isinstance(event, kind) and key in (None, relayed.key):
                return event

    def wait_for_word(self, key: SubtaskKey | None = None) -> Any:
        """What an entry told with `agent_entries.tell`."""
        return json.loads(self.wait_for_event(Decline, key).reason)

    def order(self, key: SubtaskKey, command: Command, attempt: int = 1) -> None:
        self.handle.send(ToSubtask(1, attempt, key, encode(command)))

    def cancel(self, attempt: int = 1) -> None:
        self.handle.send(CancelAttempt(1, attempt))


def wait_until_dead(pids: list[int]) -> None:
    """Returns when none of the processes runs any more; they need not be our children."""
    for pid in pids:
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            assert select.select([pidfd], [], [], PATIENCE_S)[0], f"{pid} lives on"
        finally:
            os.close(pidfd)


def wait_until(truth: Callable[[], bool]) -> None:
    """For what cannot be waited for otherwise."""
    deadline = time.monotonic() + PATIENCE_S
    while not truth():
        assert time.monotonic() < deadline
        time.sleep(0.005)
