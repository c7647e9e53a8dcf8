"""The fork server alone: children, their status, and what may exist at a fork."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from multiprocess import forkserver, resource_tracker

from penstock.runtime import fork_server, preload
from penstock.runtime.fork_server import ForkServer, Start, Starter
from penstock.runtime.lifeline import THREAD_ENVIRONMENT


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in THREAD_ENVIRONMENT.items():
            patch.setenv(name, value)
        # Set by start; patched here so that it is gone afterwards.
        patch.setenv(preload.AGENT_PID_VARIABLE, "")
        patch.setenv("PYTHONPATH", os.path.dirname(__file__))
        made = ForkServer()
        made.start(str(tmp_path_factory.mktemp("fs")))
        yield made
        os.close(made.pidfd)
        forkserver._forkserver._stop()
        resource_tracker._resource_tracker._stop()


def _ask(server: ForkServer, target: str) -> tuple[object, int | None]:
    """What a child says over its socket, and its status."""
    ours, theirs = socket.socketpair()
    with ours:
        child = server.spawn("child", target, theirs.fileno())
        theirs.close()
        said = ours.makefile("rb").read()
        status = _status(child)
    return json.loads(said) if said else None, status


def _status(child: fork_server.Child) -> int | None:
    assert select.select([child.sentinel], [], [], 60)[0]
    status = child.status()
    child.close()
    return status


def test_first_child_reports_a_warm_server_without_unknown_threads(server: ForkServer) -> None:
    said, status = _ask(server, "penstock.runtime.preload:report")
    assert isinstance(said, dict)
    assert status == 0
    assert said["preloaded"]
    assert said["threads"] == []
    broken = {name: text for name, text in said["failures"].items() if "penstock" not in name}
    assert broken == {}


def test_children_inherit_imports_and_compute_in_every_library(server: ForkServer) -> None:
    """Forked after import and before use, Arrow, Polars and DataFusion work, child after child."""
    for _ in range(6):
        said, status = _ask(server, "fork_server_children:compute")
        assert said == {"arrow": 6, "polars": 6, "datafusion": 6, "imported": True}
        assert status == 0


def test_exit_codes_and_signals_come_through_the_sentinel(server: ForkServer) -> None:
    assert _ask(server, "fork_server_children:exit_with_7")[1] == 7
    assert _ask(server, "fork_server_children:kill_self")[1] == -signal.SIGKILL


def test_status_is_unknown_when_the_server_died_first() -> None:
    read_end, write_end = os.pipe()
    os.close(write_end)
    child = fork_server.Child(1, read_end, None)
    assert child.status() is None
    os.close(read_end)


def test_starter_starts_in_order_and_drops_what_is_no_longer_wanted(server: ForkServer) -> None:
    woken = threading.Semaphore(0)
    starter = Starter(server, woken.release)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for tag, wanted in (("first", True), ("dropped", False), ("last", True)):
            target = "fork_server_children:exit_with_7"
            starter.submit(Start(tag, tag, target, theirs.fileno(), (), lambda w=wanted: w))  # type: ignore[misc]
        for _ in range(3):
            assert woken.acquire(timeout=60)
    results = starter.results()
    assert [result.tag for result in results] == ["first", "dropped", "last"]
    assert [result.child is not None for result in results] == [True, False, True]
    assert [_status(result.child) for result in results if result.child is not None] == [7, 7]
    assert starter.results() == []


def test_unknown_threads_are_seen() -> None:
    go = threading.Event()
    thread = threading.Thread(target=go.wait)
    before = len(preload.unknown_threads())
    thread.start()
    assert len(preload.unknown_threads()) == before + 1
    go.set()
    thread.join()


def test_every_module_of_the_layers_is_preloaded(server: ForkServer) -> None:
    """Else each subtask would import it again, in its own memory."""
    said, _ = _ask(server, "fork_server_children:loaded")
    assert isinstance(said, list)
    layers = Path(preload.__file__).resolve().parents[1]
    missing = [
        f"penstock.{layer}.{path.stem}"
        for layer in preload.LAYERS
        for path in (layers / layer).glob("*.py")
        if path.stem != "__init__" and f"penstock.{layer}.{path.stem}" not in said
    ]
    failures = _ask(server, "penstock.runtime.preload:report")[0]
    assert isinstance(failures, dict)
    assert [name for name in missing if name not in failures["failures"]] == []
