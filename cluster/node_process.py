"""The process of a node agent: its directory, its signals, what it offers; `penstock agent`.

Whatever a killed predecessor left is swept before anything else: bundles, old logs, directories in
/tmp, names of doorbells. SIGTERM and Ctrl-C drain, a second one leaves at once.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Mapping
from pathlib import Path
from types import FrameType

import setproctitle

from penstock.elements.clock import SystemClock
from penstock.elements.errors import SettingsError
from penstock.runtime.doorbell import sweep_stale
from penstock.runtime.lifeline import raise_open_files_limit
from penstock.runtime.net.credentials import Credentials
from penstock.runtime.sweep import sweep_directories

from .link import parse_address
from .node import Node, NodeOptions
from .node_directory import NodeDirectory
from .node_messages import LABELS_MAX, SLOTS_MAX

log = logging.getLogger("penstock.node")

WILDCARDS = ("0.0.0.0", "::", "*")
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def serve_node(
    controller: str,
    credentials: Credentials,
    *,
    directory: str,
    name: str,
    slots: int | None = None,
    labels: Mapping[str, str] | None = None,
    data_host: str = "",
    drain_timeout_s: float = 30.0,
) -> int:
    """Be a node of the cluster until told otherwise; returns an exit code. For a main thread.

    Raises SettingsError for what cannot be used.
    """
    options = _checked(
        NodeOptions(
            controller=controller,
            name=name,
            slots=available_cores() if slots is None else slots,
            labels=dict(labels or {}),
            memory_bytes=available_memory(),
            data_host=data_host,
            drain_timeout_s=drain_timeout_s,
        )
    )
    setproctitle.setproctitle(f"penstock: node {name}")
    raise_open_files_limit()
    folder = NodeDirectory(directory)
    try:
        folder.sweep()
        sweep_directories()
        sweep_stale()
        node = Node(options, credentials, folder, SystemClock())

        def leave(number: int, frame: FrameType | None) -> None:
            node.ask_to_leave()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, leave)
        log.info("node %s, pid %d, works in %s", name, os.getpid(), folder.root)
        return node.run()
    finally:
        folder.close()


def default_name() -> str:
    """The name of the machine."""
    return socket.gethostname()


def default_directory(name: str) -> str:
    """Of this user, for a node of this name."""
    root = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local/state")
    return os.path.join(root, "penstock", "nodes", name.replace(os.sep, "-"))


def available_cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0))


def available_memory() -> int:
    """Bytes that this machine has, or this container if that is less."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = _CGROUP_LIMIT.read_text().strip()
    except OSError:
        return machine
    return min(machine, int(limit)) if limit.isdecimal() else machine


def _check_host(host: str) -> None:
    """Attempts would listen there, and each would fail if that cannot be."""
    try:
        family, _, _, _, place = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        socket.create_server((str(place[0]), 0), family=family).close()
    except OSError as error:
        raise SettingsError(
            f"--host {host}: it is no address of this machine ({error.strerror}); name the one at "
            "which other nodes reach it"
        ) from error


def _checked(options: NodeOptions) -> NodeOptions:
    parse_address(options.controller)
    if not options.name.isprintable() or not options.name:
        raise SettingsError(f"--name {options.name!r}: a node's name is printable text")
    if not 1 <= options.slots <= SLOTS_MAX:
        raise SettingsError(f"--slots {options.slots}: a node has 1 to {SLOTS_MAX}")
    if len(options.labels) > LABELS_MAX:
        raise SettingsError(f"{len(options.labels)} labels: a node has at most {LABELS_MAX}")
    if options.data_host in WILDCARDS:
        raise SettingsError(
            f"--host {options.data_host}: name the address at which other nodes reach this one"
        )
    if options.data_host:
        _check_host(options.data_host)
    if options.drain_timeout_s < 0:
        raise SettingsError(f"--drain-timeout {options.drain_timeout_s:g}: it cannot be negative")
    return options
