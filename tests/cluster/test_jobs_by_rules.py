"""Jobs of a cluster under events in any order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from job_core import RUNNING, A, B, record

from penstock.cluster.job_messages import (
    CloseAgent,
    Ended,
    OpenAgent,
)
from penstock.cluster.job_record import (
    CloseOnNode,
    JobRecord,
    KillProcess,
    OpenOnNode,
    SaveJob,
    StartProcess,
    TellJob,
)
from penstock.cluster.jobs import NS, Jobs
from penstock.cluster.node_messages import NodeName


@dataclass
class Running:
    """What the world really runs in the job's name."""

    launch: int
    process: bool
    said_last: bool = False


class World(RuleBasedStateMachine):
    """One name, whatever happens: one launch at a time, numbers that go up, an end that is one."""

    def __init__(self) -> None:
        super().__init__()
        self.jobs = Jobs({})
        self.now = 0
        self.process: Running | None = None
        self.agents: dict[NodeName, int] = {}
        self.closing: dict[NodeName, int] = {}
        self.saved: JobRecord | None = None
        self.highest = 0
        self.ids = 0
        self.killed = False

    def take(self, commands: list[Any]) -> None:
        for command in commands:
            if isinstance(command, SaveJob):
                assert self.saved is None or not self.saved.outcome
                self.saved = command.record
            elif isinstance(command, StartProcess):
                assert self.process is None
                assert not self.agents
                assert self.saved is not None
                assert command.record.launch == self.saved.launch > self.highest
                self.highest = command.record.launch
                self.process = Running(self.highest, True)
                self.killed = False
            elif isinstance(command, OpenOnNode):
                self.agents[command.name] = command.record.launch
            elif isinstance(command, CloseOnNode):
                assert self.agents[command.name] == command.launch
                self.closing[command.name] = command.launch
            elif isinstance(command, KillProcess):
                assert self.process is not None
                assert self.process.launch == command.launch
                self.killed = True
            elif isinstance(command, TellJob):
                assert self.process is not None
                assert self.process.launch == command.launch

    @precondition(lambda self: self.jobs.find("j") is None)
    @rule()
    def submit(self) -> None:
        self.ids += 1
        self.saved = None
        self.take(self.jobs.begin(record(id=self.ids), self.now))

    @precondition(lambda self: self.process is not None and not self.process.said_last)
    @rule(node=st.sampled_from([A, B]))
    def opens(self, node: NodeName) -> None:
        assert self.process is not None
        if node not in self.agents:
            self.take(self.jobs.on_open_agent("j", self.process.launch, OpenAgent(node)))

    @precondition(lambda self: self.process is not None and not self.process.said_last)
    @rule(node=st.sampled_from([A, B]))
    def closes(self, node: NodeName) -> None:
        assert self.process is not None
        self.take(self.jobs.on_close_agent("j", self.process.launch, CloseAgent(node)))

    @precondition(lambda self: bool(self.agents))
    @rule(node=st.sampled_from([A, B]))
    def agent_ends(self, node: NodeName) -> None:
        launch = self.agents.pop(node, None)
        self.closing.pop(node, None)
        if launch is not None:
            self.take(self.jobs.on_agent_gone("j", launch, node, "x", self.now))

    @rule(node=st.sampled_from([A, B]))
    def node_ends(self, node: NodeName) -> None:
        self.agents.pop(node, None)
        self.closing.pop(node, None)
        self.take(self.jobs.on_node_lost(node, "x", []))
        self.take(self.jobs.on_node_gone(node, [], self.now))

    @precondition(lambda self: self.jobs.find("j") is not None)
    @rule(mode=st.sampled_from(["checkpoint", "drain", "now"]))
    def stops(self, mode: str) -> None:
        self.take(self.jobs.stop("j", mode, self.now))

    @precondition(lambda self: self.jobs.find("j") is not None)
    @rule(n=st.integers(1, 4))
    def scales(self, n: int) -> None:
        found = self.jobs.find("j")
        if found is not None and not found.stop:
            self.take(self.jobs.scale("j", {"": n}, self.now))

    @precondition(lambda self: self.jobs.find("j") is not None)
    @rule()
    def moves(self) -> None:
        self.take(self.jobs.move("j", self.now))

    @precondition(lambda self: self.process is not None and not self.process.said_last)
    @rule()
    def reports(self) -> None:
        assert self.process is not None
        self.take(self.jobs.on_report("j", self.process.launch, RUNNING, self.now))

    @precondition(lambda self: self.process is not None and not self.process.said_last)
    @rule(outcome=st.sampled_from(["finished", "stopped", "failed"]))
    def says_its_last(self, outcome: str) -> None:
        assert self.process is not None
        self.process.said_last = True
        ended = Ended(outcome, b"", "boom")
        self.take(self.jobs.on_ended("j", self.process.launch, ended, self.now))

    @precondition(lambda self: self.process is not None)
    @rule()
    def dies(self) -> None:
        assert self.process is not None
        launch, self.process = self.process.launch, None
        self.take(self.jobs.on_process_gone("j", launch, "SIGKILL", self.now))

    @rule()
    def settles(self) -> None:
        """What is ending ends, and the next launch begins."""
        for node in list(self.closing):
            self.agent_ends(node)
        if self.process is not None and self.process.said_last:
            self.dies()
        self.passes(31 * NS)

    @rule(step=st.integers(0, 31 * NS))
    def passes(self, step: int) -> None:
        self.now += step
        self.take(self.jobs.tick(self.now))

    @rule()
    def controller_dies(self) -> None:
        """All its children die with it; agents join anew with nothing left."""
        live = self.saved if self.saved is not None and not self.saved.outcome else None
        self.jobs = Jobs({"j": self.highest})
        self.process, self.agents, self.closing = None, {}, {}
        if live is not None:
            self.take(self.jobs.begin(live, self.now))

    @invariant()
    def knows_what_runs(self) -> None:
        assert dict(self.jobs.agents("j")) == self.agents

    @invariant()
    def a_live_job_always_gets_on(self) -> None:
        """Something is under way, or a time is set, or something is there whose end is awaited."""
        if self.jobs.find("j") is None:
            return
        awaited = self.process is not None or bool(self.agents)
        assert awaited or self.jobs.deadline_ns is not None

    @invariant()
    def old_agents_are_told_to_end(self) -> None:
        """What blocks the next launch is being closed."""
        if self.process is None or self.process.said_last:
            assert set(self.agents) == set(self.closing)

    @invariant()
    def the_dead_are_not_awaited(self) -> None:
        if self.process is not None and self.process.said_last and not self.killed:
            assert self.jobs.deadline_ns is not None


TestWorld = World.TestCase
TestWorld.settings = settings(max_examples=300, stateful_step_count=50, deadline=None)
