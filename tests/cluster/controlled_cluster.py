"""A controller in this process, with toy nodes and toy jobs, and a client of it."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toy_node import ToyNode

from penstock.cluster.bundle import Bundle
from penstock.cluster.client import Client
from penstock.cluster.client_messages import JobInfo
from penstock.cluster.controller import ClusterController, ControllerSettings
from penstock.cluster.link import format_address
from penstock.dataflow.settings import JobSettings
from penstock.runtime.net.credentials import Credentials

CREDENTIALS = Credentials(secret=b"s" * 32)
TOY_JOB = (sys.executable, str(Path(__file__).with_name("toy_job.py")))
PATIENCE_S = 20.0


def bundle_of(**orders: Any) -> Bundle:
    data = json.dumps(orders).encode()
    return Bundle(hashlib.sha256(data).hexdigest(), data, len(data))


def until(look: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.01)


@dataclass
class Cluster:
    """A controller in this process, toy nodes, toy jobs."""

    data: Path
    stack: ExitStack
    lease_s: float = 10.0
    margin_s: float = 0.2

    def start(self) -> Cluster:
        settings = ControllerSettings(
            "127.0.0.1:0", self.data, CREDENTIALS, lease_s=self.lease_s, heartbeat_s=0.1,
            margin_s=self.margin_s,
        )  # fmt: skip
        self.controller = ClusterController(settings, job_command=TOY_JOB)
        self.stack.callback(self.controller.close)
        self.controller.start()
        self.address = format_address(*self.controller.address)
        self.client = Client(self.address, CREDENTIALS)
        self.stack.callback(self.client.close)
        return self

    def node(self, node: str = "a", incarnation: str = "1", slots: int = 2) -> ToyNode:
        made = ToyNode(self.address, CREDENTIALS, node, incarnation, slots)
        self.stack.callback(made.close)
        return made

    def submit(self, job: str = "j", slots: int = 2, **orders: Any) -> JobInfo:
        return self.client.submit(job, bundle_of(slots=slots, **orders), JobSettings())

    def job(self, job: str = "j") -> JobInfo:
        return self.client.jobs(job, ended=True)[-1]

    def until_state(self, state: str, job: str = "j") -> JobInfo:
        info: JobInfo = until(lambda: info if (info := self.job(job)).state == state else None)
        return info

    def coordinator(self, job: str = "j") -> int:
        """The pid of the job's process."""
        process = self.controller._world.processes[job]._process
        assert process is not None
        return process.pid
