"""A leader for simulations: the real state machine, log and checkpoint store; a made-up agent.

It stands for the controller's thread and for everything below it: when it dies, all of it dies.
Messages of one subtask stay in order; between subtasks they do not, some come twice, and some come
when their attempt is long over.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

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
    RecordFinished,
    StartAgent,
    policy_of,
)
from penstock.runtime.log import UncertainLog
from penstock.runtime.messages import Acknowledge, Event, SubtaskKey, TriggerCheckpoint

from .simulated_plan import PLAN, SETTINGS, require_injected
from .simulated_subtask import Item, SimulatedSubtask

if TYPE_CHECKING:
    from .simulated_job import World

Stray = tuple[int, int, SubtaskKey, Event]


class Leader:
    """One controller process, its agent and its subtasks."""

    def __init__(self, world: World, number: int) -> None:
        self._world = world
        self._number = number
        self.alive = True
        self.forsaken = False
        """Its supervisor has given it up and started another: a zombie."""
        self._job: Job | None = None
        self._subtasks: dict[SubtaskKey, SimulatedSubtask] = {}
        self._strays: deque[Stray] = deque()
        self._agent_events: deque[str] = deque()
        self._dead: deque[SubtaskKey] = deque()
        self._drop = 0

    def take_over(self) -> None:
        """Become the leader."""
        world = self._world
        self._deployer = Deployer(PLAN, SETTINGS, "")
        self._enumerators = Enumerators(PLAN)
        self._enumerators.list_all()
        self._checkpoints = CheckpointStore(world.store, PLAN, SETTINGS, world.token)
        takeover = self._checkpoints.take_over()
        if takeover is None:
            world.note("already finished")
            world.finished = True
            return
        world.note(f"generation {takeover.generation} restores {takeover.restores}")
        upstream = upstream_of(PLAN, self._deployer.channels)
        manifest = self._checkpoints.manifest
        self._job = Job(
            takeover.generation,
            upstream,
            frozenset(key for key in upstream if key.vertex == "source"),
            manifest.id if manifest else 0,
            self._checkpoints.log.first_id,
            policy_of(SETTINGS),
        )
        self._carry_out(self._job.start())

    def die(self) -> None:
        """With everything below."""
        self.alive = False
        self._subtasks.clear()

    def step(self) -> bool:
        """One message, one tick, or one step of a subtask; False if nothing can move."""
        try:
            return self._step()
        except Fenced:
            self._world.note(f"leader {self._number} is fenced")
            self.die()
        except UncertainLog:
            self._world.note(f"leader {self._number} cannot know")
            self.die()
        except StateError as error:
            require_injected(error)
            self._world.note(f"leader {self._number}: {error}")
            self.die()
        return True

    def _step(self) -> bool:
        assert self._job is not None
        world, job = self._world, self._job
        deadline_ns = job.deadline_ns
        if deadline_ns is not None and world.now_ns >= deadline_ns:
            self._carry_out(job.tick(world.now_ns))
            return True
        choices = [subtask for subtask in self._subtasks.values() if subtask.alive]
        world.rng.shuffle(choices)
        if self._strays and world.rng.random() < 0.05:
            self._carry_out(job.on_event(*self._strays.popleft(), world.now_ns))
            return True
        if (self._agent_events or self._dead) and world.rng.random() < 0.2:
            self._deliver_agent_event()
            return True
        for subtask in choices:
            if subtask.events and world.rng.random() < 0.5:
                self._deliver(subtask)
                return True
            if subtask.step():
                return True
        return self._deliver_any()

    def _deliver_any(self) -> bool:
        for subtask in self._subtasks.values():
            if subtask.events:
                self._deliver(subtask)
                return True
        if self._agent_events or self._dead:
            self._deliver_agent_event()
            return True
        return False

    # Events --------------------------------------------------------------------------------------

    def _deliver(self, subtask: SimulatedSubtask) -> None:
        assert self._job is not None
        job, rng = self._job, self._world.rng
        event = subtask.events.popleft()
        if rng.random() < 0.05:
            self._strays.append((job.generation, job.attempt, subtask.key, event))
        if isinstance(event, Acknowledge):
            self._checkpoints.announce(event)
        now_ns = self._world.now_ns
        self._carry_out(job.on_event(job.generation, job.attempt, subtask.key, event, now_ns))

    def _deliver_agent_event(self) -> None:
        assert self._job is not None
        job, now_ns = self._job, self._world.now_ns
        if self._dead:
            key = self._dead.popleft()
            self._carry_out(job.on_exit(job.generation, job.attempt, key, "was killed"))
            return
        event = self._agent_events.popleft()
        if event == "ready":
            self._carry_out(job.on_agent_ready())
        elif event == "lost":
            self._carry_out(job.on_agent_lost("killed", now_ns))
            self._checkpoints.attempt_over()
        else:
            self._checkpoints.attempt_over()
            self._carry_out(job.on_attempt_gone(job.generation, job.attempt, now_ns))

    def suffer(self, kind: str) -> None:
        """A fault strikes here."""
        rng = self._world.rng
        living = [key for key, subtask in self._subtasks.items() if subtask.alive]
        if kind == "leader":
            self.die()
        elif kind == "stop":
            assert self._job is not None
            self._carry_out(self._job.on_stop("checkpoint", self._world.now_ns))
        elif kind == "zombie":
            self.forsaken = True
        elif kind == "agent":
            self._subtasks.clear()
            self._dead.clear()
            self._agent_events = deque(["lost"])
        elif kind == "drop":
            self._drop = rng.randrange(1, 6)
        elif kind == "stray" and living:
            self._strays.append((1, 0, rng.choice(living), Acknowledge(
                1, None, False, 0, {}, True, 0, 0, 0
            )))  # fmt: skip
        elif living:
            key = rng.choice(living)
            if kind == "raise":
                self._subtasks[key].fail(f"op|ValueError|row {len(self._world.trace)}")
            else:
                self._subtasks[key].alive = False
            self._dead.append(key)

    # Actions -------------------------------------------------------------------------------------

    def _carry_out(self, actions: Sequence[Action]) -> None:
        left = deque(actions)
        while left and self.alive:
            action = left.popleft()
            if isinstance(action, Send):
                self._send(action)
            elif isinstance(action, StoreCheckpoint):
                self._store(action)
            elif isinstance(action, StartAgent):
                self._agent_events.append("ready")
            elif isinstance(action, Deploy):
                self._deploy(action)
            elif isinstance(action, Cancel):
                for subtask in self._subtasks.values():
                    subtask.alive = False
                self._agent_events.append("gone")
            elif isinstance(action, RecordFinished):
                self._checkpoints.log.append_finished(action.checkpoint_id)
                self._world.note(f"finished at {action.checkpoint_id}")
                self._world.finished = True
            elif isinstance(action, CheckpointFailed):
                self._world.note(f"checkpoint {action.checkpoint_id} failed: {action.reason}")
            else:
                assert isinstance(action, End), f"the job gave up: {action}"
                self.die()

    def _send(self, action: Send) -> None:
        assert self._job is not None
        command = action.command
        if isinstance(command, TriggerCheckpoint):
            self._checkpoints.log.reserve(command.checkpoint_id)
            self._world.triggered(command.checkpoint_id, self._job.generation, self._job.attempt)
        if self._drop:
            self._drop -= 1
            return
        subtask = self._subtasks.get(action.key)
        if subtask is not None and subtask.alive:
            subtask.commands.append(command)

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
        checkpoints = self._checkpoints
        checkpoints.log.append_attempt(action.attempt, action.restores)
        generation, run_id = self._job.generation, checkpoints.run_id
        message = self._deployer.message(
            generation, action.attempt, run_id, checkpoints.manifest, self._enumerators
        )
        inputs: dict[SubtaskKey, list[deque[Item]]] = defaultdict(list)
        outputs: dict[SubtaskKey, list[deque[Item]]] = defaultdict(list)
        for channel in message.channels:
            queue: deque[Any] = deque()
            inputs[channel.target].append(queue)
            outputs[channel.source].append(queue)
        self._dead.clear()
        self._subtasks = {
            told.key: SimulatedSubtask(
                told.key, told, run_id, inputs[told.key], outputs[told.key], self._world.around
            )
            for told in message.subtasks
        }
        self._world.note(f"attempt {generation}.{action.attempt} from {action.restores}")
