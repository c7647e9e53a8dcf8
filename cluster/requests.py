"""What clients ask of the controller, answered from its cores.

Every request is answered once: by what it asked for, or by a Failure that names an error class.
Only reading logs takes longer than a moment, since nodes have to be asked; it is bounded in time.
"""

from __future__ import annotations

import logging
import uuid
from dataclasses import dataclass, field
from itertools import count

import msgspec

from penstock.dataflow.settings import JobSettings
from penstock.elements.errors import PenstockError, ProtocolError, SettingsError
from penstock.runtime.launching import check_job_name
from penstock.runtime.messages import FRAME_BYTES_MAX

from .client_messages import (
    BundleHeld,
    ClientHello,
    Failure,
    FromClient,
    JobInfo,
    JobList,
    ListJobs,
    ListNodes,
    LogPart,
    LogParts,
    NodeInfo,
    NodeList,
    PutBundle,
    ReadLog,
    Scale,
    ServerHello,
    Stop,
    Submit,
    ToClient,
    encode,
)
from .coordination import Coordination
from .job_logs import JobLogs
from .job_record import JobRecord
from .link import Link
from .membership import Member, Versions
from .node_messages import PROTOCOL_VERSION, FetchLog, LogText, NodeName
from .node_messages import encode as encode_to_node
from .slots import PLACEMENTS

log = logging.getLogger("penstock.cluster")

LOGS_WAIT_S = 3.0
"""For nodes to send the logs of a job."""
LOG_BYTES_MAX = 1024 * 1024
"""Of one part, however much is asked for."""
JOB_NAME_BYTES_MAX = 200
"""File systems take 255, and names are added to."""
ENVIRONMENT_BYTES_MAX = 64 * 1024


@dataclass
class _Fetch:
    link: Link
    request: int
    deadline_ns: int
    awaited: set[NodeName]
    parts: list[LogPart] = field(default_factory=list)


