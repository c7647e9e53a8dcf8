"""What an attempt does about the overdue and the silent, by a clock that the test moves."""

from __future__ import annotations

import os
import selectors
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from agent_harness import chain, deploy

from penstock.elements.clock import ManualClock
from penstock.runtime.agent_attempt import (
    ATTACH_TIMEOUT_NS,
    STALL_NS,
    STATUS_GRACE_NS,
    Attempt,
    SubtaskProcess,
    Surroundings,
)
from penstock.runtime.fork_server import START_TIMEOUT_NS, Child, Start, StartResult
from penstock.runtime.handover import HELLO
from penstock.runtime.messages import AgentFailure, NotResponding, SubtaskExited
from penstock.runtime.progress_word import ProgressPage, Stall, create_page, page_bytes

SECOND = 1_000_000_000


class _Starter:
    """Keeps requests instead of starting anything."""

    def __init__(self) -> None:
        self.starts: list[Start] = []

    def submit(self, start: Start) -> None:
        self.starts.append(start)


class _Popen:
    """Stands for the object whose finaliser owns the sentinel."""

    def __init__(self, sentinel: int) -> None:
        self._sentinel = sentinel

    def finalizer(self) -> None:
        os.close(self._sentinel)


class _World:
    def __init__(self, scratch: Path) -> None:
        self.clock = ManualClock()
        self.selector = selectors.DefaultSelector()
        self.starter = _Starter()
        self.said: list[msgspec.Struct] = []
        self.around = Surroundings(
            selector=self.selector,
            starter=self.starter,  # type: ignore[arg-type]
            fork_server_pid=os.getpid(),
            send=self.said.append,
            clock=self.clock,
            scratch_root=str(scratch),
            liveness=0,
            entry="nobody:nothing",
        )
        self.attempt = Attempt(deploy("", chain("a")), self.around)
        self.attempt.start()
        ((_, self.process),) = [start.tag for start in self.starter.starts]
        self.sleeper: subprocess.Popen[bytes] | None = None

    def fork(self) -> int:
        """Answer the start with a process that will never say anything; its status pipe."""
        self.sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        read_end, write_end = os.pipe()
        child = Child(self.sleeper.pid, read_end, _Popen(read_end))
        self.attempt.on_started(self.process, StartResult(None, child))
        return write_end

    def turn(self) -> None:
        for key, mask in self.selector.select(1):
            key.data(mask)

    def pass_time(self, step_ns: int) -> None:
        self.clock.advance_ns(step_ns)
        self.attempt.on_time(self.clock.monotonic_ns())


@pytest.fixture
def world(tmp_path: Path) -> Iterator[_World]:
    made = _World(tmp_path)
    yield made
    if made.sleeper is not None:
        made.sleeper.kill()
        made.sleeper.wait()
    if not made.attempt.gone:
        made.process.over = True
        if made.process.child is not None:
            made.process.child.close()
    if made.process.child_end is not None:
        made.process.child_end.close()
    made.attempt.close()
    made.selector.close()
    assert list(tmp_path.iterdir()) == []


def _reap(world: _World, write_end: int) -> None:
    """Do the fork server's part: wait, and tell the status."""
    assert world.sleeper is not None
    status = world.sleeper.wait(60)
    os.write(write_end, struct.pack("q", status))
    os.close(write_end)
    while not world.process.over:
        world.turn()


def test_process_that_does_not_attach_fails_the_attempt_and_is_killed(world: _World) -> None:
    write_end = world.fork()
    world.pass_time(ATTACH_TIMEOUT_NS - 1)
    assert world.said == []
    world.pass_time(1)
    assert world.said == [AgentFailure(1, 1, "a[0] did not attach in time")]
    assert not world.attempt.gone, "only its death ends it"
    assert world.attempt.next_deadline_ns() is None, "nothing to do until it has died"
    _reap(world, write_end)
    assert world.attempt.gone
    assert isinstance(world.said[-1], SubtaskExited)
    assert world.said[-1].status == -signal.SIGKILL


def test_server_that_never_answers_makes_the_attempt_stuck_even_when_cancelled(
    world: _World,
) -> None:
    world.attempt.cancel()
    assert not world.starter.starts[0].wanted()
    world.pass_time(START_TIMEOUT_NS)
    assert world.attempt.stuck
    assert not world.attempt.gone


def test_start_that_failed_fails_the_attempt(world: _World) -> None:
    world.attempt.on_started(world.process, StartResult(None, None, "no memory"))
    assert world.said == [AgentFailure(1, 1, "a[0]: no memory")]
    assert world.attempt.gone


def test_start_that_was_dropped_after_a_cancel_leaves_nothing_to_wait_for(world: _World) -> None:
    world.attempt.cancel()
    world.attempt.on_started(world.process, StartResult(None, None))
    assert world.attempt.gone
    assert world.said == []


def test_process_that_started_in_spite_of_a_cancel_is_killed(world: _World) -> None:
    world.attempt.cancel()
    _reap(world, world.fork())
    assert world.attempt.gone


def test_death_without_a_status_counts_as_a_kill_after_the_grace(world: _World) -> None:
    write_end = world.fork()
    assert world.sleeper is not None
    _say_hello_for(world.process, os.pidfd_open(world.sleeper.pid), world)
    world.sleeper.kill()
    while world.process.dead_since_ns is None:
        world.turn()
    assert world.said == []
    world.pass_time(STATUS_GRACE_NS)
    assert world.said == [SubtaskExited(1, 1, world.process.key, world.sleeper.pid, -9)]
    os.close(write_end)


def test_standstill_is_reported_at_doubling_lengths_and_so_is_its_end(world: _World) -> None:
    world.process.attached = True
    page = world.attempt._memory.page
    assert page is not None
    word = page.word(0)
    word.set("process")
    seen = []
    for second in range(45):
        if second == 43:
            word.set("idle")
        world.attempt.look_for_stalls(second * SECOND)
        seen += [(second, each.state, each.seconds) for each in world.said]
        world.said.clear()
    limit = STALL_NS // SECOND
    assert seen == [
        (limit, "process", limit),
        (2 * limit, "process", 2 * limit),
        (4 * limit, "process", 4 * limit),
        (43, "idle", 0),
    ]


def test_stall_reports_are_messages_of_the_protocol(world: _World) -> None:
    world.process.attached = True
    world.attempt.look_for_stalls(0)
    world.attempt.look_for_stalls(STALL_NS)
    assert world.said == [NotResponding(1, 1, world.process.key, "starting", STALL_NS / 1e9)]


def test_progress_words_are_seen_through_another_mapping() -> None:
    descriptor = create_page(3)
    ours = ProgressPage(descriptor, page_bytes(3))
    theirs = ProgressPage(descriptor, page_bytes(3))
    word = theirs.word(2)
    word.set("send")
    word.set("commit")
    assert ours.word(2).read() == (2, "commit")
    assert ours.word(1).read() == (0, "starting")
    ours.close()
    theirs.close()
    os.close(descriptor)


def test_a_word_that_moves_never_stands() -> None:
    stall = Stall(0)
    assert [stall.standing_ns(count, count * SECOND) for count in range(5)] == [0] * 5
    assert stall.standing_ns(4, 9 * SECOND) == 5 * SECOND


def _say_hello_for(process: SubtaskProcess, pidfd: int, world: _World) -> None:
    world.attempt._on_body(process, HELLO, [pidfd])
