"""Many job agents that look like one: pure, events in, commands out (docs/design/0030, rule 5).

    idle → asking → opening → ready ⇄ (attempts) → losing → idle …

1. Ready is said once every granted node's agent is; attempts run on one grant until it breaks.
2. An attempt is gone when each of its nodes has said so, or all of the node is known to be gone.
3. When a granted node or agent is lost, the attempt fails at once, and the loss is told only when
   nothing of the attempt can run any more: NodeGone or AgentGone for the lost, AttemptGone from
   all others. Until then nothing new is deployed.
4. What carries another incarnation, grant, generation or attempt than the present one is dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

import msgspec

from penstock.elements.errors import PenstockError
from penstock.runtime.messages import (
    AgentFailure,
    AgentReady,
    AttemptGone,
    CancelAttempt,
    Deploy,
    NetAddresses,
    NetListening,
    SubtaskKey,
    ToAgent,
    ToController,
    ToSubtask,
)
from penstock.runtime.splitting import split_deploy

from .job_messages import CloseAgent, Granted, GrantedNode, NeedSlots, OpenAgent
from .node_messages import NodeName
from .placement import place


class Phase(Enum):
    """Where the fleet stands between two losses."""

    IDLE = "idle"
    ASKING = "asking"
    OPENING = "opening"
    READY = "ready"
    LOSING = "losing"
    CLOSED = "closed"


class AgentState(Enum):
    """What is known of the job's agent on one node."""

    OPENING = "opening"
    READY = "ready"
    CLOSING = "closing"
    LOST = "lost"
    """Contact to its node is lost: it may run, and cannot be told anything."""


@dataclass(frozen=True)
class Say:
    """Tell a job agent something."""

    name: NodeName
    message: ToAgent


@dataclass(frozen=True)
class Emit:
    """Tell the job's controller what an agent would."""

    message: ToController


@dataclass(frozen=True)
class Lose:
    """Tell the job's controller that its agent is lost; nothing of the attempt runs any more."""

    cause: str


Command = NeedSlots | OpenAgent | CloseAgent | Say | Emit | Lose


@dataclass
class _Attempt:
    generation: int
    attempt: int
    node_of: dict[SubtaskKey, NodeName]
    members: set[NodeName]
    networked: set[NodeName]
    addresses: dict[str, tuple[str, int]] = field(default_factory=dict)
    over: set[NodeName] = field(default_factory=set)
    """Members on which nothing of the attempt runs any more."""

    def is_(self, generation: int, attempt: int) -> bool:
        return (self.generation, self.attempt) == (generation, attempt)


