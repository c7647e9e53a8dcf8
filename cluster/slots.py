"""Who gets which slots: pure.

Requests are met in the order in which they came, those of jobs that had been running first. The
first that could be met by the whole cluster but not by what is free holds up those behind it, so
that no small job overtakes a large one for ever; one that asks for more than there is holds up
nobody. A job that ran before shares slots SHARE_AFTER_S after its loss rather than wait on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .node_messages import NodeName

NS = 1_000_000_000
SHARE_AFTER_S = 3.0
"""From the loss of a node, or else from the asking. Longer than a supervisor needs to start an
agent again, and short enough to be running within five seconds of the loss."""
PACK, SPREAD = "pack", "spread"
PLACEMENTS = (PACK, SPREAD)


@dataclass(frozen=True)
class Grant:
    """Room for the job, in place of all that it had."""

    job: str
    grant: int
    slots: dict[NodeName, int]
    note: str


@dataclass(frozen=True)
class Wait:
    """There is no room yet; `reason` says what is missing. Said again only when that changes."""

    job: str
    grant: int
    reason: str


SlotCommand = Grant | Wait


@dataclass
class _Node:
    slots: int
    usable: bool


@dataclass
class _Request:
    job: str
    grant: int
    count: int
    again: bool
    placement: str
    since_ns: int
    number: int
    said: str = field(default="")

    @property
    def order(self) -> tuple[bool, int]:
        return (not self.again, self.number)


class Slots:
    """Slots of all nodes, who holds them, and who waits."""

    def __init__(self) -> None:
        self._nodes: dict[NodeName, _Node] = {}
        self._held: dict[str, dict[NodeName, int]] = {}
        self._waiting: dict[str, _Request] = {}
        self._bereft_ns: dict[str, int] = {}
        self._number = 0
        self._held_up = ""

    # What the shell reads -----------------------------------------------------------------------

    def held(self, job: str) -> Mapping[NodeName, int]:
        """What the job was granted last and has not given back."""
        return self._held.get(job, {})

    def used(self, name: NodeName) -> int:
        """May be more than the node has, where slots are shared."""
        return sum(held.get(name, 0) for held in self._held.values())

    def jobs_on(self, name: NodeName) -> list[str]:
        """Who holds slots there."""
        return sorted(job for job, held in self._held.items() if name in held)

    def reason(self, job: str) -> str:
        """Why the job waits; empty if it does not."""
        request = self._waiting.get(job)
        return request.said if request is not None else ""

    @property
    def deadline_ns(self) -> int | None:
        """When `tick` wants to be called at the latest."""
        if self._held_up or not any(node.usable for node in self._nodes.values()):
            return None
        waits = (r.since_ns for r in self._waiting.values() if r.again)
        first_ns = min(waits, default=None)
        return None if first_ns is None else first_ns + int(SHARE_AFTER_S * NS)

    # Events -------------------------------------------------------------------------------------

    def hold_up(self, reason: str, now_ns: int) -> list[SlotCommand]:
        """Grant nothing for now; an empty reason ends that."""
        self._held_up = reason
        return self.tick(now_ns)

    def node_up(self, name: NodeName, slots: int, now_ns: int) -> list[SlotCommand]:
        """A node has joined."""
        self._nodes[name] = _Node(slots, usable=True)
        return self.tick(now_ns)

    def node_closed(self, name: NodeName, now_ns: int) -> list[SlotCommand]:
        """It is lost or draining: nothing new goes there. Who holds slots there keeps them."""
        if name in self._nodes and self._nodes[name].usable:
            self._nodes[name].usable = False
            for job in self.jobs_on(name):
                self._bereft_ns.setdefault(job, now_ns)
        return self.tick(now_ns)

    def node_gone(self, name: NodeName) -> None:
        """Nothing of it runs any more."""
        self._nodes.pop(name, None)
        for held in self._held.values():
            held.pop(name, None)

    def need(
        self, job: str, grant: int, count: int, again: bool, placement: str, now_ns: int
    ) -> list[SlotCommand]:
        """A job asks for `count` slots, and gives back what it had."""
        assert count >= 1
        assert placement in PLACEMENTS
        self._held.pop(job, None)
        before = self._waiting.get(job)
        since_ns, number = self._bereft_ns.pop(job, now_ns), self._number
        if before is not None:
            # Who asks anew while it waits keeps its place.
            since_ns, number = before.since_ns, before.number
        self._number += 1
        self._waiting[job] = _Request(job, grant, count, again, placement, since_ns, number)
        return self.tick(now_ns)

    def release(self, job: str, now_ns: int) -> list[SlotCommand]:
        """The job gives everything back and waits for nothing."""
        self._held.pop(job, None)
        self._waiting.pop(job, None)
        self._bereft_ns.pop(job, None)
        return self.tick(now_ns)

    def tick(self, now_ns: int) -> list[SlotCommand]:
        """Meet what can be met now."""
        if self._held_up:
            waits = (_wait(request, self._held_up) for request in self._waiting.values())
            return [wait for wait in waits if wait is not None]
        commands: list[SlotCommand] = []
        blocked_by: _Request | None = None
        for request in sorted(self._waiting.values(), key=lambda r: r.order):
            free = self._free()
            total = sum(node.slots for node in self._nodes.values() if node.usable)
            fits = blocked_by is None and request.count <= sum(free.values())
            if fits:
                commands.append(self._grant(request, _deal(free, request), ""))
            elif self._shares(request, now_ns):
                commands.append(self._share(request, free, total))
            else:
                if blocked_by is None and request.count <= total:
                    blocked_by = request
                reason = _missing(request, sum(free.values()), total, blocked_by)
                wait = _wait(request, reason)
                commands += [] if wait is None else [wait]
        return commands

    # Inside -------------------------------------------------------------------------------------

    def _free(self) -> dict[NodeName, int]:
        return {
            name: max(0, node.slots - self.used(name))
            for name, node in sorted(self._nodes.items())
            if node.usable
        }

    def _shares(self, request: _Request, now_ns: int) -> bool:
        waited = now_ns - request.since_ns >= int(SHARE_AFTER_S * NS)
        return request.again and waited and any(node.usable for node in self._nodes.values())

    def _share(self, request: _Request, free: dict[NodeName, int], total: int) -> Grant:
        slots = _deal_shared(free, {n: self._nodes[n].slots for n in free}, request)
        have = sum(free.values())
        note = f"{request.count} slots share {min(have, request.count) or total}"
        if have == 0:
            note += " with other jobs"
        return self._grant(request, slots, note + ": the cluster has no more that are free")

    def _grant(self, request: _Request, slots: dict[NodeName, int], note: str) -> Grant:
        assert sum(slots.values()) == request.count
        del self._waiting[request.job]
        self._held[request.job] = dict(slots)
        return Grant(request.job, request.grant, slots, note)


def _missing(request: _Request, free: int, total: int, blocked_by: _Request | None) -> str:
    reason = f"it needs {request.count} slots; {free} of {total} are free"
    if request.count > total:
        return reason + ": add nodes, or lower its parallelism"
    if blocked_by is not None and blocked_by is not request:
        return reason + f", and {blocked_by.job} came before"
    return reason


def _wait(request: _Request, reason: str) -> Wait | None:
    if reason == request.said:
        return None
    request.said = reason
    return Wait(request.job, request.grant, reason)


def _deal(free: dict[NodeName, int], request: _Request) -> dict[NodeName, int]:
    """`count` of the free slots. Requires: there are enough."""
    if request.placement == SPREAD:
        return _one_by_one(free, request.count)
    # The smallest node that has room for all, so that large holes stay large.
    enough = [(room, name) for name, room in free.items() if room >= request.count]
    if enough:
        return {min(enough)[1]: request.count}
    slots: dict[NodeName, int] = {}
    left = request.count
    for name, room in sorted(free.items(), key=lambda item: (-item[1], item[0])):
        take = min(room, left)
        if take:
            slots[name] = take
        left -= take
    assert left == 0
    return slots


def _one_by_one(free: dict[NodeName, int], count: int) -> dict[NodeName, int]:
    """Each slot to the node that has fewest of this job, then to the emptiest."""
    slots: dict[NodeName, int] = {}
    for _ in range(count):
        open_nodes = [name for name, room in free.items() if slots.get(name, 0) < room]
        name = min(open_nodes, key=lambda n: (slots.get(n, 0), slots.get(n, 0) - free[n], n))
        slots[name] = slots.get(name, 0) + 1
    return slots


def _deal_shared(
    free: dict[NodeName, int], sizes: dict[NodeName, int], request: _Request
) -> dict[NodeName, int]:
    """What is free, once; what is wanted beyond that, evenly by the size of the nodes."""
    slots = {name: room for name, room in free.items() if room}
    have = sum(slots.values())
    if have > request.count:
        # Free but held up: whoever came first is still waiting for more than this.
        return _deal(free, request)
    for _ in range(request.count - have):
        name = min(sizes, key=lambda n: ((slots.get(n, 0) + 1) / sizes[n], n))
        slots[name] = slots.get(name, 0) + 1
    return slots