class Requests:
    """All clients. For the controller's thread."""

    def __init__(self, world: Coordination, versions: Versions, logs: JobLogs) -> None:
        self._world = world
        self._versions = versions
        self._logs = logs
        self._numbers = count(1)
        self._fetches: dict[int, _Fetch] = {}

    @property
    def deadline_ns(self) -> int | None:
        """When `tick` wants to be called at the latest."""
        return min((fetch.deadline_ns for fetch in self._fetches.values()), default=None)

    def greet(self, link: Link, hello: ClientHello) -> bool:
        """The first word of a client; whether it may go on."""
        ours = self._versions
        if hello.protocol != PROTOCOL_VERSION:
            text = (
                f"the cluster runs Penstock {ours.penstock} (protocol {PROTOCOL_VERSION}), this is "
                f"{hello.penstock} (protocol {hello.protocol}): use that of the cluster"
            )
            link.send(encode(Failure(0, SettingsError.__name__, text)))
            return False
        term = self._world.terms.term
        link.send(encode(ServerHello(PROTOCOL_VERSION, ours.penstock, ours.python, term)))
        return True

    def answer(self, link: Link, message: FromClient) -> None:
        """Carry a request out."""
        if isinstance(message, ClientHello):
            return
        reply: ToClient | None
        try:
            reply = self._reply(link, message)
        except PenstockError as error:
            reply = Failure(message.request, type(error).__name__, str(error))
        except OSError as error:
            log.exception("a request failed")
            reply = Failure(message.request, "EngineError", f"the controller: {error}")
        if reply is not None:
            _send(link, message.request, reply)

    def forget(self, link: Link) -> None:
        """The client is gone."""
        self._world.bundles.ended(link)
        self._fetches = {n: f for n, f in self._fetches.items() if f.link is not link}

    def on_log(self, name: NodeName, message: LogText) -> None:
        """A node sends what it has."""
        fetch = self._fetches.get(message.request)
        if fetch is None or name not in fetch.awaited:
            return
        fetch.awaited.discard(name)
        if message.text:
            fetch.parts.append(LogPart(name.node, message.text))
        self._finish_fetches(0)

    def tick(self, now_ns: int) -> None:
        """Time has passed."""
        self._finish_fetches(now_ns)

    # Requests -----------------------------------------------------------------------------------

    def _reply(self, link: Link, message: FromClient) -> ToClient | None:
        world, now_ns = self._world, self._world.clock.monotonic_ns()
        if isinstance(message, PutBundle):
            held = world.bundles.put(
                link, message.sha256, message.size, message.offset, message.data
            )
            return BundleHeld(message.request, held)
        if isinstance(message, Submit):
            return self._submit(message)
        if isinstance(message, ListJobs):
            return self._list_jobs(message)
        if isinstance(message, ListNodes):
            return NodeList(message.request, self._nodes())
        if isinstance(message, Stop):
            record = self._named(message.job)
            if not record.outcome:
                world.carry_out(world.jobs.stop(message.job, message.mode, now_ns))
            return self._one(message.request, record.id)
        if isinstance(message, Scale):
            record = self._named(message.job)
            world.carry_out(world.jobs.scale(message.job, message.parallelism, now_ns))
            return self._one(message.request, record.id)
        assert isinstance(message, ReadLog)
        return self._read_log(link, message)

    def _submit(self, message: Submit) -> ToClient:
        world = self._world
        _check_submission(message)
        size = world.bundles.size(message.bundle)
        if size is None:
            raise SettingsError("the bundle is not here (any more): send it again, then submit")
        live = world.jobs.find(message.job)
        if live is not None:
            state = world.jobs.state(message.job, bool(world.slots.reason(message.job)))
            raise SettingsError(
                f"a job named {message.job!r} is {state} already: stop it first (penstock stop "
                f"{message.job!r}), or give this pipeline another name"
            )
        record = world.catalog.add(
            JobRecord(
                id=0,
                submission=uuid.uuid4().hex,
                job=message.job,
                bundle=message.bundle,
                bundle_bytes=size,
                settings=message.settings,
                placement=message.placement,
                environment=message.environment,
                submitted_ns=world.clock.wall_ns(),
            )
        )
        log.info("job %s: submitted (%d)", record.job, record.id)
        world.carry_out(world.jobs.begin(record, world.clock.monotonic_ns()))
        return self._one(message.request, record.id)

    def _list_jobs(self, message: ListJobs) -> JobList:
        records = [
            record
            for record in self._world.jobs.records
            if not message.job or record.job == message.job
        ]
        if message.ended:
            records = [*self._world.catalog.ended(message.job), *records]
        records.sort(key=lambda record: record.id)
        return JobList(message.request, [self._info(record) for record in records])

    def _read_log(self, link: Link, message: ReadLog) -> ToClient | None:
        self._named(message.job)
        names = sorted(self._world.links)
        # All parts go into one frame, in which a byte that is no text takes three.
        room = FRAME_BYTES_MAX // 4 // (len(names) + 1)
        size = max(1, min(message.bytes_max, LOG_BYTES_MAX, room))
        number = next(self._numbers)
        deadline_ns = self._world.clock.monotonic_ns() + int(LOGS_WAIT_S * 1e9)
        fetch = _Fetch(link, message.request, deadline_ns, set(names))
        fetch.parts.append(LogPart("coordinator", self._logs.tail(message.job, size)))
        self._fetches[number] = fetch
        for name in names:
            body = encode_to_node(FetchLog(number, message.job, size))
            self._world.links[name].send(body)
        self._finish_fetches(0)
        return None

    def _finish_fetches(self, now_ns: int) -> None:
        for number, fetch in list(self._fetches.items()):
            # A node that is lost meanwhile will not answer.
            silent = {name for name in fetch.awaited if name not in self._world.links}
            if fetch.awaited - silent and now_ns < fetch.deadline_ns:
                continue
            del self._fetches[number]
            fetch.parts += [LogPart(n.node, "(it did not answer)\n") for n in fetch.awaited]
            first, *others = fetch.parts
            parts = [first, *sorted(others, key=lambda part: part.where)]
            _send(fetch.link, fetch.request, LogParts(fetch.request, parts))

    # Views --------------------------------------------------------------------------------------

    def _named(self, job: str) -> JobRecord:
        """The live submission of this name, or else the last."""
        live = self._world.jobs.find(job)
        if live is not None:
            return live
        ended = self._world.catalog.ended(job) if job else []
        if not ended:
            raise SettingsError(f"there is no job {job!r} here; penstock ps --all lists them")
        return ended[-1]

    def _one(self, request: int, number: int) -> JobList:
        records = [*self._world.jobs.records, *self._world.catalog.ended()]
        return JobList(request, [self._info(r) for r in records if r.id == number])

    def _info(self, record: JobRecord) -> JobInfo:
        world, job = self._world, record.job
        state, note, status = record.outcome, record.note, b""
        held: dict[NodeName, int] = {}
        if not record.outcome:
            missing = world.slots.reason(job)
            state = world.jobs.state(job, waits=bool(missing))
            note = missing or note
            status = world.jobs.status(job)
            held = dict(world.slots.held(job))
        return JobInfo(
            id=record.id,
            job=job,
            state=state,
            slots=sum(held.values()),
            nodes=sorted(name.node for name in held),
            launch=record.launch,
            submitted_ns=record.submitted_ns,
            ended_ns=record.ended_ns,
            note=note,
            status=status,
            summary=record.summary,
        )

    def _nodes(self) -> list[NodeInfo]:
        membership = self._world.membership
        infos = [self._node(member) for member in (*membership.members, *membership.gone)]
        return sorted(infos, key=lambda info: info.name)

    def _node(self, member: Member) -> NodeInfo:
        join, slots = member.join, self._world.slots
        state = "lost" if member.lost is not None else "draining" if member.draining else "member"
        link = self._world.links.get(member.name)
        return NodeInfo(
            name=member.name.node,
            state=state,
            address=link.peer if link is not None else join.data_host,
            slots=join.slots,
            used=slots.used(member.name),
            labels=join.labels,
            memory_bytes=join.memory_bytes,
            pid=join.pid,
            jobs=slots.jobs_on(member.name),
            note=member.lost or member.draining or "",
        )


def _send(link: Link, request: int, reply: ToClient) -> None:
    """What is too large to be sent is a failure of this request, not of whoever asked for it, nor
    of the node whose answer completed it."""
    try:
        link.send(encode(reply))
    except ProtocolError as error:
        link.send(encode(Failure(request, ProtocolError.__name__, f"the answer: {error}")))


def _check_submission(message: Submit) -> None:
    check_job_name(message.job)
    if len(message.job.encode()) > JOB_NAME_BYTES_MAX:
        raise SettingsError(f"a job's name has {JOB_NAME_BYTES_MAX} bytes at most")
    if message.placement not in PLACEMENTS:
        raise SettingsError(f"placement is {' or '.join(PLACEMENTS)}, not {message.placement!r}")
    if sum(len(k) + len(v) for k, v in message.environment.items()) > ENVIRONMENT_BYTES_MAX:
        raise SettingsError(f"the environment has more than {ENVIRONMENT_BYTES_MAX:,} characters")
    for name, value in message.environment.items():
        if not name or "=" in name or "\0" in name + value:
            raise SettingsError(f"{name!r} cannot be an environment variable")
    try:
        msgspec.json.decode(message.settings, type=JobSettings)
    except msgspec.DecodeError as error:
        raise SettingsError(f"the job's settings cannot be used: {error}") from None
