"""A cluster's controller for simulations: the real Coordination between made-up surroundings.

It stands for cluster/controller.py. The catalog outlives it, as its database does; its links and
the processes of its jobs do not.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from penstock import __version__
from penstock.cluster.bundle import python_minor
from penstock.cluster.bundle_store import BundleStore
from penstock.cluster.catalog import Catalog
from penstock.cluster.coordination import Coordination, Terms
from penstock.cluster.job_host import JobProcess
from penstock.cluster.job_messages import (
    CloseAgent,
    FromJob,
    NeedSlots,
    OpenAgent,
    Report,
    Tell,
    Told,
)
from penstock.cluster.job_record import JobRecord
from penstock.cluster.link import Link
from penstock.cluster.membership import Membership, Versions
from penstock.cluster.node_messages import (
    Draining,
    FromJobAgent,
    Heartbeat,
    JobAgentGone,
    Join,
    NodeName,
    ToJobAgent,
    decode_from_node,
    encode,
)
from penstock.elements.clock import Clock

from .simulated_coordinator import SimulatedCoordinator
from .simulated_links import SimulatedLink

if TYPE_CHECKING:
    from .simulated_cluster import ClusterWorld

LEASE_NS = 2_000_000_000
MARGIN_NS = 500_000_000
HEARTBEAT_MS = 400


class MemoryCatalog:
    """What the database holds, and how it may fail: `before_save` may raise."""

    def __init__(self, world: ClusterWorld) -> None:
        self._world = world
        self.records: dict[int, JobRecord] = {}
        self._launches: dict[str, int] = {}
        self._members: set[str] = set()
        self._term = 0

    def next_term(self) -> int:
        self._term += 1
        return self._term

    def launches(self) -> dict[str, int]:
        return dict(self._launches)

    def members(self) -> set[str]:
        return set(self._members)

    def add_member(self, node: str) -> None:
        self._members.add(node)

    def remove_member(self, node: str) -> None:
        self._members.discard(node)

    def add(self, record: JobRecord) -> JobRecord:
        added = replace(record, id=len(self.records) + 1)
        self.records[added.id] = added
        return added

    def save(self, record: JobRecord) -> None:
        self._world.before_save()
        assert record.launch >= self.records[record.id].launch, "a launch number went back"
        assert not self.records[record.id].outcome, "a submission that had ended was changed"
        self.records[record.id] = record
        self._launches[record.job] = max(self._launches.get(record.job, 0), record.launch)
        self._world.before_save()

    def live(self) -> list[JobRecord]:
        return [record for record in self.records.values() if not record.outcome]


class _NoBundles:
    def path(self, sha256: str) -> Path:
        return Path(sha256)

    def sweep(self, named: Collection[str]) -> None:
        pass


class SimulatedController:
    """One controller process."""

    def __init__(self, world: ClusterWorld) -> None:
        self._world = world
        self.paused_until_ns = 0
        self.links: dict[SimulatedLink, NodeName | None] = {}
        self.coordinators: list[SimulatedCoordinator] = []
        catalog = cast(Catalog, world.catalog)
        terms = Terms(catalog.next_term(), LEASE_NS, MARGIN_NS, HEARTBEAT_MS, Path("state"))
        self.term = terms.term
        self.core = Coordination(
            terms,
            Membership(Versions(__version__, python_minor()), LEASE_NS, MARGIN_NS),
            catalog,
            cast(BundleStore, _NoBundles()),
            cast(Clock, world),
            self._host,
        )

    def begin(self) -> None:
        """May crash, as every step."""
        self.core.begin()

    def _host(self, record: JobRecord) -> JobProcess:
        coordinator = SimulatedCoordinator(self._world, record.job, record.launch)
        self.coordinators.append(coordinator)
        coordinator.start()
        return cast(JobProcess, coordinator)

    @property
    def deadline_ns(self) -> int | None:
        """When time alone moves it."""
        return self.core.deadline_ns

    def step(self) -> bool:
        """One event, then what time has brought; False if there was none."""
        found = self._take_one()
        self.core.tick()
        return found

    def _take_one(self) -> bool:
        links = [link for link in self.links if link.up.news]
        jobs = [each for each in self.coordinators if each.outbox or not each.alive]
        if not links and not jobs:
            return False
        everyone: list[SimulatedLink | SimulatedCoordinator] = [*links, *jobs]
        choice = self._world.rng.choice(everyone)
        if isinstance(choice, SimulatedLink):
            body = choice.up.receive()
            if body is None:
                self._on_end(choice)
            else:
                self._on_body(choice, body)
        elif choice.outbox:
            self._on_job(choice, choice.outbox.popleft())
        elif choice.started:
            self.coordinators.remove(choice)
            now_ns = self._world.now_ns
            self.core.process_gone(cast(JobProcess, choice), "it is gone", now_ns)
        return True

    def _on_end(self, link: SimulatedLink) -> None:
        name = self.links.pop(link)
        if name is not None and self.core.links.get(name) is cast(Link, link):
            del self.core.links[name]
            membership = self.core.membership
            now_ns = self._world.now_ns
            self.core.carry_out(membership.on_disconnect(name, "hung up", now_ns))

    def _on_body(self, link: SimulatedLink, body: bytes) -> None:
        core, now_ns = self.core, self._world.now_ns
        message = decode_from_node(body)
        name = self.links[link]
        if isinstance(message, Join):
            self.links[link] = message.name
            if not core.joins(cast(Link, link), message, now_ns):
                link.close("refused")
        elif name is None or core.links.get(name) is not cast(Link, link):
            return
        elif isinstance(message, FromJobAgent):
            core.tell_job(message.job, message.launch, Told(name, message.body))
        elif isinstance(message, Heartbeat):
            core.carry_out(core.membership.on_heartbeat(name, message.sequence, now_ns))
        elif isinstance(message, JobAgentGone):
            gone = core.jobs.on_agent_gone(message.job, message.launch, name, message.cause, now_ns)
            core.carry_out(gone)
        else:
            assert isinstance(message, Draining)
            core.carry_out(core.membership.on_draining(name, message.reason))

    def _on_job(self, process: SimulatedCoordinator, message: FromJob) -> None:
        core, job, launch, now_ns = self.core, process.job, process.launch, self._world.now_ns
        if isinstance(message, Tell):
            link = core.links.get(message.name)
            if link is not None and core.jobs.agents(job).get(message.name) == launch:
                link.send(encode(ToJobAgent(job, launch, message.body)))
        elif isinstance(message, Report):
            core.carry_out(core.jobs.on_report(job, launch, message, now_ns))
        elif isinstance(message, NeedSlots):
            core.carry_out(core.jobs.on_need_slots(job, launch, message))
        elif isinstance(message, OpenAgent):
            core.carry_out(core.jobs.on_open_agent(job, launch, message))
        elif isinstance(message, CloseAgent):
            core.carry_out(core.jobs.on_close_agent(job, launch, message))
        else:
            core.carry_out(core.jobs.on_ended(job, launch, message, now_ns))
