"""Shooting clusters: kills, stops, cuts, drains, rescales and resubmits a running job at random.

What dies is started again a little later, as a supervisor would. Everything is decided by one seed;
what it meets depends on timing, as in life.
"""

from __future__ import annotations

import heapq
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from pathlib import Path

from penstock.runtime.sweep import start_time

from .cluster_links import Links
from .local_cluster import LocalCluster, Process

POLL_S = 0.05
PAUSE_S_MIN, PAUSE_S_MEAN, PAUSE_S_MAX = 0.2, 3.0, 12.0
STOP_S = (0.2, 5.0)
"""How long processes stand still: shorter and longer than a lease with its margin."""
AWAY_S = (0.0, 3.0)
"""How long a killed root stays away."""
HARM_S = (0.2, 8.0)
"""How long links are harmed: shorter and longer than what a connection forgives."""
AGAIN_S = 1.0
"""A submission that was not accepted is repeated this much later."""
WIDTHS = (1, 2, 3, 4)
BELOW = ("subtask", "net", "fork server", "job agent", "job")
ANY_KIND = (*BELOW, "agent", "controller")
ACTIONS = {
    "subtask": 4, "net": 3, "fork server": 1, "job agent": 2, "job": 1, "agent": 3,
    "controller": 1, "stop node": 2, "stop one": 3, "links": 6, "drain": 1, "rescale": 2,
    "resubmit": 1,
}  # fmt: skip
"""How often each is chosen, beside the others."""
LIVE, STOPPING = "stop it first", "is stopping already"
"""What a submission is told while the job is live."""


