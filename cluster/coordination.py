"""The controller's three cores at work: what they order is carried out here, in order.

Members' leases, slots and jobs know nothing of each other; this is where a lost node becomes news
for jobs, and a job's need a grant. For one thread, which gives the time of each event.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from penstock.dataflow.settings import JobSettings
from penstock.elements.clock import Clock

from .bundle_store import BundleStore
from .catalog import Catalog
from .job_host import JobProcess
from .job_messages import Granted, GrantedNode, LaunchJob, NodeGone, ToJob, Waiting
from .job_record import (
    AskSlots,
    CloseOnNode,
    FreeSlots,
    JobCommand,
    JobRecord,
    KillProcess,
    OpenOnNode,
    SaveJob,
    StartProcess,
    TellJob,
)
from .jobs import Jobs
from .link import Link
from .membership import (
    Admit,
    Membership,
    MembershipCommand,
    NodeDrains,
    NodeIsGone,
    NodeIsLost,
    Refuse,
    Renew,
)
from .node_messages import (
    CloseJob,
    HeartbeatReply,
    Join,
    Leave,
    NodeName,
    OpenJob,
    Refused,
    Welcome,
    encode,
)
from .slots import Grant, SlotCommand, Slots, Wait

log = logging.getLogger("penstock.cluster")

Command = MembershipCommand | SlotCommand | JobCommand
Host = Callable[[JobRecord], JobProcess]


@dataclass(frozen=True)
class Terms:
    """What this start of the controller goes by."""

    term: int
    lease_ns: int
    margin_ns: int
    heartbeat_ms: int
    state_dir: Path


class Coordination:
    """Members, slots and jobs of one controller, with the links and processes that belong."""

    def __init__(
        self,
        terms: Terms,
        membership: Membership,
        catalog: Catalog,
        bundles: BundleStore,
        clock: Clock,
        host: Host,
    ) -> None:
        """`host` makes the process of a launch."""
        self.terms = terms
        self.membership = membership
        self.slots = Slots()
        self.jobs = Jobs(catalog.launches())
        self.catalog = catalog
        self.bundles = bundles
        self.clock = clock
        self.links: dict[NodeName, Link] = {}
        self.processes: dict[str, JobProcess] = {}
        self._host = host
        self._data_hosts: dict[NodeName, str] = {}
        self._awaited: set[str] = set()
        self._awaited_until_ns: int | None = None

    # Events -------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Launch every job that is wanted; grant nothing while nodes of the last term may still
        run what they ran then."""
        now_ns = self.clock.monotonic_ns()
        self._awaited = self.catalog.members()
        if self._awaited:
            self._awaited_until_ns = now_ns + self.terms.lease_ns + self.terms.margin_ns
        self._hold_up(now_ns)
        self.bundles.sweep({record.bundle for record in self.catalog.live()})
        for record in self.catalog.live():
            self.carry_out(self.jobs.begin(record, now_ns))

    def joins(self, link: Link, join: Join, now_ns: int) -> bool:
        """The first word of a node; whether it is a member now."""
        commands = self.membership.on_join(join, now_ns)
        for command in commands:
            if isinstance(command, Refuse):
                log.warning("node %s (%s) is refused: %s", join.name, link.peer, command.reason)
                link.send(encode(Refused(command.reason, command.again)))
            elif isinstance(command, Admit):
                self.links[join.name] = link
        self.carry_out(commands)
        return self.links.get(join.name) is link

    def tick(self) -> None:
        """Time has passed."""
        now_ns = self.clock.monotonic_ns()
        self.carry_out(self.membership.tick(now_ns))
        if self._awaited_until_ns is not None and now_ns >= self._awaited_until_ns:
            for node in sorted(self._awaited):
                log.warning("node %s has not come back", node)
                self.catalog.remove_member(node)
            self._awaited = set()
            self._hold_up(now_ns)
        self.carry_out(self.slots.tick(now_ns))
        self.carry_out(self.jobs.tick(now_ns))
        self._let_go()

    @property
    def deadline_ns(self) -> int | None:
        """When `tick` wants to be called at the latest."""
        due = (
            self.membership.deadline_ns,
            self.slots.deadline_ns,
            self.jobs.deadline_ns,
            self._awaited_until_ns,
        )
        return min((ns for ns in due if ns is not None), default=None)

    def process_gone(self, process: JobProcess, cause: str, now_ns: int) -> None:
        """A job process is reaped."""
        if self.processes.get(process.job) is process:
            del self.processes[process.job]
        log.info("job %s: the process of launch %d is gone: %s", process.job, process.launch, cause)
        self.carry_out(self.jobs.on_process_gone(process.job, process.launch, cause, now_ns))

    def tell_job(self, job: str, launch: int, message: ToJob) -> None:
        """To the job's process, if it is this launch's."""
        process = self.processes.get(job)
        if process is not None and process.launch == launch:
            process.send(message)

    # Commands -----------------------------------------------------------------------------------

    def carry_out(self, commands: Iterable[Command]) -> None:
        """All of them in order, each with what follows from it before the next: a grant must be
        told before the later news that one of its nodes is gone."""
        left = deque(commands)
        while left:
            command = left.popleft()
            if isinstance(command, MembershipCommand):
                left.extendleft(reversed([*self._on_member(command)]))
            elif isinstance(command, Grant | Wait):
                self._on_slots(command)
            else:
                left.extendleft(reversed([*self._on_job(command)]))

    def _on_member(self, command: MembershipCommand) -> Iterable[Command]:
        now_ns = self.clock.monotonic_ns()
        if isinstance(command, Renew):
            self._say(command.name, HeartbeatReply(command.sequence))
        elif isinstance(command, Admit):
            return self._admit(command.name, now_ns)
        elif isinstance(command, NodeDrains):
            log.info("node %s drains: %s", command.name, command.reason)
            jobs = {*self.slots.jobs_on(command.name), *self._jobs_with_agents(command.name)}
            granted = self.slots.node_closed(command.name, now_ns)
            return [*granted, *(c for job in sorted(jobs) for c in self.jobs.move(job, now_ns))]
        elif isinstance(command, NodeIsLost):
            log.warning("node %s is lost: %s", command.name, command.cause)
            link = self.links.pop(command.name, None)
            if link is not None:
                link.cut(command.cause)
            holders = self.slots.jobs_on(command.name)
            told = self.jobs.on_node_lost(command.name, command.cause, holders)
            return [*told, *self.slots.node_closed(command.name, now_ns)]
        elif isinstance(command, NodeIsGone):
            log.info("node %s is gone", command.name)
            holders = self.slots.jobs_on(command.name)
            self.slots.node_gone(command.name)
            self._data_hosts.pop(command.name, None)
            self.catalog.remove_member(command.name.node)
            return self.jobs.on_node_gone(command.name, holders, now_ns)
        return []

    def _admit(self, name: NodeName, now_ns: int) -> Iterable[Command]:
        member = self.membership.find(name)
        assert member is not None
        join, terms = member.join, self.terms
        self.catalog.add_member(name.node)
        self._data_hosts[name] = join.data_host
        log.info("node %s joins with %d slots at %s", name, join.slots, join.data_host)
        self._say(name, Welcome(terms.term, terms.lease_ns // 1_000_000, terms.heartbeat_ms))
        granted = list(self.slots.node_up(name, join.slots, now_ns))
        if name.node in self._awaited:
            self._awaited.discard(name.node)
            self._hold_up(now_ns)
        return granted

    def _on_slots(self, command: SlotCommand) -> None:
        record = self.jobs.find(command.job)
        if record is None:
            return
        if isinstance(command, Wait):
            self.tell_job(command.job, record.launch, Waiting(command.grant, command.reason))
            return
        nodes = []
        for name, slots in sorted(command.slots.items()):
            nodes.append(GrantedNode(name, self._data_hosts[name], slots))
        where = ", ".join(f"{slots} on {name}" for name, slots in sorted(command.slots.items()))
        log.info(
            "job %s: slots: %s%s", command.job, where, f" ({command.note})" * bool(command.note)
        )
        self.tell_job(command.job, record.launch, Granted(command.grant, nodes, command.note))

    def _on_job(self, command: JobCommand) -> Iterable[Command]:
        now_ns = self.clock.monotonic_ns()
        if isinstance(command, SaveJob):
            self._save(command.record)
        elif isinstance(command, StartProcess):
            self._start(command.record)
        elif isinstance(command, KillProcess):
            process = self.processes.get(command.job)
            if process is not None and process.launch == command.launch:
                process.kill()
        elif isinstance(command, TellJob):
            self.tell_job(command.job, command.launch, command.message)
        elif isinstance(command, OpenOnNode):
            self._open(command.name, command.record)
        elif isinstance(command, CloseOnNode):
            self._say(command.name, CloseJob(command.job, command.launch))
        elif isinstance(command, AskSlots):
            return self.slots.need(
                command.job, command.grant, command.count, command.again, command.placement, now_ns
            )
        else:
            assert isinstance(command, FreeSlots)
            return self.slots.release(command.job, now_ns)
        return []

    # Inside -------------------------------------------------------------------------------------

    def _say(self, name: NodeName, message: msgspec.Struct) -> None:
        link = self.links.get(name)
        if link is not None:
            link.send(encode(message))

    def _save(self, record: JobRecord) -> None:
        if record.outcome:
            record = replace(record, ended_ns=self.clock.wall_ns())
            text = "job %s: %s%s"
            log.info(text, record.job, record.outcome, f": {record.note}" if record.note else "")
        self.catalog.save(record)
        if record.outcome:
            self.bundles.sweep({live.bundle for live in self.jobs.records})

    def _start(self, record: JobRecord) -> None:
        assert record.job not in self.processes
        log.info("job %s: launch %d", record.job, record.launch)
        settings = msgspec.json.decode(record.settings, type=JobSettings)
        if settings.state_dir is None:
            settings = msgspec.structs.replace(settings, state_dir=str(self.terms.state_dir))
        process = self._host(record)
        self.processes[record.job] = process
        process.send(
            LaunchJob(
                record.job,
                record.launch,
                str(self.bundles.path(record.bundle)),
                msgspec.json.encode(settings),
                dict(record.parallelism),
                record.submission,
            )
        )

    def _open(self, name: NodeName, record: JobRecord) -> None:
        if self.membership.find(name) is None:
            # It went while the job asked. Nothing of the job can be there.
            self.tell_job(record.job, record.launch, NodeGone(name))
            self.jobs.forget_agent(record.job, record.launch, name)
            return
        environment = dict(record.environment)
        opened = OpenJob(record.job, record.launch, record.bundle, record.bundle_bytes, environment)
        self._say(name, opened)

    def _jobs_with_agents(self, name: NodeName) -> list[str]:
        return [r.job for r in self.jobs.records if name in self.jobs.agents(r.job)]

    def _hold_up(self, now_ns: int) -> None:
        reason = ""
        if self._awaited:
            reason = f"waiting for nodes of before: {', '.join(sorted(self._awaited)[:5])}"
        else:
            self._awaited_until_ns = None
        self.carry_out(self.slots.hold_up(reason, now_ns))

    def _let_go(self) -> None:
        """Tell draining nodes on which nothing is left that they may leave."""
        for member in self.membership.departing:
            name = member.name
            if not self.slots.jobs_on(name) and not self.jobs.runs_on(name):
                self.membership.on_leave(name)
                self._say(name, Leave())
