"""Runs a plan from inside the user's process: one job, one controller thread, one agent.

The job's directory decides what happens: empty, it starts; with checkpoints, it resumes; finished,
it does nothing. `fresh` moves what is there aside and starts.
"""

from __future__ import annotations

import atexit
import logging
import os
import re
import shutil
from collections.abc import Callable

from penstock.dataflow.launcher import JobHandle, JobStatus, StopMode, Summary
from penstock.dataflow.plan import Plan
from penstock.dataflow.settings import JobSettings
from penstock.elements.errors import PlanError, StateError
from penstock.state.store import LocalStore

from .agent_handle import AgentHandle
from .checkpoint_store import CheckpointStore
from .controller import Agent, Controller
from .deploying import Deployer
from .enumerators import Enumerators
from .log import Finished, read_history
from .sweep import make_job_root

log = logging.getLogger("penstock.launcher")

ASIDE_MAX = 10_000
"""Fresh starts whose predecessors still lie in the state directory."""


class EmbeddedLauncher:
    """The engine behind Pipeline.run and start."""

    def __init__(self, agent: Callable[[], Agent] = AgentHandle) -> None:
        """`agent` makes what runs the processes; tests have their own."""
        self._agent = agent

    def start(self, plan: Plan, settings: JobSettings) -> JobHandle:
        """Start, resume, or report that the job has finished.

        Raises PlanError, SettingsError, ConnectorError or StateError if it cannot start.
        """
        root, remove = _job_directory(plan.name, settings)
        store = LocalStore(root, durability=settings.durability)

        def at_end() -> None:
            store.close()
            remove()

        try:
            return self._start(plan, settings, store, at_end)
        except BaseException:
            at_end()
            raise

    def _start(
        self,
        plan: Plan,
        settings: JobSettings,
        store: LocalStore,
        at_end: Callable[[], None],
    ) -> JobHandle:
        finished = read_history(store).finished
        if finished is not None:
            return _finished(plan, finished, at_end)
        deployer = Deployer(plan, settings, store.root)
        enumerators = Enumerators(plan)
        enumerators.list_all()
        checkpoints = CheckpointStore(store, plan, settings)
        takeover = checkpoints.take_over()
        if takeover is None:
            finished = checkpoints.log.history.finished
            assert finished is not None
            return _finished(plan, finished, at_end)
        if checkpoints.manifest is not None:
            log.info("%s resumes from checkpoint %d", plan.name, checkpoints.manifest.id)
        controller = Controller(
            plan, settings, checkpoints, deployer, enumerators, agent=self._agent, at_end=at_end
        )
        controller.start()
        return controller


class FinishedHandle:
    """A job that had finished before it was started again."""

    def __init__(self, job: str, epoch: int) -> None:
        self._summary = Summary(job=job, outcome="already finished", epoch=epoch)

    def status(self) -> JobStatus:
        """It stands still."""
        return JobStatus(
            job=self._summary.job,
            state=f"finished at epoch {self._summary.epoch}; --fresh runs it again",
            attempt=0,
            restarts=0,
            epoch=self._summary.epoch,
            rows_in=0,
            rows_out=0,
            late=0,
            dropped=0,
            watermark=None,
            last_checkpoint_s=None,
        )

    def stop(self, mode: StopMode = "checkpoint") -> Summary:
        """Nothing to stop."""
        return self._summary

    def wait(self, timeout_s: float | None = None) -> Summary:
        """Returns at once."""
        return self._summary


def _finished(plan: Plan, entry: Finished, at_end: Callable[[], None]) -> FinishedHandle:
    log.info("%s: finished at epoch %d; --fresh runs it again", plan.name, entry.id)
    at_end()
    return FinishedHandle(plan.name, entry.id)


def _job_directory(job: str, settings: JobSettings) -> tuple[str, Callable[[], None]]:
    """Where the job lives, and what to do with it at the end."""
    if not re.fullmatch(r"\w[\w .-]*", job):
        raise PlanError(
            f"the pipeline's name {job!r} cannot name a directory: "
            "use letters, digits, spaces, dots, - and _"
        )
    if settings.state_dir is None:
        made = make_job_root()

        def remove() -> None:
            atexit.unregister(remove)
            shutil.rmtree(made, ignore_errors=True)

        # Also when the user's program ends without waiting for the job.
        atexit.register(remove)
        return os.path.join(made, job), remove
    root = os.path.join(os.path.abspath(settings.state_dir), job)
    if settings.fresh and os.path.isdir(root):
        _move_aside(root)
    return root, lambda: None


def _move_aside(root: str) -> None:
    for number in range(1, ASIDE_MAX):
        aside = f"{root}.old-{number}"
        if os.path.exists(aside):
            continue
        try:
            os.rename(root, aside)
        except OSError as error:
            raise StateError(f"{root} cannot be moved aside: {error.strerror}") from error
        log.info("the former run's state is kept in %s", aside)
        return
    raise StateError(f"{root} cannot be moved aside: remove its old copies, {root}.old-*")
