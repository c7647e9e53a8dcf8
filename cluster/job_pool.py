"""Job processes before they have a job: one is kept warm for the next launch.

A launch, the first or one after a death, then does not wait for imports. A submission that brings
an environment of its own gets a process of its own, since libraries read it when they are loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .job_host import JobProcess

REWARM_S = 3.0
"""After a launch the next process warms up this much later: the job's own start comes first."""
REWARM_NS = int(REWARM_S * 1e9)


class JobPool:
    """For one thread, which calls `tick` at `deadline_ns`."""

    def __init__(self, command: Sequence[str], warm: bool = True) -> None:
        self._command = command
        self._warm = warm
        self._spare: JobProcess | None = None
        self._due_ns: int | None = 0 if warm else None

    @property
    def deadline_ns(self) -> int | None:
        """When the next one is to be warmed up."""
        return self._due_ns

    def take(self, environment: Mapping[str, str], now_ns: int) -> JobProcess:
        """A started process that has no job."""
        spare = self._spare
        if spare is not None and not environment:
            self._spare = None
        if self._warm and self._spare is None:
            self._due_ns = now_ns + REWARM_NS
        if spare is not None and not spare.over and not environment:
            return spare
        made = JobProcess(environment, self._command)
        made.start()
        return made

    def tick(self, now_ns: int) -> None:
        """Time has passed."""
        if self._due_ns is not None and now_ns >= self._due_ns:
            self._due_ns = None
            self._spare = JobProcess({}, self._command)
            self._spare.start()

    def close(self, timeout_s: float) -> None:
        """End the one that waits."""
        self._due_ns = None
        spare, self._spare = self._spare, None
        if spare is not None:
            spare.kill()
            spare.join(timeout_s)
