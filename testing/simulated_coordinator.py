"""A job process for simulations: the real fleet, state machine, log and checkpoint store.

It stands for cluster/job_process.py and runtime/controller.py; the two threads of a real one are
two queues here, served in any order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import msgspec

from penstock.cluster.fleet_core import Command, Emit, FleetCore, Lose, Say
from penstock.cluster.job_messages import (
    AgentGone,
    Ended,
    FromJob,
    Granted,
    LaunchJob,
    NodeGone,
    NodeLost,
    Report,
    StopJob,
    Tell,
    ToJob,
    Told,
)
from penstock.dataflow.settings import JobSettings
from penstock.elements.errors import Fenced, StateError
from penstock.runtime.checkpoint import CheckpointFailed, Send, StoreCheckpoint
from penstock.runtime.checkpoint_store import CheckpointStore
from penstock.runtime.deploying import Deployer, upstream_of
from penstock.runtime.enumerators import Enumerators
from penstock.runtime.job import Job
from penstock.runtime.job_actions import (
    Action,
    Cancel,
    Deploy,
    End,
    Phase,
    RecordFinished,
    StartAgent,
    policy_of,
)
from penstock.runtime.log import UncertainLog
from penstock.runtime.messages import (
    Acknowledge,
    AgentFailure,
    AgentReady,
    AttemptGone,
    CancelAttempt,
    FromSubtask,
    SubtaskExited,
    ToSubtask,
    TriggerCheckpoint,
    decode_event,
    decode_to_controller,
    encode,
)

from .simulated_plan import PARALLELISM, PLAN, require_injected

if TYPE_CHECKING:
    from .simulated_cluster import ClusterWorld

SETTINGS = JobSettings(
    checkpoint_interval_s=0.2,
    checkpoint_timeout_s=4.0,
    restart_attempts=10_000,
    restart_delay_s=0.05,
    restart_delay_s_max=0.4,
    restart_healthy_s=1.0,
    retained_checkpoints=1,
    tolerated_failed_checkpoints=2,
)
STATES = {Phase.RUNNING: "running", Phase.WAITING: "restarting"}


@cache
def _deployer() -> Deployer:
    return Deployer(PLAN, SETTINGS, "")


class SimulatedCoordinator:
    """What Coordination takes for a JobProcess: one launch."""

    def __init__(self, world: ClusterWorld, job: str, launch: int) -> None:
        self._world = world
        self.job, self.launch = job, launch
        self.inbox: deque[ToJob] = deque()
        self.outbox: deque[FromJob] = deque()
        self.alive = self.started = False
        self.paused_until_ns = 0
        self._events: deque[Any] = deque()
        self._core: FleetCore | None = None
        self._job: Job | None = None
        self._stop: str | None = None
        self._ended: Ended | None = None
        self._said = ""

    # For Coordination ----------------------------------------------------------------------------

    def start(self) -> None:
        self.alive = self.started = True
        self._world.launched(self)

    def send(self, message: ToJob) -> None:
        if self.alive:
            self.inbox.append(message)

    def kill(self) -> None:
        """The controller learns of it by the reaped process."""
        self.alive = False

    # Steps ---------------------------------------------------------------------------------------

    @property
    def deadline_ns(self) -> int | None:
        """When time alone moves it."""
        return self._job.deadline_ns if self._job is not None else None

    def step(self) -> bool:
        """One event; False if there is none."""
        try:
            return self._step()
        except Fenced:
            self._fail("fenced")
        except UncertainLog:
            self._fail("it cannot be known")
        except StateError as error:
            require_injected(error)
            self._fail(str(error))
        return True

    def _step(self) -> bool:
        world, rng = self._world, self._world.rng
        if self._ended is not None:
            return self._leave()
        if self.inbox and (self._job is None or rng.random() < 0.6):
            self._on_message(self.inbox.popleft())
            return True
        if self._events:
            self._on_event(self._events.popleft())
            self._report()
            return True
        due_ns = self.deadline_ns
        if self._job is not None and due_ns is not None and world.now_ns >= due_ns:
            self._carry_out(self._job.tick(world.now_ns))
            self._report()
            return True
        return False

    def _leave(self) -> bool:
        """Close the agents, wait for a while, say the last word, exit."""
        assert self._ended is not None
        if self._core is not None:
            self._carry_out_fleet(self._core.close())
            if not self._core.all_gone and self._world.rng.random() > 0.02:
                if self.inbox:
                    self._on_message(self.inbox.popleft())
                    return True
                return False
        self.outbox.append(self._ended)
        self.alive = False
        return True

    def _fail(self, text: str) -> None:
        self._world.note(f"launch {self.launch} fails: {text}")
        self._ended = Ended("failed", b"", text)

    def _report(self) -> None:
        if self._job is not None and self._ended is None:
            state = STATES.get(self._job.phase, "starting")
            if state != self._said:
                self._said = state
                self.outbox.append(Report(msgspec.json.encode({"state": state})))

    # News ----------------------------------------------------------------------------------------

    def _on_message(self, message: ToJob) -> None:
        if isinstance(message, LaunchJob):
            self._take_over()
        elif isinstance(message, StopJob):
            if self._job is None:
                self._stop = message.mode
            else:
                self._events.append(message)
        elif self._core is not None:
            self._carry_out_fleet(self._on_news(self._core, message))

    def _on_news(self, core: FleetCore, news: ToJob) -> Sequence[Command]:
        if isinstance(news, Told):
            return core.told(news.name, decode_to_controller(news.body))
        if isinstance(news, Granted):
            return core.granted(news)
        if isinstance(news, NodeLost):
            return core.node_lost(news.name, news.cause)
        if isinstance(news, NodeGone):
            return core.node_gone(news.name)
        return core.agent_gone(news.name, news.cause) if isinstance(news, AgentGone) else []

    def _carry_out_fleet(self, commands: Sequence[Command]) -> None:
        for command in commands:
            if isinstance(command, Say):
                self.outbox.append(Tell(command.name, encode(command.message)))
            elif isinstance(command, Emit):
                self._events.append(command.message)
            elif isinstance(command, Lose):
                self._events.append(command)
            else:
                self.outbox.append(command)

    # The job -------------------------------------------------------------------------------------

    def _take_over(self) -> None:
        world = self._world
        self._enumerators = Enumerators(PLAN)
        self._enumerators.list_all()
        self._checkpoints = CheckpointStore(world.store, PLAN, SETTINGS, world.token)
        takeover = self._checkpoints.take_over()
        if takeover is None:
            self._ended = Ended("already finished", b"")
            return
        world.note(f"launch {self.launch}: generation {takeover.generation}")
        upstream = upstream_of(PLAN, _deployer().channels)
        manifest = self._checkpoints.manifest
        self._core = FleetCore(PARALLELISM, 1, takeover.generation > 1)
        self._job = Job(
            takeover.generation,
            upstream,
            frozenset(key for key in upstream if key.vertex == "source"),
            manifest.id if manifest else 0,
            self._checkpoints.log.first_id,
            policy_of(SETTINGS),
        )
        self._carry_out(self._job.start())
        if self._stop is not None:
            self._events.append(StopJob(self._stop))

    def _on_event(self, event: Any) -> None:
        assert self._job is not None
        job, now_ns = self._job, self._world.now_ns
        if isinstance(event, FromSubtask):
            said = decode_event(event.event)
            if isinstance(said, Acknowledge) and event.attempt == job.attempt:
                self._checkpoints.announce(said)
            actions = job.on_event(event.generation, event.attempt, event.key, said, now_ns)
        elif isinstance(event, SubtaskExited):
            actions = job.on_exit(event.generation, event.attempt, event.key, "was killed")
        elif isinstance(event, AttemptGone):
            actions = job.on_attempt_gone(event.generation, event.attempt, now_ns)
        elif isinstance(event, AgentReady):
            actions = job.on_agent_ready()
        elif isinstance(event, AgentFailure):
            actions = job.on_deploy_failed(event.generation, event.attempt, event.text)
        elif isinstance(event, Lose):
            actions = job.on_agent_lost(event.cause, now_ns)
        else:
            actions = job.on_stop(event.mode, now_ns)
        if isinstance(event, AttemptGone | Lose) and job.phase in (Phase.WAITING, Phase.ENDED):
            self._checkpoints.attempt_over()
        self._carry_out(actions)

    def _carry_out(self, actions: Sequence[Action]) -> None:
        assert self._job is not None
        assert self._core is not None
        job, core, left = self._job, self._core, deque(actions)
        while left and self.alive:
            action = left.popleft()
            if isinstance(action, Send):
                self._send(action)
            elif isinstance(action, StoreCheckpoint):
                self._store(action)
            elif isinstance(action, StartAgent):
                self._carry_out_fleet(core.start())
            elif isinstance(action, Deploy):
                self._deploy(action)
            elif isinstance(action, Cancel):
                gone = CancelAttempt(job.generation, action.attempt)
                self._carry_out_fleet(core.cancel(gone))
            elif isinstance(action, RecordFinished):
                self._checkpoints.log.append_finished(action.checkpoint_id)
                self._world.note(f"finished at {action.checkpoint_id}")
            elif isinstance(action, CheckpointFailed):
                self._world.note(f"checkpoint {action.checkpoint_id} failed: {action.reason}")
            else:
                assert isinstance(action, End), f"the job gave up: {action}"
                self._ended = Ended(action.outcome, b"")

    def _send(self, action: Send) -> None:
        assert self._job is not None
        assert self._core is not None
        job, command = self._job, action.command
        if isinstance(command, TriggerCheckpoint):
            self._checkpoints.log.reserve(command.checkpoint_id)
            self._world.triggered(command.checkpoint_id, job.generation, job.attempt)
        message = ToSubtask(job.generation, job.attempt, action.key, encode(command))
        self._carry_out_fleet(self._core.to_subtask(message))

    def _store(self, order: StoreCheckpoint) -> None:
        assert self._job is not None
        job, now_ns = self._job, self._world.now_ns
        try:
            self._checkpoints.complete(order, job.attempt)
        except UncertainLog:
            raise
        except StateError as error:
            self._carry_out(job.on_refused(job.attempt, order.checkpoint_id, str(error), now_ns))
            return
        self._world.note(f"complete {order.checkpoint_id} by {job.generation}.{job.attempt}")
        self._world.completed(order.checkpoint_id)
        self._carry_out(job.on_stored(job.attempt, order.checkpoint_id, now_ns))
        self._checkpoints.collect_garbage(job.checkpoints.owed_since)

    def _deploy(self, action: Deploy) -> None:
        assert self._job is not None
        assert self._core is not None
        checkpoints = self._checkpoints
        checkpoints.log.append_attempt(action.attempt, action.restores)
        message = _deployer().message(
            self._job.generation, action.attempt, checkpoints.run_id, checkpoints.manifest,
            self._enumerators,
        )  # fmt: skip
        # Toy subtasks need no plan, and it would be encoded again and again.
        message = msgspec.structs.replace(message, plan=b"")
        fingerprints = [0] * len(message.channels)
        self._carry_out_fleet(self._core.deploy(message, fingerprints))
        self._world.note(f"attempt {self._job.generation}.{action.attempt}")
