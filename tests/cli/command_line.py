"""What the tests of the command line share: programs, and the command as a process of its own."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

COMMAND = [sys.executable, "-m", "penstock"]
_STYLE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
PATIENCE_S = 60
"""For a busy machine; nothing here takes a tenth of it."""

ROWS = """
import penstock as ps
import pyarrow as pa

p = ps.Pipeline("rows")
rows = p.source(pa.table({"n": list(range(10))}))
rows.filter("n >= 3").sink(ps.FileSink("out/", format="jsonl"))
"""
LEDGER = """
from penstock.testing.ledger import ledger

p = ledger("out", 2, 8000, 2000.0)
"""


def penstock(
    *words: str, cwd: Path, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [*COMMAND, *words],
        cwd=cwd,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )


class Running:
    """A command that runs; what it says is read through `until`."""

    def __init__(self, process: subprocess.Popen[bytes], said: int) -> None:
        self.process = process
        self._said = said
        self.text = ""

    def until(self, pattern: str) -> re.Match[str]:
        """Read until `pattern` has been said; AssertionError with all that was said instead."""
        while (match := re.search(pattern, _STYLE.sub("", self.text))) is None:
            assert self._read(), f"it never said {pattern!r}:\n{self.text}"
        return match

    def interrupt(self) -> None:
        """Ctrl-C for the command alone: its processes have a session of their own."""
        self.process.send_signal(signal.SIGINT)

    def end(self) -> int:
        """Read to the end; the exit code."""
        while self._read():
            pass
        return self.process.wait(PATIENCE_S)

    def _read(self) -> bool:
        ready = select.select([self._said], [], [], PATIENCE_S)[0]
        assert ready, f"nothing said for {PATIENCE_S} s:\n{self.text}"
        try:
            data = os.read(self._said, 65536)
        except OSError:
            # A terminal whose other side has closed reads as an error.
            return False
        self.text += data.decode(errors="replace")
        return bool(data)


@contextlib.contextmanager
def running(*words: str, cwd: Path, terminal: bool = False) -> Iterator[Running]:
    """Start a command whose stderr is a pipe or a terminal; kill it if the test fails."""
    ours, theirs = pty.openpty() if terminal else os.pipe()
    wide = {"COLUMNS": "200", "LINES": "50", "TERM": "xterm-256color"}
    process = subprocess.Popen(
        [*COMMAND, *words], cwd=cwd, stdout=subprocess.DEVNULL, stderr=theirs,
        env={**os.environ, **wide},
    )  # fmt: skip
    os.close(theirs)
    try:
        yield Running(process, ours)
    finally:
        process.kill()
        process.wait()
        os.close(ours)
