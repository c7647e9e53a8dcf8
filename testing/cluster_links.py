"""Ways in which the links of a cluster under chaos are harmed.

EmulatedLinks between emulated hosts, where these can be made; Roads on loopback, where only the
connections with the controller can be cut.
"""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Callable
from itertools import permutations
from typing import Protocol

from .emulated_cluster import CONTROLLER, EmulatedCluster
from .local_cluster import LocalCluster

DELAY_S = (0.02, 0.3)
LOSS = (0.02, 0.1)
DIAL_S = 2.0


class Links(Protocol):
    """What chaos may do to links."""

    def harm(self, chance: random.Random) -> tuple[str, Callable[[], None]]:
        """Harm some; what it is called, and what undoes it."""

    def heal(self) -> None:
        """All links are whole."""

    def close(self) -> None:
        """Give up what was made for this."""


class EmulatedLinks:
    """Between any two hosts, the controller's among them."""

    def __init__(self, cluster: EmulatedCluster) -> None:
        self._network = cluster.network

    def harm(self, chance: random.Random) -> tuple[str, Callable[[], None]]:
        """A pair cut, a host cut off, one direction cut, a host's links slow or lossy."""
        hosts = self._network.hosts
        one, other = chance.sample(hosts, 2)
        around = [pair for pair in permutations(hosts, 2) if one in pair]
        kind = chance.choice(("link cut", "host cut off", "one way", "slow", "lossy"))
        delay_s = loss = 0.0
        if kind == "link cut":
            links = [(one, other), (other, one)]
        elif kind == "one way":
            links = [(one, other)]
        else:
            links = around
            delay_s = chance.uniform(*DELAY_S) if kind == "slow" else 0.0
            loss = chance.uniform(*LOSS) if kind == "lossy" else 0.0
        for source, target in links:
            cut = not delay_s and not loss
            self._network.link(source, target, cut=cut, delay_s=delay_s, loss=loss)
        name = "controller cut off" if (kind, one) == ("host cut off", CONTROLLER) else kind

        def undo() -> None:
            for source, target in links:
                self._network.link(source, target)

        return name, undo

    def heal(self) -> None:
        """Every link, both ways."""
        self._network.heal()

    def close(self) -> None:
        """The network ends with its own context."""


class Roads:
    """From each agent to the controller. To be made before the agents are started."""

    def __init__(self, cluster: LocalCluster) -> None:
        self._roads = {name: Road(cluster.address) for name in cluster.agents}
        cluster.roads.update((name, road.address) for name, road in self._roads.items())

    def harm(self, chance: random.Random) -> tuple[str, Callable[[], None]]:
        """End the connection of an agent; it may come back at once."""
        self._roads[chance.choice(sorted(self._roads))].cut()
        return "connection cut", self.heal

    def heal(self) -> None:
        """Nothing stays cut."""

    def close(self) -> None:
        """Let nobody pass any more."""
        for road in self._roads.values():
            road.close()


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
            _shut_down(sock)

    def close(self) -> None:
        """Let nobody pass any more."""
        _shut_down(self._server)
        self._server.close()
        self.cut()

    def _listen(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(self._target, timeout=DIAL_S)
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
            # One of the two has ended.
            pass
        for sock in (source, target):
            _shut_down(sock)
        with self._lock:
            self._open.discard(source)
        # Its other direction holds the target, and closes that one.
        source.close()


def _shut_down(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        # Ended by itself.
        pass
