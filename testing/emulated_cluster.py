"""A whole cluster whose nodes are emulated hosts, so that links between them can be harmed.

The controller is host 1, as is who submits; agent `n<i>` is host i + 1.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from penstock.cluster.client import Client
from penstock.cluster.security import load_credentials

from .emulated_network import EmulatedNetwork
from .local_cluster import LocalCluster

CONTROLLER = 1
PORT = 7070


class EmulatedCluster(LocalCluster):
    """Use as a context, from `network.entered(CONTROLLER)`; `emulated_cluster` does both."""

    def __init__(self, folder: Path, network: EmulatedNetwork, agents: int, slots: int) -> None:
        super().__init__(folder, agents, slots)
        self.network = network
        self.address = f"{network.address(CONTROLLER)}:{PORT}"
        self.client = Client(self.address, load_credentials(str(folder / "secret"), None))

    def host_of(self, name: str) -> list[str]:
        """By name: controller, n1, n2, …"""
        return self.network.on(self.host(name))

    def host(self, name: str) -> int:
        """The number of a service's host."""
        return CONTROLLER if name == "controller" else int(name[1:]) + 1


@contextlib.contextmanager
def emulated_cluster(folder: Path, agents: int = 3, slots: int = 2) -> Iterator[EmulatedCluster]:
    """A cluster that is up, with all links whole."""
    with EmulatedNetwork(agents + 1) as network, network.entered(CONTROLLER):
        with EmulatedCluster(folder, network, agents, slots) as cluster:
            try:
                yield cluster
            finally:
                network.heal()
