"""Many job agents look like one: ready once, gone once, lost only when nothing runs any more."""

from __future__ import annotations

import random
from collections import defaultdict

import pytest

from penstock.cluster.fleet_core import Command, Emit, FleetCore, Lose, Phase, Say
from penstock.cluster.job_messages import CloseAgent, Granted, GrantedNode, NeedSlots, OpenAgent
from penstock.cluster.node_messages import NodeName
from penstock.runtime.messages import (
    AgentFailure,
    AgentReady,
    AttemptGone,
    CancelAttempt,
    ChannelSpec,
    Deploy,
    NetAddresses,
    NetListening,
    SubtaskDeployment,
    SubtaskExited,
    SubtaskKey,
    ToSubtask,
)

A, B, C = (NodeName(name, "1") for name in "abc")
A2 = NodeName("a", "2")
GENERATION = 3
READY = AgentReady(77, 0)


def granted(grant: int, *names: NodeName, slots: int = 1) -> Granted:
    return Granted(grant, [GrantedNode(name, f"host-{name}", slots) for name in names])


def deployment(attempt: int, width: int = 2, hashed: bool = True) -> tuple[Deploy, list[int]]:
    keys = [SubtaskKey(vertex, index) for vertex in ("v", "w") for index in range(width)]
    channels = [
        ChannelSpec("e", SubtaskKey("v", i), SubtaskKey("w", j), 2, 4096)
        for i in range(width)
        for j in range(width)
        if hashed or i == j
    ]
    subtasks = [SubtaskDeployment(key, str(key), [], {}, True, False, 0) for key in keys]
    deploy = Deploy("job", GENERATION, attempt, "run", "/store", b"", subtasks, channels, b"{}")
    return deploy, [7] * len(channels)


def ready(*names: NodeName) -> FleetCore:
    """A fleet on these nodes, its agents warm."""
    core = FleetCore(len(names), 1, ran_before=False)
    core.start()
    core.granted(granted(1, *names))
    for name in names:
        core.told(name, READY)
    assert core.phase is Phase.READY
    return core


def running(*names: NodeName, attempt: int = 1) -> FleetCore:
    core = ready(*names)
    core.deploy(*deployment(attempt, len(names)))
    return core


def emitted(commands: list[Command]) -> list[object]:
    return [command.message for command in commands if isinstance(command, Emit)]


def told(commands: list[Command], kind: type) -> list[NodeName]:
    return [c.name for c in commands if isinstance(c, Say) and isinstance(c.message, kind)]


def gone(attempt: int = 1) -> AttemptGone:
    return AttemptGone(GENERATION, attempt)


def cancel(attempt: int = 1) -> CancelAttempt:
    return CancelAttempt(GENERATION, attempt)


# Room and agents ----------------------------------------------------------------------------------


def test_it_is_ready_when_all_agents_are() -> None:
    core = FleetCore(2, 1, ran_before=False)
    assert core.start() == [NeedSlots(1, 2, again=False)]
    assert core.granted(granted(1, A, B)) == [OpenAgent(A), OpenAgent(B)]
    assert core.told(B, READY) == []
    assert core.told(A, READY) == [Emit(AgentReady(1, 2))]


def test_a_job_that_ran_before_says_so() -> None:
    assert FleetCore(2, 1, ran_before=True).start() == [NeedSlots(1, 2, again=True)]


def test_an_old_grant_is_no_answer() -> None:
    core = FleetCore(2, 1, ran_before=False)
    core.start()
    assert core.granted(granted(0, A, B)) == []
    assert core.phase is Phase.ASKING


def test_an_attempt_is_split_over_the_nodes() -> None:
    core = ready(A, B)
    commands = core.deploy(*deployment(1))
    parts = {c.name: c.message for c in commands if isinstance(c, Say)}
    assert parts.keys() == {A, B}
    deploy = parts[A]
    assert isinstance(deploy, Deploy)
    assert [str(subtask.key) for subtask in deploy.subtasks] == ["v[0]", "w[0]"]
    assert deploy.net is not None
    assert {channel.node for channel in deploy.net.channels} == {"b"}


