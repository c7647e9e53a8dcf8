"""The seam between a program and whatever runs it: dataflow names it, runtime fills it."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import Literal, Protocol, cast

from .plan import Plan
from .settings import JobSettings

StopMode = Literal["checkpoint", "drain", "now"]


@dataclass(frozen=True)
class Summary:
    """What a run did. `rows_in` counts source rows, `rows_out` rows written to sinks.

    Counters are of the last attempt plus what earlier attempts had reported; after a restart
    replayed rows count again, so they are a measure of work, not of results. "submitted": it runs
    on a cluster, and nobody here waits for it.
    """

    job: str
    outcome: Literal["finished", "stopped", "already finished", "submitted"]
    rows_in: int = 0
    rows_out: int = 0
    late: int = 0
    dropped: int = 0
    restarts: int = 0
    checkpoints: int = 0
    epoch: int = 0
    """The last complete checkpoint."""
    seconds: float = 0.0

    def __str__(self) -> str:
        if self.outcome == "submitted":
            return f"{self.job}: submitted"
        text = (
            f"{self.job}: {self.outcome} at epoch {self.epoch} after {self.seconds:.1f} s; "
            f"{self.rows_in:,} rows in, {self.rows_out:,} out, {self.late:,} late, "
            f"{self.dropped:,} dropped, {self.restarts} restarts"
        )
        return text


@dataclass(frozen=True)
class OperatorStatus:
    """Gauges of one operator chain, summed or averaged over its subtasks."""

    name: str
    parallelism: int
    rows_in: int
    rows_out: int
    busy: float
    blocked: float
    watermark: int
    counters: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class JobStatus:
    """A frozen look at a running job."""

    job: str
    state: str
    attempt: int
    restarts: int
    epoch: int
    rows_in: int
    rows_out: int
    late: int
    dropped: int
    watermark: int | None
    last_checkpoint_s: float | None
    operators: tuple[OperatorStatus, ...] = ()
    pids: dict[str, int] = field(default_factory=dict)
    """Process ids by title: "agent", "fork server", "vertex[index]"."""


class JobHandle(Protocol):
    """A started job."""

    def status(self) -> JobStatus:
        """What it does now; never blocks."""
        ...

    def stop(self, mode: StopMode = "checkpoint") -> Summary:
        """End it and wait. drain: end of data, windows flush; now: no checkpoint."""
        ...

    def wait(self, timeout_s: float | None = None) -> Summary:
        """Block until it ends. Raises JobFailed, or TimeoutError while it still runs."""
        ...


class Launcher(Protocol):
    """Runs plans."""

    def start(self, plan: Plan, settings: JobSettings) -> JobHandle: ...


_chosen: Launcher | None = None


def use_launcher(launcher: Launcher | None) -> Launcher | None:
    """Replace what Pipeline.run and start use; returns what was there before."""
    global _chosen
    before, _chosen = _chosen, launcher
    return before


def current_launcher() -> Launcher:
    """The chosen launcher, else the engine embedded in this process.

    The embedded engine is looked up by name since dataflow stands below runtime.
    """
    if _chosen is not None:
        return _chosen
    module = importlib.import_module("penstock.runtime.embedded")
    return cast(Launcher, module.EmbeddedLauncher())
