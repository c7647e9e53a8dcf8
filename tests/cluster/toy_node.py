"""A node agent for tests of the controller: a real link, and what arrives on it, kept in order."""

from __future__ import annotations

import queue
import threading
from typing import Any, TypeVar

import msgspec

from penstock import __version__
from penstock.cluster.bundle import python_minor
from penstock.cluster.link import Link, dial
from penstock.cluster.node_messages import (
    PROTOCOL_VERSION,
    FromJobAgent,
    Heartbeat,
    JobAgentGone,
    Join,
    NodeName,
    OpenJob,
    Welcome,
    decode_to_node,
    encode,
)
from penstock.runtime.net.credentials import Credentials

PATIENCE_S = 20.0
Message = TypeVar("Message")


class ToyNode:
    """Joins at once and beats until told otherwise. Requires: whoever makes it closes it."""

    def __init__(
        self, address: str, credentials: Credentials, node: str, incarnation: str = "1",
        slots: int = 2, beats_each_s: float = 0.1,
    ) -> None:  # fmt: skip
        self.name = NodeName(node, incarnation)
        self.heard: queue.Queue[Any] = queue.Queue()
        self.ended = threading.Event()
        self.link = dial(address, credentials, self._on_body, self._on_end, 5)
        self._quiet = threading.Event()
        self.say(
            Join(self.name, slots, {"zone": "x"}, 1 << 30, "127.0.0.1", 1, PROTOCOL_VERSION,
                 __version__, python_minor())
        )  # fmt: skip
        self._beats_each_s = beats_each_s
        threading.Thread(target=self._beat, daemon=True).start()

    def joined(self) -> ToyNode:
        """It must have been welcomed."""
        self.until(Welcome)
        return self

    def say(self, message: msgspec.Struct) -> None:
        self.link.send(encode(message))

    def from_agent(self, job: str, launch: int, body: bytes) -> None:
        self.say(FromJobAgent(job, launch, body))

    def agent_gone(self, job: str, launch: int) -> None:
        self.say(JobAgentGone(job, launch, "closed"))

    def until(self, kind: type[Message]) -> Message:
        """The next of this kind; others before it are dropped."""
        while True:
            message = self.heard.get(timeout=PATIENCE_S)
            if isinstance(message, kind):
                return message

    def opened(self, job: str) -> OpenJob:
        """The next OpenJob, which must be of this job."""
        found = self.until(OpenJob)
        assert found.job == job
        return found

    def be_quiet(self) -> None:
        """No more heartbeats."""
        self._quiet.set()

    def close(self) -> None:
        self._quiet.set()
        self.link.cut()
        assert self.ended.wait(PATIENCE_S)

    def _beat(self) -> None:
        sequence = 0
        while not self._quiet.wait(self._beats_each_s):
            sequence += 1
            self.say(Heartbeat(sequence))

    def _on_body(self, link: Link, body: bytes) -> None:
        self.heard.put(decode_to_node(body))

    def _on_end(self, link: Link, reason: str) -> None:
        self.ended.set()
