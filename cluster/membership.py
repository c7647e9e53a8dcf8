"""Which nodes are members, and for how long a silent one may still run something: pure.

A node is connected while its link lives; it is a member while it is connected and its lease runs.
What is lost is not gone: NodeGone comes when the node's own lease must have ended (`lease`
after the last heartbeat was received, plus `margin`), when it joins anew, or when it left with
leave. Until then its processes may run, and nothing is started in their place (hazard 17).
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from dataclasses import dataclass

from .node_messages import LABELS_MAX, PROTOCOL_VERSION, SLOTS_MAX, Join, NodeName

NODES_MAX = 1024
GONE_KEPT = 64
"""Nodes that are gone and still listed, the newest ones."""
NAME_CHARS_MAX = 128
LABEL_CHARS_MAX = 256


@dataclass(frozen=True)
class Admit:
    """It is a member: welcome it."""

    name: NodeName


@dataclass(frozen=True)
class Refuse:
    """It cannot join; `again`: trying later may help."""

    reason: str
    again: bool


@dataclass(frozen=True)
class Renew:
    """Answer this heartbeat."""

    name: NodeName
    sequence: int


@dataclass(frozen=True)
class NodeDrains:
    """Give it nothing new, move its jobs away."""

    name: NodeName
    reason: str


@dataclass(frozen=True)
class NodeIsLost:
    """Contact has ended; cut what is left of its link."""

    name: NodeName
    cause: str


@dataclass(frozen=True)
class NodeIsGone:
    """Nothing of it runs any more."""

    name: NodeName


MembershipCommand = Admit | Refuse | Renew | NodeDrains | NodeIsLost | NodeIsGone


@dataclass
class Member:
    """What is known of one node. `expires_ns`: its own lease is over by then."""

    join: Join
    expires_ns: int
    draining: str | None = None
    lost: str | None = None
    leaving: bool = False

    @property
    def name(self) -> NodeName:
        """This life of it."""
        return self.join.name

    @property
    def usable(self) -> bool:
        """It takes new work."""
        return self.lost is None and self.draining is None


@dataclass(frozen=True)
class Versions:
    """What a node must have to understand us and our bundles."""

    penstock: str
    python: str


class Membership:
    """All nodes. Time comes in as monotonic nanoseconds and never goes back."""

    def __init__(self, versions: Versions, lease_ns: int, margin_ns: int) -> None:
        self._versions = versions
        self._lease_ns = lease_ns
        self._margin_ns = margin_ns
        self._members: dict[str, Member] = {}
        self._gone: OrderedDict[str, Member] = OrderedDict()
        self._quiet_until_ns: int | None = None
        """Before this nothing is due: who looks at every member for every heartbeat keeps no leases
        of a thousand. It may be too early, since leases are renewed, and never too late."""

    @property
    def departing(self) -> list[Member]:
        """Those that drain and have not been told yet that they may leave."""
        return [
            member
            for member in self._members.values()
            if member.draining is not None and member.lost is None and not member.leaving
        ]

    @property
    def members(self) -> list[Member]:
        """Those that are not gone, by name."""
        return [self._members[node] for node in sorted(self._members)]

    @property
    def gone(self) -> list[Member]:
        """Those that went of late, by name."""
        return [self._gone[node] for node in sorted(self._gone)]

    def find(self, name: NodeName) -> Member | None:
        """This very life of the node, if it is not gone."""
        member = self._members.get(name.node)
        return member if member is not None and member.name == name else None

    @property
    def deadline_ns(self) -> int | None:
        """When `tick` wants to be called at the latest."""
        return self._quiet_until_ns

    # Events -------------------------------------------------------------------------------------

    def on_join(self, join: Join, now_ns: int) -> list[MembershipCommand]:
        """The first word of a node agent."""
        commands = self.tick(now_ns)
        refusal = self._refusal(join)
        if refusal is not None:
            return [*commands, refusal]
        before = self._members.pop(join.name.node, None)
        if before is not None:
            # Joining says that nothing of it runs.
            commands.append(NodeIsGone(before.name))
        self._gone.pop(join.name.node, None)
        member = self._members[join.name.node] = Member(join, self._expiry_ns(now_ns))
        due_ns = self._due_ns(member)
        if self._quiet_until_ns is None or due_ns < self._quiet_until_ns:
            self._quiet_until_ns = due_ns
        return [*commands, Admit(join.name)]

    def on_heartbeat(
        self, name: NodeName, sequence: int, received_ns: int
    ) -> list[MembershipCommand]:
        """A member lives. One that was lost already has to join anew."""
        commands = self.tick(received_ns)
        member = self.find(name)
        if member is None or member.lost is not None:
            return commands
        member.expires_ns = max(member.expires_ns, self._expiry_ns(received_ns))
        return [*commands, Renew(name, sequence)]

    def on_draining(self, name: NodeName, reason: str) -> list[MembershipCommand]:
        """It wants to leave."""
        member = self.find(name)
        if member is None or not member.usable:
            return []
        member.draining = reason or "it was asked to leave"
        return [NodeDrains(name, member.draining)]

    def on_leave(self, name: NodeName) -> None:
        """It has been told that it may go: the end of its link is then its end."""
        member = self.find(name)
        if member is not None and member.lost is None:
            member.leaving = True

    def on_disconnect(self, name: NodeName, cause: str, now_ns: int) -> list[MembershipCommand]:
        """Its link has ended."""
        commands = self.tick(now_ns)
        member = self.find(name)
        if member is None or member.lost is not None:
            return commands
        if member.leaving:
            member.lost = "it left"
            return [*commands, NodeIsLost(name, member.lost), *self._forget(member)]
        return [*commands, self._lose(member, cause)]

    def tick(self, now_ns: int) -> list[MembershipCommand]:
        """Time has passed."""
        if self._quiet_until_ns is None or now_ns < self._quiet_until_ns:
            return []
        commands: list[MembershipCommand] = []
        for member in list(self._members.values()):
            if member.lost is None and now_ns >= self._due_ns(member):
                seconds = self._lease_ns / 1e9
                commands.append(self._lose(member, f"no heartbeat for {seconds:g} s"))
            if member.lost is not None and now_ns >= self._due_ns(member):
                commands += self._forget(member)
        due = (self._due_ns(member) for member in self._members.values())
        self._quiet_until_ns = min(due, default=None)
        return commands

    # Inside -------------------------------------------------------------------------------------

    def _expiry_ns(self, now_ns: int) -> int:
        return now_ns + self._lease_ns + self._margin_ns

    def _due_ns(self, member: Member) -> int:
        return member.expires_ns - (self._margin_ns if member.lost is None else 0)

    def _lose(self, member: Member, cause: str) -> NodeIsLost:
        member.lost = cause
        return NodeIsLost(member.name, cause)

    def _forget(self, member: Member) -> list[MembershipCommand]:
        del self._members[member.name.node]
        self._gone[member.name.node] = member
        while len(self._gone) > GONE_KEPT:
            self._gone.popitem(last=False)
        return [NodeIsGone(member.name)]

    def _refusal(self, join: Join) -> Refuse | None:
        ours = self._versions
        if join.protocol != PROTOCOL_VERSION or join.penstock != ours.penstock:
            return Refuse(
                f"the controller runs Penstock {ours.penstock} (protocol {PROTOCOL_VERSION}), this "
                f"node {join.penstock} (protocol {join.protocol}): install the same on all nodes",
                again=False,
            )
        if join.python != ours.python:
            return Refuse(
                f"the controller runs Python {ours.python}, this node {join.python}: bundles hold "
                "byte code of one minor version; use the same on all nodes",
                again=False,
            )
        fault = _fault(join)
        if fault:
            return Refuse(fault, again=False)
        known = self._members.get(join.name.node)
        if known is not None and known.lost is None:
            return Refuse(
                f"a node named {join.name.node!r} is a member already (pid {known.join.pid} at "
                f"{known.join.data_host}): give this one a name of its own with --name",
                again=True,
            )
        if known is not None and known.name == join.name:
            return Refuse("an incarnation joins once; make a new one", again=True)
        if known is None and len(self._members) >= NODES_MAX:
            return Refuse(f"the cluster has {NODES_MAX} nodes already", again=True)
        return self._apart(join)

    def _apart(self, join: Join) -> Refuse | None:
        """A node that is reached at a loopback address is so on its own machine only."""
        for member in self._members.values():
            other = member.join
            if member.lost is None and is_loopback(other.data_host) != is_loopback(join.data_host):
                ours = f"{join.name} at {join.data_host}"
                theirs = f"{other.name} at {other.data_host}"
                return Refuse(
                    f"the nodes {ours} and {theirs} cannot reach each other: have the one on a "
                    "loopback address join by an address that others reach, or say it with --host",
                    again=True,
                )
        return None


def is_loopback(host: str) -> bool:
    """Whether only the machine itself reaches this address; of names that is known of one."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _fault(join: Join) -> str:
    """What of a Join is out of its bounds, or nothing."""
    name = join.name
    if not 0 < len(name.node) <= NAME_CHARS_MAX or not name.node.isprintable():
        return f"a node's name has 1 to {NAME_CHARS_MAX} printable characters"
    if not 0 < len(name.incarnation) <= NAME_CHARS_MAX:
        return f"an incarnation has 1 to {NAME_CHARS_MAX} characters"
    if not 1 <= join.slots <= SLOTS_MAX:
        return f"{join.slots} slots: a node has 1 to {SLOTS_MAX}"
    if len(join.labels) > LABELS_MAX:
        return f"{len(join.labels)} labels: a node has {LABELS_MAX} at most"
    for key, value in join.labels.items():
        if not 0 < len(key) <= LABEL_CHARS_MAX or len(value) > LABEL_CHARS_MAX:
            return f"a label's name and value have {LABEL_CHARS_MAX} characters at most"
    if not join.data_host or len(join.data_host) > LABEL_CHARS_MAX:
        return "a node must say at which address others reach it"
    return ""