def test_addresses_go_round_when_all_listen() -> None:
    core = running(A, B)
    assert core.told(A, NetListening(GENERATION, 1, "host-a", 10)) == []
    commands = core.told(B, NetListening(GENERATION, 1, "host-b", 20))
    told_all = NetAddresses(GENERATION, 1, {"a": ("host-a", 10), "b": ("host-b", 20)})
    assert commands == [Say(A, told_all), Say(B, told_all)]


def test_nodes_without_neighbours_elsewhere_are_not_waited_for() -> None:
    core = ready(A, B)
    commands = core.deploy(*deployment(1, hashed=False))
    assert all(c.message.net is None for c in commands if isinstance(c, Say))  # type: ignore[union-attr]
    assert core.told(A, NetListening(GENERATION, 1, "host-a", 10)) == []


def test_commands_reach_the_node_of_their_subtask() -> None:
    core = running(A, B)
    message = ToSubtask(GENERATION, 1, SubtaskKey("w", 1), b"")
    assert core.to_subtask(message) == [Say(B, message)]
    assert core.to_subtask(ToSubtask(GENERATION, 2, SubtaskKey("w", 1), b"")) == []


# Ends of attempts ---------------------------------------------------------------------------------


def test_an_attempt_is_gone_when_all_nodes_have_said_so() -> None:
    core = running(A, B)
    exited = SubtaskExited(GENERATION, 1, SubtaskKey("v", 0), 5, -9)
    assert core.told(A, exited) == [Emit(exited)]
    assert told(core.cancel(cancel()), CancelAttempt) == [A, B]
    assert core.told(B, gone()) == []
    assert core.told(B, gone()) == []
    assert core.told(A, gone()) == [Emit(gone())]
    assert told(core.deploy(*deployment(2)), Deploy) == [A, B]


def test_what_an_old_attempt_or_incarnation_says_is_dropped() -> None:
    core = running(A, B, attempt=2)
    assert core.told(A, gone(1)) == []
    assert core.told(A2, SubtaskExited(GENERATION, 2, SubtaskKey("v", 0), 5, -9)) == []
    assert core.told(A, AgentFailure(GENERATION - 1, 2, "late")) == []
    assert core.agent_gone(A2, "old") == core.node_lost(A2, "old") == core.node_gone(A2) == []


def test_a_node_without_a_part_in_the_attempt_has_no_say_in_it() -> None:
    core = ready(A, B)
    core.deploy(*deployment(1, width=1))
    assert core.told(B, AgentFailure(GENERATION, 1, "confused")) == core.told(B, gone()) == []


def test_a_failure_names_its_node() -> None:
    core = running(A, B)
    failed = AgentFailure(GENERATION, 1, "no memory")
    assert core.told(B, failed) == [Emit(AgentFailure(GENERATION, 1, "node b: no memory"))]


# Losses -------------------------------------------------------------------------------------------


def test_a_lost_node_fails_the_attempt_at_once_and_is_told_only_when_it_is_gone() -> None:
    core = running(A, B)
    (failure,) = emitted(core.node_lost(B, "no heartbeat"))
    assert failure == AgentFailure(GENERATION, 1, "node b was lost: no heartbeat")
    # Nobody can tell B anything now.
    assert told(core.cancel(cancel()), CancelAttempt) == [A]
    assert core.told(A, gone()) == []
    assert core.node_gone(B) == [Lose("node b was lost: no heartbeat")]


def test_the_survivors_are_waited_for_as_well() -> None:
    core = running(A, B)
    core.node_lost(B, "cut")
    assert core.node_gone(B) == []
    core.cancel(cancel())
    assert core.told(A, gone()) == [Lose("node b was lost: cut")]


def test_a_dead_job_agent_is_gone_at_once() -> None:
    core = running(A, B)
    (failure,) = emitted(core.agent_gone(B, "killed by SIGKILL"))
    assert isinstance(failure, AgentFailure)
    assert "node b" in failure.text
    core.cancel(cancel())
    assert core.told(A, gone()) == [Lose("its agent on node b was lost: killed by SIGKILL")]


