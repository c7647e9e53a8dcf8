"""A node of simulated clusters: the rules of cluster/node.py around the real lease.

Its job agents are made up; the subtasks in them are the real cores of simulated_subtask.py. When
the node agent dies all of it dies; when it is only stopped, what it has started runs on.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from penstock import __version__
from penstock.cluster.bundle import python_minor
from penstock.cluster.node_lease import LeaseCommand, NodeLease, SendHeartbeat
from penstock.cluster.node_messages import (
    PROTOCOL_VERSION,
    CloseJob,
    Draining,
    FromJobAgent,
    Heartbeat,
    HeartbeatReply,
    JobAgentGone,
    Join,
    Leave,
    NodeName,
    OpenJob,
    Refused,
    ToJobAgent,
    Welcome,
    decode_to_node,
    encode,
)
from penstock.runtime.messages import (
    AgentFailure,
    AgentReady,
    AttemptGone,
    CancelAttempt,
    Deploy,
    FromSubtask,
    NetAddresses,
    NetListening,
    SubtaskExited,
    SubtaskKey,
    ToSubtask,
    decode_command,
    decode_to_agent,
)
from penstock.runtime.messages import encode as encode_runtime

from .simulated_links import SimulatedLink
from .simulated_subtask import Item, SimulatedSubtask

if TYPE_CHECKING:
    from .simulated_cluster import ClusterWorld

WELCOME_NS = 5_000_000_000
RETRY_NS = 200_000_000
DRAIN_NS = 10_000_000_000
Attempt = tuple[int, int]


class SimulatedJobAgent:
    """The agent of one launch on one node, its net process and its subtasks."""

    def __init__(self, world: ClusterWorld, node: SimulatedNode, job: str, launch: int) -> None:
        self.world, self.node, self.job, self.launch = world, node, job, launch
        self.inbox: deque[Any] = deque()
        self.attempt: Attempt | None = None
        self.subtasks: dict[SubtaskKey, SimulatedSubtask] = {}
        self.killed = False
        self._networked = self._waits = False
        self._dead: deque[SubtaskKey] = deque()
        self._say(AgentReady(1, 1))

    @property
    def runs(self) -> bool:
        """Subtasks of an attempt live here."""
        return self.attempt is not None and not self.killed

    def kill(self) -> None:
        """With all below it; the node learns of it later."""
        if not self.killed:
            self.killed = True
            self.subtasks.clear()
            self.node.said.append((self, None))

    def step(self) -> bool:
        """Do one thing; False if there is nothing to do."""
        rng = self.world.rng
        if self.inbox and rng.random() < 0.7:
            self._obey(self.inbox.popleft())
            return True
        if self._dead and rng.random() < 0.3:
            self._report_death()
            return True
        if self._networked and rng.random() < 0.05 and self._peer_is_gone():
            self._networked = False
            self._say(AgentFailure(*self._present, "a peer was lost"))
            return True
        if self._waits:
            return False
        living = list(self.subtasks.values())
        rng.shuffle(living)
        for subtask in living:
            if subtask.events and rng.random() < 0.5:
                event = encode_runtime(subtask.events.popleft())
                self._say(FromSubtask(*self._present, subtask.key, event))
                return True
            if self.world.guarded_step(subtask, self):
                return True
        return False

    @property
    def _present(self) -> Attempt:
        assert self.attempt is not None
        return self.attempt

    def _say(self, message: Any) -> None:
        self.node.said.append((self, encode_runtime(message)))

    def _obey(self, message: Any) -> None:
        if isinstance(message, Deploy):
            self._deploy(message)
        elif isinstance(message, CancelAttempt):
            if self.attempt == (message.generation, message.attempt):
                self._end_attempt()
                self._say(AttemptGone(message.generation, message.attempt))
        elif isinstance(message, NetAddresses):
            if self.attempt == (message.generation, message.attempt):
                self._waits = False
        elif isinstance(message, ToSubtask):
            subtask = self.subtasks.get(message.key)
            if subtask is not None and self.attempt == (message.generation, message.attempt):
                subtask.commands.append(decode_command(message.command))

    def _deploy(self, deploy: Deploy) -> None:
        assert self.attempt is None, "an attempt was deployed upon another"
        self.attempt = (deploy.generation, deploy.attempt)
        self.world.begins(self)
        inputs: dict[SubtaskKey, list[deque[Item]]] = defaultdict(list)
        outputs: dict[SubtaskKey, list[deque[Item]]] = defaultdict(list)
        for channel in deploy.channels:
            queue = self.world.channel(self.attempt, channel)
            inputs[channel.target].append(queue)
            outputs[channel.source].append(queue)
        self.subtasks = {
            told.key: SimulatedSubtask(
                told.key, told, deploy.run_id, inputs[told.key], outputs[told.key],
                self.world.around,
            )
            for told in deploy.subtasks
        }  # fmt: skip
        self._networked = self._waits = deploy.net is not None
        if deploy.net is not None:
            self._say(NetListening(*self.attempt, self.node.name, 1))

    def _end_attempt(self) -> None:
        self.attempt, self._networked, self._waits = None, False, False
        self.subtasks.clear()
        self._dead.clear()

    def _peer_is_gone(self) -> bool:
        return not self.world.whole(self._present)

    def strike(self, key: SubtaskKey, raises: bool) -> None:
        """A subtask dies, by itself or by its code."""
        if raises:
            self.subtasks[key].fail(f"op|ValueError|row {len(self.world.trace)}")
            event = encode_runtime(self.subtasks[key].events.pop())
            self._say(FromSubtask(*self._present, key, event))
        self.subtasks[key].alive = False
        self._dead.append(key)

    def _report_death(self) -> None:
        key = self._dead.popleft()
        if self.subtasks.pop(key, None) is not None:
            self._say(SubtaskExited(*self._present, key, 1, -9))


class SimulatedNode:
    """One node agent after the other, on one machine with a clock of its own."""

    def __init__(self, world: ClusterWorld, name: str) -> None:
        self.world, self.name = world, name
        self.drift = 1 + world.rng.uniform(-0.001, 0.001)
        self.offset_ns = world.rng.randrange(10**12)
        self.paused_until_ns = 0
        self.frozen_until_ns = 0
        """The whole machine stands still; its clock goes on."""
        self.unreachable_until_ns = 0
        self.alive = True
        self._term = 0
        self._begin()

    def _begin(self) -> None:
        self.link: SimulatedLink | None = None
        self.lease: NodeLease | None = None
        self.agents: dict[tuple[str, int], SimulatedJobAgent] = {}
        self.said: deque[tuple[SimulatedJobAgent, bytes | None]] = deque()
        self._joined_ns = 0
        self._dial_ns = 0
        self._leave_by_ns: int | None = None
        self._leaving = False

    def time_ns(self) -> int:
        """By this machine's clock."""
        return self.offset_ns + int(self.world.now_ns * self.drift)

    @property
    def believes(self) -> bool:
        """Its lease runs, so what it has started may run."""
        return self.lease is not None and self.time_ns() < self.lease.expires_ns

    def die(self) -> None:
        """The agent process is killed; all below dies with it. Another is started at once."""
        if self.link is not None:
            self.link.cut("killed")
        self._begin()
        # A supervisor starts it again; what it had seen of terms is forgotten.
        self._term = 0
        self.paused_until_ns = 0
        self._dial_ns = self.time_ns() + self.world.rng.randrange(1, 3_000_000_000)

    def drain(self) -> None:
        """SIGTERM."""
        if self.lease is None or self._leaving:
            return
        self._leaving = True
        self._leave_by_ns = self.time_ns() + DRAIN_NS
        self._say(Draining("asked to leave"))

    @property
    def runnable(self) -> bool:
        """Neither stopped nor frozen."""
        return self.world.now_ns >= max(self.paused_until_ns, self.frozen_until_ns)

    @property
    def deadline_ns(self) -> int:
        """By the simulation's clock, roughly: when something is due here."""
        if self.link is None:
            due_ns = self._dial_ns
        elif self.lease is None:
            due_ns = self._joined_ns + WELCOME_NS
        else:
            due_ns = self.lease.deadline_ns
        return int((due_ns - self.offset_ns) / self.drift) + 1

    def step(self) -> bool:
        """One event of the node agent; False if there was none."""
        self._on_time()
        if self.said and self.world.rng.random() < 0.5:
            self._on_said(*self.said.popleft())
            return True
        if self.link is not None and self.link.down.news:
            body = self.link.down.receive()
            if body is None:
                self._lose("hung up")
            else:
                self._on_body(body)
            return True
        if self.said:
            self._on_said(*self.said.popleft())
            return True
        return False

    # As in cluster/node.py -----------------------------------------------------------------------

    def _on_time(self) -> None:
        now_ns = self.time_ns()
        if self.link is None:
            if now_ns >= self._dial_ns and not self.agents:
                self._dial()
            return
        if self.lease is None:
            if now_ns >= self._joined_ns + WELCOME_NS:
                self._lose("no answer")
            return
        self._obey_lease(self.lease.on_time(now_ns))
        if self._leave_by_ns is not None and now_ns >= self._leave_by_ns:
            self._leave()

    def _obey_lease(self, commands: list[LeaseCommand]) -> None:
        for command in commands:
            if isinstance(command, SendHeartbeat):
                self._say(Heartbeat(command.sequence))
            else:
                self._lose("the lease has lapsed")

    def _dial(self) -> None:
        link = None
        if self.world.now_ns >= self.unreachable_until_ns:
            link = self.world.connect(self)
        if link is None:
            self._dial_ns = self.time_ns() + RETRY_NS
            return
        self.link, self._joined_ns = link, self.time_ns()
        name = NodeName(self.name, self.world.token())
        python = python_minor()
        self._say(Join(name, 1, {}, 0, self.name, 1, PROTOCOL_VERSION, __version__, python))

    def _say(self, message: Any) -> None:
        if self.link is not None:
            self.link.up.send(encode(message))

    def _lose(self, reason: str) -> None:
        assert self.link is not None
        self.link.cut(reason)
        self.link = self.lease = None
        for agent in list(self.agents.values()):
            agent.kill()
        self._dial_ns = self.time_ns() + RETRY_NS
        if self._leaving:
            self._leave()

    def _leave(self) -> None:
        """Kill everything and exit; the supervisor starts another."""
        self.die()

    def _on_said(self, agent: SimulatedJobAgent, body: bytes | None) -> None:
        if body is not None:
            self._say(FromJobAgent(agent.job, agent.launch, body))
        elif self.agents.pop((agent.job, agent.launch), None) is not None:
            self._say(JobAgentGone(agent.job, agent.launch, "killed"))

    def _on_body(self, body: bytes) -> None:
        message = decode_to_node(body)
        if self.lease is None:
            if isinstance(message, Welcome):
                self._on_welcome(message)
            else:
                assert isinstance(message, Refused), message
                assert message.again, message
                self._lose(message.reason)
        elif isinstance(message, HeartbeatReply):
            self._obey_lease(self.lease.on_reply(message.sequence, self.time_ns()))
        else:
            orders: dict[type, Callable[[Any], None]] = {
                OpenJob: self._open,
                CloseJob: self._close,
                ToJobAgent: self._tell,
                Leave: lambda _: self._leave(),
            }
            orders[type(message)](message)

    def _on_welcome(self, welcome: Welcome) -> None:
        if welcome.term < self._term:
            self._lose("an older controller")
            return
        self._term = welcome.term
        heartbeat_ns = welcome.heartbeat_ms * 1_000_000
        self.lease = NodeLease(self._joined_ns, welcome.lease_ms * 1_000_000, heartbeat_ns)

    def _open(self, wanted: OpenJob) -> None:
        key = (wanted.job, wanted.launch)
        if key in self.agents:
            return
        older = [agent for (job, _), agent in self.agents.items() if job == wanted.job]
        assert not older, "a launch was opened beside another"
        self.agents[key] = SimulatedJobAgent(self.world, self, *key)

    def _close(self, closing: CloseJob) -> None:
        agent = self.agents.get((closing.job, closing.launch))
        if agent is None:
            self._say(JobAgentGone(closing.job, closing.launch, "there is none"))
        else:
            agent.kill()

    def _tell(self, told: ToJobAgent) -> None:
        agent = self.agents.get((told.job, told.launch))
        if agent is not None and not agent.killed:
            agent.inbox.append(decode_to_agent(told.body))
