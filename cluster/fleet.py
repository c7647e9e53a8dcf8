"""A Fleet: the Agent of a job's Controller that stands for one job agent on each of several nodes.

Decisions are fleet_core.py's. Commands come from the Controller's thread and news from the thread
that reads the cluster's controller; one lock makes them one sequence, and nothing in it blocks.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Callable, Sequence

import msgspec

from penstock.dataflow.plan import Plan
from penstock.runtime.agent_handle import AgentLost
from penstock.runtime.deploying import channel_fingerprints
from penstock.runtime.messages import (
    AgentReady,
    CancelAttempt,
    Deploy,
    SubtaskKey,
    ToAgent,
    ToController,
    ToSubtask,
    decode_to_controller,
    encode,
)

from .fleet_core import Command, Emit, FleetCore, Lose, Say
from .job_messages import (
    AgentGone,
    FromJob,
    Granted,
    NodeGone,
    NodeLost,
    Tell,
    Told,
    Waiting,
)
from .node_messages import NodeName
from .placement import slots_needed

log = logging.getLogger("penstock.fleet")

CLOSE_WAIT_S = 5.0
"""For agents to be closed at the end of a job; the cluster's controller closes them anyway."""

Events = queue.SimpleQueue[ToController | AgentLost]
News = Granted | Waiting | Told | AgentGone | NodeLost | NodeGone
"""What the cluster's controller says of slots, nodes and agents."""


class Fleets:
    """All fleets of one job process, one after the other; calling it makes the next.

    `send` passes a message to the cluster's controller and never blocks.
    """

    def __init__(self, plan: Plan, send: Callable[[FromJob], None], ran_before: bool) -> None:
        self._plan = plan
        self._send = send
        self._core = FleetCore(slots_needed(plan), os.getpid(), ran_before)
        self._lock = threading.Lock()
        self._gone = threading.Event()
        self._events: Events | None = None
        self._pids: dict[NodeName, dict[str, int]] = {}
        self.note = ""
        """Why it waits for room, or with how little it has to do."""

    def __call__(self) -> Fleet:
        """The Agent of the next attempts."""
        return Fleet(self)

    # From the job's controller -------------------------------------------------------------------

    def start(self, events: Events) -> None:
        """Look for room; AgentReady goes to `events` when there are agents."""
        with self._lock:
            self._events = events
            self._carry_out(self._core.start())

    def tell(self, message: ToAgent) -> None:
        """What an agent would be told."""
        if isinstance(message, Deploy):
            fingerprints = channel_fingerprints(self._plan, message.channels)
        with self._lock:
            if isinstance(message, Deploy):
                self._carry_out(self._core.deploy(message, fingerprints))
            elif isinstance(message, ToSubtask):
                self._carry_out(self._core.to_subtask(message))
            elif isinstance(message, CancelAttempt):
                self._carry_out(self._core.cancel(message))
            else:
                # Shutdown is close(); what concerns the network is the fleet's and the nodes'.
                raise AssertionError(f"a controller never says {message}")

    def close(self, wait_s: float = CLOSE_WAIT_S) -> None:
        """Close every agent and wait until they are gone. May be repeated."""
        with self._lock:
            self._carry_out(self._core.close())
            self._note_end()
        if not self._gone.wait(wait_s):
            log.warning("%s: not all of its agents are known to be gone", self._plan.name)

    # From the cluster's controller ---------------------------------------------------------------

    def on_news(self, news: News) -> None:
        """Any thread; one after the other."""
        with self._lock:
            self._carry_out(self._on(news))
            self._note_end()

    def _on(self, news: News) -> Sequence[Command]:
        core = self._core
        if isinstance(news, Told):
            return self._on_told(news)
        if isinstance(news, Granted):
            self.note = news.note
            log.info(
                "%s: runs on %s%s", self._plan.name,
                ", ".join(f"{node.name} ({node.slots} slots)" for node in news.nodes),
                f"; {news.note}" if news.note else "",
            )  # fmt: skip
            return core.granted(news)
        if isinstance(news, Waiting):
            self.note = news.reason
            log.warning("%s: waits: %s", self._plan.name, news.reason)
            return []
        if isinstance(news, NodeLost):
            log.warning("%s: node %s is lost: %s", self._plan.name, news.name, news.cause)
            return core.node_lost(news.name, news.cause)
        self._pids.pop(news.name, None)
        if isinstance(news, AgentGone):
            return core.agent_gone(news.name, news.cause)
        return core.node_gone(news.name)

    def _on_told(self, told: Told) -> Sequence[Command]:
        try:
            message = decode_to_controller(told.body)
        except msgspec.DecodeError as error:
            log.error("node %s says what cannot be understood: %s", told.name, error)
            return []
        if isinstance(message, AgentReady) and told.name in self._core.agents:
            pids = {"agent": message.pid, "fork server": message.fork_server_pid}
            self._pids[told.name] = {title: pid for title, pid in pids.items() if pid}
        return self._core.told(told.name, message)

    def _carry_out(self, commands: Sequence[Command]) -> None:
        for command in commands:
            if isinstance(command, Say):
                self._send(Tell(command.name, encode(command.message)))
            elif isinstance(command, Emit):
                self._emit(command.message)
            elif isinstance(command, Lose):
                self._emit(AgentLost(os.getpid(), 0, command.cause, all_gone=True))
            else:
                self._send(command)

    def _emit(self, event: ToController | AgentLost) -> None:
        assert self._events is not None
        self._events.put(event)

    def _note_end(self) -> None:
        if self._core.all_gone:
            self._gone.set()

    # For people ----------------------------------------------------------------------------------

    def pids(self, found: dict[str, int]) -> dict[str, int]:
        """A job's process ids with the node in front: `found` are the Controller's."""
        with self._lock:
            named = {
                f"{name}: {title}": pid
                for name, pids in sorted(self._pids.items())
                for title, pid in pids.items()
            }
            for title, pid in found.items():
                vertex, bracket, index = title.rpartition("[")
                if bracket:
                    node = self._core.node_of(SubtaskKey(vertex, int(index.rstrip("]"))))
                    named[f"{node}: {title}" if node else title] = pid
        return {"coordinator": os.getpid(), **named}


class Fleet:
    """One life of the fleet, from StartAgent to AgentLost: what a Controller takes for an agent."""

    def __init__(self, fleets: Fleets) -> None:
        self._fleets = fleets

    @property
    def pid(self) -> int:
        """The process that stands for all of them: this one."""
        return os.getpid()

    def start(self, events: Events) -> None:
        """Find room, open agents; AgentReady comes when all are warm."""
        self._fleets.start(events)

    def send(self, message: ToAgent) -> None:
        """Say something to the agents that it concerns."""
        self._fleets.tell(message)

    def kill(self) -> None:
        """Have every agent closed; nobody waits for it."""
        self._fleets.close(0)

    def close(self) -> None:
        """Have every agent closed and wait until they are gone."""
        self._fleets.close()
