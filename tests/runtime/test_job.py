from __future__ import annotations

from typing import Any

import pytest

from penstock.elements.signals import BarrierFlag
from penstock.runtime.checkpoint import CheckpointFailed, Checkpoints, Owed, Send, StoreCheckpoint
from penstock.runtime.job import COMMIT_REPEAT_NS, Job
from penstock.runtime.job_actions import (
    NS,
    Cancel,
    Deploy,
    End,
    GiveUp,
    Phase,
    Policy,
    RecordFinished,
    SetAside,
    StartAgent,
)
from penstock.runtime.messages import (
    AbortCheckpoint,
    Acknowledge,
    Commit,
    CommitDone,
    Decline,
    Drain,
    Failed,
    Failure,
    InputEnded,
    RunRef,
    Started,
    SubtaskKey,
    TriggerCheckpoint,
)
from penstock.runtime.restart import RestartPolicy

S0, S1, D = SubtaskKey("s", 0), SubtaskKey("s", 1), SubtaskKey("d", 0)
UPSTREAM = {S0: frozenset[SubtaskKey](), S1: frozenset[SubtaskKey](), D: frozenset({S0, S1})}
POLICY = Policy(
    interval_ns=10 * NS,
    timeout_ns=60 * NS,
    tolerated=1,
    restart=RestartPolicy(attempts=3, delay_ns=NS, delay_ns_max=3 * NS, healthy_ns=100 * NS),
)


def ack(checkpoint_id: int, owes: bool = False) -> Acknowledge:
    run = RunRef("", 1, 0, b"x")
    return Acknowledge(checkpoint_id, run, False, 0, {}, owes, 0, 0, 1)


def kinds(actions: list[Any]) -> list[type]:
    return [type(action.command if isinstance(action, Send) else action) for action in actions]


class Driven:
    """A job whose clock stands until it is told."""

    def __init__(self, restored: int = 0, **changes: Any) -> None:
        sources = frozenset({S0, S1})
        self.job = Job(7, UPSTREAM, sources, restored, restored + 1, POLICY)
        self.now_ns = 0

    def say(self, key: SubtaskKey, event: Any, attempt: int | None = None) -> list[Any]:
        number = self.job.attempt if attempt is None else attempt
        return self.job.on_event(7, number, key, event, self.now_ns)

    def all_say(self, event: Any) -> list[Any]:
        return [action for key in UPSTREAM for action in self.say(key, event)]

    def running(self) -> Driven:
        assert kinds(self.job.start()) == [StartAgent]
        assert kinds(self.job.on_agent_ready()) == [Deploy]
        self.all_say(Started(1))
        assert self.job.phase is Phase.RUNNING
        return self

    def tick(self, seconds: float) -> list[Any]:
        self.now_ns += int(seconds * NS)
        return self.job.tick(self.now_ns)

    def gone(self) -> list[Any]:
        return self.job.on_attempt_gone(7, self.job.attempt, self.now_ns)

    def stored(self, checkpoint_id: int) -> list[Any]:
        return self.job.on_stored(self.job.attempt, checkpoint_id, self.now_ns)

    def fail(self, text: str = "boom", kind: str = "ValueError", identity: str = "") -> list[Any]:
        return self.say(S0, Failed(Failure(kind, text, "op", identity, b"rows")))

    def restart(self) -> None:
        assert self.gone() == []
        assert self.job.deadline_ns is not None
        self.now_ns = self.job.deadline_ns
        assert kinds(self.job.tick(self.now_ns)) == [Deploy]
        self.all_say(Started(1))


def test_barriers_start_at_sources_and_behind_those_that_have_ended() -> None:
    checkpoints = Checkpoints(UPSTREAM, 0, 0)
    checkpoints.on_ended(S0)
    sent = checkpoints.trigger(BarrierFlag.NONE, 0)
    assert [s.key for s in sent if isinstance(s, Send)] == [S0, S1]
    # S1 ends before it has heard of the trigger: nobody sends D a barrier.
    assert checkpoints.on_ended(S1) == [Send(D, TriggerCheckpoint(1, 0))]
    assert checkpoints.on_ended(D) == []


