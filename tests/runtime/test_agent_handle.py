"""What is left of an agent's handle once the agent is gone: a node has thousands, one by one."""

from __future__ import annotations

import gc
import os
import queue
import resource
import sys
import threading
import weakref

import pytest

from penstock.elements.errors import EngineError
from penstock.runtime.agent_handle import AgentHandle, AgentLost, ToControllerOrLost

PATIENCE_S = 20.0


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def test_nothing_keeps_the_handle_of_a_dead_agent() -> None:
    before = descriptors()
    handle = AgentHandle()
    events: queue.SimpleQueue[ToControllerOrLost] = queue.SimpleQueue()
    handle.start(events)
    handle.kill()
    while not isinstance(events.get(timeout=PATIENCE_S), AgentLost):
        pass
    for thread in threading.enumerate():
        if thread.name == "agent":
            thread.join(PATIENCE_S)
    kept = weakref.ref(handle)
    del handle, thread
    gc.collect()
    assert kept() is None
    assert descriptors() == before


def test_an_agent_that_cannot_be_started_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before = descriptors()
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    handle = AgentHandle()
    with pytest.raises(EngineError, match="cannot be started"):
        handle.launch()
    assert descriptors() == before


def test_a_process_with_thousands_of_open_files_sees_its_agent_end() -> None:
    """The descriptors of its handle have numbers that select() refuses."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 4096:
        pytest.skip(f"this machine allows {hard} open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, hard))
    taken = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        handle = AgentHandle()
        events: queue.SimpleQueue[ToControllerOrLost] = queue.SimpleQueue()
        handle.start(events)
        handle.kill()
        while not isinstance(lost := events.get(timeout=PATIENCE_S), AgentLost):
            pass
        assert lost.all_gone
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
