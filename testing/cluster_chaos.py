"""Shooting clusters: kills, stops, cuts, drains and rescales a running job at random.

What dies is started again a little later, as a supervisor would. Everything is decided by one seed;
what it meets depends on timing, as in life.
"""

from __future__ import annotations

import heapq
import os
import random
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import count

from penstock.elements.errors import PenstockError
from penstock.runtime.sweep import start_time

from .local_cluster import LocalCluster, Process

POLL_S = 0.05
STOP_S = (0.2, 4.0)
"""How long a node stands still: shorter and longer than its lease."""
AWAY_S = (0.0, 3.0)
"""How long a killed root stays away."""
WIDTHS = (1, 2, 3, 4)
BELOW = ("subtask", "net", "fork server", "job agent", "job")
ACTIONS = {
    "subtask": 4, "net": 3, "fork server": 1, "job agent": 2, "job": 1, "agent": 3,
    "controller": 1, "stop": 2, "stop net": 1, "cut": 3, "drain": 1, "rescale": 2,
}  # fmt: skip
"""How often each is chosen, beside the others."""


class Road:
    """A way to the controller that can be cut: forwards bytes both ways until told."""

    def __init__(self, target: str) -> None:
        """`target`: host:port."""
        host, port = target.rsplit(":", 1)
        self._target = (host, int(port))
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._listen, name="road", daemon=True).start()

    def cut(self) -> None:
        """End all connections that are on it; new ones may come at once."""
        with self._lock:
            cut, self._open = self._open, set()
        for sock in cut:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                # Ended by itself.
                pass

    def close(self) -> None:
        """Let nobody pass any more."""
        try:
            self._server.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._server.close()
        self.cut()

    def _listen(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(self._target, timeout=2.0)
                far.settimeout(None)
            except OSError:
                near.close()
                continue
            with self._lock:
                self._open |= {near, far}
            for ends in ((near, far), (far, near)):
                threading.Thread(target=self._carry, args=ends, daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                target.sendall(data)
        except OSError:
            pass
        for sock in (source, target):
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        with self._lock:
            self._open.discard(source)
        # Its other direction holds the target, and closes that one.
        source.close()


class ClusterChaos:
    """Acts on one cluster and its job until told to heal."""

    def __init__(
        self, cluster: LocalCluster, seed: int, pause_s: tuple[float, float] = (0.3, 2.5)
    ) -> None:
        """`pause_s`: least and most time between two actions. Before the agents are started:
        they reach the controller by roads that this cuts."""
        self.done: Counter[str] = Counter()
        self._cluster = cluster
        self._random = random.Random(seed)
        self._pause_s = pause_s
        self._roads = {name: Road(cluster.address) for name in cluster.agents}
        cluster.roads.update((name, road.address) for name, road in self._roads.items())
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._stopped: set[tuple[int, int]] = set()
        self._returning: set[str] = set()

    def run(self, job: str, seconds: float) -> None:
        """Act for a while, or until the job has ended; then heal."""
        began = time.monotonic()
        due = began + self._random.uniform(*self._pause_s)
        while (now := time.monotonic()) < began + seconds:
            while self._later and self._later[0][0] <= now:
                heapq.heappop(self._later)[2]()
            self._bring_back()
            if now >= due:
                self._act(job)
                due = now + self._random.uniform(*self._pause_s)
            time.sleep(POLL_S)
        self.heal()

    def heal(self) -> None:
        """Wake what sleeps and start what is away; nothing more is done to it."""
        for pid, started in self._stopped:
            _signal(pid, started, signal.SIGCONT)
        self._later.clear()
        for name in ("controller", *self._cluster.agents):
            if self._cluster.popens[name].poll() is not None:
                self._start(name)

    def close(self) -> None:
        """Give the roads up."""
        for road in self._roads.values():
            road.close()

    # Actions ----------------------------------------------------------------------------------

    def _act(self, job: str) -> None:
        action = self._random.choices(list(ACTIONS), list(ACTIONS.values()))[0]
        name = self._random.choice(self._cluster.agents)
        if action in BELOW:
            found = self._cluster.processes(action)
            if not found:
                return
            self._cluster.kill(self._random.choice(found))
        elif action in ("agent", "controller"):
            root = name if action == "agent" else "controller"
            if self._cluster.popens[root].poll() is not None:
                return
            self._cluster.kill_root(root)
        elif action == "stop":
            self._stop(self._cluster.processes(node=name))
        elif action == "stop net":
            self._stop(self._cluster.processes("net", name))
        elif action == "cut":
            self._roads[name].cut()
        elif action == "drain":
            self._cluster.popens[name].send_signal(signal.SIGTERM)
        elif not self._rescale(job):
            return
        self.done[action] += 1

    def _rescale(self, job: str) -> bool:
        try:
            self._cluster.client.scale(job, {"": self._random.choice(WIDTHS)})
        except PenstockError:
            # The controller is away, or the job is over.
            return False
        return True

    def _stop(self, processes: list[Process]) -> None:
        names = {(process.pid, process.started) for process in processes}
        for pid, started in names:
            _signal(pid, started, signal.SIGSTOP)
        self._stopped |= names

        def wake() -> None:
            for pid, started in names:
                _signal(pid, started, signal.SIGCONT)
            self._stopped.difference_update(names)

        self._in(self._random.uniform(*STOP_S), wake)

    def _bring_back(self) -> None:
        """Roots that have ended, for whatever reason, are started again in a while."""
        for name, popen in self._cluster.popens.items():
            if popen.poll() is not None and name not in self._returning:
                self._returning.add(name)
                self._in(self._random.uniform(*AWAY_S), partial(self._start, name))

    def _start(self, name: str) -> None:
        self._returning.discard(name)
        if name == "controller":
            self._cluster.start_controller()
        else:
            self._cluster.start_agent(name)

    def _in(self, seconds: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._later, (time.monotonic() + seconds, next(self._order), action))


def _signal(pid: int, started: int, number: int) -> None:
    """To that very process, if it is there."""
    if start_time(pid) == started:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            pass
