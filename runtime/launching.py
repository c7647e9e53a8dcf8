"""Begins a job: its directory, its log taken over, its splits listed, its controller started.

The job's directory decides what happens: empty, it starts; with checkpoints, it resumes; finished,
it does nothing. `fresh` moves what is there aside and starts. Whoever launches says what runs the
processes: an agent of this machine, or many.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable

from penstock.dataflow.launcher import JobStatus, StopMode, Summary
from penstock.dataflow.plan import Plan
from penstock.dataflow.settings import JobSettings
from penstock.elements.errors import PlanError, StateError
from penstock.state.store import Store

from .checkpoint_store import CheckpointStore
from .controller import Agent, Controller
from .deploying import Deployer
from .enumerators import Enumerators
from .log import Finished, read_history

log = logging.getLogger("penstock.launcher")

ASIDE_MAX = 10_000
"""Fresh starts whose predecessors still lie in the state directory."""


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

    def request_stop(self, mode: StopMode = "checkpoint") -> None:
        """Nothing to stop."""

    def stop(self, mode: StopMode = "checkpoint") -> Summary:
        """Nothing to stop."""
        return self._summary

    def wait(self, timeout_s: float | None = None) -> Summary:
        """Returns at once."""
        return self._summary


def launch(
    plan: Plan,
    settings: JobSettings,
    store: Store,
    *,
    store_root: str,
    agent: Callable[[bool], Callable[[], Agent]],
    at_end: Callable[[], None],
) -> Controller | FinishedHandle:
    """Start, resume, or report that the job has finished; `at_end` is called when it is over.

    `agent` is told whether the job has run before, and gives what makes agents. Raises PlanError,
    SettingsError, ConnectorError or StateError if it cannot start; `at_end` is the caller's then.
    """
    history = read_history(store)
    if history.finished is not None:
        return _finished(plan, history.finished, at_end)
    deployer = Deployer(plan, settings, store_root)
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
        plan,
        settings,
        checkpoints,
        deployer,
        enumerators,
        agent=agent(takeover.generation > 1),
        at_end=at_end,
    )
    controller.start()
    return controller


def _finished(plan: Plan, entry: Finished, at_end: Callable[[], None]) -> FinishedHandle:
    log.info("%s: finished at epoch %d; --fresh runs it again", plan.name, entry.id)
    at_end()
    return FinishedHandle(plan.name, entry.id)


# The job's directory ------------------------------------------------------------------------------


def check_job_name(job: str) -> None:
    """PlanError unless the name can be a directory's."""
    if not re.fullmatch(r"\w[\w .-]*", job):
        raise PlanError(
            f"the pipeline's name {job!r} cannot name a directory: "
            "use letters, digits, spaces, dots, - and _"
        )


def job_directory(job: str, state_dir: str) -> str:
    """Where the job lives below a state directory."""
    check_job_name(job)
    return os.path.join(os.path.abspath(state_dir), job)


def move_aside(root: str) -> None:
    """Give what a former run left another name, if there is something."""
    for number in range(1, ASIDE_MAX):
        aside = f"{root}.old-{number}"
        if os.path.exists(aside):
            continue
        try:
            os.rename(root, aside)
        except FileNotFoundError:
            return
        except OSError as error:
            raise StateError(f"{root} cannot be moved aside: {error.strerror}") from error
        log.info("the former run's state is kept in %s", aside)
        return
    raise StateError(f"{root} cannot be moved aside: remove its old copies, {root}.old-*")
