"""Shooting processes: run a command, kill what belongs to it at random, start it again.

The command is the root of its processes; this module is the supervisor that the root itself lacks
(hazard 42). Everything is found below the root's pid and ended by pid, never by name.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = "root"
AGENT = "agent"
FORK_SERVER = "fork server"
SUBTASK = "subtask"
KINDS = (ROOT, AGENT, FORK_SERVER, SUBTASK)
GONE_TIMEOUT_S = 5.0
"""After its root's death a job's processes must be gone within this."""
POLL_S = 0.05
PROGRESS_S_MAX = 60.0
"""A job that does not go on is not waited for longer than this before the next kill."""


@dataclass(frozen=True)
class Found:
    """A live process of the job."""

    pid: int
    kind: str
    title: str


@dataclass
class ChaosReport:
    """What was done and seen."""

    kills: Counter[str] = field(default_factory=Counter)
    starts: int = 0
    orphans: int = 0
    exit_code: int | None = None
    seconds: float = 0.0

    @property
    def total_kills(self) -> int:
        """Kills that hit a live process."""
        return sum(self.kills.values())


def parent_and_title(pid: int) -> tuple[int, str] | None:
    """(parent's pid, command line) of a live process; None if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        fields = stat[stat.rindex(")") + 2 :].split()
        if fields[0] == "Z":
            return None
        title = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        return int(fields[1]), title.strip()
    except (OSError, ValueError):
        return None


def descendants(root: int) -> list[Found]:
    """All live processes below `root`, the root first, each with its kind."""
    facts = {
        int(entry): found
        for entry in os.listdir("/proc")
        if entry.isdecimal() and (found := parent_and_title(int(entry))) is not None
    }
    if root not in facts:
        return []
    below = [Found(root, ROOT, facts[root][1])]
    reached = {root}
    grew = True
    while grew:
        grew = False
        for pid, (parent, title) in sorted(facts.items()):
            if parent in reached and pid not in reached:
                reached.add(pid)
                below.append(Found(pid, kind_of(title), title))
                grew = True
    return below


def kind_of(title: str) -> str:
    """What a process is, by its title.

    >>> kind_of("penstock: ledger count[0]"), kind_of("penstock: agent")
    ('subtask', 'agent')
    """
    if not title.startswith("penstock:"):
        return "other"
    if "fork server" in title:
        return FORK_SERVER
    if title.endswith("]"):
        return SUBTASK
    return AGENT if "agent" in title else "other"


class Chaos:
    """Runs `command` until it exits by itself, killing on the way."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        seed: int,
        kinds: Sequence[str] = KINDS,
        pause_s: tuple[float, float] = (1.0, 3.0),
        log: Path | None = None,
        vary: Mapping[str, Sequence[str]] | None = None,
        progress: Callable[[], int] | None = None,
    ) -> None:
        """`pause_s`: least and most time between two kills. `log` takes the command's output.

        `vary`: environment variables that get another of their values at each start.
        `progress`: a number that grows as the job goes on. Each second kill waits until it has,
        so that a slow machine is not killed while it starts again and again.
        """
        self._progress = progress
        self._vary = dict(vary or {})
        self._command = list(command)
        self._environment = {**os.environ, **environment}
        self._random = random.Random(seed)
        self._kinds = kinds
        self._pause_s = pause_s
        self._log = log
        self.report = ChaosReport()
        self._process: subprocess.Popen[bytes] | None = None
        self._progressed = 0

    def run(self, kill_for_s: float, timeout_s: float, kills_max: int = 10**9) -> ChaosReport:
        """Kill for a while, then let the job end. Raises TimeoutError if it does not."""
        began = time.monotonic()
        self._start()
        next_kill = began + self._random.uniform(*self._pause_s)
        while True:
            assert self._process is not None
            code = self._process.poll()
            now = time.monotonic()
            if code is not None and code >= 0:
                self.report.exit_code = code
                self.report.seconds = now - began
                return self.report
            if code is not None:
                self._start()  # it was killed: by us, or by a crash point
            elif now - began > timeout_s:
                self.stop()
                raise TimeoutError(f"still running after {timeout_s:.0f} s")
            elif (
                now >= next_kill
                and now - began < kill_for_s
                and self.report.total_kills < kills_max
                and (now >= next_kill + PROGRESS_S_MAX or self._has_progressed())
            ):
                self._kill_one()
                next_kill = now + self._random.uniform(*self._pause_s)
            time.sleep(POLL_S)

    def _has_progressed(self) -> bool:
        if self._progress is None or self.report.total_kills % 2 == 0:
            return True
        return self._progress() > self._progressed

    def _start(self) -> None:
        if self._process is not None:
            self._wait_gone()
        output = open(self._log, "ab") if self._log else subprocess.DEVNULL  # noqa: SIM115
        varied = {name: self._random.choice(values) for name, values in self._vary.items()}
        try:
            self._process = subprocess.Popen(
                self._command, env={**self._environment, **varied}, stdin=subprocess.DEVNULL,
                stdout=output, stderr=output,
            )  # fmt: skip
        finally:
            if output is not subprocess.DEVNULL:
                output.close()  # type: ignore[union-attr]
        self.report.starts += 1
        self._seen: set[int] = set()

    def _kill_one(self) -> None:
        assert self._process is not None
        found = descendants(self._process.pid)
        self._seen.update(process.pid for process in found[1:])
        victims = [process for process in found if process.kind in self._kinds]
        by_kind = {process.kind for process in victims}
        if not by_kind:
            return
        # By kind first: else the many subtasks would hide the few others.
        kind = self._random.choice(sorted(by_kind))
        victim = self._random.choice([p for p in victims if p.kind == kind])
        try:
            os.kill(victim.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        self.report.kills[kind] += 1
        if self._progress is not None:
            self._progressed = self._progress()

    def _wait_gone(self) -> None:
        """The dead root's processes must go by themselves; those that do not are orphans."""
        deadline = time.monotonic() + GONE_TIMEOUT_S
        left = {pid for pid in self._seen if parent_and_title(pid) is not None}
        while left and time.monotonic() < deadline:
            time.sleep(POLL_S)
            left = {pid for pid in left if parent_and_title(pid) is not None}
        self.report.orphans += len(left)

    def stop(self) -> None:
        """End the command and all below it."""
        if self._process is None:
            return
        for process in reversed(descendants(self._process.pid)):
            try:
                os.kill(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self._process.wait()