def test_a_checkpoint_is_stored_once_all_acknowledged_and_committed_once_it_is_logged() -> None:
    checkpoints = Checkpoints(UPSTREAM, 0, 0)
    checkpoints.trigger(BarrierFlag.NONE, 0)
    assert checkpoints.on_acknowledge(S0, ack(1)) == []
    assert checkpoints.on_acknowledge(S0, ack(1)) == []
    assert checkpoints.on_acknowledge(D, ack(1, owes=True)) == []
    (store,) = checkpoints.on_acknowledge(S1, ack(1))
    assert isinstance(store, StoreCheckpoint)
    assert checkpoints.complete == 0
    assert checkpoints.on_stored(1) == [Send(key, Commit(1)) for key in UPSTREAM]
    assert checkpoints.complete == 1
    assert checkpoints.owed == {D: Owed(1, 1)}


def test_commits_are_owed_until_the_last_cut_is_reported_done() -> None:
    checkpoints = Checkpoints(UPSTREAM, 0, 0)
    for checkpoint_id in (1, 2):
        checkpoints.trigger(BarrierFlag.NONE, 0)
        for key in UPSTREAM:
            checkpoints.on_acknowledge(key, ack(checkpoint_id, owes=key == D))
        checkpoints.on_stored(checkpoint_id)
    assert checkpoints.owed_since == 1
    checkpoints.on_commit_done(D, 1)
    assert checkpoints.owed_since == 2
    assert checkpoints.repeat_commits() == [Send(D, Commit(2))]
    checkpoints.on_commit_done(D, 2)
    assert checkpoints.owed_since is None


def test_one_decline_or_a_timeout_aborts_for_all_and_late_acknowledgements_are_dropped() -> None:
    checkpoints = Checkpoints(UPSTREAM, 0, 4)
    checkpoints.trigger(BarrierFlag.NONE, 0)
    actions = checkpoints.on_decline(D, 5, "disk full")
    assert actions[:3] == [Send(key, AbortCheckpoint(5)) for key in UPSTREAM]
    assert actions[3] == CheckpointFailed(5, BarrierFlag.NONE, "d[0] declined: disk full", 1)
    assert checkpoints.on_acknowledge(S0, ack(5)) == []
    assert checkpoints.trigger(BarrierFlag.NONE, 0)[0] == Send(S0, TriggerCheckpoint(6, 0))
    checkpoints.on_acknowledge(S0, ack(6))
    failed = checkpoints.on_timeout()[-1]
    assert failed == CheckpointFailed(6, BarrierFlag.NONE, "timed out waiting for s[1], d[0]", 2)


def test_checkpoints_are_triggered_on_the_interval_once_all_have_started() -> None:
    driven = Driven()
    driven.job.start()
    driven.job.on_agent_ready()
    driven.say(S0, Started(1))
    assert driven.tick(100) == []
    driven.say(S1, Started(1))
    driven.say(D, Started(1))
    assert driven.tick(9.9) == []
    assert kinds(driven.tick(0.2)) == [TriggerCheckpoint, TriggerCheckpoint]
    assert driven.tick(20) == []


def test_a_failed_attempt_is_cancelled_and_the_next_waits_for_its_end_and_the_delay() -> None:
    driven = Driven(restored=5).running()
    assert driven.fail() == [Cancel(1)]
    assert driven.tick(50) == []
    assert driven.gone() == []
    assert driven.tick(0.5) == []
    assert driven.tick(0.6) == [Deploy(2, restores=5)]


def test_the_delay_doubles_up_to_its_cap_and_the_last_failure_tells_all_causes() -> None:
    driven = Driven().running()
    waited = []
    for number in range(3):
        driven.fail(f"cause {number}")
        before_ns = driven.now_ns
        driven.restart()
        waited.append((driven.now_ns - before_ns) / NS)
    assert waited == [1, 2, 3]
    driven.fail("cause 3")
    (given_up,) = driven.gone()
    assert isinstance(given_up, GiveUp)
    assert "4 times in a row (3 restarts)" in given_up.message
    assert [a.cause for a in given_up.attempts] == [f"cause {n}" for n in range(4)]
    assert [a.attempt for a in given_up.attempts] == [1, 2, 3, 4]


def test_a_healthy_time_forgives_earlier_failures() -> None:
    driven = Driven().running()
    for _ in range(10):
        driven.now_ns += 101 * NS
        driven.fail()
        driven.restart()
    assert driven.job.phase is Phase.RUNNING


