"""What a job's processes on this node write to stdout and stderr, kept in files of bounded size.

All of them share one pipe, which a thread of the node agent empties into the file. A file that is
full becomes `.log.1`, in place of the one before. A disk that takes nothing loses log lines; it
never holds up the job.
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

from .node_directory import launches

LOG_BYTES_MAX = 16 * 1024 * 1024
READ_BYTES = 64 * 1024


class JobLog:
    """One log. Until `keep` says where, what is written stays in the pipe (64 KiB)."""

    def __init__(self) -> None:
        self._reading, self.descriptor = os.pipe()
        """Give `descriptor` to the job agent, then call `launched`."""
        self._kept = False

    def launched(self) -> None:
        """The job agent has its copy of the descriptor, or will never have one."""
        os.close(self.descriptor)

    def keep(self, path: Path, heading: str) -> None:
        """Write to `path` from now on, after a first line, until nobody can write any more."""
        assert not self._kept
        self._kept = True
        threading.Thread(
            target=self._pump, args=(_Rotated(path), heading), name="job-log", daemon=True
        ).start()

    def discard(self) -> None:
        """Nobody wants it. Requires: not kept."""
        assert not self._kept
        os.close(self._reading)

    def _pump(self, out: _Rotated, heading: str) -> None:
        out.write(f"{heading}\n".encode())
        while data := os.read(self._reading, READ_BYTES):
            out.write(data)
        os.close(self._reading)
        out.close()


class _Rotated:
    """An append-only file that never exceeds LOG_BYTES_MAX, and the one before it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1
        self._size = 0

    def write(self, data: bytes) -> None:
        try:
            if self._descriptor >= 0 and self._size + len(data) > LOG_BYTES_MAX:
                self.close()
                os.replace(self._path, f"{self._path}.1")
            if self._descriptor < 0:
                self._open()
            # A short write means a full disk; the rest is lost like what follows.
            self._size += os.write(self._descriptor, data)
        except OSError:
            self.close()

    def _open(self) -> None:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._descriptor = os.open(self._path, flags, 0o600)
        self._size = os.fstat(self._descriptor).st_size

    def close(self) -> None:
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(self._descriptor)
        self._descriptor = -1


def tail(folder: Path, bytes_max: int) -> str:
    """The last whole lines of the newest launch in a job's folder; "" if there is none."""
    newest = launches(folder)[:1]
    if not newest:
        return ""
    path = folder / f"{newest[0]}.log"
    data, whole = _last_bytes(path, bytes_max)
    if whole and len(data) < bytes_max:
        before, whole = _last_bytes(Path(f"{path}.1"), bytes_max - len(data))
        data = before + data
    if not whole:
        # Of a line that is cut the rest could be misread.
        data = data.partition(b"\n")[2]
    return data.decode(errors="replace")


def _last_bytes(path: Path, bytes_max: int) -> tuple[bytes, bool]:
    """The end of a file, and whether that is all of it."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - bytes_max))
            return file.read(bytes_max), size <= bytes_max
    except OSError:
        return b"", True
