"""Runs a plan from inside the user's process: one job, one controller thread, one agent."""

from __future__ import annotations

import atexit
import os
import shutil
from collections.abc import Callable

from msgspec.structs import replace

from penstock.dataflow.launcher import JobHandle
from penstock.dataflow.plan import Plan
from penstock.dataflow.settings import JobSettings
from penstock.state.store import LocalStore

from .agent_handle import AgentHandle
from .controller import Agent
from .launching import check_job_name, job_directory, launch, move_aside
from .sweep import make_job_root


class EmbeddedLauncher:
    """The engine behind Pipeline.run and start."""

    def __init__(self, agent: Callable[[], Agent] = AgentHandle) -> None:
        """`agent` makes what runs the processes; tests have their own."""
        self._agent = agent

    def start(self, plan: Plan, settings: JobSettings) -> JobHandle:
        """Start, resume, or report that the job has finished.

        Raises PlanError, SettingsError, ConnectorError or StateError if it cannot start.
        """
        if settings.state_dir is None:
            # What goes with this very process need not outlive the machine.
            settings = replace(settings, durability="process")
        root, remove = _job_directory(plan.name, settings)
        store = LocalStore(root, durability=settings.durability)

        def at_end() -> None:
            store.close()
            remove()

        try:
            return launch(
                plan,
                settings,
                store,
                store_root=store.root,
                agent=lambda _: self._agent,
                at_end=at_end,
            )
        except BaseException:
            at_end()
            raise


def _job_directory(job: str, settings: JobSettings) -> tuple[str, Callable[[], None]]:
    """Where the job lives, and what to do with it at the end."""
    check_job_name(job)
    if settings.state_dir is None:
        made = make_job_root()

        def remove() -> None:
            atexit.unregister(remove)
            shutil.rmtree(made, ignore_errors=True)

        # Also when the user's program ends without waiting for the job.
        atexit.register(remove)
        return os.path.join(made, job), remove
    root = job_directory(job, settings.state_dir)
    if settings.fresh:
        move_aside(root)
    return root, lambda: None
