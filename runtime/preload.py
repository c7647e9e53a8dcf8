"""Imported by the fork server before its first fork: everything a subtask will import.

Import, never execute: Polars and DataFusion hang in children forked after their first use
(data-plane 2.7). The one exception is compiled kernels, which are loaded so that subtasks share
them (hazard 33). What the import left behind is checked by `report`, in the first child.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import pkgutil
import socket
import threading

import setproctitle

from .lifeline import die_with_parent, ignore_interrupts

AGENT_PID_VARIABLE = "PENSTOCK_AGENT_PID"
"""The agent sets it in its own environment, so that only its fork server acts on it."""
LIBRARIES = ("numpy", "pyarrow", "pyarrow.compute", "pyarrow.dataset", "polars", "datafusion")
LAYERS = ("elements", "state", "expressions", "operators", "dataflow", "connectors")
"""Every module of these: a plan's pickle may name any. `runtime` comes with subtask_process."""
KNOWN_THREADS = frozenset({"polars-ooc-clea"})
"""Threads that may exist at a fork, by the kernel's 15 characters of their names. A lock that any
other held would stay locked in every child. Polars starts this one at import; it waits for spilled
files to delete, of which a process that executes nothing has none (docs/design/0004)."""

failures: dict[str, str] = {}
threads: list[str] = []
preloaded_in: int = 0


def _load(name: str) -> None:
    try:
        importlib.import_module(name)
    except Exception as error:
        # A subtask that needs it will say so with its own traceback.
        failures[name] = f"{type(error).__name__}: {error}"


def _load_kernels() -> None:
    """The machine code of all kernels, so that subtasks share it instead of loading it each."""
    try:
        importlib.import_module("penstock.operators.kernels.compile").load()
    except Exception as error:
        failures["kernels"] = f"{type(error).__name__}: {error}"


def unknown_threads() -> list[str]:
    """Names of this process's threads, other than the calling one and KNOWN_THREADS."""
    names = []
    for task in sorted(os.listdir("/proc/self/task")):
        if int(task) == threading.get_native_id():
            continue
        with open(f"/proc/self/task/{task}/comm", encoding="utf-8") as file:
            names.append(file.read().strip())
    return [name for name in names if name not in KNOWN_THREADS]


def preload() -> None:
    """Become the fork server: tie it to the agent, import everything, freeze it for sharing."""
    global preloaded_in
    die_with_parent(int(os.environ[AGENT_PID_VARIABLE]))
    ignore_interrupts()
    setproctitle.setproctitle("penstock: fork server")
    # Imports make next to no garbage, and collections would walk all that was imported so far.
    gc.disable()
    for name in LIBRARIES:
        _load(name)
    for layer in LAYERS:
        package = importlib.import_module(f"penstock.{layer}")
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            _load(module.name)
    _load_kernels()
    _load("penstock.runtime.subtask_process")
    _load("penstock.runtime.subtask")
    # Collections in children then never touch, and so never copy, what is shared.
    gc.freeze()
    gc.enable()
    threads.extend(unknown_threads())
    preloaded_in = os.getpid()


def report(descriptor: int) -> None:
    """Run in the first child: tell the agent over the socket what the preloading left behind."""
    with socket.socket(fileno=descriptor) as sock:
        found = {
            "preloaded": preloaded_in == os.getppid(),
            "threads": threads,
            "failures": failures,
        }
        sock.sendall(json.dumps(found).encode())
    os._exit(0)


if os.environ.get(AGENT_PID_VARIABLE) == str(os.getppid()):
    preload()
