"""The shell around a job's pure cores: a thread that takes events and carries actions out.

One queue brings everything: what the agent says, what the user wants, what enumerators find, and,
by its timeout, that time has passed. Decisions are job.py's and checkpoint.py's; durable effects
are checkpoint_store.py's; processes are the agent's. Whatever goes wrong here fails the job with
its text; the thread never dies silently.
"""

from __future__ import annotations

import logging
import math
import queue
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from penstock.dataflow.launcher import JobStatus, StopMode, Summary
from penstock.dataflow.plan import Plan
from penstock.dataflow.settings import JobSettings
from penstock.elements.clock import Clock, SystemClock
from penstock.elements.errors import AttemptFailure, Fenced, JobFailed, PenstockError, StateError

from .agent_handle import AgentHandle, AgentLost
from .checkpoint import CheckpointFailed, Send, StoreCheckpoint
from .checkpoint_store import CheckpointStore
from .deploying import Deployer, upstream_of
from .enumerators import Dealt, Discovered, Enumerators
from .failpoint import failpoint
from .finishing import set_aside, tidy_sinks
from .job import Job
from .job_actions import (
    NS,
    Action,
    Cancel,
    Deploy,
    End,
    GiveUp,
    Phase,
    RecordFinished,
    SetAside,
    StartAgent,
    policy_of,
)
from .log import UncertainLog
from .messages import (
    Acknowledge,
    AgentFailure,
    AgentReady,
    AssignSplits,
    AttemptGone,
    CancelAttempt,
    Failure,
    FromSubtask,
    NotResponding,
    Started,
    Statistics,
    SubtaskExited,
    ToAgent,
    ToController,
    ToSubtask,
    TriggerCheckpoint,
    decode_event,
    encode,
)
from .status_board import StatusBoard

log = logging.getLogger("penstock.controller")

SIGNAL_POLL_S = 0.2
"""How late a waiting caller may notice a signal."""


@dataclass(frozen=True)
class StopRequest:
    """The user wants the job to end."""

    mode: StopMode


Incoming = ToController | AgentLost | StopRequest | Discovered


class Agent(Protocol):
    """What the controller needs of an agent; AgentHandle is the real one."""

    @property
    def pid(self) -> int: ...

    def start(self, events: queue.SimpleQueue[ToController | AgentLost]) -> None: ...

    def send(self, message: ToAgent) -> None: ...

    def kill(self) -> None: ...

    def close(self) -> None: ...


