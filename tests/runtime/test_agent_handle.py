"""What is left of an agent's handle once the agent is gone: a node has thousands, one by one."""

from __future__ import annotations

import gc
import os
import queue
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
