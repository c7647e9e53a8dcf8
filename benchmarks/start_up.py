"""What processes cost: the agent until it is warm, subtasks to start, deaths to notice, memory.

    python benchmarks/start_up.py

Prints one JSON line. Subtasks run a bare loop, so the figures are the machinery's own; what the
user's imports and restored state add comes on top (hazard 73). Targets: a warm subtask starts in
< 30 ms, a death is reported within 20 ms.
"""

from __future__ import annotations

import os
import queue
import signal
import statistics
import time
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import cloudpickle
import msgspec
import pyarrow as pa
from probe import report

from penstock.dataflow.plan import Edge, OperatorSpec, Plan, Vertex
from penstock.dataflow.settings import JobSettings
from penstock.runtime.agent_handle import AgentHandle, AgentLost, ToControllerOrLost
from penstock.runtime.deployment import channels_of, subtask_keys
from penstock.runtime.messages import (
    AgentReady,
    AttemptGone,
    CancelAttempt,
    Deploy,
    FromSubtask,
    Started,
    SubtaskDeployment,
    SubtaskExited,
    decode_event,
)
from penstock.runtime.setup import SubtaskSetup

ATTEMPTS = 15
WIDTH = 4
T = TypeVar("T")


def serve(setup: SubtaskSetup) -> None:
    """The subtask: say that it runs, then wait for its end."""
    setup.link.send(Started(setup.pid))
    while True:
        setup.progress.set("idle")
        setup.doorbell.wait(1.0)


class Agent:
    """A started agent, and what it says."""

    def __init__(self) -> None:
        self.events: queue.SimpleQueue[ToControllerOrLost] = queue.SimpleQueue()
        self.handle = AgentHandle("start_up:serve")
        self.handle.start(self.events)

    def wait_for(self, kind: type[T]) -> T:
        while not isinstance(event := self.events.get(timeout=60), kind):
            if isinstance(event, AgentLost):
                raise RuntimeError(event)
        return event

    def started(self, count: int) -> list[int]:
        """The pids of so many subtasks, once they run."""
        pids: list[int] = []
        while len(pids) < count:
            event = decode_event(self.wait_for(FromSubtask).event)
            if isinstance(event, Started):
                pids.append(event.pid)
        return pids


def plan_of(vertices: int, parallelism: int) -> Plan:
    """A chain of vertices with a full shuffle between each two."""
    schema = pa.schema([("n", pa.int64())])
    names = [f"v{index}" for index in range(vertices)]
    operators = [(OperatorSpec(name, name, None, {"main": schema}),) for name in names]  # type: ignore[arg-type]
    return Plan(
        "start-up",
        tuple(Vertex(n, n, ops, (), parallelism) for n, ops in zip(names, operators, strict=True)),
        tuple(
            Edge(f"{a}-{b}", a, 0, "main", b, 0, "hash", schema, ("n",)) for a, b in pairwise(names)
        ),
    )


def deploy_of(plan: Plan, attempt: int) -> Deploy:
    settings = JobSettings()
    return Deploy(
        job="start-up",
        generation=1,
        attempt=attempt,
        run_id="run",
        store_root="",
        plan=cloudpickle.dumps(plan),
        subtasks=[
            SubtaskDeployment(key, str(key), [], {}, True, False, 0) for key in subtask_keys(plan)
        ],
        channels=channels_of(plan, settings),
        settings=msgspec.json.encode(settings),
        python_path=[os.path.dirname(os.path.abspath(__file__))],
        cwd=os.getcwd(),
    )


def memory_mib(pid: int) -> dict[str, float]:
    """Proportional and private dirty memory of a process."""
    wanted = {"Pss": 0.0, "Private_Dirty": 0.0, "Rss": 0.0}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in wanted:
            wanted[name] = int(rest.split()[0]) / 1024
    return wanted


def milliseconds(since: float) -> float:
    return (time.perf_counter() - since) * 1000


def measure() -> dict[str, object]:
    begun = time.perf_counter()
    agent = Agent()
    exec_ms = milliseconds(begun)
    agent.wait_for(AgentReady)
    warm_ms = milliseconds(begun)
    one, many, noticed, gone = [], [], [], []
    memory: list[dict[str, float]] = []
    attempt = 0
    for _ in range(ATTEMPTS):
        attempt += 1
        message = deploy_of(plan_of(1, 1), attempt)
        begun = time.perf_counter()
        agent.handle.send(message)
        (pid,) = agent.started(1)
        one.append(milliseconds(begun))
        begun = time.perf_counter()
        os.kill(pid, signal.SIGKILL)
        agent.wait_for(SubtaskExited)
        noticed.append(milliseconds(begun))
        agent.handle.send(CancelAttempt(1, attempt))
        agent.wait_for(AttemptGone)

        attempt += 1
        message = deploy_of(plan_of(3, WIDTH), attempt)
        begun = time.perf_counter()
        agent.handle.send(message)
        pids = agent.started(3 * WIDTH)
        many.append(milliseconds(begun))
        memory = [memory_mib(each) for each in pids]
        begun = time.perf_counter()
        agent.handle.send(CancelAttempt(1, attempt))
        agent.wait_for(AttemptGone)
        gone.append(milliseconds(begun))
    begun = time.perf_counter()
    agent.handle.kill()
    agent.wait_for(AgentLost)
    return {
        "agent_exec_ms": round(exec_ms, 1),
        "agent_warm_ms": round(warm_ms),
        "one_subtask_ms": spread(one),
        "twelve_subtasks_ms": spread(many),
        "death_noticed_ms": spread(noticed),
        "twelve_gone_ms": spread(gone),
        "killed_agent_all_gone_ms": round(milliseconds(begun), 1),
        "subtask_mib": {
            name: round(statistics.mean(each[name] for each in memory), 1)
            for name in ("Pss", "Private_Dirty", "Rss")
        },
    }


def spread(values: list[float]) -> dict[str, float]:
    return {"p50": round(statistics.median(values), 1), "max": round(max(values), 1)}


def main() -> None:
    report("start_up", **measure())


if __name__ == "__main__":
    main()
