"""The job agents of a node: one process per job and launch, opened, spoken to, watched, killed.

One launch of a job at a time: a newer one waits until every process of the older is gone. An agent
is kept warm for the job that comes next. Nothing here blocks, since the lease is kept in the same
thread: what is said to a job agent goes through a thread of its own, and so does what it says.
"""

from __future__ import annotations

import logging
import os
import queue
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from penstock.elements.errors import PenstockError
from penstock.runtime.agent_handle import AgentHandle, AgentLost, ToControllerOrLost
from penstock.runtime.messages import Deploy, ToAgent, UseNetwork, decode_to_agent, encode

from .node_bundles import BundleSettled, NodeBundles, Unpacked
from .node_directory import NodeDirectory
from .node_logs import JobLog
from .node_messages import FromJobAgent, JobAgentGone, OpenJob, ToJobAgent

log = logging.getLogger("penstock.node")

WAITING_MESSAGES_MAX = 10_000
"""Messages for a job agent that does not take them; then it is killed."""
REWARM_NS = 3_000_000_000
"""After a job was opened the next agent warms up this much later: the job's start comes first."""

PROCESSES_WAIT_S = 30.0
"""For the processes below a dead agent. The controller does not wait for it, but for the lease;
only this node joins later."""

Say = Callable[[FromJobAgent | JobAgentGone], None]


@dataclass(frozen=True)
class Said:
    """A job agent says something; the last is AgentLost."""

    agent: JobAgent
    event: ToControllerOrLost


class JobAgent:
    """One of them, or the wish for one while its bundle is fetched."""

    def __init__(self, wanted: OpenJob, post: Callable[[Said], None]) -> None:
        self.wanted = wanted
        self._post = post
        self._outbox: queue.SimpleQueue[ToAgent] = queue.SimpleQueue()
        self._early: list[ToAgent] = []
        self._unpacked: Unpacked | None = None
        self.handle: AgentHandle | None = None

    @property
    def name(self) -> tuple[str, int]:
        """Job and launch."""
        return self.wanted.job, self.wanted.launch

    def start(self, handle: AgentHandle, unpacked: Unpacked, network: UseNetwork) -> None:
        """Take an agent over. Raises EngineError if it cannot be started."""
        # From here on events come, and the last of them takes us off the list.
        handle.start(self)
        self.handle, self._unpacked = handle, unpacked
        for message in (network, *self._early):
            self.tell(message)
        self._early.clear()
        threading.Thread(target=self._send, args=(handle,), name="job-agent", daemon=True).start()

    def put(self, event: ToControllerOrLost, /) -> None:
        """What AgentHandle calls, in its thread."""
        self._post(Said(self, event))

    def tell(self, message: ToAgent) -> None:
        """Pass it on, now or once there is an agent."""
        if self._unpacked is None:
            self._early.append(message)
            return
        if isinstance(message, Deploy):
            message = on_this_node(message, self._unpacked)
        if self._outbox.qsize() >= WAITING_MESSAGES_MAX:
            self.kill()
        else:
            self._outbox.put(message)

    def kill(self) -> None:
        """Kill it and all below; AgentLost comes when they are gone. Requires: started."""
        assert self.handle is not None
        self.handle.kill()

    def _send(self, handle: AgentHandle) -> None:
        while not handle.over:
            try:
                message = self._outbox.get(timeout=1.0)
            except queue.Empty:
                continue
            try:
                handle.send(message)
            except PenstockError as error:
                log.error("job %s launch %d: %s", *self.name, error)
                handle.kill()
                return


def on_this_node(deploy: Deploy, unpacked: Unpacked) -> Deploy:
    """The Deploy with the paths of this node in place of those where it was planned."""
    path = [unpacked.modules, *(os.path.abspath(entry) for entry in sys.path if entry)]
    cwd = unpacked.cwd if os.path.isdir(unpacked.cwd) else unpacked.modules
    return msgspec.structs.replace(deploy, python_path=path, cwd=cwd)


