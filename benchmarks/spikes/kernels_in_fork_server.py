"""Hazard 33 in the real fork server: what two small compiled kernels cost each subtask.

    python benchmarks/spikes/kernels_in_fork_server.py

Three ways, eight children each, kernels with eager signatures and a warm disk cache:
`lazy`: the child imports numba and loads the kernels; `numba`: the server has imported numba, the
child loads the kernels; `kernels`: the server has loaded them too. Prints one JSON line a way:
milliseconds from the fork to the first result, private memory of the child, threads of the server
at the fork.

What it showed (4 shared cores, numba 0.68.1, two runs): lazy 270-297 ms and 118 MiB, numba 158 ms
and 72 MiB, kernels 14-20 ms and 9 MiB; loading them adds no thread (docs/design/0004-processes.md).
"""

from __future__ import annotations

import json
import os
import select
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = os.path.dirname(os.path.abspath(__file__))
KERNELS = "spike_kernels"
KERNELS_SOURCE = '''
import numba
import numpy as np

@numba.njit("void(uint64[:], int64[:], int64[:], int64)", cache=True)
def probe(hashes, table, slots, mask):
    """Slots of hashes in an open-addressing table of row numbers; fills it as it goes."""
    for row in range(hashes.shape[0]):
        at = np.int64(hashes[row]) & mask
        while table[at] >= 0 and hashes[table[at]] != hashes[row]:
            at = (at + 1) & mask
        if table[at] < 0:
            table[at] = row
        slots[row] = table[at]

@numba.njit("void(int64[:], float64[:], float64[:])", cache=True)
def add(slots, values, sums):
    """Add each value to its slot."""
    for row in range(slots.shape[0]):
        sums[slots[row]] += values[row]
'''
CHILDREN = 8
ROWS = 10_000


def child(descriptor: int) -> None:
    """Load the kernels, run both, say when and how large this process is."""
    import importlib

    import numpy as np

    kernels = importlib.import_module(KERNELS)
    hashes = (np.arange(ROWS, dtype=np.uint64) % np.uint64(1000)) * np.uint64(0x9E3779B97F4A7C15)
    table = np.full(1 << 15, -1, np.int64)
    slots = np.zeros(ROWS, np.int64)
    kernels.probe(hashes, table, slots, (1 << 15) - 1)
    sums = np.zeros(ROWS)
    kernels.add(slots, np.ones(ROWS), sums)
    assert sums.sum() == ROWS
    assert len(np.unique(slots)) == 1000
    done_ns = time.monotonic_ns()
    private = 0
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Private_"):
            private += int(line.split()[1])
    with socket.socket(fileno=descriptor) as sock:
        sock.sendall(json.dumps({"done_ns": done_ns, "private_kib": private}).encode())
    os._exit(0)


def serve(way: str) -> None:
    """Runs as its own process: a real fork server, preloaded this way, and its children."""
    from multiprocess import forkserver

    from penstock.runtime.fork_server import ForkServer

    set_preload = forkserver.set_forkserver_preload
    extra = {"lazy": [], "numba": ["numba"], "kernels": ["numba", KERNELS]}[way]
    forkserver.set_forkserver_preload = lambda modules: set_preload([*extra, *modules])
    server = ForkServer()
    server.start(tempfile.mkdtemp(prefix="spike-"))
    took, private = [], []
    for number in range(CHILDREN + 1):
        ours, theirs = socket.socketpair()
        begun_ns = time.monotonic_ns()
        started = server.spawn("child", "kernels_in_fork_server:child", theirs.fileno())
        theirs.close()
        said = json.loads(ours.makefile("rb").read())
        ours.close()
        select.select([started.sentinel], [], [])
        assert started.status() == 0
        started.close()
        if number:  # The first waited for the server's own imports.
            took.append((said["done_ns"] - begun_ns) / 1e6)
            private.append(said["private_kib"] / 1024)
    threads = len(os.listdir(f"/proc/{server.pid}/task"))
    figures = {
        "spike": "kernels_in_fork_server",
        "way": way,
        "first_result_ms_p50": round(statistics.median(took), 1),
        "first_result_ms_max": round(max(took), 1),
        "private_mib": round(statistics.mean(private), 1),
        "server_threads": threads,
    }
    print(json.dumps(figures), flush=True)
    forkserver._forkserver._stop()


def main() -> None:
    from penstock.runtime.lifeline import THREAD_ENVIRONMENT

    with tempfile.TemporaryDirectory() as folder:
        Path(folder, f"{KERNELS}.py").write_text(KERNELS_SOURCE)
        environment = {
            **os.environ,
            **THREAD_ENVIRONMENT,
            "NUMBA_CACHE_DIR": str(Path(folder, "cache")),
            "PYTHONPATH": os.pathsep.join([folder, HERE]),
        }
        subprocess.run([sys.executable, "-c", f"import {KERNELS}"], env=environment, check=True)
        for way in ("lazy", "numba", "kernels"):
            program = f"from kernels_in_fork_server import serve; serve({way!r})"
            subprocess.run([sys.executable, "-c", program], env=environment, check=True)


if __name__ == "__main__":
    main()
