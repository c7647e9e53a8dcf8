"""A job process for tests of the controller: asks for slots, opens agents, and does as its name
and its bundle's first line say. Run as `toy_job.py FD`."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from pathlib import Path

from penstock.cluster.job_messages import (
    AgentGone,
    Ended,
    FromJob,
    Granted,
    LaunchJob,
    NeedSlots,
    NodeGone,
    OpenAgent,
    Report,
    StopJob,
    Tell,
    ToJob,
    Told,
    decode_to_job,
    encode,
)
from penstock.runtime.framing import frame, receive_frame
from penstock.runtime.lifeline import die_with_parent


class ToyJob:
    """`job`-first messages come in, what a fleet would say goes out."""

    def __init__(self, descriptor: int) -> None:
        self.sock = socket.socket(fileno=descriptor)
        told = self.next()
        assert isinstance(told, LaunchJob)
        self.told = told
        self.orders = json.loads(Path(told.bundle).read_text())
        self.grant = 0
        self.again = False

    def next(self) -> ToJob:
        body = receive_frame(self.sock)
        if body is None:
            os._exit(3)
        return decode_to_job(body)

    def say(self, message: FromJob) -> None:
        self.sock.sendall(frame(encode(message)))

    def need(self) -> None:
        self.grant += 1
        width = self.told.parallelism.get("", self.orders["slots"])
        self.say(NeedSlots(self.grant, width, self.again))

    def run(self) -> None:
        sys.stderr.write(f"launch {self.told.launch} of {self.told.submission}\n")
        sys.stderr.flush()
        if self.orders.get("dies"):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.told.parallelism.get("nonsense"):
            self.end("failed", "there is no operator nonsense")
        self.need()
        while True:
            self.on(self.next())

    def on(self, message: ToJob) -> None:
        if isinstance(message, Granted):
            for node in message.nodes:
                self.say(OpenAgent(node.name))
                self.say(Tell(node.name, b"deploy"))
            self.report("running")
        elif isinstance(message, Told) and message.body == b"finish":
            self.end("finished")
        elif isinstance(message, Told):
            self.say(Tell(message.name, b"heard " + message.body))
        elif isinstance(message, StopJob):
            self.end("stopped")
        elif isinstance(message, NodeGone | AgentGone):
            self.again = True
            self.need()

    def report(self, state: str) -> None:
        self.say(
            Report(json.dumps({"state": state, "settings": self.told.settings.decode()}).encode())
        )

    def end(self, outcome: str, failure: str = "") -> None:
        self.say(Ended(outcome, b"summary", failure))
        os._exit(0)


if __name__ == "__main__":
    die_with_parent(os.getppid())
    ToyJob(int(sys.argv[1])).run()
