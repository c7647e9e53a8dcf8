"""A controller of a few lines, a real node agent in a process of its own, and a job for it."""

from __future__ import annotations

import contextlib
import importlib
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest

import penstock as ps
from penstock.cluster.bundle import Bundle, make_bundle
from penstock.cluster.link import Link, Listener
from penstock.cluster.node_messages import (
    BundleChunk,
    FromJobAgent,
    Heartbeat,
    HeartbeatReply,
    Join,
    NeedBundle,
    OpenJob,
    ToJobAgent,
    ToNode,
    Welcome,
    decode_from_node,
    encode,
)
from penstock.cluster.security import load_credentials, make_secret
from penstock.dataflow.program import Program
from penstock.dataflow.settings import JobSettings
from penstock.runtime import messages as runtime
from penstock.runtime.deploying import Deployer
from penstock.runtime.enumerators import Enumerators

PATIENCE_S = 60.0
"""Nothing here waits for it unless something is broken, or the machine very busy."""
LEASE_MS, HEARTBEAT_MS = 3000, 200
CHUNK = 700
"""Bytes per chunk of a bundle here: several for any bundle."""
T = TypeVar("T")


class FakeController:
    """Welcomes, answers heartbeats and serves bundles by itself; the rest is up to the test."""

    def __init__(self, folder: Path) -> None:
        self.secret = folder / "secret"
        make_secret(self.secret)
        self.heard: list[Any] = []
        self.answer: Callable[[Join], ToNode] = lambda _: Welcome(1, LEASE_MS, HEARTBEAT_MS)
        self.answer_heartbeats = True
        self.bundles: dict[str, bytes] = {}
        self.links: list[Link] = []
        self._inbox: queue.Queue[Any] = queue.Queue()
        self._listener = Listener(
            "127.0.0.1:0", load_credentials(str(self.secret), None), self._take
        )
        self.address = f"127.0.0.1:{self._listener.address[1]}"

    def close(self) -> None:
        self._listener.close()
        for link in self.links:
            link.cut()

    def tell(self, message: ToNode) -> None:
        self.links[-1].send(encode(message))

    def wait_for(self, kind: type[T], which: Callable[[T], bool] = lambda _: True) -> T:
        """The next message of a kind, past others; `str` is the end of a link."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            message = self._inbox.get(timeout=max(0, deadline - time.monotonic()))
            self.heard.append(message)
            if isinstance(message, kind) and which(message):
                return message

    def wait_for_agent(self, kind: type[T]) -> T:
        """The next message of a kind from a job agent."""
        while True:
            relayed = self.wait_for(FromJobAgent)
            event = runtime.decode_to_controller(relayed.body)
            assert not isinstance(event, runtime.AgentFailure), event
            if isinstance(event, kind):
                return event

    def wait_for_event(self, kind: type[T]) -> T:
        """The next event of a kind from a subtask."""
        while True:
            event = runtime.decode_event(self.wait_for_agent(runtime.FromSubtask).event)
            assert not isinstance(event, runtime.Failed), event
            if isinstance(event, kind):
                return event

    def _take(self, link: Link) -> None:
        self.links.append(link)
        link.start(self._on_body, lambda link, reason: self._inbox.put(reason))

    def _on_body(self, link: Link, body: bytes) -> None:
        message = decode_from_node(body)
        if isinstance(message, Join):
            link.send(encode(self.answer(message)))
        elif isinstance(message, NeedBundle):
            whole = self.bundles.get(message.sha256, b"")
            piece = whole[message.offset : message.offset + CHUNK]
            link.send(encode(BundleChunk(message.sha256, message.offset, piece)))
        if isinstance(message, Heartbeat):
            if self.answer_heartbeats:
                link.send(encode(HeartbeatReply(message.sequence)))
        else:
            self._inbox.put(message)


@contextlib.contextmanager
def node_process(
    controller: FakeController, directory: Path, *words: str
) -> Iterator[subprocess.Popen[str]]:
    """`penstock agent`; what is left of it is killed at the end."""
    node = subprocess.Popen(
        [
            *(sys.executable, "-m", "penstock", "agent", "--join", controller.address),
            *("--secret-file", str(controller.secret), "--directory", str(directory)),
            *("--name", "node one", *words),
        ],
        stderr=subprocess.PIPE,
        text=True,
    )
    said: list[str] = []
    assert node.stderr is not None
    listening = threading.Thread(target=lambda: said.extend(node.stderr or ()), daemon=True)
    listening.start()
    try:
        yield node
    finally:
        with contextlib.suppress(ProcessLookupError):
            node.send_signal(signal.SIGCONT)
        node.kill()
        node.wait()
        listening.join(PATIENCE_S)
        node.stderr.close()
        sys.stdout.write("".join(said))


def below(pid: int) -> list[int]:
    """Every process below this one."""
    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


def gone(pids: list[int]) -> None:
    """Returns when none of them runs any more."""
    deadline = time.monotonic() + PATIENCE_S
    for pid in pids:
        while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline, f"{pid} lives on"
            time.sleep(0.01)


TOY = """
import os
from dataclasses import dataclass

@dataclass
class Word:
    word: str

def say(row) -> Word:
    word = "x" * int(os.environ.get("TOY_NOISE", "0")) + os.environ.get("TOY_WORD", "quiet")
    print("toy says", word, "in", os.getcwd())
    return Word(word)
"""


def toy(folder: Path) -> tuple[Bundle, ps.Pipeline]:
    """A job whose function is in a module of its own, which exists in the bundle and not on
    Python's path; it prints a line per row, for ever."""
    folder.mkdir()
    (folder / "penstock_toy.py").write_text(TOY)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        sys.modules.pop("penstock_toy", None)
        module = importlib.import_module("penstock_toy")
        pipeline = ps.Pipeline("toy")
        pipeline.source(ps.ImpulseSource(rate=50.0)).map(module.say).sink(ps.BlackholeSink())
        return make_bundle(_program(pipeline), [str(folder)]), pipeline


def _program(pipeline: ps.Pipeline) -> Program:
    return Program(pipeline.name, tuple(pipeline._ends), pipeline.functions)


def open_job(bundle: Bundle, launch: int = 1, **environment: str) -> OpenJob:
    return OpenJob("toy", launch, bundle.sha256, bundle.size, environment)


def deploy(pipeline: ps.Pipeline, store_root: Path, launch: int = 1) -> ToJobAgent:
    """The whole job for this node, as a coordinator would say it."""
    plan = _program(pipeline).plan(1).plan
    enumerators = Enumerators(plan)
    enumerators.list_all()
    settings = JobSettings(state_dir=str(store_root))
    store_root.mkdir(parents=True, exist_ok=True)
    message = Deployer(plan, settings, str(store_root)).message(1, 1, "run", None, enumerators)
    return ToJobAgent("toy", launch, runtime.encode(message))
