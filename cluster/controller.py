"""The cluster's controller: one thread, one queue, and what stands around the cores.

The queue brings what links and job processes say and, by its timeout, that time has passed.
Everything is decided in coordination.py and requests.py. It runs no user code and unpickles
nothing. Its death ends the job processes; started again, it launches every job that is wanted.
"""

from __future__ import annotations

import fcntl
import logging
import os
import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from penstock import __version__
from penstock.elements.clock import Clock, SystemClock
from penstock.elements.errors import PenstockError, ProtocolError, SettingsError, StateError
from penstock.runtime.net.credentials import Credentials

from .bundle import python_minor
from .bundle_store import BundleStore
from .catalog import Catalog
from .client_messages import decode_first, decode_from_client
from .coordination import Coordination, Terms
from .job_host import JOB_COMMAND, JobProcess
from .job_logs import JobLogs
from .job_messages import (
    CloseAgent,
    Ended,
    NeedSlots,
    OpenAgent,
    Report,
    Tell,
    Told,
    decode_from_job,
)
from .job_pool import JobPool
from .job_record import JobRecord
from .link import Link, Listener
from .membership import Membership, Versions
from .node_messages import (
    BundleChunk,
    Draining,
    FromJobAgent,
    Heartbeat,
    JobAgentGone,
    Join,
    LogText,
    NeedBundle,
    NodeName,
    ToJobAgent,
    decode_from_node,
    encode,
)
from .requests import Requests

log = logging.getLogger("penstock.cluster")

LEASE_S = 2.0
HEARTBEAT_S = 0.4
MARGIN_S = 0.5
LEASE_S_MIN, LEASE_S_MAX = 0.2, 600.0
PROCESSES_WAIT_S = 5.0
"""At the end, for job processes to be reaped."""


@dataclass(frozen=True)
class ControllerSettings:
    """How a controller runs. `listen` is host:port; port 0 takes any."""

    listen: str
    data: Path
    credentials: Credentials
    state_dir: Path | None = None
    """Where jobs keep their state that name no place; a path that all nodes reach. None: below
    `data`, which is right where all nodes are on this machine."""
    lease_s: float = LEASE_S
    heartbeat_s: float = HEARTBEAT_S
    margin_s: float = MARGIN_S

    def __post_init__(self) -> None:
        if not LEASE_S_MIN <= self.lease_s <= LEASE_S_MAX:
            raise SettingsError(
                f"a lease of {self.lease_s:g} s: take {LEASE_S_MIN:g} to {LEASE_S_MAX:g}"
            )
        if not 0 < self.heartbeat_s <= self.lease_s / 2:
            raise SettingsError(
                f"a heartbeat each {self.heartbeat_s:g} s does not keep a lease of "
                f"{self.lease_s:g} s alive: it must come at least twice in that time"
            )


@dataclass(frozen=True)
class _Heard:
    link: Link
    body: bytes
    at_ns: int


@dataclass(frozen=True)
class _HungUp:
    link: Link
    reason: str
    at_ns: int


@dataclass(frozen=True)
class _JobSaid:
    process: JobProcess
    body: bytes


@dataclass(frozen=True)
class _JobGone:
    process: JobProcess
    cause: str


@dataclass(frozen=True)
class _Shut:
    pass


_Event = _Heard | _HungUp | _JobSaid | _JobGone | _Shut


