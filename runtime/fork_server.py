"""The fork server as the agent sees it: a warm process that forks children on request.

It is the `multiprocess` forkserver, run from an agent whose `__main__` is ours, so that the user's
is never imported again. A start blocks until the server answers, so `Starter` does it in a thread.
The server reaps the children; their exit status comes through each one's sentinel.
"""

from __future__ import annotations

import importlib
import os
import queue
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import multiprocess
from multiprocess import forkserver, popen_forkserver
from multiprocess.process import current_process
from multiprocess.reduction import DupFd

from penstock.elements.errors import EngineError

from .preload import AGENT_PID_VARIABLE

START_TIMEOUT_NS = 120_000_000_000
"""For the server to answer a start; its imports from a cold disk are in the first one."""
_STATUS = struct.Struct("q")


@dataclass(frozen=True)
class Child:
    """A started process. `sentinel` becomes readable when the server has reaped it."""

    pid: int
    sentinel: int
    _popen: Any
    """Its finaliser owns the sentinel."""

    def status(self) -> int | None:
        """Its exit code, or minus its signal; None if the server died before it could tell.

        Requires: the sentinel is readable. Read it once.
        """
        data = os.read(self.sentinel, _STATUS.size)
        if len(data) < _STATUS.size:
            return None
        (status,) = _STATUS.unpack(data)
        return int(status)

    def close(self) -> None:
        """Release the sentinel."""
        self._popen.finalizer()


class ForkServer:
    """One per agent. Requires: `start` is called in a thread that lives as long as the agent."""

    def __init__(self) -> None:
        self.pid = 0
        self.pidfd = -1
        self._context = multiprocess.get_context("forkserver")

    def start(self, directory: str) -> None:
        """Exec the server and let it import in the background.

        `directory` takes its socket; see sweep.socket_directory.
        """
        os.environ[AGENT_PID_VARIABLE] = str(os.getpid())
        current_process()._config["tempdir"] = directory
        forkserver.set_forkserver_preload(["penstock.runtime.preload"])
        forkserver.ensure_running()
        pid = forkserver._forkserver._forkserver_pid
        assert pid is not None
        self.pid = pid
        # Our own child, not waited for: its pid cannot have been reused.
        self.pidfd = os.pidfd_open(pid)

    def spawn(self, name: str, target: str, descriptor: int, *args: Any) -> Child:
        """Fork a child that calls `target(descriptor in the child, *args)`. Blocks meanwhile.

        `target` is `module:function`, looked up in the child: the agent need not import it.
        Raises EngineError when the server does not answer.
        """
        process = self._context.Process(
            target=_run, name=name, args=(target, DupFdOnPickle(descriptor), *args)
        )
        try:
            popen = popen_forkserver.Popen(process)
        except (OSError, EOFError) as error:
            raise EngineError(f"the fork server did not start {name}: {error}") from error
        return Child(popen.pid, popen.sentinel, popen)


class DupFdOnPickle:
    """A descriptor that becomes the child's own copy when the start request is pickled."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __reduce__(self) -> tuple[Callable[[Any], int], tuple[Any]]:
        return _detach, (DupFd(self._descriptor),)


def _detach(duplicate: Any) -> int:
    descriptor: int = duplicate.detach()
    return descriptor


def _run(target: str, descriptor: int, *args: Any) -> None:
    named_function(target)(descriptor, *args)


def named_function(name: str) -> Callable[..., Any]:
    """The function that `module:function` names.

    >>> named_function("math:floor")(2.5)
    2
    """
    module, _, function = name.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found


@dataclass(frozen=True)
class Start:
    """A request to the Starter; `tag` comes back with the result."""

    tag: Any
    name: str
    target: str
    descriptor: int
    args: tuple[Any, ...]
    wanted: Callable[[], bool]
    """Asked right before the fork: False drops the request."""


@dataclass(frozen=True)
class StartResult:
    """What became of one Start: a child, an error, or neither when it was dropped."""

    tag: Any
    child: Child | None
    error: str | None = None


class Starter:
    """Starts children one after another in its thread; results wait until `wake` is heeded."""

    def __init__(self, server: ForkServer, wake: Callable[[], None]) -> None:
        self._server = server
        self._wake = wake
        self._requests: queue.SimpleQueue[Start] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[StartResult] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="starter", daemon=True).start()

    def submit(self, start: Start) -> None:
        """Queue a start; at most one per subtask of an attempt, so the plan bounds the queue."""
        self._requests.put(start)

    def results(self) -> list[StartResult]:
        """What has been done since the last call."""
        done: list[StartResult] = []
        while True:
            try:
                done.append(self._results.get_nowait())
            except queue.Empty:
                return done

    def _run(self) -> None:
        while True:
            start = self._requests.get()
            self._results.put(self._start(start))
            self._wake()

    def _start(self, start: Start) -> StartResult:
        if not start.wanted():
            return StartResult(start.tag, None)
        try:
            child = self._server.spawn(start.name, start.target, start.descriptor, *start.args)
        except Exception as error:
            return StartResult(start.tag, None, str(error))
        return StartResult(start.tag, child)