def test_what_a_subtask_says_replaces_that_it_was_found_dead() -> None:
    driven = Driven().running()
    assert driven.job.on_exit(7, 1, D, "was killed by SIGKILL") == [Cancel(1)]
    assert driven.fail("TypeError in line 3") == []
    assert driven.fail("a consequence") == []
    driven.gone()
    assert driven.job.failures[0].cause == "TypeError in line 3"


def test_poison_is_recognised_even_if_a_lost_connection_is_heard_of_first() -> None:
    driven = Driven().running()
    for number in (1, 2):
        assert driven.job.on_deploy_failed(7, number, "lost node b", exact=False) == [
            Cancel(number)
        ]
        assert driven.fail("bad row", identity="op|ValueError|row 7") == []
        if number == 1:
            driven.restart()
            assert driven.job.failures[0].cause == "bad row"
    assert kinds(driven.gone()) == [SetAside, GiveUp]


def test_messages_of_another_attempt_or_generation_are_dropped() -> None:
    driven = Driven().running()
    assert driven.job.on_event(7, 0, S0, Failed(Failure("E", "x")), 0) == []
    assert driven.job.on_event(6, 1, S0, Failed(Failure("E", "x")), 0) == []
    assert driven.job.on_exit(6, 1, S0, "x") == []
    assert driven.job.on_attempt_gone(7, 1, 0) == []
    assert driven.job.phase is Phase.RUNNING


def test_the_same_poison_twice_is_set_aside_and_ends_the_job() -> None:
    driven = Driven().running()
    driven.fail(identity="op|ValueError|row 7")
    driven.restart()
    driven.fail(identity="op|ValueError|row 8")
    driven.restart()
    driven.fail(identity="op|ValueError|row 7")
    aside, given_up = driven.gone()
    assert isinstance(aside, SetAside)
    assert isinstance(given_up, GiveUp)
    assert len(given_up.attempts) == 3


def test_failures_without_a_position_are_left_to_the_restart_policy() -> None:
    driven = Driven().running()
    for _ in range(3):
        driven.fail(identity="op|ConnectionError|")
        driven.restart()
    assert driven.job.phase is Phase.RUNNING


@pytest.mark.parametrize("kind", ["StateError", "PlanError", "SettingsError"])
def test_errors_that_no_restart_can_mend_end_the_job_at_once(kind: str) -> None:
    driven = Driven().running()
    driven.fail(kind=kind)
    assert kinds(driven.gone()) == [GiveUp]


def test_too_many_failed_checkpoints_fail_the_attempt() -> None:
    driven = Driven().running()
    driven.tick(10)
    driven.say(D, Decline(1, "x"))
    assert driven.job.phase is Phase.RUNNING
    driven.tick(10)
    assert Cancel(1) in driven.say(D, Decline(2, "y"))
    driven.gone()
    assert "2 checkpoints failed in a row" in driven.job.failures[0].cause


def test_a_checkpoint_that_cannot_be_stored_counts_as_failed() -> None:
    driven = Driven().running()
    driven.tick(10)
    driven.all_say(ack(1))
    actions = driven.job.on_refused(1, 1, "disk full", driven.now_ns)
    assert kinds(actions)[:3] == [AbortCheckpoint] * 3
    assert driven.job.complete == 0


def test_the_end_of_data_needs_a_final_checkpoint_and_every_commit() -> None:
    driven = Driven().running()
    driven.say(S0, InputEnded())
    driven.say(S1, InputEnded())
    triggered = driven.say(D, InputEnded())
    assert triggered == [
        Send(key, TriggerCheckpoint(1, int(BarrierFlag.FINAL))) for key in UPSTREAM
    ]
    for key in (S0, S1):
        driven.say(key, ack(1))
    driven.say(D, ack(1, owes=True))
    assert kinds(driven.stored(1)) == [Commit] * 3
    assert kinds(driven.tick(COMMIT_REPEAT_NS / NS)) == [Commit]
    assert driven.say(D, CommitDone(1)) == [RecordFinished(1), Cancel(1)]
    # The processes that are being killed are no news.
    assert driven.job.on_exit(7, 1, D, "was killed by SIGKILL") == []
    assert driven.gone() == [End("finished")]


