"""A whole cluster under a seeded scheduler: controllers, node agents, a job, links, clocks, faults.

What decides is real: membership, slots, jobs and their coordination, the node's lease, the fleet,
the job's state machine, its log and checkpoints, alignment and progress. Processes, sockets, disks
and clocks are not. `simulate_cluster(seed)` raises AssertionError if an invariant breaks:
1. what simulated_job.py demands of the rows, of ids and of history;
2. no attempt begins while another runs, where both nodes believe in their leases;
3. one job process at a time, launch numbers and terms only rise;
4. once faults cease, the job finishes, however often it was submitted, stopped and scaled.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable

from penstock.cluster.job_record import JobRecord
from penstock.cluster.slots import SPREAD
from penstock.runtime.messages import ChannelSpec

from .simulated_controller import MemoryCatalog, SimulatedController
from .simulated_coordinator import SimulatedCoordinator
from .simulated_job import Crash, World
from .simulated_links import SimulatedLink
from .simulated_node import Attempt, SimulatedJobAgent, SimulatedNode
from .simulated_plan import PLAN
from .simulated_subtask import Item, SimulatedSubtask

STEPS_MAX = 60_000
"""Far more than the longest schedule takes; reaching it means that the job hangs."""
NODES = 3
STEP_NS = 3_000_000
"""How long a step takes on average."""
SECOND_NS = 1_000_000_000
ATTEMPTS_KEPT = 4
"""Attempts whose channels are kept: of older ones nothing is left to read them."""
JOB = PLAN.name


class ClusterWorld(World):
    """One schedule. It is the clock of all cores but the nodes', whose clocks drift."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.faults_left = self.rng.choice((0, 1, 2, 4, 8, 12))
        self.catalog = MemoryCatalog(self)
        self.controller: SimulatedController | None = None
        self._controller_ns = 0
        self._save_fault = 0
        self._struck: SimulatedNode | None = None
        self._channels: dict[Attempt, dict[tuple[str, ...], deque[Item]]] = {}
        self._parts: dict[Attempt, list[SimulatedJobAgent]] = {}
        self._launch = self._seen_term = 0
        self.nodes = [SimulatedNode(self, f"n{number}") for number in range(NODES)]
        self._faults: list[Callable[[], None]] = [
            self._kill_node, self._kill_node, self._stop_node, self._freeze_node,
            self._cut_link, self._silence_link, self._reset_link, self._slow_link, self._kill_agent,
            self._strike_subtask, self._strike_subtask, self._kill_coordinator,
            self._stop_coordinator, self._kill_controller, self._kill_controller,
            self._stop_controller, self._crash_at_save, self._drain_node, self._stop_job,
            self._scale_job, self._break_store, self._break_store, self._lose_power,
        ]  # fmt: skip

    def monotonic_ns(self) -> int:
        """For Coordination."""
        return self.now_ns

    def wall_ns(self) -> int:
        """For Coordination."""
        return self.now_ns

    # The schedule --------------------------------------------------------------------------------

    def run(self) -> None:
        """To the end."""
        for _ in range(STEPS_MAX):
            if self._is_over():
                break
            self._step()
        assert self.finished, "the job hangs: " + "; ".join(self.trace[-8:])
        self._check_end()

    def _is_over(self) -> bool:
        outcomes = {record.outcome for record in self.catalog.records.values()}
        self.finished = bool(outcomes & {"finished", "already finished"})
        return self.finished

    def _step(self) -> None:
        self.now_ns += int(self.rng.expovariate(1 / STEP_NS)) + 1
        strikes = self.rng.random() < 0.01
        while strikes and self.faults_left:
            self.faults_left -= 1
            fault = self.rng.choice(self._faults)
            self.note(fault.__name__)
            fault()
            # Faults seldom come alone: what one alone does to a protocol is soon mended.
            strikes = self.rng.random() < 0.35
        if self.controller is None:
            if self.now_ns >= self._controller_ns:
                self._start_controller()
            elif not self._step_someone():
                self._wait()
        elif not self._step_someone():
            self._wait()

    def _step_someone(self) -> bool:
        actors: list[Callable[[], bool]] = []
        for node in self.nodes:
            if self.now_ns < node.frozen_until_ns:
                continue
            actors += [agent.step for agent in node.agents.values() if not agent.killed]
            if node.runnable:
                actors.append(node.step)
        if self.controller is not None:
            if self.now_ns >= self.controller.paused_until_ns:
                actors += [self._step_controller] * 2
            for each in self.controller.coordinators:
                if each.alive and self.now_ns >= each.paused_until_ns:
                    actors += [lambda each=each: self._step_coordinator(each)] * 2  # type: ignore[misc]
        self.rng.shuffle(actors)
        return any(actor() for actor in actors)

    def _step_controller(self) -> bool:
        if self.controller is None:
            return False
        try:
            found = self.controller.step()
            self._use(self.controller)
        except Crash:
            self._kill_controller()
            return True
        return found

    def _step_coordinator(self, coordinator: SimulatedCoordinator) -> bool:
        if not coordinator.alive:
            return False
        try:
            return coordinator.step()
        except Crash:
            self.note("the job process crashes at the store")
            coordinator.kill()
        return True

    def _wait(self) -> None:
        """Nothing can move: let time pass until something may."""
        due = [self._controller_ns]
        for node in self.nodes:
            due += [node.deadline_ns if node.runnable else node.paused_until_ns]
            due += [node.frozen_until_ns]
            if node.link is not None:
                due += [node.link.down.due_ns or 0]
        if self.controller is not None:
            due += [self.controller.deadline_ns or 0, self.controller.paused_until_ns]
            due += [link.up.due_ns or 0 for link in self.controller.links]
            for each in self.controller.coordinators:
                due += [each.deadline_ns or 0, each.paused_until_ns]
        soonest = min((ns for ns in due if ns > self.now_ns), default=self.now_ns + SECOND_NS)
        self.now_ns = min(soonest, self.now_ns + SECOND_NS)

    # The user ------------------------------------------------------------------------------------

    def _use(self, controller: SimulatedController) -> None:
        """Submit the job again as long as it has not finished."""
        if self.catalog.live() or self._is_over():
            return
        record = self.catalog.add(JobRecord(0, self.token(), JOB, "bundle", 1, b"{}", SPREAD))
        self.note(f"submission {record.id}")
        controller.core.carry_out(controller.core.jobs.begin(record, self.now_ns))

    def _stop_job(self) -> None:
        self._ask(lambda jobs: jobs.stop(JOB, self.rng.choice(["checkpoint", "now"]), self.now_ns))

    def _scale_job(self) -> None:
        self._ask(lambda jobs: jobs.scale(JOB, {"": 2}, self.now_ns))

    def _ask(self, question: Callable[..., object]) -> None:
        controller = self.controller
        if controller is not None and controller.core.jobs.find(JOB) is not None:
            record = controller.core.jobs.find(JOB)
            assert record is not None
            if not record.stop:
                try:
                    controller.core.carry_out(question(controller.core.jobs))  # type: ignore[arg-type]
                except Crash:
                    self._kill_controller()

    # Faults --------------------------------------------------------------------------------------

    def _start_controller(self) -> None:
        self.controller = SimulatedController(self)
        assert self.controller.term > self._seen_term
        self._seen_term = self.controller.term
        try:
            self.controller.begin()
        except Crash:
            self._kill_controller()

    def _kill_controller(self) -> None:
        if self.controller is None:
            return
        for each in self.controller.coordinators:
            each.kill()
        for link in self.controller.links:
            link.cut("the controller was killed")
        self.controller = None
        self._controller_ns = self.now_ns + self.rng.randrange(4 * SECOND_NS)

    def before_save(self) -> None:
        """Around each write of the catalog; may be the controller's end."""
        if self._save_fault:
            self._save_fault -= 1
            if not self._save_fault:
                raise Crash("at the catalog")

    def _crash_at_save(self) -> None:
        self._save_fault = self.rng.randrange(1, 8)

    def _stop_controller(self) -> None:
        if self.controller is not None:
            self.controller.paused_until_ns = self._later(6)

    def _kill_coordinator(self) -> None:
        for each in self._coordinators():
            each.kill()

    def _stop_coordinator(self) -> None:
        for each in self._coordinators():
            each.paused_until_ns = self._later(6)

    def _coordinators(self) -> list[SimulatedCoordinator]:
        return self.controller.coordinators if self.controller is not None else []

    def _kill_node(self) -> None:
        self._victim().die()

    def _stop_node(self) -> None:
        self._victim().paused_until_ns = self._later(6)

    def _freeze_node(self) -> None:
        self._victim().frozen_until_ns = self._later(6)

    def _drain_node(self) -> None:
        self._victim().drain()

    def _cut_link(self) -> None:
        link = self._victim().link
        if link is not None:
            link.cut("a fault")

    def _silence_link(self) -> None:
        node = self._victim()
        node.unreachable_until_ns = self._later(6)
        if node.link is not None:
            node.link.silence()

    def _reset_link(self) -> None:
        node = self._victim()
        node.unreachable_until_ns = self._later(6)
        if node.link is not None:
            node.link.reset()

    def _slow_link(self) -> None:
        link = self._victim().link
        if link is not None:
            link.slow_down(self.rng.randrange(2 * SECOND_NS))

    def _kill_agent(self) -> None:
        agents = [agent for node in self.nodes for agent in node.agents.values()]
        if agents:
            self.rng.choice(agents).kill()

    def _strike_subtask(self) -> None:
        struck = [
            (agent, key)
            for node in self.nodes
            for agent in node.agents.values()
            for key, subtask in agent.subtasks.items()
            if subtask.alive
        ]
        if struck:
            agent, key = self.rng.choice(struck)
            agent.strike(key, raises=self.rng.random() < 0.5)

    def _break_store(self) -> None:
        self._put_fault = self.rng.choice(["put-crash", "put-error", "put-lost"])

    def _lose_power(self) -> None:
        self._kill_controller()
        for node in self.nodes:
            node.die()
        self.store.lose_power()

    def _victim(self) -> SimulatedNode:
        """Often the one struck before: two faults of one node do what neither does alone."""
        if self._struck is None or self.rng.random() < 0.4:
            self._struck = self.rng.choice(self.nodes)
        return self._struck

    def _later(self, seconds: int) -> int:
        return self.now_ns + self.rng.randrange(seconds * SECOND_NS)

    # What actors ask of their world --------------------------------------------------------------

    def connect(self, node: SimulatedNode) -> SimulatedLink | None:
        """A node dials the controller."""
        if self.controller is None:
            return None
        link = SimulatedLink(self, node.name)
        self.controller.links[link] = None
        return link

    def launched(self, coordinator: SimulatedCoordinator) -> None:
        """A job process starts."""
        assert coordinator.launch > self._launch, "a launch was repeated"
        self._launch = coordinator.launch
        others = [each for each in self._coordinators() if each.alive and each is not coordinator]
        assert not others, "two job processes at a time"

    def begins(self, agent: SimulatedJobAgent) -> None:
        """A job agent starts its part of an attempt."""
        attempt = agent.attempt
        assert attempt is not None
        self._parts.setdefault(attempt, []).append(agent)
        if not agent.node.believes:
            # A machine that stood still wakes, and its job agent is faster than the node agent,
            # which ends it when it has looked at the clock. Till then nothing it says gets out.
            return
        for node in self.nodes:
            for other in node.agents.values():
                if other.runs and other.attempt != attempt and node.believes:
                    raise AssertionError(
                        f"{attempt} begins on {agent.node.name} while {other.attempt} runs on "
                        f"{node.name}, whose lease is valid"
                    )

    def whole(self, attempt: Attempt) -> bool:
        """Every part of the attempt that has begun still runs."""
        return all(
            part.runs and part.attempt == attempt and self.now_ns >= part.node.frozen_until_ns
            for part in self._parts[attempt]
        )

    def channel(self, attempt: Attempt, spec: ChannelSpec) -> deque[Item]:
        """The one queue between two subtasks of an attempt."""
        if attempt not in self._channels:
            for old in sorted(self._channels)[:-ATTEMPTS_KEPT]:
                del self._channels[old]
        ends = (spec.edge, str(spec.source), str(spec.target))
        return self._channels.setdefault(attempt, {}).setdefault(ends, deque())

    def guarded_step(self, subtask: SimulatedSubtask, agent: SimulatedJobAgent) -> bool:
        """A step of a subtask, which the store may end."""
        try:
            return subtask.step()
        except Crash:
            agent.strike(subtask.key, raises=False)
            return True


def simulate_cluster(seed: int) -> str:
    """Run one schedule; a digest of everything that happened in it."""
    world = ClusterWorld(seed)
    try:
        world.run()
    except AssertionError as error:
        raise AssertionError(f"seed {seed}: {error}") from error
    return hashlib.sha256("\n".join(world.trace).encode()).hexdigest()