def test_two_losses_are_told_as_one() -> None:
    core = running(A, B, C)
    core.node_lost(B, "cut")
    assert core.node_lost(C, "cut") == []
    core.cancel(cancel())
    assert core.told(A, gone()) == []
    assert core.node_gone(C) == []
    assert core.node_gone(B) == [Lose("node b was lost: cut")]


def test_the_next_fleet_keeps_the_agents_that_live_and_closes_those_not_granted() -> None:
    core = running(A, B, C)
    core.node_lost(B, "cut")
    core.cancel(cancel())
    core.told(A, gone())
    core.told(C, gone())
    core.node_gone(B)
    assert core.start() == [NeedSlots(2, 3, again=True)]
    assert core.granted(granted(2, A, A2, slots=2)) == [CloseAgent(C), OpenAgent(A2)]
    assert core.told(A2, READY) == [Emit(AgentReady(1, 4))]


def test_an_agent_that_is_being_closed_is_opened_again_after_its_end() -> None:
    core = running(A, B)
    core.node_lost(B, "cut")
    core.node_gone(B)
    core.cancel(cancel())
    core.told(A, gone())
    core.start()
    assert core.granted(granted(2, C)) == [CloseAgent(A), OpenAgent(C)]
    assert core.node_lost(C, "cut") == [Lose("node c was lost: cut")]
    core.start()
    assert core.granted(granted(3, A)) == []
    # Said before it heard that it is to end.
    assert core.told(A, READY) == []
    assert core.agent_gone(A, "closed") == [OpenAgent(A)]
    assert emitted(core.told(A, READY)) == [AgentReady(1, 1)]


def test_a_loss_between_attempts_is_told_at_once() -> None:
    core = ready(A, B)
    assert core.node_lost(A, "cut") == [Lose("node a was lost: cut")]
    assert core.deploy(*deployment(1)) == []


def test_an_attempt_that_was_never_deployed_is_gone_when_asked() -> None:
    core = ready(A)
    assert core.cancel(cancel(1)) == [Emit(gone(1))]


def test_the_loss_of_a_node_that_is_not_granted_concerns_nobody() -> None:
    core = running(A, B)
    assert core.node_lost(C, "cut") == core.node_gone(C) == []
    assert core.phase is Phase.READY


def test_closing_closes_all_and_ends_when_they_are_gone() -> None:
    core = running(A, B)
    assert core.close() == [CloseAgent(A), CloseAgent(B)]
    assert core.close() == []
    core.agent_gone(A, "closed")
    assert not core.all_gone
    core.node_lost(B, "cut")
    assert core.all_gone


# Any order of everything --------------------------------------------------------------------------


