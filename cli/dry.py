"""A launcher that runs nothing: `penstock explain` executes programs that call run()."""

from __future__ import annotations

from penstock.dataflow.launcher import JobStatus, StopMode, Summary
from penstock.dataflow.plan import Plan
from penstock.dataflow.settings import JobSettings


class DryHandle:
    """A job that has ended before it began."""

    def __init__(self, name: str) -> None:
        self._name = name

    def status(self) -> JobStatus:
        """Nothing happens."""
        return JobStatus(self._name, "PLANNED", 0, 0, 0, 0, 0, 0, 0, None, None)

    def stop(self, mode: StopMode = "checkpoint") -> Summary:
        """Nothing to stop."""
        return Summary(self._name, "stopped")

    def wait(self, timeout_s: float | None = None) -> Summary:
        """At once."""
        return Summary(self._name, "stopped")


class DryLauncher:
    """Takes plans and starts none."""

    def start(self, plan: Plan, settings: JobSettings) -> DryHandle:
        """Give a handle that is done."""
        return DryHandle(plan.name)