class ClusterChaos:
    """Acts on one cluster and its job; `submission`: the words that submit it, after `submit`."""

    def __init__(
        self,
        cluster: LocalCluster,
        links: Links,
        seed: int,
        submission: Sequence[str],
        output: Path,
    ) -> None:
        """`output`: the folder where its rows appear."""
        self.done: Counter[str] = Counter()
        self.recovery_s: float | None = None
        """From the end of all faults to the next visible rows; None if it had ended before."""
        self._cluster = cluster
        self._links = links
        self._random = random.Random(seed)
        self._submission = list(submission)
        self._output = output
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._stopped: set[tuple[int, int]] = set()
        self._returning: set[str] = set()
        self._commands: list[tuple[subprocess.Popen[bytes], Callable[[int], None]]] = []
        self._resubmitting = False
        self._log = cluster.folder / "chaos.log"
        self._changed_ns = 0

    def run(self, job: str, seconds: float, patience_s: float) -> None:
        """Act for a while; then heal and let the job end. AssertionError if it does not."""
        began = time.monotonic()
        due = began + self._pause_s()
        while (now := time.monotonic()) < began + seconds:
            if now >= due:
                self._act(job)
                due = time.monotonic() + self._pause_s()
            self._tend()
            time.sleep(POLL_S)
        self._heal()
        began = time.monotonic()
        while self._resubmitting or self._commands:
            self._watch(began)
            if time.monotonic() > began + patience_s:
                raise AssertionError(f"commands do not end\n{self._cluster.story()}")
            time.sleep(POLL_S)
        # It may have been submitted again after its end.
        self._cluster.until_state(
            job, "finished", "already finished", patience_s=patience_s,
            meanwhile=lambda: self._watch(began),
        )  # fmt: skip

    def _pause_s(self) -> float:
        """Until the next action: often too short to recover, sometimes long enough to work."""
        return PAUSE_S_MIN + min(self._random.expovariate(1 / PAUSE_S_MEAN), PAUSE_S_MAX)

    # What goes on beside the actions ------------------------------------------------------------

    def _tend(self) -> None:
        """Undo what is due, bring back what has ended, hear commands out."""
        now = time.monotonic()
        while self._later and self._later[0][0] <= now:
            heapq.heappop(self._later)[2]()
        for name, popen in self._cluster.popens.items():
            if popen.poll() is not None and name not in self._returning:
                self._returning.add(name)
                self._in(self._random.uniform(*AWAY_S), partial(self._start, name))
        for ended in [pair for pair in self._commands if pair[0].poll() is not None]:
            self._commands.remove(ended)
            ended[1](ended[0].returncode)

    def _watch(self, healed: float) -> None:
        """Tend, and see when rows come again."""
        self._tend()
        if self.recovery_s is None:
            changed_ns = self._output.stat().st_mtime_ns if self._output.exists() else 0
            if self._changed_ns and changed_ns > self._changed_ns:
                self.recovery_s = time.monotonic() - healed
            self._changed_ns = changed_ns

    def _heal(self) -> None:
        """Wake what sleeps, heal links; what is away comes back by itself."""
        self._links.heal()
        for pid, started in self._stopped:
            _signal(pid, started, signal.SIGCONT)
        self._stopped.clear()

    def _start(self, name: str) -> None:
        self._returning.discard(name)
        if name == "controller":
            self._cluster.start_controller()
        else:
            self._cluster.start_agent(name)

    def _in(self, seconds: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._later, (time.monotonic() + seconds, next(self._order), action))

    # Actions ----------------------------------------------------------------------------------

    def _act(self, job: str) -> None:
        action = self._random.choices(list(ACTIONS), list(ACTIONS.values()))[0]
        name = self._random.choice(self._cluster.agents)
        happened = True
        if action in BELOW:
            happened = self._kill_one(action)
        elif action in ("agent", "controller"):
            happened = self._kill_root(name if action == "agent" else "controller")
        elif action == "stop node":
            self._stop(self._cluster.processes(node=name))
        elif action == "stop one":
            kind = self._random.choice(ANY_KIND)
            found = self._cluster.processes(kind)
            happened = bool(found)
            if found:
                self._stop([self._random.choice(found)])
                action = f"stop {kind}"
        elif action == "links":
            action, undo = self._links.harm(self._random)
            self._in(self._random.uniform(*HARM_S), undo)
        elif action == "drain":
            self._cluster.popens[name].send_signal(signal.SIGTERM)
        elif action == "rescale":
            width = str(self._random.choice(WIDTHS))
            self._command(("scale", job, width), partial(self._note, action))
            return
        else:
            happened = self._resubmit(job)
        if happened:
            self.done[action] += 1
        self._say(action if happened else f"{action}: nobody there")

    def _kill_one(self, kind: str) -> bool:
        found = self._cluster.processes(kind)
        if found:
            self._cluster.kill(self._random.choice(found))
        return bool(found)

    def _kill_root(self, name: str) -> bool:
        if self._cluster.popens[name].poll() is not None:
            return False
        self._cluster.kill_root(name)
        return True

    def _stop(self, processes: list[Process]) -> None:
        names = {(process.pid, process.started) for process in processes}
        for pid, started in names:
            _signal(pid, started, signal.SIGSTOP)
        self._stopped |= names

        def wake() -> None:
            for pid, started in names:
                _signal(pid, started, signal.SIGCONT)
            self._stopped.difference_update(names)

        self._in(self._random.uniform(*STOP_S), wake)

    # Commands of a user -----------------------------------------------------------------------

    def _resubmit(self, job: str) -> bool:
        """Stop the job with a checkpoint and submit it again, whatever becomes of the stop."""
        if self._resubmitting:
            return False
        self._resubmitting = True
        self._command(("stop", job, "--wait"), lambda code: self._submit())
        return True

    def _submit(self) -> None:
        said = self._log.stat().st_size

        def after(code: int) -> None:
            with open(self._log, "rb") as log:
                log.seek(said)
                answer = log.read().decode(errors="replace")
            live = LIVE in answer and STOPPING not in answer
            # Live: the stop was not heard, or this is a repetition and the first one was.
            self._resubmitting = code != 0 and not live
            if self._resubmitting:
                self._in(AGAIN_S, self._submit)

        self._command(("submit", *self._submission), after)

    def _note(self, action: str, code: int) -> None:
        self.done[action if code == 0 else f"{action} refused"] += 1

    def _command(self, words: Sequence[str], after: Callable[[int], None]) -> None:
        self._say(" ".join(words))
        with open(self._log, "ab") as log:
            popen = subprocess.Popen(
                self._cluster.command(*words), cwd=self._cluster.folder, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, env=self._cluster.environment(),
            )  # fmt: skip
        self._commands.append((popen, after))

    def _say(self, text: str) -> None:
        stamp = time.strftime("%H:%M:%S")
        with open(self._log, "a") as log:
            log.write(f"{stamp} {text}\n")


def _signal(pid: int, started: int, number: int) -> None:
    """To that very process, if it is there."""
    if start_time(pid) == started:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass
