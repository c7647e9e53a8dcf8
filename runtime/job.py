"""A job's life: attempts, restarts, checkpoints, stop and end; pure (hazards 9, 12, 17, 42, 43).

    launching → deploying → running → cancelling → waiting → deploying …   → ended

1. An attempt begins only after AttemptGone, or the loss of the agent, has ended the one before.
2. What does not carry the present generation and attempt is dropped.
3. The job is finished only after a FINAL checkpoint, and stopped with a checkpoint only after a
   STOP one, is in the log and no subtask owes a commit.
4. The same poison twice, or an error that no restart can mend, ends the job at once.

Time comes in as numbers; what to do goes out as actions, which the controller carries out in order.
"""

from __future__ import annotations

from collections.abc import Mapping

from penstock.dataflow.launcher import StopMode
from penstock.elements.errors import AttemptFailure
from penstock.elements.signals import BarrierFlag

from .checkpoint import CheckpointFailed, Checkpoints, Send
from .job_actions import (
    Action,
    Cancel,
    Deploy,
    End,
    GiveUp,
    Outcome,
    Phase,
    Policy,
    RecordFinished,
    SetAside,
    StartAgent,
)
from .messages import (
    Acknowledge,
    CommitDone,
    Decline,
    Drain,
    Event,
    Failed,
    Failure,
    InputEnded,
    Started,
    SubtaskKey,
)
from .restart import Restarts

COMMIT_REPEAT_NS = 1_000_000_000
"""At the end of a job commits that are still owed are asked for again after this."""
FATAL = frozenset({"PlanError", "SettingsError", "StateError"})
"""Errors that the same program on the same data meets again."""