class FleetCore:
    """All job agents of one launch of one job, from its first attempt to its end."""

    def __init__(self, slots: int, pid: int, ran_before: bool) -> None:
        """`slots` are needed; `pid` stands for all agents; `ran_before`: see NeedSlots.again."""
        self.phase = Phase.IDLE
        self._slots = slots
        self._pid = pid
        self._again = ran_before
        self._grant = 0
        self._nodes: tuple[GrantedNode, ...] = ()
        self._agents: dict[NodeName, AgentState] = {}
        self._attempt: _Attempt | None = None
        self._cause = ""

    # What the shell reads ------------------------------------------------------------------------

    @property
    def agents(self) -> dict[NodeName, AgentState]:
        """Agents that live, or may."""
        return dict(self._agents)

    def node_of(self, key: SubtaskKey) -> NodeName | None:
        """Where a subtask of the present attempt runs."""
        return self._attempt.node_of.get(key) if self._attempt else None

    # From the job's controller -------------------------------------------------------------------

    def start(self) -> list[Command]:
        """The controller wants an agent: find room for the job."""
        assert self.phase is Phase.IDLE, self.phase
        self.phase = Phase.ASKING
        self._grant += 1
        again, self._again = self._again, True
        return [NeedSlots(self._grant, self._slots, again)]

    def deploy(self, deploy: Deploy, fingerprints: Sequence[int]) -> list[Command]:
        """Begin an attempt on the present grant; `fingerprints` are those of its channels."""
        if self.phase is not Phase.READY:
            # The loss of the fleet is on its way to who said this.
            return []
        assert self._attempt is None, "an attempt before the one before was gone"
        node_of = place((subtask.key for subtask in deploy.subtasks), self._nodes)
        names = {name.node: name for name in node_of.values()}
        by_node = {key: name.node for key, name in node_of.items()}
        try:
            parts = split_deploy(deploy, by_node, fingerprints)
        except PenstockError as error:
            return [Emit(AgentFailure(deploy.generation, deploy.attempt, str(error)))]
        self._attempt = _Attempt(
            deploy.generation,
            deploy.attempt,
            node_of,
            set(names.values()),
            {names[node] for node, part in parts.items() if part.net is not None},
        )
        return [Say(names[node], part) for node, part in parts.items()]

    def to_subtask(self, message: ToSubtask) -> list[Command]:
        """Pass it to the node where the subtask runs."""
        name = self.node_of(message.key)
        if name is None or not self._attempt_is(message.generation, message.attempt):
            return []
        return [Say(name, message)] if self._agents.get(name) is AgentState.READY else []

    def cancel(self, message: CancelAttempt) -> list[Command]:
        """Kill the attempt everywhere."""
        attempt = self._attempt
        if attempt is None or not attempt.is_(message.generation, message.attempt):
            # It was never deployed, or the answer is on its way as the loss of the fleet.
            gone = AttemptGone(message.generation, message.attempt)
            return [Emit(gone)] if self.phase is Phase.READY else []
        left = sorted(attempt.members - attempt.over)
        told = [name for name in left if self._agents.get(name) is AgentState.READY]
        return [*(Say(name, message) for name in told), *self._settle()]

    def close(self) -> list[Command]:
        """The job is over: close every agent. AgentGone is the answer of each."""
        if self.phase is Phase.CLOSED:
            return []
        self.phase = Phase.CLOSED
        closing = [name for name in sorted(self._agents) if self._reachable(name)]
        return [self._close(name) for name in closing]

    @property
    def all_gone(self) -> bool:
        """Closed, and no agent is left that could be told."""
        return self.phase is Phase.CLOSED and not any(map(self._reachable, self._agents))

    # From the cluster's controller ---------------------------------------------------------------

    def granted(self, grant: Granted) -> list[Command]:
        """There is room."""
        if self.phase is not Phase.ASKING or grant.grant != self._grant:
            return []
        self.phase = Phase.OPENING
        self._nodes = tuple(node for node in grant.nodes if node.slots > 0)
        wanted = [node.name for node in self._nodes]
        commands: list[Command] = []
        for name in sorted(self._agents.keys() - set(wanted)):
            if self._reachable(name):
                commands.append(self._close(name))
        for name in wanted:
            if name not in self._agents:
                commands.append(self._open(name))
        return commands + self._ready_if_all()

    def told(self, name: NodeName, message: ToController) -> list[Command]:
        """A job agent says something."""
        if name not in self._agents:
            return []
        if isinstance(message, AgentReady):
            if self._agents[name] is not AgentState.OPENING:
                return []
            self._agents[name] = AgentState.READY
            return self._ready_if_all()
        attempt = self._attempt
        if attempt is None or not attempt.is_(message.generation, message.attempt):
            return []
        if name not in attempt.members or name in attempt.over:
            return []
        if isinstance(message, NetListening):
            return self._listening(attempt, name, message)
        if isinstance(message, AttemptGone):
            attempt.over.add(name)
            return self._settle()
        if isinstance(message, AgentFailure):
            text = f"node {name}: {message.text}"
            return [Emit(msgspec.structs.replace(message, text=text))]
        return [Emit(message)]

    def agent_gone(self, name: NodeName, cause: str) -> list[Command]:
        """The job's agent there and all below it are gone; the node itself may live."""
        state = self._agents.pop(name, None)
        if state is None or self.phase is Phase.CLOSED:
            return []
        if state is AgentState.CLOSING:
            # It was closed under an earlier grant, and the present one may want it again.
            wanted = self.phase is Phase.OPENING and name in {n.name for n in self._nodes}
            return [self._open(name)] if wanted else []
        return self._over_on(name, f"its agent on node {name} was lost: {cause}")

    def node_lost(self, name: NodeName, cause: str) -> list[Command]:
        """Contact is lost. What runs there may run on until NodeGone."""
        if name not in self._agents:
            return []
        self._agents[name] = AgentState.LOST
        return self._lose_granted(name, f"node {name} was lost: {cause}")

    def node_gone(self, name: NodeName) -> list[Command]:
        """Nothing of it runs any more."""
        state = self._agents.pop(name, None)
        if self.phase is Phase.CLOSED or state is None:
            return []
        return self._over_on(name, f"node {name} is gone")

    # Inside --------------------------------------------------------------------------------------

    def _attempt_is(self, generation: int, attempt: int) -> bool:
        return self._attempt is not None and self._attempt.is_(generation, attempt)

    def _reachable(self, name: NodeName) -> bool:
        return self._agents[name] is not AgentState.LOST

    def _open(self, name: NodeName) -> Command:
        self._agents[name] = AgentState.OPENING
        return OpenAgent(name)

    def _close(self, name: NodeName) -> Command:
        self._agents[name] = AgentState.CLOSING
        return CloseAgent(name)

    def _ready_if_all(self) -> list[Command]:
        if self.phase is not Phase.OPENING:
            return []
        if any(self._agents.get(node.name) is not AgentState.READY for node in self._nodes):
            return []
        self.phase = Phase.READY
        return [Emit(AgentReady(self._pid, sum(node.slots for node in self._nodes)))]

    def _listening(self, attempt: _Attempt, name: NodeName, message: NetListening) -> list[Command]:
        if name not in attempt.networked:
            return []
        attempt.addresses[name.node] = (message.host, message.port)
        if len(attempt.addresses) < len(attempt.networked):
            return []
        addresses = NetAddresses(attempt.generation, attempt.attempt, dict(attempt.addresses))
        return [Say(each, addresses) for each in sorted(attempt.networked)]

    def _over_on(self, name: NodeName, cause: str) -> list[Command]:
        """Nothing runs on this node any more, whatever it was."""
        commands = self._lose_granted(name, cause)
        if self._attempt is not None and name in self._attempt.members:
            self._attempt.over.add(name)
            commands += self._settle()
        return commands

    def _lose_granted(self, name: NodeName, cause: str) -> list[Command]:
        """The grant is broken if it counts on this node."""
        if self.phase not in (Phase.OPENING, Phase.READY):
            return []
        if all(node.name != name for node in self._nodes):
            return []
        self.phase, self._cause = Phase.LOSING, cause
        attempt = self._attempt
        if attempt is None:
            return self._settle()
        # At once: the others are to be cancelled while the lost node's lease runs out.
        return [Emit(AgentFailure(attempt.generation, attempt.attempt, cause))]

    def _settle(self) -> list[Command]:
        """After each end on a node: whether the attempt, or the whole fleet, is over."""
        attempt = self._attempt
        if attempt is not None:
            if attempt.over < attempt.members:
                return []
            self._attempt = None
        if self.phase is Phase.LOSING:
            self.phase = Phase.IDLE
            return [Lose(self._cause)]
        if attempt is not None and self.phase is Phase.READY:
            return [Emit(AttemptGone(attempt.generation, attempt.attempt))]
        return []