class Controller:
    """A job that runs: the JobHandle of the embedded launcher.

    Requires: `checkpoints` has taken the job over.
    """

    def __init__(
        self,
        plan: Plan,
        settings: JobSettings,
        checkpoints: CheckpointStore,
        deployer: Deployer,
        enumerators: Enumerators,
        *,
        agent: Callable[[], Agent] = AgentHandle,
        clock: Clock | None = None,
        at_end: Callable[[], None] = lambda: None,
    ) -> None:
        self._plan = plan
        self._checkpoints = checkpoints
        self._deployer = deployer
        self._enumerators = enumerators
        self._make_agent = agent
        self._clock = clock or SystemClock()
        self._at_end = at_end
        self._events: queue.SimpleQueue[Incoming] = queue.SimpleQueue()
        self._agent: Agent | None = None
        upstream = upstream_of(plan, deployer.channels)
        heads = {vertex.id for vertex in plan.vertices if vertex.operators[0].is_source}
        self._job = Job(
            generation=checkpoints.log.generation,
            upstream=upstream,
            sources=frozenset(key for key in upstream if key.vertex in heads),
            restored=checkpoints.manifest.id if checkpoints.manifest else 0,
            first_id=checkpoints.log.first_id,
            policy=policy_of(settings),
        )
        self._board = StatusBoard(plan, self._clock.monotonic_ns())
        self._triggered = 0
        self._poison_note = ""
        self._temporary = settings.state_dir is None
        self._summary: Summary | None = None
        self._failure: JobFailed | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="controller", daemon=True)

    # JobHandle -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin. Returns at once."""
        self._note_state()
        self._thread.start()

    def status(self) -> JobStatus:
        """What it does now; never blocks."""
        return self._board.status(self._clock.monotonic_ns())

    def request_stop(self, mode: StopMode = "checkpoint") -> None:
        """Have it end; returns at once."""
        self._events.put(StopRequest(mode))

    def stop(self, mode: StopMode = "checkpoint") -> Summary:
        """End it and wait."""
        self.request_stop(mode)
        return self.wait()

    def wait(self, timeout_s: float | None = None) -> Summary:
        """Block until it ends."""
        left_s = math.inf if timeout_s is None else timeout_s
        # A signal that comes just before a wait begins does not interrupt it: no wait is long.
        while not self._ended.wait(min(left_s, SIGNAL_POLL_S)):
            left_s -= SIGNAL_POLL_S
            if left_s <= 0:
                raise TimeoutError(f"{self._plan.name} still runs after {timeout_s} s")
        if self._failure is not None:
            raise self._failure
        assert self._summary is not None
        return self._summary

    # The thread ----------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._enumerators.watch(self._events.put)
            self._carry_out(self._job.start())
            while self._job.phase is not Phase.ENDED:
                self._carry_out(self._next())
                self._note_state()
        except Fenced as error:
            self._failure = JobFailed(str(error))
        except PenstockError as error:
            self._failure = JobFailed(str(error), self._attempts())
        except BaseException:
            # A bug of ours must reach the user, not die with this thread.
            text = f"the controller failed:\n{traceback.format_exc()}"
            self._failure = JobFailed(text, self._attempts())
        finally:
            self._finish()

    def _finish(self) -> None:
        try:
            self._enumerators.close()
            if self._agent is not None:
                self._agent.close()
            self._at_end()
        except Exception:
            log.exception("after the end of %s", self._plan.name)
        finally:
            outcome = self._summary.outcome if self._summary else "failed"
            self._board.job(*self._position(outcome))
            self._ended.set()

    def _attempts(self) -> tuple[AttemptFailure, ...]:
        return self._job.failures

    def _next(self) -> Sequence[Action]:
        deadline_ns = self._job.deadline_ns
        now_ns = self._clock.monotonic_ns()
        timeout_s = None if deadline_ns is None else max(0, deadline_ns - now_ns) / NS
        try:
            event = self._events.get(timeout=timeout_s)
        except queue.Empty:
            return self._job.tick(self._clock.monotonic_ns())
        actions = list(self._on(event, self._clock.monotonic_ns()))
        # Time passes also while events keep coming.
        if deadline_ns is not None and self._clock.monotonic_ns() >= deadline_ns:
            self._carry_out(actions)
            return self._job.tick(self._clock.monotonic_ns())
        return actions

    def _on(self, event: Incoming, now_ns: int) -> Sequence[Action]:
        job = self._job
        if isinstance(event, FromSubtask):
            return self._on_subtask(event, now_ns)
        if isinstance(event, SubtaskExited):
            if (event.generation, event.attempt) == (job.generation, job.attempt):
                self._board.process(str(event.key), None)
            # The id finds the process in the log; the operators are what the user wrote.
            how = f"({self._plan.vertex(event.key.vertex).name}) {_how(event.status)}"
            return job.on_exit(event.generation, event.attempt, event.key, how)
        if isinstance(event, AttemptGone):
            return self._over(job.on_attempt_gone(event.generation, event.attempt, now_ns))
        if isinstance(event, AgentReady):
            self._board.process("agent", event.pid)
            if event.fork_server_pid:
                self._board.process("fork server", event.fork_server_pid)
            return job.on_agent_ready()
        if isinstance(event, AgentLost):
            return self._on_lost(event, now_ns)
        if isinstance(event, AgentFailure):
            exact = not event.consequence
            return job.on_deploy_failed(event.generation, event.attempt, event.text, exact)
        if isinstance(event, NotResponding):
            if (event.generation, event.attempt) == (job.generation, job.attempt):
                self._board.not_responding(event.key, event.state, event.seconds)
            return []
        if isinstance(event, Discovered):
            return self._on_discovered(event)
        # A Fleet answers NetListening itself, and nobody else has a net process.
        assert isinstance(event, StopRequest)
        log.info("%s: stop (%s)", self._plan.name, event.mode)
        return job.on_stop(event.mode, now_ns)

    def _on_subtask(self, message: FromSubtask, now_ns: int) -> Sequence[Action]:
        job = self._job
        if (message.generation, message.attempt) != (job.generation, job.attempt):
            return []
        event = decode_event(message.event)
        if isinstance(event, Statistics):
            self._board.statistics(message.key, event)
            return []
        if isinstance(event, Acknowledge):
            self._checkpoints.announce(event)
        elif isinstance(event, Started):
            self._board.process(str(message.key), event.pid)
        return job.on_event(message.generation, message.attempt, message.key, event, now_ns)

    def _on_lost(self, lost: AgentLost, now_ns: int) -> Sequence[Action]:
        if not lost.all_gone:
            log.warning("a process of the lost agent %d may still run; it is fenced", lost.pid)
        self._agent = None
        self._board.process("agent", None)
        self._board.process("fork server", None)
        return self._over(self._job.on_agent_lost(lost.cause, now_ns))

    def _over(self, actions: Sequence[Action]) -> Sequence[Action]:
        if self._job.phase in (Phase.WAITING, Phase.ENDED):
            self._checkpoints.attempt_over()
            self._board.attempt_over()
        if self._job.phase is Phase.WAITING:
            # Whoever watches a job restart again and again must not wait for its end to learn why.
            failed, then = self._job.failures[-1], self._job.next_restart
            text = "%s: attempt %d failed; %s: %s"
            log.warning(text, self._plan.name, failed.attempt, then, failed.cause)
        return actions

    def _on_discovered(self, found: Discovered) -> Sequence[Action]:
        self._enumerators.discovered(found)
        if self._job.phase not in (Phase.DEPLOYING, Phase.RUNNING):
            # The next attempt's deal has them.
            return []
        dealt: dict[str, Dealt] = self._enumerators.deal_new()
        return [
            Send(key, AssignSplits(operator_id, splits, no_more=False))
            for operator_id, by_subtask in dealt.items()
            for key, splits in by_subtask.items()
        ]

    # Actions -------------------------------------------------------------------------------------

    def _carry_out(self, actions: Sequence[Action]) -> None:
        left = deque(actions)
        while left:
            action = left.popleft()
            if isinstance(action, Send):
                self._send(action)
            elif isinstance(action, StoreCheckpoint):
                self._store(action)
            elif isinstance(action, CheckpointFailed):
                text = "%s: checkpoint %d failed (%d in a row): %s"
                log.warning(
                    text, self._plan.name, action.checkpoint_id, action.in_a_row, action.reason
                )
            else:
                self._carry_out_rare(action)

    def _carry_out_rare(
        self, action: StartAgent | Deploy | Cancel | RecordFinished | SetAside | End | GiveUp
    ) -> None:
        job = self._job
        if isinstance(action, StartAgent):
            self._agent = self._make_agent()
            self._agent.start(self._events)  # type: ignore[arg-type]
        elif isinstance(action, Deploy):
            self._deploy(action)
        elif isinstance(action, Cancel):
            log.info("%s: attempt %d ends", self._plan.name, action.attempt)
            self._say(CancelAttempt(job.generation, action.attempt))
        elif isinstance(action, RecordFinished):
            self._record_finished(action)
        elif isinstance(action, SetAside):
            self._set_aside(action.failure)
        elif isinstance(action, End):
            if action.warning:
                log.warning(
                    "%s stopped at epoch %d; %s", self._plan.name, job.complete, action.warning
                )
            self._note_state()
            self._summary = self._board.summary(action.outcome, self._clock.monotonic_ns())
        else:
            message = f"{self._plan.name}: {action.message}{self._poison_note}"
            self._failure = JobFailed(message, action.attempts)

    def _say(self, message: ToAgent) -> None:
        if self._agent is not None:
            self._agent.send(message)

    def _send(self, action: Send) -> None:
        command, job = action.command, self._job
        new = isinstance(command, TriggerCheckpoint) and command.checkpoint_id > self._triggered
        if isinstance(command, TriggerCheckpoint) and new:
            self._triggered = command.checkpoint_id
            failpoint("before-trigger", "controller")
            self._checkpoints.log.reserve(command.checkpoint_id)
        self._say(ToSubtask(job.generation, job.attempt, action.key, encode(command)))
        if new:
            # One source has heard of it, the others have not.
            failpoint("after-trigger", "controller")

    def _deploy(self, action: Deploy) -> None:
        failpoint("before-deploy", "controller")
        manifest = self._checkpoints.manifest
        assert (manifest.id if manifest else 0) == action.restores
        self._checkpoints.log.append_attempt(action.attempt, action.restores)
        generation, run_id = self._job.generation, self._checkpoints.run_id
        self._say(
            self._deployer.message(generation, action.attempt, run_id, manifest, self._enumerators)
        )
        log.info(
            "%s: attempt %d starts from %s", self._plan.name, action.attempt,
            f"checkpoint {action.restores}" if action.restores else "the beginning",
        )  # fmt: skip
        failpoint("after-deploy", "controller")

    def _store(self, order: StoreCheckpoint) -> None:
        job, attempt = self._job, self._job.attempt
        try:
            self._checkpoints.complete(order, attempt)
        except UncertainLog:
            raise
        except StateError as error:
            now_ns = self._clock.monotonic_ns()
            self._carry_out(job.on_refused(attempt, order.checkpoint_id, str(error), now_ns))
            return
        now_ns = self._clock.monotonic_ns()
        self._board.checkpoint_completed(now_ns)
        log.info("%s: checkpoint %d is complete", self._plan.name, order.checkpoint_id)
        actions = job.on_stored(attempt, order.checkpoint_id, now_ns)
        failpoint("before-commit-send", "controller")
        self._carry_out(actions)
        failpoint("after-commit-send", "controller")
        self._checkpoints.collect_garbage(job.checkpoints.owed_since)

    def _record_finished(self, action: RecordFinished) -> None:
        # Tidied before it is said: who dies in between comes back and tidies again, while a
        # finished job is not started again.
        tidy_sinks(self._plan, self._checkpoints.run_id)
        failpoint("before-finished", "controller")
        self._checkpoints.log.append_finished(action.checkpoint_id)
        failpoint("after-finished", "controller")

    def _set_aside(self, failure: Failure) -> None:
        name = set_aside(self._checkpoints.store, failure)
        if name is not None and self._temporary:
            self._poison_note = "\n  a state_dir would keep the rows; the temporary one is gone"
        elif name is not None:
            self._poison_note = f"\n  the rows are in {self._deployer.store_root}/{name}"

    def _note_state(self) -> None:
        self._board.job(*self._position(_STATES[self._job.phase]))

    def _position(self, state: str) -> tuple[str, int, int, int, int]:
        job = self._job
        if job.stopping and job.phase is not Phase.ENDED:
            state = "stopping"
        completed = job.completed_before + job.checkpoints.completed
        return state, job.attempt, job.restarts, job.complete, completed


_STATES = {
    Phase.LAUNCHING: "starting",
    Phase.DEPLOYING: "starting",
    Phase.RUNNING: "running",
    Phase.CANCELLING: "ending the attempt",
    Phase.WAITING: "restarting",
    Phase.ENDED: "ended",
}


def _how(status: int) -> str:
    if status >= 0:
        return f"exited with code {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"
