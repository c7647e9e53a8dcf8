"""Several agents on one machine that stand for as many nodes, to the controller one agent."""

from __future__ import annotations

import queue
import threading

import cloudpickle
import psutil

from penstock.dataflow.plan import Plan
from penstock.runtime.agent_handle import (
    SUBTASK_ENTRY,
    AgentHandle,
    AgentLost,
    ToControllerOrLost,
)
from penstock.runtime.deploying import channel_fingerprints
from penstock.runtime.messages import (
    AgentReady,
    AttemptGone,
    Deploy,
    NetAddresses,
    NetListening,
    SubtaskKey,
    ToAgent,
    ToSubtask,
    UseNetwork,
)
from penstock.runtime.splitting import split_deploy

SECRET = b"a secret of the tests"
LOOPBACK = UseNetwork("127.0.0.1", secret=SECRET)


class Nodes:
    """Index i of every vertex runs on node i modulo the number of nodes.

    Healthy ones only: whoever loses an agent is told of it, and that is all. `use` is what the
    nodes are told of the network; None leaves them without.
    """

    def __init__(
        self, names: str, use: UseNetwork | None = LOOPBACK, entry: str = SUBTASK_ENTRY
    ) -> None:
        self.handles = {name: AgentHandle(entry) for name in names}
        self.heard: list[tuple[str, ToControllerOrLost]] = []
        self._use = use
        self._lock = threading.Lock()
        self._ready: set[str] = set()
        self._gone: dict[int, set[str]] = {}
        self._listening: dict[str, tuple[str, int]] = {}
        self._parts: dict[str, Deploy] = {}
        self._threads: list[threading.Thread] = []

    @property
    def pid(self) -> int:
        return next(iter(self.handles.values())).pid

    def start(self, events: queue.SimpleQueue[ToControllerOrLost]) -> None:
        self._events = events
        for name, handle in self.handles.items():
            inbox: queue.SimpleQueue[ToControllerOrLost] = queue.SimpleQueue()
            handle.start(inbox)
            if self._use is not None:
                handle.send(self._use)
            thread = threading.Thread(target=self._listen, args=(name, inbox), daemon=True)
            thread.start()
            self._threads.append(thread)

    def send(self, message: ToAgent) -> None:
        if isinstance(message, Deploy):
            self._deploy(message)
        elif isinstance(message, ToSubtask):
            self.handles[self.node_of(message.key)].send(message)
        else:
            for handle in self.handles.values():
                handle.send(message)

    def kill(self) -> None:
        for handle in self.handles.values():
            handle.kill()

    def close(self) -> None:
        for handle in self.handles.values():
            handle.close()
        for thread in self._threads:
            thread.join()

    def node_of(self, key: SubtaskKey) -> str:
        names = sorted(self.handles)
        return names[key.index % len(names)]

    def titles(self, name: str) -> dict[int, str]:
        """Of every process below a node's agent."""
        found = {}
        for child in psutil.Process(self.handles[name].pid).children(recursive=True):
            try:
                found[child.pid] = " ".join(child.cmdline()).rstrip()
            except psutil.NoSuchProcess:
                continue
        return found

    def pid_of(self, name: str, begin: str) -> int:
        """The one process of a node whose title begins like this."""
        (pid,) = (pid for pid, title in self.titles(name).items() if title.startswith(begin))
        return pid

    def _deploy(self, deploy: Deploy) -> None:
        plan: Plan = cloudpickle.loads(deploy.plan)
        where = {each.key: self.node_of(each.key) for each in deploy.subtasks}
        fingerprints = channel_fingerprints(plan, deploy.channels)
        with self._lock:
            self._listening.clear()
            self._parts = split_deploy(deploy, where, fingerprints)
        for name, part in self._parts.items():
            self.handles[name].send(part)

    def _listen(self, name: str, inbox: queue.SimpleQueue[ToControllerOrLost]) -> None:
        while True:
            event = inbox.get()
            with self._lock:
                self.heard.append((name, event))
                self._on(name, event)
            if isinstance(event, AgentLost):
                return

    def _on(self, name: str, event: ToControllerOrLost) -> None:
        if isinstance(event, AgentReady):
            self._ready.add(name)
            if len(self._ready) == len(self.handles):
                self._events.put(event)
        elif isinstance(event, AttemptGone):
            gone = self._gone.setdefault(event.attempt, set())
            gone.add(name)
            if len(gone) == len(self.handles):
                self._events.put(event)
        elif isinstance(event, NetListening):
            self._listening[name] = (event.host, event.port)
            wanted = {node for node, part in self._parts.items() if part.net is not None}
            if set(self._listening) == wanted:
                told = NetAddresses(event.generation, event.attempt, dict(self._listening))
                for node in wanted:
                    self.handles[node].send(told)
        else:
            self._events.put(event)
