"""A whole cluster under TLS: controller, two nodes, a client, and rows between the nodes."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from penstock.cluster.security import make_tls

PATIENCE_S = 120
EVENTS = 3000
PROGRAM = f"""
from dataclasses import dataclass
import penstock as ps

@dataclass
class Counted:
    k: int
    v: int

def keyed(row) -> Counted:
    return Counted(row.counter % 7, row.counter)

pipeline = ps.Pipeline("under-tls")
source = ps.ImpulseSource(rate=3000.0, events={EVENTS}, splits=2)
rows = pipeline.source(source, event_time="timestamp", monotone=True).map(keyed)
counted = rows.key_by("k").window(ps.tumble("10000 days")).aggregate(n="count(*)", s="sum(v)")
counted.sink(ps.FileSink("out"))
"""


class Tls:
    """Processes with certificates of one authority."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        self.folder = folder
        self._files = make_tls(folder / "tls", names)
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.address = f"127.0.0.1:{server.getsockname()[1]}"

    def words(self, name: str, *words: str) -> list[str]:
        return [sys.executable, "-m", "penstock", *words, "--tls", *self._files[name]]

    @contextlib.contextmanager
    def serving(self, name: str, *words: str) -> Iterator[None]:
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                self.words(name, *words), cwd=self.folder, stdout=log, stderr=log
            )
        try:
            yield
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE_S) == 0, name
        finally:
            process.kill()
            process.wait()
            sys.stdout.write((self.folder / f"{name}.log").read_text())


def test_a_job_over_two_nodes_counts_every_row_under_tls(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    tls = Tls(tmp_path, ["controller", "one", "two", "user"])
    with contextlib.ExitStack() as stack:
        stack.enter_context(
            tls.serving("controller", "controller", "--listen", tls.address, "--data", "data")
        )
        for name in ("one", "two"):
            words = ("--name", name, "--slots", "1", "--directory", name, "--drain-timeout", "0s")
            stack.enter_context(tls.serving(name, "agent", "--join", tls.address, *words))
        deadline = time.monotonic() + PATIENCE_S
        while "controller on" not in (tmp_path / "controller.log").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        # It waits for both nodes by itself: it needs two slots, and each has one.
        where = ("--controller", tls.address, "--parallelism", "2", "--wait")
        done = subprocess.run(
            tls.words("user", "submit", "program.py", *where),
            cwd=tmp_path, capture_output=True, text=True, check=False, timeout=PATIENCE_S,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        found = pl.read_parquet(tmp_path / "out" / "*.parquet").sort("k")
        assert found["n"].sum() == EVENTS
        assert found["s"].sum() == EVENTS * (EVENTS - 1) // 2
        assert found["k"].to_list() == list(range(7))
        controller_log = (tmp_path / "controller.log").read_text()
        assert "1 on one, 1 on two" in controller_log
