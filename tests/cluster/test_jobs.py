"""Jobs of a cluster: launches, stops, widths, nodes that leave."""

from __future__ import annotations

import pytest
from job_core import RUNNING, A, B, kinds, record, running

from penstock.cluster.job_messages import (
    AgentGone,
    CloseAgent,
    Ended,
    NeedSlots,
    NodeGone,
    NodeLost,
    OpenAgent,
    Report,
    StopJob,
)
from penstock.cluster.job_record import (
    AskSlots,
    CloseOnNode,
    FreeSlots,
    KillProcess,
    SaveJob,
    StartProcess,
    TellJob,
)
from penstock.cluster.jobs import EXIT_S, LAUNCHES_IN_A_ROW, NS, Jobs
from penstock.elements.errors import SettingsError


def test_a_launch_is_counted_on_disk_before_it_begins() -> None:
    saved, started = Jobs({"j": 6}).begin(record(), 0)
    assert isinstance(saved, SaveJob)
    assert saved.record.launch == 7
    assert started == StartProcess(saved.record)


def test_a_job_that_has_run_asks_again() -> None:
    jobs = Jobs({})
    jobs.begin(record(), 0)
    assert jobs.on_need_slots("j", 1, NeedSlots(1, 4, False)) == [
        AskSlots("j", 1, 4, False, "pack")
    ]
    jobs.on_report("j", 1, RUNNING, 0)
    assert jobs.on_need_slots("j", 1, NeedSlots(2, 4, False)) == [AskSlots("j", 2, 4, True, "pack")]


def test_a_job_that_finishes_is_over_at_once_and_its_agents_are_closed() -> None:
    jobs = running()
    commands = jobs.on_ended("j", 1, Ended("finished", b"sum"), 5)
    assert kinds(commands) == [SaveJob, CloseOnNode, CloseOnNode, FreeSlots]
    assert commands[0].record.outcome == "finished"
    assert commands[0].record.summary == b"sum"
    assert jobs.find("j") is None


def test_a_new_submission_of_the_name_waits_for_what_the_old_one_left() -> None:
    jobs = running()
    jobs.on_ended("j", 1, Ended("finished", b""), 5)
    assert jobs.begin(record(id=2), 6) == []
    assert jobs.on_process_gone("j", 1, "", 7) == []
    assert jobs.on_agent_gone("j", 1, A, "closed", 8) == []
    commands = jobs.on_node_gone(B, [], 9)
    assert kinds(commands) == [SaveJob, StartProcess]
    assert commands[0].record.launch == 2


def test_a_coordinator_that_dies_is_launched_again_when_its_agents_are_closed() -> None:
    jobs = running()
    commands = jobs.on_process_gone("j", 1, "killed by SIGKILL", 10)
    assert kinds(commands) == [SaveJob, CloseOnNode, CloseOnNode, FreeSlots]
    assert "SIGKILL" in commands[0].record.note
    assert jobs.state("j", waits=False) == "restarting"
    assert jobs.on_agent_gone("j", 1, A, "closed", 11) == []
    assert jobs.on_agent_gone("j", 1, B, "closed", 12) == []
    assert jobs.deadline_ns is not None
    assert jobs.tick(jobs.deadline_ns - 1) == []
    assert kinds(jobs.tick(jobs.deadline_ns)) == [SaveJob, StartProcess]


def test_a_coordinator_that_always_dies_fails_the_job() -> None:
    jobs = Jobs({})
    jobs.begin(record(), 0)
    now, launches = 0, 1
    while jobs.find("j") is not None:
        jobs.on_process_gone("j", launches, "exited with code 1", now)
        now += LAUNCHES_IN_A_ROW.delay_ns_max
        launches += len([c for c in jobs.tick(now) if isinstance(c, StartProcess)])
    assert launches == LAUNCHES_IN_A_ROW.attempts + 1
    assert jobs.deadline_ns is None


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (b'{"state": "starting"}', "starting"),
        (b'{"state": "running"}', "running"),
        (b'{"state": "running, a[0] not responding for 4 s in process"}', "running"),
        (b'{"state": "ending the attempt"}', "restarting"),
        (b'{"state": "restarting"}', "restarting"),
        (b"no JSON", "starting"),
    ],
)
def test_users_see_what_the_job_says_of_itself(said: bytes, shown: str) -> None:
    jobs = running()
    jobs.on_report("j", 1, Report(said), 0)
    assert jobs.state("j", waits=False) == shown
    assert jobs.state("j", waits=True) == "waiting"
    assert jobs.status("j") == said


