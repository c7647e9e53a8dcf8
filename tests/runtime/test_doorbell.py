"""A doorbell wakes its owner, and leaves no name behind for long."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import posix_ipc
import pytest

from penstock.runtime.doorbell import Doorbell, doorbell_name, sweep_stale

_ordinals = count(1000)
SHM = Path("/dev/shm")


@pytest.fixture
def bell() -> Iterator[Doorbell]:
    made = Doorbell.create(doorbell_name(1, next(_ordinals)))
    yield made
    made.unlink()
    made.close()


def test_a_ring_before_the_wait_is_not_lost(bell: Doorbell) -> None:
    bell.ring()
    assert bell.wait(20)
    assert not bell.wait(0)


def test_a_ring_from_elsewhere_ends_the_wait(bell: Doorbell) -> None:
    other = Doorbell.open(bell.name)
    thread = threading.Thread(target=other.ring)
    thread.start()
    assert bell.wait(20)
    thread.join()


def test_draining_forgets_all_rings_so_far(bell: Doorbell) -> None:
    for _ in range(1000):
        bell.ring()
    bell.drain()
    assert not bell.wait(0)
    bell.drain()
    bell.ring()
    assert bell.wait(0)


def test_draining_ends_although_others_keep_ringing(bell: Doorbell) -> None:
    class Insistent:
        """A semaphore that is rung again whenever it is drained by one."""

        name = "/x"
        value = 3
        taken = 0

        def acquire(self, timeout: float) -> None:
            assert timeout == 0
            self.taken += 1

    semaphore = Insistent()
    Doorbell(semaphore).drain()
    assert semaphore.taken == 3


def test_a_wait_that_never_times_out_still_ends_with_a_ring(bell: Doorbell) -> None:
    """The wall clock was set back by an hour: only rings end the wait (hazard 2)."""

    class Stepped:
        """acquire as it is after the step: the deadline is an hour away."""

        name = bell.name

        def acquire(self, timeout: float) -> None:
            opened.acquire(timeout + 3600)

    opened = posix_ipc.Semaphore(bell.name)
    agent = threading.Timer(0.01, bell.ring)
    agent.start()
    assert Doorbell(Stepped()).wait(0.001)
    agent.join()


def test_a_signal_ends_the_wait_and_its_handler_has_run(bell: Doorbell) -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: heard.append(number))
    try:
        main = threading.main_thread().ident
        assert main is not None
        sender = threading.Timer(0.05, signal.pthread_kill, (main, signal.SIGUSR1))
        sender.start()
        assert not bell.wait(20)
        sender.join()
        assert heard == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_full_semaphore_is_rung_enough(bell: Doorbell) -> None:
    full = posix_ipc.Semaphore(None, posix_ipc.O_CREX, initial_value=posix_ipc.SEMAPHORE_VALUE_MAX)
    full.unlink()
    Doorbell(full).ring()


def test_the_name_says_who_made_it(bell: Doorbell) -> None:
    parts = bell.name.split("-")
    assert parts[0] == "/ps"
    assert len(parts[1]) == 6
    assert int(parts[2]) == os.stat("/proc/self/ns/pid").st_ino
    assert int(parts[3]) == os.getpid()
    assert parts[5] == "1"


def test_unlinking_takes_the_name_and_not_the_bell(bell: Doorbell) -> None:
    other = Doorbell.open(bell.name)
    bell.unlink()
    bell.unlink()
    assert not (SHM / f"sem.{bell.name[1:]}").exists()
    other.ring()
    assert bell.wait(20)
    with pytest.raises(posix_ipc.ExistentialError):
        Doorbell.open(bell.name)


def test_sweeping_takes_the_names_of_the_dead_and_of_no_one_else(bell: Doorbell) -> None:
    made = subprocess.run(
        [
            sys.executable,
            "-c",
            "from penstock.runtime.doorbell import Doorbell, doorbell_name\n"
            "print(Doorbell.create(doorbell_name(1, 7)).name)",
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    prefix, boot, namespace, pid, start, *rest = made.split("-")
    tail = "-".join(rest)
    # Same pid, other start time: a dead process whose number lives on, here as ours.
    reused = f"{prefix}-{boot}-{namespace}-{os.getpid()}-1-{tail}"
    foreign = [
        f"{prefix}-{boot}-{int(namespace) + 1}-{pid}-{start}-{tail}",
        f"{prefix}-{'0' * 6}-{namespace}-{pid}-{start}-{tail}",
        f"{prefix}-something-else",
    ]
    opened = [Doorbell.create(name) for name in (reused, *foreign)]
    try:
        swept = sweep_stale()
        assert {made, reused} <= set(swept)
        assert not set(swept) & {bell.name, *foreign}
        for name in (bell.name, *foreign):
            assert (SHM / f"sem.{name[1:]}").exists()
    finally:
        for each in opened:
            each.unlink()


def test_names_of_other_users_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = doorbell_name(1, next(_ordinals)).split("-")
    parts[3:5] = ["4194304", "1"]  # above the largest pid
    stale = Doorbell.create("-".join(parts))
    try:
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        assert stale.name not in sweep_stale()
        monkeypatch.undo()
        assert stale.name in sweep_stale()
    finally:
        stale.unlink()