class ClusterController:
    """One controller. `start` it once; `close` leaves every job as it is, to be resumed."""

    def __init__(
        self,
        settings: ControllerSettings,
        *,
        clock: Clock | None = None,
        job_command: Sequence[str] = JOB_COMMAND,
        warm: bool = True,
    ) -> None:
        """Takes the data directory and the port. Raises SettingsError or StateError.

        `warm`: keep a job process ready for the next launch."""
        self._clock = clock or SystemClock()
        self._pool = JobPool(job_command, warm)
        self._events: queue.SimpleQueue[_Event] = queue.SimpleQueue()
        # None: a client.
        self._peers: dict[Link, NodeName | None] = {}
        self._failure: BaseException | None = None
        self._ended = threading.Event()
        self._over = False
        data = settings.data.absolute()
        state_dir = (settings.state_dir or data / "state").absolute()
        make_directory(data, "--data")
        self._lock = _lock(data)
        try:
            # Here it can be said what is wrong; later each job would fail of it.
            make_directory(state_dir, "--state-dir", 0o777)
            self._logs = JobLogs(data / "logs")
            bundles = BundleStore(data / "bundles")
            self._catalog = Catalog(data / "controller.db")
        except BaseException:
            os.close(self._lock)
            raise
        versions = Versions(__version__, python_minor())
        try:
            terms = Terms(
                self._catalog.next_term(),
                int(settings.lease_s * 1e9),
                int(settings.margin_s * 1e9),
                int(settings.heartbeat_s * 1000),
                state_dir,
            )
            self._world = Coordination(
                terms,
                Membership(versions, terms.lease_ns, terms.margin_ns),
                self._catalog,
                bundles,
                self._clock,
                self._host,
            )
            self._requests = Requests(self._world, versions, self._logs)
            self._listener = Listener(settings.listen, settings.credentials, self._on_link)
        except BaseException:
            self._catalog.close()
            os.close(self._lock)
            raise
        self._thread = threading.Thread(target=self._run, name="cluster-controller", daemon=True)

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        return self._listener.address

    @property
    def term(self) -> int:
        """How often it was started with this data directory."""
        return self._world.terms.term

    def start(self) -> None:
        """Begin. Returns at once."""
        self._thread.start()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Until it has ended; whether it has. Raises what made it end, if that was a failure."""
        ended = self._ended.wait(timeout_s)
        if self._failure is not None:
            raise self._failure
        return ended

    def close(self) -> None:
        """End job processes and links at once; jobs resume when it is started again."""
        self._events.put(_Shut())
        self._ended.wait()

    # The thread ---------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            records = (*self._catalog.ended(), *self._catalog.live())
            self._logs.sweep({record.job for record in records})
            self._world.begin()
            while not self._over:
                self._step()
        except BaseException as error:
            # Whoever supervises us must see it; the catalog knows what is wanted.
            log.exception("the controller failed")
            self._failure = error
        finally:
            self._end()
            self._ended.set()

    def _step(self) -> None:
        parts = (self._world, self._requests, self._pool)
        due = [ns for ns in (part.deadline_ns for part in parts) if ns is not None]
        now_ns = self._clock.monotonic_ns()
        timeout_s = max(0, min(due) - now_ns) / 1e9 if due else None
        try:
            event = self._events.get(timeout=timeout_s)
        except queue.Empty:
            pass
        else:
            self._on(event)
        self._world.tick()
        self._requests.tick(self._clock.monotonic_ns())
        self._pool.tick(self._clock.monotonic_ns())

    def _end(self) -> None:
        try:
            self._listener.close()
            for process in self._world.processes.values():
                process.kill()
            for link in list(self._peers):
                link.close("the controller is shutting down")
            for process in list(self._world.processes.values()):
                process.join(PROCESSES_WAIT_S)
            self._pool.close(PROCESSES_WAIT_S)
            self._world.bundles.close()
        finally:
            self._catalog.close()
            os.close(self._lock)

    def _on(self, event: _Event) -> None:
        if isinstance(event, _Heard):
            self._on_heard(event)
        elif isinstance(event, _HungUp):
            self._on_hung_up(event)
        elif isinstance(event, _JobSaid):
            self._on_job(event)
        elif isinstance(event, _JobGone):
            now_ns = self._clock.monotonic_ns()
            self._world.process_gone(event.process, event.cause, now_ns)
        else:
            self._over = True

    # Links --------------------------------------------------------------------------------------

    def _on_link(self, link: Link) -> None:
        link.start(self._post_body, self._post_end)

    def _post_body(self, link: Link, body: bytes) -> None:
        self._events.put(_Heard(link, body, self._clock.monotonic_ns()))

    def _post_end(self, link: Link, reason: str) -> None:
        self._events.put(_HungUp(link, reason, self._clock.monotonic_ns()))

    def _on_heard(self, heard: _Heard) -> None:
        link = heard.link
        try:
            if link not in self._peers:
                self._on_first(link, heard)
            elif (name := self._peers[link]) is None:
                self._requests.answer(link, decode_from_client(heard.body))
            else:
                self._on_node(link, name, heard)
        except (msgspec.DecodeError, ProtocolError) as error:
            log.warning("%s breaks the protocol: %s", link.peer, error)
            link.cut(f"it broke the protocol: {error}")

    def _on_first(self, link: Link, heard: _Heard) -> None:
        first = decode_first(heard.body)
        if isinstance(first, Join):
            # Known before it is a member, since that may be told to jobs at once.
            self._peers[link] = first.name
            welcome = self._world.joins(link, first, heard.at_ns)
        else:
            self._peers[link] = None
            welcome = self._requests.greet(link, first)
        if not welcome:
            link.close("refused")

    def _on_hung_up(self, event: _HungUp) -> None:
        name = self._peers.pop(event.link, None)
        self._requests.forget(event.link)
        if name is not None and self._world.links.get(name) is event.link:
            del self._world.links[name]
            membership = self._world.membership
            self._world.carry_out(membership.on_disconnect(name, event.reason, event.at_ns))

    def _on_node(self, link: Link, name: NodeName, heard: _Heard) -> None:
        world = self._world
        message = decode_from_node(heard.body)
        if world.links.get(name) is not link:
            # Lost already, or refused: what it says has no meaning any more.
            return
        if isinstance(message, FromJobAgent):
            world.tell_job(message.job, message.launch, Told(name, message.body))
        elif isinstance(message, Heartbeat):
            world.carry_out(world.membership.on_heartbeat(name, message.sequence, heard.at_ns))
        elif isinstance(message, JobAgentGone):
            now_ns = self._clock.monotonic_ns()
            world.carry_out(
                world.jobs.on_agent_gone(message.job, message.launch, name, message.cause, now_ns)
            )
        elif isinstance(message, NeedBundle):
            data = world.bundles.read(message.sha256, message.offset)
            link.send(encode(BundleChunk(message.sha256, message.offset, data)))
        elif isinstance(message, Draining):
            world.carry_out(world.membership.on_draining(name, message.reason))
        elif isinstance(message, LogText):
            self._requests.on_log(name, message)
        else:
            assert isinstance(message, Join)
            raise ProtocolError("a node joins once per connection")

    # Jobs ---------------------------------------------------------------------------------------

    def _host(self, record: JobRecord) -> JobProcess:
        process = self._pool.take(record.environment, self._clock.monotonic_ns())
        process.assign(
            record.job,
            record.launch,
            self._logs.path(record.job),
            lambda process, body: self._events.put(_JobSaid(process, body)),
            lambda process, cause: self._events.put(_JobGone(process, cause)),
        )
        return process

    def _on_job(self, said: _JobSaid) -> None:
        world, job, launch = self._world, said.process.job, said.process.launch
        try:
            message = decode_from_job(said.body)
        except msgspec.DecodeError as error:
            log.error("the process of job %s breaks the protocol: %s", job, error)
            said.process.kill()
            return
        now_ns = self._clock.monotonic_ns()
        if isinstance(message, Tell):
            self._relay(message, job, launch)
        elif isinstance(message, Report):
            world.carry_out(world.jobs.on_report(job, launch, message, now_ns))
        elif isinstance(message, NeedSlots):
            world.carry_out(world.jobs.on_need_slots(job, launch, message))
        elif isinstance(message, OpenAgent):
            world.carry_out(world.jobs.on_open_agent(job, launch, message))
        elif isinstance(message, CloseAgent):
            world.carry_out(world.jobs.on_close_agent(job, launch, message))
        else:
            assert isinstance(message, Ended)
            world.carry_out(world.jobs.on_ended(job, launch, message, now_ns))

    def _relay(self, message: Tell, job: str, launch: int) -> None:
        link = self._world.links.get(message.name)
        # Of an older launch nothing passes: its agents are being closed.
        if link is None or self._world.jobs.agents(job).get(message.name) != launch:
            return
        try:
            link.send(encode(ToJobAgent(job, launch, message.body)))
        except PenstockError as error:
            log.error("job %s: %s", job, error)


def make_directory(path: Path, option: str, mode: int = 0o700) -> None:
    """Have a directory that can be written into; SettingsError names the option that named it."""
    why = "it cannot be written into"
    try:
        path.mkdir(mode=mode, parents=True, exist_ok=True)
        usable = os.access(path, os.W_OK | os.X_OK)
    except OSError as error:
        usable, why = False, str(error.strerror)
    if not usable:
        raise SettingsError(f"the directory {path}: {why}; name another one with {option}")


def _lock(data: Path) -> int:
    """Keep a second controller out of the directory for as long as this process lives."""
    descriptor = os.open(data / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise StateError(
            f"{data} is in use by another controller; one directory serves one at a time"
        ) from error
    return descriptor