class Job:
    """One generation of one job."""

    def __init__(
        self,
        generation: int,
        upstream: Mapping[SubtaskKey, frozenset[SubtaskKey]],
        sources: frozenset[SubtaskKey],
        restored: int,
        first_id: int,
        policy: Policy,
    ) -> None:
        self.generation = generation
        self.phase = Phase.LAUNCHING
        self.attempt = 0
        self._upstream = upstream
        self._sources = sources
        self._policy = policy
        self._restarts = Restarts(policy.restart)
        self.checkpoints = Checkpoints(upstream, restored, first_id - 1)
        self.completed_before = 0
        self._agent_up = False
        self._started: set[SubtaskKey] = set()
        self._next_checkpoint_ns: int | None = None
        self._repeat_ns: int | None = None
        self._closing_since_ns: int | None = None
        self._cause: str | None = None
        self._exact_cause = False
        self._fatal: str | None = None
        self._poison: Failure | None = None
        self._identities: set[str] = set()
        self.stopping: StopMode | None = None
        self._outcome: Outcome | None = None
        self._warning = ""

    # What the shell reads ----------------------------------------------------------------------

    @property
    def complete(self) -> int:
        """The last complete checkpoint; where the next attempt starts."""
        return self.checkpoints.complete

    @property
    def restarts(self) -> int:
        """Attempts after the first, in this generation."""
        return max(0, self.attempt - 1)

    @property
    def failures(self) -> tuple[AttemptFailure, ...]:
        """Why attempts ended."""
        return self._restarts.failures

    @property
    def next_restart(self) -> str:
        """Which restart in a row is waited for. Requires: WAITING."""
        assert self.phase is Phase.WAITING
        return self._restarts.next

    @property
    def deadline_ns(self) -> int | None:
        """When `tick` wants to be called at the latest."""
        candidates = [self._restarts.wake_ns if self.phase is Phase.WAITING else None]
        if self.phase is Phase.RUNNING:
            since_ns = self.checkpoints.since_ns
            if since_ns is None:
                candidates += [self._next_checkpoint_ns, self._repeat_ns]
            else:
                candidates.append(since_ns + self._policy.timeout_ns)
            if self._closing_since_ns is not None:
                candidates.append(self._closing_since_ns + self._policy.timeout_ns)
        return min((ns for ns in candidates if ns is not None), default=None)

    # Events --------------------------------------------------------------------------------------

    def start(self) -> list[Action]:
        """Begin."""
        return [StartAgent()]

    def on_agent_ready(self) -> list[Action]:
        """The agent takes attempts."""
        self._agent_up = True
        return self._deploy() if self.phase is Phase.LAUNCHING else []

    def on_agent_lost(self, reason: str, now_ns: int) -> list[Action]:
        """With it every process of the attempt is gone."""
        self._agent_up = False
        if self.phase in (Phase.LAUNCHING, Phase.DEPLOYING, Phase.RUNNING):
            self._note(f"the agent was lost: {reason}", exact=False)
            self.phase = Phase.CANCELLING
        return self._gone(now_ns) if self.phase is Phase.CANCELLING else []

    def on_attempt_gone(self, generation: int, attempt: int, now_ns: int) -> list[Action]:
        """The answer to Cancel."""
        if not self._current(generation, attempt) or self.phase is not Phase.CANCELLING:
            return []
        return self._gone(now_ns)

    def on_exit(self, generation: int, attempt: int, key: SubtaskKey, how: str) -> list[Action]:
        """A process of the attempt is gone; while it is being cancelled that is no news."""
        if not self._current(generation, attempt):
            return []
        return self._fail_attempt(f"{key} {how}", exact=False)

    def on_deploy_failed(
        self, generation: int, attempt: int, text: str, exact: bool = True
    ) -> list[Action]:
        """The agent could not start the attempt, or go on with it."""
        if not self._current(generation, attempt):
            return []
        return self._fail_attempt(text, exact)

    def on_event(
        self, generation: int, attempt: int, key: SubtaskKey, event: Event, now_ns: int
    ) -> list[Action]:
        """What a subtask says."""
        if not self._current(generation, attempt) or self.phase is Phase.ENDED:
            return []
        if isinstance(event, Failed):
            return self._on_failed(event.failure)
        if self.phase not in (Phase.DEPLOYING, Phase.RUNNING):
            return []
        actions: list[Action] = []
        if isinstance(event, Started):
            actions += self._on_started(key, now_ns)
        elif isinstance(event, InputEnded):
            actions += self.checkpoints.on_ended(key)
        elif isinstance(event, Acknowledge):
            actions += self.checkpoints.on_acknowledge(key, event)
        elif isinstance(event, Decline):
            actions += self.checkpoints.on_decline(key, event.checkpoint_id, event.reason)
        elif isinstance(event, CommitDone):
            actions += self.checkpoints.on_commit_done(key, event.checkpoint_id)
        return actions + self._settle(actions, now_ns)

    def on_stored(self, attempt: int, checkpoint_id: int, now_ns: int) -> list[Action]:
        """The checkpoint is in the log. It counts even if its attempt is failing meanwhile."""
        assert attempt == self.attempt
        actions: list[Action] = [*self.checkpoints.on_stored(checkpoint_id)]
        return actions + self._settle(actions, now_ns)

    def on_refused(
        self, attempt: int, checkpoint_id: int, reason: str, now_ns: int
    ) -> list[Action]:
        """The checkpoint could not be stored."""
        assert attempt == self.attempt
        actions: list[Action] = [*self.checkpoints.on_refused(checkpoint_id, reason)]
        return actions + self._settle(actions, now_ns)

    def on_stop(self, mode: StopMode, now_ns: int) -> list[Action]:
        """The user wants it to end. Once said, only "now" changes it."""
        if self.phase is Phase.ENDED or self._outcome is not None:
            return []
        if self.stopping is not None and mode != "now":
            return []
        self.stopping = mode
        if self.phase in (Phase.LAUNCHING, Phase.WAITING) and mode != "drain":
            return self._end("stopped")
        if self.phase is Phase.CANCELLING and mode != "drain":
            self._outcome = "stopped"
            return []
        if mode == "now" and self.phase in (Phase.DEPLOYING, Phase.RUNNING):
            return self._close("stopped")
        if mode == "drain" and self.phase is Phase.RUNNING:
            return self._drain()
        return self._settle([], now_ns)

    def tick(self, now_ns: int) -> list[Action]:
        """Time has passed."""
        if self.phase is Phase.WAITING:
            if now_ns < self._restarts.wake_ns:
                return []
            if self._agent_up:
                return self._deploy()
            self.phase = Phase.LAUNCHING
            return [StartAgent()]
        if self.phase is not Phase.RUNNING:
            return []
        actions: list[Action] = []
        since_ns = self.checkpoints.since_ns
        if since_ns is not None and now_ns >= since_ns + self._policy.timeout_ns:
            actions += self.checkpoints.on_timeout()
        return actions + self._settle(actions, now_ns)

    # Attempts ----------------------------------------------------------------------------------

    def _current(self, generation: int, attempt: int) -> bool:
        return generation == self.generation and attempt == self.attempt

    def _deploy(self) -> list[Action]:
        self.attempt += 1
        self.phase = Phase.DEPLOYING
        before = self.checkpoints
        self.completed_before += before.completed
        self.checkpoints = Checkpoints(self._upstream, before.complete, before.last_id)
        self._started.clear()
        self._cause, self._exact_cause = None, False
        self._next_checkpoint_ns = self._repeat_ns = self._closing_since_ns = None
        return [Deploy(self.attempt, before.complete)]

    def _on_started(self, key: SubtaskKey, now_ns: int) -> list[Action]:
        self._started.add(key)
        if self.phase is not Phase.DEPLOYING or len(self._started) < len(self._upstream):
            return []
        self.phase = Phase.RUNNING
        self._restarts.on_running(now_ns)
        self._next_checkpoint_ns = now_ns + self._policy.interval_ns
        return self._drain() if self.stopping == "drain" else []

    def _drain(self) -> list[Action]:
        return [Send(key, Drain()) for key in sorted(self._sources)]

    def _on_failed(self, failure: Failure) -> list[Action]:
        if self.phase not in (Phase.DEPLOYING, Phase.RUNNING, Phase.CANCELLING):
            return []
        if self._exact_cause:
            return []
        if failure.kind in FATAL:
            self._fatal = "the job cannot run on"
        # Without a position nothing tells one row from another: the restart policy decides.
        if failure.identity and not failure.identity.endswith("|"):
            if failure.identity in self._identities:
                self._poison = failure
            self._identities.add(failure.identity)
        return self._fail_attempt(failure.text, exact=True)

    def _fail_attempt(self, cause: str, exact: bool) -> list[Action]:
        if self.phase is Phase.CANCELLING:
            # What a subtask says about its end tells more than that it was found dead.
            if exact and self._cause is not None:
                self._note(cause, exact)
            return []
        if self.phase not in (Phase.DEPLOYING, Phase.RUNNING):
            return []
        self._note(cause, exact)
        self.phase = Phase.CANCELLING
        return [Cancel(self.attempt)]

    def _note(self, cause: str, exact: bool) -> None:
        if self._cause is None or (exact and not self._exact_cause):
            self._cause, self._exact_cause = cause, exact

    def _close(self, outcome: Outcome) -> list[Action]:
        """End the attempt, it has done its part."""
        self._outcome = outcome
        self.phase = Phase.CANCELLING
        return [Cancel(self.attempt)]

    def _gone(self, now_ns: int) -> list[Action]:
        cause, self._cause, self._exact_cause = self._cause, None, False
        if self._outcome is not None:
            return self._end(self._outcome)
        assert cause is not None
        self._restarts.on_failure(self.attempt, cause, now_ns)
        if self.stopping in ("checkpoint", "now"):
            # Nothing is lost: the next run replays from the last complete checkpoint.
            self._warning = f"it failed while it was being stopped: {cause}"
            return self._end("stopped")
        if self._poison is not None:
            message = f"the same rows failed twice in {self._poison.operator}; they are set aside"
            return [SetAside(self._poison), *self._give_up(message)]
        if self._fatal is not None:
            return self._give_up(self._fatal)
        if self._restarts.exhausted:
            return self._give_up(self._restarts.verdict)
        self.phase = Phase.WAITING
        return []

    def _end(self, outcome: Outcome) -> list[Action]:
        self.phase = Phase.ENDED
        return [End(outcome, self._warning)]

    def _give_up(self, message: str) -> list[Action]:
        self.phase = Phase.ENDED
        return [GiveUp(message, self._restarts.failures)]

    # Checkpoints, the end of data --------------------------------------------------------------

    def _settle(self, just_done: list[Action], now_ns: int) -> list[Action]:
        """After each event: what failed, what is due, whether the end is reached."""
        for action in just_done:
            if isinstance(action, CheckpointFailed):
                found = self._on_checkpoint_failed(action, now_ns)
                if found:
                    return found
        if self.phase is not Phase.RUNNING or self.checkpoints.under_way is not None:
            return []
        closing = self._wanted_flag()
        if closing is None:
            return self._trigger_if_due(now_ns)
        if closing not in self.checkpoints.complete_flags:
            return self._trigger(closing, now_ns)
        return self._close_when_committed(closing, now_ns)

    def _wanted_flag(self) -> BarrierFlag | None:
        if self.checkpoints.all_ended:
            return BarrierFlag.FINAL
        return BarrierFlag.STOP if self.stopping == "checkpoint" else None

    def _trigger_if_due(self, now_ns: int) -> list[Action]:
        due_ns = self._next_checkpoint_ns
        if due_ns is None or now_ns < due_ns:
            return []
        return self._trigger(BarrierFlag.NONE, now_ns)

    def _trigger(self, flags: BarrierFlag, now_ns: int) -> list[Action]:
        self._next_checkpoint_ns = now_ns + self._policy.interval_ns
        return [*self.checkpoints.trigger(flags, now_ns)]

    def _close_when_committed(self, flag: BarrierFlag, now_ns: int) -> list[Action]:
        self._next_checkpoint_ns = None
        if not self.checkpoints.owed:
            if flag is BarrierFlag.STOP:
                return self._close("stopped")
            return [RecordFinished(self.complete), *self._close("finished")]
        if self._closing_since_ns is None:
            self._closing_since_ns, self._repeat_ns = now_ns, now_ns + COMMIT_REPEAT_NS
        elif now_ns >= self._closing_since_ns + self._policy.timeout_ns:
            who = ", ".join(str(key) for key in sorted(self.checkpoints.owed))
            return self._fail_attempt(f"{who} did not commit checkpoint {self.complete}", True)
        elif self._repeat_ns is not None and now_ns >= self._repeat_ns:
            self._repeat_ns = now_ns + COMMIT_REPEAT_NS
            return [*self.checkpoints.repeat_commits()]
        return []

    def _on_checkpoint_failed(self, failed: CheckpointFailed, now_ns: int) -> list[Action]:
        if self.phase is not Phase.RUNNING:
            return []
        if BarrierFlag.STOP in failed.flags:
            # Sources pause at a STOP cut, so this attempt cannot go on.
            self._warning = f"its last checkpoint {failed.checkpoint_id} failed: {failed.reason}"
            return self._close("stopped")
        if failed.in_a_row > self._policy.tolerated:
            return self._fail_attempt(
                f"{failed.in_a_row} checkpoints failed in a row, "
                f"the last one ({failed.checkpoint_id}): {failed.reason}",
                exact=True,
            )
        return []