class Cluster:
    """Nodes that run what they are told, lose contact and die, and a controller that retries."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.core = FleetCore(3, 1, ran_before=False)
        self.runs: dict[NodeName, int] = {}
        """The attempt that runs on a node."""
        self.agents: set[NodeName] = set()
        self.cut: set[NodeName] = set()
        self.live = [NodeName(name, "0") for name in "abc"]
        self.news: dict[NodeName, list[object]] = defaultdict(list)
        self.asked: NeedSlots | None = None
        self.attempt = 0
        self.state = "launching"
        self.incarnations = 0
        self.done: list[int] = []

    def carry_out(self, commands: list[Command]) -> None:
        for command in commands:
            if isinstance(command, NeedSlots):
                self.asked = command
            elif isinstance(command, OpenAgent):
                if command.name not in self.cut:
                    self.agents.add(command.name)
                    self.news[command.name].append(READY)
            elif isinstance(command, CloseAgent):
                if command.name not in self.cut:
                    self.end_agent(command.name, "closed")
            elif isinstance(command, Say):
                self.say(command.name, command.message)
            elif isinstance(command, Lose):
                assert not self.runs, f"lost while {self.runs} still run"
                self.state = "lost"
            else:
                self.emitted(command.message)

    def end_agent(self, name: NodeName, cause: str) -> None:
        self.agents.discard(name)
        self.runs.pop(name, None)
        self.news[name].append(cause)

    def say(self, name: NodeName, message: object) -> None:
        if name in self.cut or name not in self.agents:
            return
        if isinstance(message, Deploy):
            others = set(self.runs.values()) - {message.attempt}
            assert not others, f"{message.attempt} is deployed while {others} run"
            self.runs[name] = message.attempt
        elif isinstance(message, CancelAttempt):
            self.runs.pop(name, None)
            self.news[name].append(gone(message.attempt))

    def emitted(self, message: object) -> None:
        if isinstance(message, AgentReady):
            assert self.state == "launching"
            self.state = "ready"
        elif isinstance(message, AttemptGone):
            assert message.attempt not in self.runs.values()
            if self.state == "cancelling":
                self.state = "ready"
        elif isinstance(message, AgentFailure) and self.state == "running":
            self.state = "cancel"

    def step(self, faults: bool) -> None:
        choices = [self.deliver] * 4 + [self.advance] * 3 + [self.grant]
        if faults:
            choices += [self.fault]
        self.rng.choice(choices)()

    def deliver(self) -> None:
        waiting = [name for name, news in self.news.items() if news]
        if not waiting:
            return
        name = self.rng.choice(sorted(waiting))
        news = self.news[name].pop(0)
        if isinstance(news, str):
            self.carry_out(
                self.core.node_lost(name, news) if news == "cut" else
                self.core.node_gone(name) if news == "gone" else
                self.core.agent_gone(name, news)
            )  # fmt: skip
        else:
            self.carry_out(self.core.told(name, news))  # type: ignore[arg-type]

    def advance(self) -> None:
        """What the job's controller does next."""
        if self.state == "lost" or self.attempt == 0:
            self.attempt += self.attempt == 0
            self.state = "launching"
            self.carry_out(self.core.start())
        elif self.state == "ready":
            self.attempt += 1
            self.state = "running"
            self.carry_out(self.core.deploy(*deployment(self.attempt, 3)))
        elif self.state == "cancel" or (self.state == "running" and self.rng.random() < 0.1):
            self.state = "cancelling"
            self.carry_out(self.core.cancel(cancel(self.attempt)))

    def grant(self) -> None:
        if self.asked is not None and self.live:
            names = self.rng.sample(self.live, self.rng.randint(1, len(self.live)))
            self.carry_out(self.core.granted(granted(self.asked.grant, *names)))
            self.asked = None

    def fault(self) -> None:
        kind = self.rng.choice(["agent", "cut", "heal"])
        if kind == "heal" and self.cut:
            name = self.rng.choice(sorted(self.cut))
            self.cut.discard(name)
            # Joined anew: nothing of the old life runs, which the controller passes on.
            self.agents.discard(name)
            self.runs.pop(name, None)
            self.news[name].append("gone")
            self.incarnations += 1
            self.live.append(NodeName(name.node, str(self.incarnations)))
        elif kind == "agent" and self.agents - self.cut:
            self.end_agent(self.rng.choice(sorted(self.agents - self.cut)), "killed")
        elif kind == "cut" and self.live:
            name = self.rng.choice(self.live)
            self.live.remove(name)
            self.cut.add(name)
            # What it had said and is not read yet is still read; then the end of the connection.
            self.news[name].append("cut")


@pytest.mark.parametrize("seed", range(300))
def test_no_attempt_begins_while_another_runs_and_the_job_gets_to_run(seed: int) -> None:
    cluster = Cluster(seed)
    for _ in range(200):
        cluster.step(faults=True)
    while cluster.cut:
        cluster.fault()
    for _ in range(400):
        cluster.step(faults=False)
        if cluster.state == "running" and set(cluster.runs.values()) == {cluster.attempt}:
            return
    raise AssertionError(f"{cluster.state}, {cluster.core.phase}, {cluster.core.agents}")