def test_what_older_launches_say_is_dropped() -> None:
    jobs = running(agents=())
    jobs.on_process_gone("j", 1, "x", 0)
    jobs.tick(NS)
    assert jobs.on_need_slots("j", 1, NeedSlots(1, 4, False)) == []
    assert jobs.on_open_agent("j", 1, OpenAgent(A)) == []
    assert jobs.on_report("j", 1, RUNNING, 0) == []
    assert jobs.on_ended("j", 1, Ended("finished", b""), 0) == []
    assert jobs.on_process_gone("j", 1, "x", 0) == []
    assert jobs.on_agent_gone("j", 1, A, "x", 0) == []


def test_a_stop_is_on_disk_before_the_job_hears_of_it() -> None:
    jobs = running()
    saved, told = jobs.stop("j", "checkpoint", 0)
    assert saved.record.stop == "checkpoint"
    assert told == TellJob("j", 1, StopJob("checkpoint"))
    assert jobs.state("j", waits=False) == "stopping"
    assert jobs.stop("j", "drain", 0) == []
    assert jobs.on_ended("j", 1, Ended("stopped", b""), 1)[0].record.outcome == "stopped"


def test_stop_now_kills_a_coordinator_that_does_not_end() -> None:
    jobs = running()
    jobs.stop("j", "checkpoint", 0)
    assert kinds(jobs.stop("j", "now", 0)) == [SaveJob, TellJob]
    assert jobs.deadline_ns == int(EXIT_S * NS)
    assert jobs.tick(int(EXIT_S * NS)) == [KillProcess("j", 1)]
    (saved, *_) = jobs.on_process_gone("j", 1, "killed by SIGKILL", int(EXIT_S * NS))
    assert saved.record.outcome == "stopped"


def test_a_coordinator_that_lingers_after_its_last_word_is_killed() -> None:
    jobs = running(agents=())
    jobs.on_ended("j", 1, Ended("finished", b""), 0)
    assert jobs.tick(int(EXIT_S * NS) - 1) == []
    assert jobs.tick(int(EXIT_S * NS)) == [KillProcess("j", 1)]


def test_a_job_between_launches_stops_as_it_is() -> None:
    jobs = running(agents=())
    jobs.on_process_gone("j", 1, "x", 0)
    commands = jobs.stop("j", "checkpoint", 0)
    assert commands[-2].record.outcome == "stopped"
    assert jobs.deadline_ns is None


def test_a_drain_between_launches_happens_in_the_next_one() -> None:
    jobs = running(agents=())
    jobs.on_process_gone("j", 1, "x", 0)
    assert kinds(jobs.stop("j", "drain", 0)) == [SaveJob]
    assert jobs.tick(NS)[-1] == TellJob("j", 2, StopJob("drain"))


def test_scaling_stops_with_a_checkpoint_and_goes_on_with_the_new_widths() -> None:
    jobs = running()
    saved, told = jobs.scale("j", {"parse": 3}, 0)
    assert saved.record.parallelism == {"parse": 3}
    assert told == TellJob("j", 1, StopJob("checkpoint"))
    assert jobs.state("j", waits=False) == "rescaling"
    # Scaled once more while it stops: it need not be told again.
    (saved,) = jobs.scale("j", {"": 2}, 0)
    assert saved.record.parallelism == {"parse": 3, "": 2}
    ended = jobs.on_ended("j", 1, Ended("stopped", b""), 1)
    assert kinds(ended) == [CloseOnNode, CloseOnNode, FreeSlots]
    jobs.on_process_gone("j", 1, "", 2)
    jobs.on_agent_gone("j", 1, A, "", 3)
    commands = jobs.on_agent_gone("j", 1, B, "", 4)
    assert kinds(commands) == [SaveJob, StartProcess]
    assert commands[1].record.parallelism == {"parse": 3, "": 2}


def rescaled() -> Jobs:
    jobs = running(agents=())
    jobs.scale("j", {"nonsense": 3}, 0)
    # What the old launch still reports proves nothing about the new widths.
    assert jobs.on_report("j", 1, RUNNING, 0) == []
    jobs.on_ended("j", 1, Ended("stopped", b""), 1)
    assert kinds(jobs.on_process_gone("j", 1, "", 2)) == [SaveJob, StartProcess]
    return jobs