class JobAgents:
    """All of one node's. For one thread; `post` is called from others."""

    def __init__(
        self,
        directory: NodeDirectory,
        bundles: NodeBundles,
        say: Say,
        post: Callable[[Said], None],
    ) -> None:
        """`say` tells the controller, if there is one just now."""
        self._directory = directory
        self._bundles = bundles
        self._say = say
        self._post = post
        self._agents: dict[tuple[str, int], JobAgent] = {}
        self._network = UseNetwork("127.0.0.1")
        self._warm: tuple[AgentHandle, JobLog] | None = None
        self._rewarm_ns: int | None = 0

    @property
    def empty(self) -> bool:
        """Nothing of any job runs here."""
        return not self._agents

    def use_network(self, network: UseNetwork) -> None:
        """What job agents opened from now on are told first."""
        self._network = network

    # From the controller ----------------------------------------------------------------------

    def open(self, wanted: OpenJob) -> None:
        """Have an agent for the job; AgentReady or JobAgentGone follows."""
        agent = JobAgent(wanted, self._post)
        if agent.name in self._agents:
            return
        for job, launch in list(self._agents):
            if job == wanted.job and launch > wanted.launch:
                self._say(JobAgentGone(*agent.name, f"launch {launch} of the job is here"))
                return
            if job == wanted.job:
                self.close(job, launch)
        self._agents[agent.name] = agent
        self._bundles.want(wanted.bundle, wanted.bundle_bytes)

    def tell(self, message: ToJobAgent) -> None:
        """Raises msgspec.DecodeError for what no agent is ever told."""
        agent = self._agents.get((message.job, message.launch))
        if agent is not None:
            agent.tell(decode_to_agent(message.body))

    def close(self, job: str, launch: int) -> None:
        """Kill it; JobAgentGone follows when all of it is gone, at once if there is nothing."""
        agent = self._agents.get((job, launch))
        if agent is None:
            self._say(JobAgentGone(job, launch, "it has no agent on this node"))
        elif agent.handle is not None:
            agent.kill()
        else:
            self._drop(agent, "it was closed before it was started")

    def kill_all(self) -> None:
        """Kill everything; `empty` once all of it is gone."""
        for name in list(self._agents):
            self.close(*name)

    # From below -------------------------------------------------------------------------------

    def on_bundle(self, settled: BundleSettled) -> None:
        """A bundle is there, or will never be."""
        self._bundles.on_settled(settled)
        for agent in list(self._agents.values()):
            if agent.wanted.bundle != settled.sha256 or agent.handle is not None:
                continue
            if settled.unpacked is None:
                self._drop(agent, settled.failure)
            else:
                self._start_if_possible(agent)
        self._bundles.trim({agent.wanted.bundle for agent in self._agents.values()})

    def on_said(self, said: Said) -> None:
        """Pass on what a job agent says."""
        job, launch = said.agent.name
        event = said.event
        if not isinstance(event, AgentLost):
            self._say(FromJobAgent(job, launch, encode(event)))
            return
        cause = event.cause
        if not event.all_gone:
            cause += "; a process that it left behind may still run"
        self._drop(said.agent, cause)

    def on_time(self, now_ns: int) -> None:
        """Warm an agent up when it is time to; to be called once a second at least."""
        if self._warm is not None:
            handle, output = self._warm
            if handle.fits:
                return
            # It died before anybody had use for it.
            self._warm = None
            output.discard()
        if self._rewarm_ns is None:
            self._rewarm_ns = now_ns + REWARM_NS
        if now_ns < self._rewarm_ns:
            return
        self._rewarm_ns = None
        try:
            self._warm = self._launch({})
        except PenstockError as error:
            # The next job will start one for itself, or say why it cannot.
            log.warning("no agent can be kept warm: %s", error)

    def end(self) -> None:
        """End the warm agent too. Requires: empty."""
        assert self.empty
        if self._warm is not None:
            handle, output = self._warm
            self._warm = None
            handle.close()
            output.discard()

    # Inside -----------------------------------------------------------------------------------

    def _start_if_possible(self, agent: JobAgent) -> None:
        unpacked = self._bundles.find(agent.wanted.bundle)
        job, launch = agent.name
        older = any(j == job and other < launch for j, other in self._agents)
        if agent.handle is not None or unpacked is None or older:
            return
        folder = self._directory.job_logs(job)
        try:
            handle, output = self._take(agent.wanted.environment)
        except PenstockError as error:
            self._drop(agent, str(error))
            return
        output.keep(folder / f"{launch}.log", f"-- {job}, launch {launch}, agent {handle.pid}")
        self._directory.sweep_logs()
        agent.start(handle, unpacked, self._network)

    def _take(self, environment: dict[str, str]) -> tuple[AgentHandle, JobLog]:
        """A launched agent: the warm one if it serves."""
        if self._warm is not None:
            handle, output = self._warm
            if not handle.fits:
                self._warm = None
                output.discard()
            elif all(os.environ.get(name) == value for name, value in environment.items()):
                self._warm = None
                return handle, output
        return self._launch(environment)

    def _launch(self, environment: dict[str, str]) -> tuple[AgentHandle, JobLog]:
        output = JobLog()
        handle = AgentHandle(
            output=output.descriptor,
            environment=environment,
            processes_wait_s=PROCESSES_WAIT_S,
        )
        try:
            handle.launch()
        except PenstockError:
            output.discard()
            raise
        finally:
            output.launched()
        return handle, output

    def _drop(self, agent: JobAgent, cause: str) -> None:
        """It is gone; whoever waited for that goes on."""
        if self._agents.pop(agent.name, None) is None:
            return
        self._say(JobAgentGone(*agent.name, cause))
        for other in list(self._agents.values()):
            self._start_if_possible(other)
