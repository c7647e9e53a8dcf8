"""A controller of clients alone: real links and messages, jobs that do what the test says."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable

import msgspec

from penstock.cluster.client_messages import (
    BundleHeld,
    ClientHello,
    Failure,
    JobInfo,
    JobList,
    ListJobs,
    ListNodes,
    LogPart,
    LogParts,
    NodeInfo,
    NodeList,
    PutBundle,
    ReadLog,
    Scale,
    ServerHello,
    Stop,
    Submit,
    decode_from_client,
    encode,
)
from penstock.cluster.link import Link, Listener
from penstock.cluster.node_messages import PROTOCOL_VERSION
from penstock.runtime.net.credentials import Credentials


class ToyController:
    """Keeps what clients send; a job's state is what `end` and `states` make of it."""

    def __init__(self, credentials: Credentials, python: str, address: str = "127.0.0.1:0") -> None:
        self.bundles: dict[str, bytes] = {}
        self.submissions: list[Submit] = []
        self.asked: list[object] = []
        self.jobs: list[JobInfo] = []
        self.log = ""
        self.on_list: Callable[[], None] = lambda: None
        self._python = python
        self._links: list[Link] = []
        self._lock = threading.Lock()
        self._listener = Listener(address, credentials, self._welcome)
        self.address = "{}:{}".format(*self._listener.address)

    def end(self, state: str, summary: bytes = b"", note: str = "") -> None:
        """The newest job is over."""
        self.jobs[-1] = msgspec.structs.replace(
            self.jobs[-1], state=state, summary=summary, note=note, ended_ns=2_000_000_000
        )

    def hang_up(self) -> None:
        """Cut all clients off; they may call again."""
        for link in self._links:
            link.cut("the test cuts it")

    def close(self) -> None:
        """No more clients."""
        self._listener.close()
        self.hang_up()

    def _welcome(self, link: Link) -> None:
        self._links.append(link)
        link.start(self._heard, lambda link, reason: None)

    def _heard(self, link: Link, body: bytes) -> None:
        with self._lock:
            link.send(encode(self._answer(decode_from_client(body))))

    def _answer(self, asked: object) -> object:
        self.asked.append(asked)
        if isinstance(asked, ClientHello):
            return ServerHello(PROTOCOL_VERSION, "0", self._python, 1)
        if isinstance(asked, PutBundle):
            held = self.bundles.get(asked.sha256, b"")
            if len(held) < asked.size:
                assert asked.offset == len(held)
                self.bundles[asked.sha256] = held = held + asked.data
            return BundleHeld(asked.request, len(held))
        if isinstance(asked, Submit):
            assert hashlib.sha256(self.bundles[asked.bundle]).hexdigest() == asked.bundle
            self.submissions.append(asked)
            self.jobs.append(job(len(self.jobs) + 1, asked.job))
            return JobList(asked.request, self.jobs[-1:])
        if isinstance(asked, ListJobs):
            self.on_list()
            return JobList(
                asked.request,
                [
                    j
                    for j in self.jobs
                    if asked.job in ("", j.job) and (asked.ended or not j.ended_ns)
                ],
            )
        if isinstance(asked, Stop | Scale):
            if asked.job not in {j.job for j in self.jobs}:
                return Failure(asked.request, "SettingsError", f"there is no job {asked.job!r}")
            return JobList(asked.request, self.jobs[-1:])
        if isinstance(asked, ListNodes):
            return NodeList(asked.request, [node()])
        assert isinstance(asked, ReadLog)
        return LogParts(asked.request, [LogPart("coordinator", self.log), LogPart("n1", "x\n")])


def job(number: int, name: str, state: str = "running") -> JobInfo:
    """A job that runs."""
    return JobInfo(number, name, state, 2, ["n1"], 1, 1_000_000_000, 0, "", b"", b"")


def node() -> NodeInfo:
    """A node with work."""
    return NodeInfo("n1", "member", "127.0.0.1", 4, 2, {"zone": "a"}, 1 << 30, 7, ["rows"], "")
