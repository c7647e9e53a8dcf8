"""What scripts/cluster does on one host: begin a service, look at it, shoot it, end it, clear up.

A service is one process with a directory: `process.json` names the process by pid and start time,
so a reused pid is never mistaken for it; `log` takes its output. `act` is called for this machine;
`python -m penstock.cluster.hosting` reads a request from stdin and answers on stdout, which is how
other hosts are reached through ssh. Secrets travel inside requests, never in arguments.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from penstock.elements.clock import SystemClock
from penstock.elements.errors import PenstockError, SettingsError
from penstock.runtime.doorbell import sweep_stale
from penstock.runtime.sweep import start_time, sweep_directories

PROCESS_FILE = "process.json"
LOG_FILE = "log"
SECRET_FILE = "secret"
GENTLE_S = 5.0
"""For a service that was asked to end; then it is killed."""
GONE_S = 10.0
"""For processes that were killed."""
POLL_S = 0.02
TAIL_BYTES = 2000


class Begin(msgspec.Struct, frozen=True, tag=True):
    """Start `python -m penstock WORDS`; `{directory}` in a word stands for the real path."""

    directory: str
    words: list[str]
    secret: str = ""
    """Kept in the directory, mode 0600, as SECRET_FILE; empty: there is none to keep."""


class Look(msgspec.Struct, frozen=True, tag=True):
    """Does it run?"""

    directory: str


class Shoot(msgspec.Struct, frozen=True, tag=True):
    """SIGKILL to it and to everything below it."""

    directory: str


class End(msgspec.Struct, frozen=True, tag=True):
    """SIGTERM, once more if it wants time, SIGKILL if it takes too long."""

    directory: str


class Clear(msgspec.Struct, frozen=True, tag=True):
    """Remove the directory, and what dead processes of ours left in shared memory and /tmp."""

    directory: str


class Seen(msgspec.Struct, frozen=True):
    """The answer to all. `pid` 0: it does not run."""

    directory: str
    pid: int = 0
    killed: int = 0
    log: str = ""
    """The end of what it wrote."""
    error: str = ""


Request = Begin | Look | Shoot | End | Clear


@dataclass(frozen=True)
class _Named:
    pid: int
    started: int

    def lives(self) -> bool:
        return start_time(self.pid) == self.started


def act(request: Request) -> Seen:
    """Do it on this machine; raises SettingsError for what cannot be done."""
    directory = Path(request.directory).expanduser().absolute()
    killed = 0
    if isinstance(request, Begin):
        _begin(directory, request)
    elif isinstance(request, Shoot):
        killed = _shoot(directory)
    elif isinstance(request, End):
        _end(directory)
    elif isinstance(request, Clear):
        _clear(directory)
    named = _read(directory)
    pid = named.pid if named is not None and named.lives() else 0
    return Seen(str(directory), pid, killed, _tail(directory))


def main() -> None:
    """One request on stdin, one answer on stdout."""
    try:
        seen = act(msgspec.json.decode(sys.stdin.buffer.read(), type=Request))
    except (PenstockError, OSError, msgspec.DecodeError) as error:
        seen = Seen("", error=str(error))
    sys.stdout.buffer.write(msgspec.json.encode(seen) + b"\n")


# Inside -------------------------------------------------------------------------------------------


def _begin(directory: Path, request: Begin) -> None:
    named = _read(directory)
    if named is not None and named.lives():
        return
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"{directory} cannot be made: {error.strerror}") from error
    if request.secret:
        _keep_secret(directory / SECRET_FILE, request.secret)
    words = [word.replace("{directory}", str(directory)) for word in request.words]
    with open(directory / LOG_FILE, "ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "penstock", *words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            # Ctrl-C is for the command that began it; whoever hangs up on ssh does not end it.
            start_new_session=True,
        )
    started = start_time(process.pid)
    if started is None:
        raise SettingsError(f"{directory}: it ended at once:\n{_tail(directory)}")
    text = msgspec.json.encode({"pid": process.pid, "started": started, "boot": _boot()})
    (directory / f"{PROCESS_FILE}.new").write_bytes(text)
    os.replace(directory / f"{PROCESS_FILE}.new", directory / PROCESS_FILE)


def _keep_secret(path: Path, secret: str) -> None:
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with open(descriptor, "w", encoding="ascii") as file:
        file.write(secret)


def _shoot(directory: Path) -> int:
    named = _read(directory)
    if named is None or not named.lives():
        return 0
    # The root first: it is to have no time to notice what happens to its children.
    victims = [named, *_below(named.pid)]
    for victim in victims:
        _signal(victim, signal.SIGKILL)
    left = _wait_gone(victims, GONE_S)
    if left:
        raise SettingsError(f"processes {[v.pid for v in left]} do not end although killed")
    return len(victims)


def _end(directory: Path) -> None:
    named = _read(directory)
    if named is None or not named.lives():
        return
    everything = [named, *_below(named.pid)]
    _signal(named, signal.SIGTERM)
    # The first asks an agent to hand its work over, which nobody waits for here.
    if _wait_gone([named], POLL_S):
        _signal(named, signal.SIGTERM)
    if _wait_gone(everything, GENTLE_S):
        _shoot(directory)
        for process in everything:
            _signal(process, signal.SIGKILL)
    left = _wait_gone(everything, GONE_S)
    if left:
        raise SettingsError(f"processes {[v.pid for v in left]} do not end although killed")


def _clear(directory: Path) -> None:
    named = _read(directory)
    if named is not None and named.lives():
        raise SettingsError(f"{directory}: its process {named.pid} still runs")
    shutil.rmtree(directory, ignore_errors=True)
    for parent in list(directory.parents)[:2]:
        try:
            # On other hosts they were made for this alone; others' are not empty.
            parent.rmdir()
        except OSError:
            break
    sweep_stale()
    sweep_directories()


def _wait_gone(processes: list[_Named], seconds: float) -> list[_Named]:
    clock = SystemClock()
    until_ns = clock.monotonic_ns() + seconds * 1e9
    never = threading.Event()
    while True:
        processes = [process for process in processes if process.lives()]
        if not processes or clock.monotonic_ns() >= until_ns:
            return processes
        never.wait(POLL_S)


def _below(root: int) -> Iterator[_Named]:
    """Every live process below one."""
    parents: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents.setdefault(int(fields[1]), []).append(int(entry))
    waiting = [root]
    while waiting:
        for pid in parents.get(waiting.pop(), ()):
            waiting.append(pid)
            started = start_time(pid)
            if started is not None:
                yield _Named(pid, started)


def _signal(process: _Named, number: int) -> None:
    """To this very process, even if its pid is given to another one meanwhile."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return
    try:
        if process.lives():
            signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        # It ended in between.
        pass
    finally:
        os.close(descriptor)


def _read(directory: Path) -> _Named | None:
    """What was begun here, if it was in this boot of the machine."""
    try:
        content = msgspec.json.decode(
            (directory / PROCESS_FILE).read_bytes(), type=dict[str, object]
        )
        if content["boot"] != _boot():
            return None
        return _Named(int(str(content["pid"])), int(str(content["started"])))
    except (OSError, msgspec.DecodeError, KeyError, ValueError):
        return None


def _tail(directory: Path) -> str:
    try:
        with open(directory / LOG_FILE, "rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - TAIL_BYTES))
            return log.read().decode(errors="replace")
    except OSError:
        return ""


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


if __name__ == "__main__":
    main()
