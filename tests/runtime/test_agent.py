"""The agent and its processes: real forks, real kills; entries of agent_entries as subtasks."""

from __future__ import annotations

import os
import signal
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import msgspec
import psutil
import pytest
from agent_entries import ROWS
from agent_harness import Controller, chain, deploy, edge, vertex, wait_until_dead

from penstock.dataflow.plan import Plan
from penstock.runtime.messages import (
    AgentFailure,
    AgentReady,
    AttemptGone,
    Commit,
    Decline,
    Drain,
    Failed,
    FromSubtask,
    Started,
    SubtaskExited,
    SubtaskKey,
    TriggerCheckpoint,
    decode_event,
)

A, B = SubtaskKey("a", 0), SubtaskKey("b", 0)


@pytest.fixture(scope="module")
def warm() -> Iterator[Controller]:
    controller = Controller()
    controller.wait_for(AgentReady)
    yield controller
    controller.handle.close()


@pytest.fixture
def agent(warm: Controller) -> Iterator[Controller]:
    """A warm agent, shared by the module; the attempt is gone after each test."""
    yield warm
    warm.cancel()
    warm.wait_for(AttemptGone)


def test_agent_relays_commands_and_events(agent: Controller) -> None:
    agent.handle.send(deploy("echo", chain("a", "b")))
    agent.order(A, TriggerCheckpoint(7, 0))
    agent.order(B, TriggerCheckpoint(8, 0))
    answers = {agent.wait_for_event(Decline) for _ in range(2)}
    assert answers == {Decline(7, "a[0]"), Decline(8, "b[0]")}


def test_agent_drops_commands_for_another_attempt(agent: Controller) -> None:
    agent.handle.send(deploy("echo", chain("a")))
    agent.order(A, TriggerCheckpoint(1, 0), attempt=9)
    agent.order(A, TriggerCheckpoint(2, 0))
    assert agent.wait_for_event(Decline).checkpoint_id == 2


def test_subtask_that_returns_exits_with_zero(agent: Controller) -> None:
    agent.handle.send(deploy("echo", chain("a")))
    agent.order(A, Drain())
    exited = agent.wait_for(SubtaskExited)
    assert (exited.key, exited.status) == (A, 0)


def test_killed_subtask_is_reported_with_its_signal(agent: Controller) -> None:
    agent.handle.send(deploy("echo", chain("a", "b")))
    pids = {}
    while len(pids) < 2:
        relayed = agent.wait_for(FromSubtask)
        event = decode_event(relayed.event)
        assert isinstance(event, Started)
        pids[relayed.key] = event.pid
    os.kill(pids[B], signal.SIGKILL)
    exited = agent.wait_for(SubtaskExited)
    assert (exited.key, exited.pid, exited.status) == (B, pids[B], -signal.SIGKILL)
    agent.order(A, TriggerCheckpoint(3, 0))
    assert agent.wait_for_event(Decline).checkpoint_id == 3, "the neighbour lives on"


def test_crashed_subtask_is_reported_with_its_signal(agent: Controller) -> None:
    agent.handle.send(deploy("crash", chain("a")))
    assert agent.wait_for(SubtaskExited).status == -signal.SIGSEGV


def test_uncaught_exception_is_reported_before_the_exit(agent: Controller) -> None:
    agent.handle.send(deploy("fail", chain("a")))
    failed = agent.wait_for_event(Failed)
    assert failed.failure.kind == "ValueError"
    assert "a[0] cannot go on" in failed.failure.text
    assert agent.wait_for(SubtaskExited).status == 1


def test_sys_exit_in_user_code_is_a_failure_that_says_so(agent: Controller) -> None:
    agent.handle.send(deploy("leave", chain("a")))
    assert "user code called sys.exit('enough')" in agent.wait_for_event(Failed).failure.text


def test_everything_a_subtask_said_arrives_before_its_exit(agent: Controller) -> None:
    agent.handle.send(deploy("crowd", chain("a")))
    before = len(agent.heard)
    agent.wait_for(SubtaskExited)
    said = [decode_event(e.event) for e in agent.heard[before:] if isinstance(e, FromSubtask)]
    assert [event.checkpoint_id for event in said] == list(range(2000))