def test_widths_that_cannot_run_are_taken_back() -> None:
    jobs = rescaled()
    (saved, *_) = jobs.on_ended("j", 2, Ended("failed", b"", "no operator nonsense"), 3)
    assert saved.record.parallelism == {}
    assert "no operator nonsense" in saved.record.note
    assert kinds(jobs.on_process_gone("j", 2, "", 4)) == [SaveJob, StartProcess]


def test_widths_that_have_run_are_not_taken_back() -> None:
    jobs = rescaled()
    assert kinds(jobs.on_report("j", 2, RUNNING, 3)) == [SaveJob]
    (saved, *_) = jobs.on_ended("j", 2, Ended("failed", b"", "boom"), 3)
    assert saved.record.outcome == "failed"
    assert saved.record.note == "boom"


def test_a_job_that_fails_while_it_stops_to_be_scaled_has_failed() -> None:
    jobs = running()
    jobs.scale("j", {"": 2}, 0)
    (saved, *_) = jobs.on_ended("j", 1, Ended("failed", b"", "boom"), 1)
    assert saved.record.outcome == "failed"


@pytest.mark.parametrize("wrong", [{}, {"parse": 0}, {"": -1}])
def test_widths_below_one_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(SettingsError, match="OPERATOR=N"):
        running().scale("j", wrong, 0)


def test_a_stop_while_scaling_is_a_stop() -> None:
    jobs = running(agents=())
    jobs.scale("j", {"": 2}, 0)
    jobs.stop("j", "checkpoint", 0)
    (saved, *_) = jobs.on_ended("j", 1, Ended("stopped", b""), 1)
    assert saved.record.outcome == "stopped"
    with pytest.raises(SettingsError, match="no job named 'j'"):
        jobs.scale("j", {"": 2}, 0)


def test_a_job_moves_from_a_node_that_drains_by_a_checkpoint() -> None:
    jobs = running()
    assert jobs.move("j", 0) == [TellJob("j", 1, StopJob("checkpoint"))]
    assert jobs.move("j", 0) == []
    assert jobs.state("j", waits=False) == "restarting"
    jobs.on_ended("j", 1, Ended("stopped", b""), 1)
    jobs.on_process_gone("j", 1, "", 2)
    jobs.on_node_gone(A, [], 3)
    assert kinds(jobs.on_node_gone(B, [], 4)) == [SaveJob, StartProcess]


def test_a_job_hears_of_nodes_that_it_has_something_on() -> None:
    jobs = running(agents=(A,))
    assert jobs.on_node_lost(A, "cut", []) == [TellJob("j", 1, NodeLost(A, "cut"))]
    assert jobs.on_node_lost(B, "cut", []) == []
    assert jobs.on_node_lost(B, "cut", ["j", "unknown"]) == [TellJob("j", 1, NodeLost(B, "cut"))]
    assert jobs.on_node_gone(A, [], 0) == [TellJob("j", 1, NodeGone(A))]
    assert jobs.agents("j") == {}


def test_closing_an_agent_that_is_gone_already_is_answered() -> None:
    jobs = running(agents=(A,))
    assert jobs.on_close_agent("j", 1, CloseAgent(A)) == [CloseOnNode(A, "j", 1)]
    assert jobs.on_agent_gone("j", 1, A, "closed", 0) == [TellJob("j", 1, AgentGone(A, "closed"))]
    (told,) = jobs.on_close_agent("j", 1, CloseAgent(A))
    assert isinstance(told.message, AgentGone)


@pytest.mark.parametrize("mode", ["checkpoint", "now"])
def test_a_job_that_was_stopping_is_not_launched_by_the_next_controller(mode: str) -> None:
    commands = Jobs({"j": 3}).begin(record(stop=mode, launch=3), 0)
    assert commands[0].record.outcome == "stopped"
    assert StartProcess not in kinds(commands)


def test_a_wanted_job_is_launched_by_the_next_controller() -> None:
    jobs = Jobs({"j": 3})
    (saved, _) = jobs.begin(record(ran=True, launch=3), 0)
    assert saved.record.launch == 4
    assert jobs.on_need_slots("j", 4, NeedSlots(1, 2, False))[0].again
