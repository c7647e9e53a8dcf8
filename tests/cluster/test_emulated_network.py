"""The emulated hosts do to packets what tests of the cluster rely on."""

from __future__ import annotations

import subprocess
import sys

import pytest

from penstock.testing.emulated_network import EmulatedNetwork, why_not

REASON = why_not()
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")

LISTEN = """
import socket, sys
server = socket.create_server((sys.argv[1], 7000)); print("up", flush=True)
while True:
    other, _ = server.accept(); other.sendall(other.recv(100)); other.close()
"""
CALL = """
import socket, sys, time
begun = time.monotonic()
try:
    with socket.create_connection((sys.argv[1], 7000), 1) as other:
        other.sendall(b"hello"); assert other.recv(100) == b"hello"
except OSError:
    print("lost")
else:
    print(time.monotonic() - begun)
"""


def call(network: EmulatedNetwork, source: int, target: int) -> float | None:
    words = [*network.on(source), sys.executable, "-c", CALL, network.address(target)]
    said = subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()
    return None if said == "lost" else float(said)


def test_links_pass_delay_and_lose_what_they_are_told_to() -> None:
    with EmulatedNetwork(3) as network:
        words = [*network.on(2), sys.executable, "-c", LISTEN, network.address(2)]
        server = subprocess.Popen(words, stdout=subprocess.PIPE)
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == b"up\n"
            assert call(network, 1, 2) is not None
            network.link(1, 2, delay_s=0.1)
            delayed = call(network, 1, 2)
            assert delayed is not None
            # SYN and then the question each wait.
            assert delayed >= 0.2
            network.link(1, 2)
            network.link(2, 1, cut=True)
            assert call(network, 1, 2) is None
            assert call(network, 3, 2) is not None
            network.link(2, 1)
            network.isolate(2)
            assert call(network, 3, 2) is None
            network.isolate(2, cut=False)
            assert call(network, 3, 2) is not None
        finally:
            server.kill()
            server.wait()
            server.stdout.close()