def test_agent_rings_every_bell_by_its_own_clock(agent: Controller) -> None:
    agent.handle.send(deploy("count_rings", chain("a", parallelism=2)))
    assert agent.wait_for_word(SubtaskKey("a", 0)) == "rung"


def test_cancel_kills_all_and_frees_the_agent_for_the_next_attempt(agent: Controller) -> None:
    for attempt in (1, 2, 3):
        agent.handle.send(deploy("echo", chain("a", "b", parallelism=2, partition="hash"), attempt))
        pids = [agent.wait_for_event(Started).pid for _ in range(4)]
        before = len(agent.heard)
        agent.cancel(attempt)
        assert agent.wait_for(AttemptGone) == AttemptGone(1, attempt)
        for pid in pids:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)
        exits = [e for e in agent.heard[before:] if isinstance(e, SubtaskExited)]
        assert sorted(e.pid for e in exits) == sorted(pids)


def test_cancel_at_once_waits_for_what_was_about_to_start(agent: Controller) -> None:
    agent.handle.send(deploy("echo", chain("a", "b", parallelism=3, partition="hash")))
    agent.cancel()
    agent.wait_for(AttemptGone)
    children = _children(agent)
    assert [title for title in children.values() if "test job" in title] == []


def test_cancel_of_an_unknown_attempt_is_answered_at_once(agent: Controller) -> None:
    agent.cancel(77)
    assert agent.wait_for(AttemptGone) == AttemptGone(1, 77)


def test_second_attempt_is_refused_while_the_first_runs(agent: Controller) -> None:
    agent.handle.send(deploy("echo", chain("a")))
    agent.handle.send(deploy("echo", chain("a"), attempt=2))
    refused = agent.wait_for(AgentFailure)
    assert (refused.attempt, refused.text) == (2, "attempt 1 still runs")


def test_subtask_process_finds_a_place_like_the_users(agent: Controller) -> None:
    edges = (edge("x", "c", "hash", port=1), edge("a", "c", "hash"))
    agent.handle.send(
        deploy("facts", Plan("t", (vertex("a"), vertex("x", 2), vertex("c", 2)), edges))
    )
    words = [agent.wait_for_word() for _ in range(5)]
    by_title = {word["title"]: word for word in words}
    expected = ("a[0]", "x[0]", "x[1]", "c[0]", "c[1]")
    assert set(by_title) == {f"penstock: test job {name}" for name in expected}
    fact = by_title["penstock: test job c[1]"]
    assert fact["inbound"] == [["a-c", 0, 0], ["x-c", 1, 0], ["x-c", 1, 1]]
    assert by_title["penstock: test job x[1]"]["outbound"] == [["x-c", 0], ["x-c", 1]]
    assert (fact["cwd"], fact["threads"], fact["openblas"]) == ("/", 2, "1")
    assert fact["path"][0] == os.path.dirname(__file__)
    assert fact["main"] is None
    assert fact["preloaded"]
    assert fact["scratch_exists"]
    assert len({word["scratch"] for word in words}) == 5
    draws = [draw for word in words for draw in word["draws"]]
    assert len(set(draws)) == len(draws), "forked generators must not draw alike"
    agent.cancel()
    agent.wait_for(AttemptGone)
    assert not any(Path(word["scratch"]).exists() for word in words)


def test_rows_flow_through_three_processes(agent: Controller) -> None:
    agent.handle.send(deploy("pipeline", chain("source", "middle", "sink")))
    assert agent.wait_for_word(SubtaskKey("sink", 0)) == ROWS * (ROWS - 1) // 2


def test_death_of_a_consumer_aborts_its_producer(agent: Controller) -> None:
    agent.handle.send(deploy("stalled_pipeline", chain("source", "sink")))
    while True:
        relayed = agent.wait_for(FromSubtask)
        event = decode_event(relayed.event)
        if relayed.key.vertex == "sink" and isinstance(event, Started):
            break
    os.kill(event.pid, signal.SIGKILL)
    failed = agent.wait_for_event(Failed, SubtaskKey("source", 0))
    assert failed.failure.kind == "ChannelAborted"


