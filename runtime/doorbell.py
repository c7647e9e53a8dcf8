"""A subtask's doorbell: one named semaphore, the only thing its loop ever blocks on.

It is a bell, not a count (hazard 1). Whatever can make a scan succeed rings: a message, a freed
slot, a command, a finished thread, an abort. The owner scans until nothing is eligible, drains,
scans once more, and only then waits. Rings may be merged or be too many; none is ever owed.

Only the owner drains and waits; everyone may ring. Names live in /dev/shm until all who need the
bell have opened it, and say which process made them, so that a dead one's can be swept (39).
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

import posix_ipc

NAME_PREFIX = "ps"
_NAME = re.compile(
    rf"{NAME_PREFIX}-(?P<boot>[0-9a-f]{{6}})-(?P<namespace>\d+)-(?P<pid>\d+)-(?P<start>\d+)"
    r"-(?P<attempt>\d+)-(?P<subtask>\d+)"
)
_SEMAPHORE_FILES = "sem."
"""glibc keeps the semaphore `/x` as the file /dev/shm/sem.x."""
_SHARED_MEMORY = Path("/dev/shm")


class Doorbell:
    """One semaphore. Make it with `create` (the agent) or `open` (everyone else)."""

    __slots__ = ("_semaphore", "name")

    def __init__(self, semaphore: posix_ipc.Semaphore) -> None:
        self._semaphore = semaphore
        self.name: str = semaphore.name

    @classmethod
    def create(cls, name: str) -> Doorbell:
        """A new bell; raises FileExistsError's cousin of posix_ipc when the name is taken."""
        return cls(posix_ipc.Semaphore(name, posix_ipc.O_CREX, mode=0o600, initial_value=0))

    @classmethod
    def open(cls, name: str) -> Doorbell:
        """The bell of this name; raises posix_ipc.ExistentialError when there is none."""
        return cls(posix_ipc.Semaphore(name))

    def unlink(self) -> None:
        """Forget the name; those who have opened the bell keep it. Harmless when repeated."""
        try:
            self._semaphore.unlink()
        except posix_ipc.ExistentialError:
            pass

    def close(self) -> None:
        """Let go of the bell; only where nobody rings it any more."""
        self._semaphore.close()

    def ring(self) -> None:
        """Wake the owner, or keep it from falling asleep. Any thread, any process; never blocks."""
        try:
            self._semaphore.release()
        except OSError as error:
            # At the semaphore's maximum the owner is as awake as it can be made.
            if error.errno != errno.EOVERFLOW:
                raise

    def drain(self) -> None:
        """Forget the rings so far; the owner scans once more after this and before it waits.

        Takes what is there now and no more: under steady ringing, draining until the semaphore
        is empty might never end.
        """
        semaphore = self._semaphore
        try:
            for _ in range(semaphore.value):
                semaphore.acquire(0)
        except posix_ipc.BusyError:
            pass

    def wait(self, timeout_s: float) -> bool:
        """Sleep until the next ring or the timeout; True if rung. May return early.

        A signal ends the wait: its handler may have made something eligible, and the owner scans
        anyway before it waits again. The timeout is by the wall clock, hence no promise (hazard
        2): the agent rings every 100 ms.
        """
        try:
            self._semaphore.acquire(timeout_s)
        except (posix_ipc.BusyError, posix_ipc.SignalError):
            return False
        return True


def doorbell_name(attempt: int, subtask: int) -> str:
    """The name of the bell that this process creates for a subtask (by ordinal) of an attempt."""
    pid = os.getpid()
    start = _start_time(pid)
    assert start is not None
    return f"/{NAME_PREFIX}-{_boot()}-{_namespace()}-{pid}-{start}-{attempt}-{subtask}"


def sweep_stale() -> list[str]:
    """Unlink the bells of creators that are dead; returns their names.

    Touches only names of this boot, this pid namespace and this user: the pids in others' names
    mean nothing here, and their creators may be alive (hazard 39).
    """
    boot, namespace, user = _boot(), _namespace(), os.geteuid()
    swept: list[str] = []
    for file in _SHARED_MEMORY.glob(f"{_SEMAPHORE_FILES}{NAME_PREFIX}-*"):
        name = file.name.removeprefix(_SEMAPHORE_FILES)
        parts = _NAME.fullmatch(name)
        if parts is None or parts["boot"] != boot or int(parts["namespace"]) != namespace:
            continue
        try:
            if file.stat().st_uid != user or _start_time(int(parts["pid"])) == int(parts["start"]):
                continue
            posix_ipc.unlink_semaphore(f"/{name}")
        except (FileNotFoundError, posix_ipc.ExistentialError):
            continue
        swept.append(f"/{name}")
    return swept


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text()[:6]


def _namespace() -> int:
    return os.stat("/proc/self/ns/pid").st_ino


def _start_time(pid: int) -> int | None:
    """Clock ticks from boot to the start of a process; None when there is no such process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command's name may hold blanks and parentheses; the fields follow the last one.
    return int(stat[stat.rindex(")") + 2 :].split()[19])
