"""The process of one running job: `python -m penstock.cluster.job_process FD`.

It is exec'd by the cluster's controller with one end of a socket pair, told what to run by
LaunchJob, and says how it ended as its last word. Here the bundle is unpickled and planned, the
job's log is taken over, and the same Controller as in `penstock run` works with a Fleet. It dies
with the controller; the next launch goes on from the log.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import replace
from typing import NoReturn, cast

import msgspec
import setproctitle

from penstock.dataflow.launcher import JobStatus, StopMode, Summary
from penstock.dataflow.plan import Plan
from penstock.dataflow.program import program_of
from penstock.dataflow.settings import JobSettings
from penstock.elements.clock import Clock, SystemClock
from penstock.elements.errors import PenstockError, ProtocolError, SettingsError
from penstock.runtime.controller import Controller
from penstock.runtime.failures import report_text
from penstock.runtime.launching import FinishedHandle, job_directory, launch, move_aside
from penstock.runtime.lifeline import die_with_parent, ignore_interrupts
from penstock.runtime.sweep import make_job_root
from penstock.state.store import LocalStore

from .bundle import read_bundle, unpack_modules
from .fleet import Fleets
from .job_link import JobLink
from .job_messages import Ended, FromJob, LaunchJob, Report, StopJob, ToJob

log = logging.getLogger("penstock.job")

REPORT_S = 1.0
"""A status is sent this often even if nothing has changed in it but numbers."""
LOOK_S = 0.1
"""How often its state is looked at, to be told when it changes."""
SUBMISSIONS = "submissions"
"""The folder in a job's directory that names the submissions whose fresh start was made."""


class JobRun:
    """One launch of one job, from LaunchJob to the outcome."""

    def __init__(self, told: LaunchJob, send: Callable[[FromJob], None], clock: Clock) -> None:
        self._told = told
        self._send = send
        self._clock = clock
        self._lock = threading.Lock()
        self._fleets: Fleets | None = None
        self._handle: Controller | FinishedHandle | None = None
        self._stop: StopMode | None = None

    def run(self, directory: str) -> Ended:
        """To the end of the job. `directory` is private and empty: modules are put there.

        Never raises: whatever goes wrong is the outcome.
        """
        try:
            summary = self._run(directory)
        except PenstockError as error:
            return Ended("failed", b"", report_text(str(error)))
        except BaseException:
            # User code runs while unpickling and planning, and a bug of ours must be seen too.
            story = f"the job process failed:\n{traceback.format_exc()}"
            return Ended("failed", b"", report_text(story))
        return Ended(summary.outcome, msgspec.json.encode(summary))

    def on_message(self, message: ToJob) -> None:
        """From the thread that reads the cluster's controller."""
        if isinstance(message, StopJob):
            self._on_stop(cast(StopMode, message.mode))
        elif not isinstance(message, LaunchJob) and self._fleets is not None:
            # Before it has asked for slots nothing concerns it.
            self._fleets.on_news(message)

    def _on_stop(self, mode: StopMode) -> None:
        with self._lock:
            if self._handle is None:
                self._stop = mode
            else:
                self._handle.request_stop(mode)

    # The job's thread ----------------------------------------------------------------------------

    def _run(self, directory: str) -> Summary:
        settings = msgspec.json.decode(self._told.settings, type=JobSettings)
        plan = self._plan(directory, settings)
        store = open_store(plan.name, settings, self._told.submission)
        try:
            handle = launch(
                plan,
                settings,
                store,
                store_root=store.root,
                agent=lambda ran_before: self._make_fleets(plan, ran_before),
                at_end=store.close,
            )
        except BaseException:
            store.close()
            raise
        with self._lock:
            self._handle = handle
            if self._stop is not None:
                handle.request_stop(self._stop)
        return self._watch(handle)

    def _plan(self, directory: str, settings: JobSettings) -> Plan:
        contents = read_bundle(self._told.bundle)
        modules = os.path.join(directory, "modules")
        unpack_modules(self._told.bundle, modules)
        sys.path.insert(0, modules)
        if os.path.isdir(contents.meta.cwd):
            # Relative paths in the program mean what they meant where it was submitted.
            os.chdir(contents.meta.cwd)
        program = program_of(contents.program)
        if program.name != self._told.job:
            raise ProtocolError(f"the bundle is of {program.name!r}, not of {self._told.job!r}")
        plan = program.plan(settings.parallelism, self._told.parallelism).plan
        for line in plan.warnings:
            log.warning("%s: %s", plan.name, line)
        return plan

    def _make_fleets(self, plan: Plan, ran_before: bool) -> Fleets:
        self._fleets = Fleets(plan, self._send, ran_before)
        return self._fleets

    def _watch(self, handle: Controller | FinishedHandle) -> Summary:
        """Report until it has ended; raises JobFailed."""
        said: tuple[object, ...] = ()
        due_ns = 0
        while True:
            try:
                summary = handle.wait(LOOK_S)
            except TimeoutError:
                status = handle.status()
                now_ns = self._clock.monotonic_ns()
                found = (status.state, status.attempt, status.restarts, status.epoch)
                if found != said or now_ns >= due_ns:
                    said, due_ns = found, now_ns + int(REPORT_S * 1e9)
                    self._report(status)
            except BaseException:
                self._report(handle.status())
                raise
            else:
                self._report(handle.status())
                return summary

    def _report(self, status: JobStatus) -> None:
        if self._fleets is not None:
            status = replace(status, pids=self._fleets.pids(status.pids))
        self._send(Report(msgspec.json.encode(status)))


def open_store(job: str, settings: JobSettings, submission: str) -> LocalStore:
    """The job's directory. `fresh` moves a former one aside once per submission, however often
    the submission is launched: a mark in the new one, made before anything runs, tells."""
    if settings.state_dir is None:
        raise SettingsError(f"{job}: a job of a cluster needs a state_dir that all nodes reach")
    root = job_directory(job, settings.state_dir)
    mark = f"{SUBMISSIONS}/{hashlib.sha256(submission.encode()).hexdigest()[:32]}"
    if not settings.fresh:
        return LocalStore(root, durability=settings.durability)
    if os.path.isdir(root):
        store = LocalStore(root, durability=settings.durability)
        if store.size(mark) is not None:
            return store
        store.close()
        move_aside(root)
    store = LocalStore(root, durability=settings.durability)
    store.put(mark, b"")
    store.sync()
    return store


def main(descriptor: int) -> NoReturn:
    """Run one job; ends the process."""
    die_with_parent(os.getppid())
    ignore_interrupts()
    setproctitle.setproctitle("penstock: coordinator without a job")
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s"
    )
    link = JobLink(socket.socket(fileno=descriptor), _orphaned)
    told = link.first()
    setproctitle.setproctitle(f"penstock: job {told.job}")
    run = JobRun(told, link.send, SystemClock())
    link.read(run.on_message)
    directory = make_job_root()
    ended = run.run(directory)
    if ended.outcome == "failed":
        log.error("%s: %s", told.job, ended.failure)
    shutil.rmtree(directory, ignore_errors=True)
    link.finish(ended)
    logging.shutdown()
    # Threads and exit handlers of user code have no say in this.
    os._exit(0)


def _orphaned(why: str) -> NoReturn:
    log.error("the cluster's controller is gone: %s", why)
    os._exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]))