def test_a_commit_that_never_comes_fails_the_attempt() -> None:
    driven = Driven().running()
    driven.all_say(InputEnded())
    driven.all_say(ack(1, owes=True))
    driven.stored(1)
    driven.tick(1)
    assert Cancel(1) in driven.tick(60)
    driven.gone()
    assert "d[0], s[0], s[1] did not commit checkpoint 1" in driven.job.failures[0].cause


def test_a_restored_end_is_checkpointed_again_so_that_every_commit_is_known_done() -> None:
    driven = Driven(restored=9).running()
    triggered = driven.all_say(InputEnded())
    assert kinds(triggered) == [TriggerCheckpoint] * 3


def test_stop_takes_a_last_checkpoint_and_waits_for_its_commits() -> None:
    driven = Driven().running()
    sent = driven.job.on_stop("checkpoint", 0)
    assert sent == [Send(key, TriggerCheckpoint(1, int(BarrierFlag.STOP))) for key in (S0, S1)]
    driven.all_say(ack(1, owes=True))
    driven.stored(1)
    driven.say(S0, CommitDone(1))
    driven.say(S1, CommitDone(1))
    assert driven.say(D, CommitDone(1)) == [Cancel(1)]
    assert driven.gone() == [End("stopped")]


def test_stop_waits_for_the_checkpoint_under_way() -> None:
    driven = Driven().running()
    driven.tick(10)
    assert driven.job.on_stop("checkpoint", driven.now_ns) == []
    driven.all_say(ack(1))
    assert kinds(driven.stored(1)) == [Commit] * 3 + [TriggerCheckpoint] * 2


def test_stop_before_the_job_runs_waits_until_it_does() -> None:
    driven = Driven()
    driven.job.start()
    driven.job.on_agent_ready()
    assert driven.job.on_stop("checkpoint", 0) == []
    assert TriggerCheckpoint in kinds(driven.all_say(Started(1)))


def test_a_stop_whose_checkpoint_fails_says_so() -> None:
    driven = Driven(restored=3).running()
    driven.job.on_stop("checkpoint", 0)
    assert Cancel(1) in driven.say(D, Decline(4, "disk full"))
    (end,) = driven.gone()
    assert end.outcome == "stopped"
    assert "disk full" in end.warning


def test_stop_while_waiting_for_a_restart_ends_at_once() -> None:
    driven = Driven().running()
    driven.fail()
    driven.gone()
    assert driven.job.on_stop("checkpoint", 0) == [End("stopped")]


def test_stop_now_takes_no_checkpoint_and_overrides_a_stop_that_hangs() -> None:
    driven = Driven().running()
    driven.job.on_stop("checkpoint", 0)
    assert driven.job.on_stop("now", 0) == [Cancel(1)]
    assert driven.gone() == [End("stopped")]


def test_drain_ends_the_data_at_the_sources() -> None:
    driven = Driven().running()
    assert driven.job.on_stop("drain", 0) == [Send(S0, Drain()), Send(S1, Drain())]
    assert driven.job.on_stop("checkpoint", 0) == []
    assert TriggerCheckpoint in kinds(driven.all_say(InputEnded()))


def test_a_drain_survives_a_restart() -> None:
    driven = Driven().running()
    driven.job.on_stop("drain", 0)
    driven.fail()
    driven.gone()
    driven.tick(5)
    assert kinds(driven.all_say(Started(1))) == [Drain, Drain]


def test_a_lost_agent_is_started_anew_and_counts_as_the_end_of_its_attempt() -> None:
    driven = Driven(restored=2).running()
    assert driven.job.on_agent_lost("it was killed by SIGKILL", 0) == []
    assert driven.tick(1) == [StartAgent()]
    assert driven.job.on_agent_ready() == [Deploy(2, restores=2)]
    assert "SIGKILL" in driven.job.failures[0].cause


def test_an_agent_that_cannot_be_started_is_given_up() -> None:
    driven = Driven()
    driven.job.start()
    for number in range(3):
        assert driven.job.on_agent_lost(f"exit {number}", driven.now_ns) == []
        assert driven.tick(10) == [StartAgent()]
    (given_up,) = driven.job.on_agent_lost("exit 3", driven.now_ns)
    assert isinstance(given_up, GiveUp)
    assert [a.cause[-6:] for a in given_up.attempts] == [f"exit {n}" for n in range(4)]
