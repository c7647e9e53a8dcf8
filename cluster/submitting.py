"""Plans that run on a cluster: the launcher that submits them, and the handle of a submission.

To a program both look like the engine in its own process. The difference is in what dies with it:
nothing. A lost connection is no news of the job, so a handle goes on asking.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import threading
from collections.abc import Mapping

import msgspec

from penstock.dataflow.launcher import JobStatus, StopMode, Summary
from penstock.dataflow.plan import Plan
from penstock.dataflow.settings import JobSettings
from penstock.elements.clock import Clock, SystemClock
from penstock.elements.errors import JobFailed, PlanError, Unreachable

from .bundle import make_bundle
from .client import Client
from .client_messages import JobInfo

log = logging.getLogger("penstock.submit")

POLL_S = 0.2
"""Between two questions whether the job has ended."""
OUTCOMES = ("finished", "stopped", "already finished", "failed")


class ClusterLauncher:
    """Submits plans; `submitted` has what became of them, by job."""

    def __init__(
        self,
        client: Client,
        *,
        placement: str = "pack",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._client = client
        self._placement = placement
        self._environment = dict(environment or {})
        self.submitted: dict[str, SubmittedJob] = {}

    def start(self, plan: Plan, settings: JobSettings) -> SubmittedJob:
        """Bundle the program and have the cluster run it."""
        if plan.program is None:
            raise PlanError(f"{plan.name}: this plan was not made from a program that can travel")
        bundle = make_bundle(plan.program)
        if settings.state_dir is not None:
            # As in `penstock run`: relative to where the command was given.
            settings = msgspec.structs.replace(
                settings, state_dir=os.path.abspath(settings.state_dir)
            )
        info = self._client.submit(
            plan.name,
            bundle,
            settings,
            placement=self._placement,
            environment=self._environment,
        )
        job = SubmittedJob(self._client, info)
        self.submitted[plan.name] = job
        return job


class SubmittedJob:
    """The handle of one submission."""

    def __init__(self, client: Client, info: JobInfo, clock: Clock | None = None) -> None:
        self._client = client
        self._clock = clock or SystemClock()
        self._never = threading.Event()
        self._lost = False
        self.info = info
        """What was last heard of it."""

    def look(self) -> JobInfo:
        """Ask the controller; what was last heard while it cannot be reached."""
        try:
            found = self._client.jobs(self.info.job, ended=True)
        except Unreachable as error:
            if not self._lost:
                log.warning("%s; asking again until it answers", error)
            self._lost = True
            return self.info
        if self._lost:
            log.warning("the controller at %s answers again", self._client.address)
        self._lost = False
        mine = [info for info in found if info.id == self.info.id]
        if not mine:
            raise JobFailed(
                f"{self.info.job}: the controller at {self._client.address} no longer knows this "
                "submission"
            )
        self.info = mine[0]
        return self.info

    def status(self) -> JobStatus:
        """What the cluster last said of it."""
        status = status_of(self.look())
        return dataclasses.replace(status, state="unreachable") if self._lost else status

    def stop(self, mode: StopMode = "checkpoint") -> Summary:
        """End it and wait."""
        self.info = self._client.stop(self.info.job, mode)
        return self.wait()

    def wait(self, timeout_s: float | None = None) -> Summary:
        """Block until it ends; a controller that is away meanwhile is waited for."""
        until_ns = None if timeout_s is None else self._clock.monotonic_ns() + timeout_s * 1e9
        while self.look().state not in OUTCOMES:
            if until_ns is not None and self._clock.monotonic_ns() >= until_ns:
                raise TimeoutError(f"{self.info.job} still runs")
            self._never.wait(POLL_S)
        return summary_of(self.info)


def status_of(info: JobInfo) -> JobStatus:
    """The job's own status under the name of the state that the controller sees it in."""
    state = f"{info.state}: {info.note}" if info.note and info.state != "running" else info.state
    if info.status:
        status = msgspec.json.decode(info.status, type=JobStatus)
        # The coordinator knows best what it does; what it cannot know is that it is not there.
        own = info.state in ("running", "starting") and not info.note
        return status if own else dataclasses.replace(status, state=state)
    return JobStatus(info.job, state, 0, 0, 0, 0, 0, 0, 0, None, None)


def summary_of(info: JobInfo) -> Summary:
    """Of a job that has ended; raises JobFailed for one that gave up."""
    if info.state == "failed":
        raise JobFailed(info.note or f"{info.job}: failed; see  penstock logs {info.job}")
    if info.summary:
        return msgspec.json.decode(info.summary, type=Summary)
    # It was stopped before it had begun.
    return Summary(info.job, "stopped")