def test_nothing_is_in_dev_shm_once_all_have_attached(
    agent: Controller,
) -> None:
    plan = chain("a", "b", parallelism=4, partition="hash")
    agent.handle.send(deploy("echo", plan, shuffle_memory_bytes=256 * 1024 * 1024))
    for _ in range(8):
        agent.wait_for_event(Started)
    ours = [
        path.name for path in Path("/dev/shm").iterdir() if f"-{agent.handle.pid}-" in path.name
    ]
    assert ours == []


def test_program_that_cannot_be_unpickled_fails_with_the_reason(agent: Controller) -> None:
    good = deploy("echo", chain("a"))
    agent.handle.send(msgspec.structs.replace(good, plan=b"not a pickle"))
    assert "UnpicklingError" in agent.wait_for_event(Failed).failure.kind


def test_operators_of_a_module_on_the_users_path_are_found(
    agent: Controller, tmp_path: Path
) -> None:
    (tmp_path / "users_module_of_test_agent.py").write_text(
        textwrap.dedent(
            """
            class Speaker:
                def say(self):
                    return "hello from a module"
            """
        )
    )
    sys.path.insert(0, str(tmp_path))
    try:
        from users_module_of_test_agent import Speaker  # type: ignore[import-not-found]

        plan = Plan("t", (vertex("a", processor=Speaker()),), ())
        made = deploy("call_program", plan)
    finally:
        sys.path.remove(str(tmp_path))
    made.python_path.append(str(tmp_path))
    agent.handle.send(made)
    assert agent.wait_for_word() == "hello from a module"


def test_agent_that_is_killed_is_lost_with_everything_below_it() -> None:
    agent = Controller()
    agent.wait_for(AgentReady)
    agent.handle.send(deploy("deaf", chain("a", "b")))
    pids = [agent.wait_for_event(Started).pid for _ in range(2)]
    below = list(_children(agent))
    agent.handle.kill()
    lost = agent.events.get(timeout=60)
    assert (lost.status, lost.cause) == (-signal.SIGKILL, "it was killed by SIGKILL")
    assert lost.all_gone
    wait_until_dead([*pids, *below])
    agent.handle.send(deploy("deaf", chain("a"), attempt=2))
    agent.handle.close()


def test_death_of_the_fork_server_is_the_death_of_all() -> None:
    agent = Controller()
    ready = agent.wait_for(AgentReady)
    agent.handle.send(deploy("echo", chain("a", "b")))
    pids = [agent.wait_for_event(Started).pid for _ in range(2)]
    os.kill(ready.fork_server_pid, signal.SIGKILL)
    failure = agent.wait_for(AgentFailure)
    assert failure.attempt == 1
    assert "fork server died" in failure.text
    while not hasattr(lost := agent.events.get(timeout=60), "all_gone"):
        pass
    assert lost.all_gone
    wait_until_dead(pids)


def test_closed_agent_leaves_no_process_and_no_directory() -> None:
    agent = Controller()
    agent.wait_for(AgentReady)
    agent.handle.send(deploy("facts", chain("a")))
    scratch = Path(agent.wait_for_word()["scratch"])
    below = [agent.handle.pid, *_children(agent)]
    agent.handle.close()
    agent.handle.close()
    wait_until_dead(below)
    assert not scratch.parent.parent.exists()


def test_interrupts_and_terminations_leave_the_processes_alone(agent: Controller) -> None:
    agent.handle.send(deploy("echo", chain("a")))
    pid = agent.wait_for_event(Started).pid
    for number in (signal.SIGINT, signal.SIGTERM):
        for each in (pid, agent.handle.pid):
            os.kill(each, number)
    agent.order(A, Commit(1))
    agent.order(A, TriggerCheckpoint(4, 0))
    assert agent.wait_for_event(Decline).checkpoint_id == 4


def _children(agent: Controller) -> dict[int, str]:
    """Processes below the agent, by pid, with their titles."""
    found = {}
    for process in psutil.Process(agent.handle.pid).children(recursive=True):
        try:
            found[process.pid] = " ".join(process.cmdline())
        except psutil.Error:
            continue
    return found
