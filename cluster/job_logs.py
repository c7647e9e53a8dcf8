"""Where the logs of job processes lie on the controller's machine, one file per job."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path


class JobLogs:
    """One directory. Who writes bounds each file and keeps the one before it (node_logs.py)."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)

    def path(self, job: str) -> Path:
        """Of a job whose name has been checked."""
        return self._directory / f"{job}.log"

    def sweep(self, jobs: Collection[str]) -> None:
        """Remove what is of no job that is still listed."""
        keep = {f"{job}.log{end}" for job in jobs for end in ("", ".1")}
        for path in self._directory.iterdir():
            if path.name not in keep:
                path.unlink(missing_ok=True)

    def tail(self, job: str, bytes_max: int) -> str:
        """The last lines of the job's log."""
        path = self.path(job)
        data = _end(path, bytes_max)
        before = _end(Path(f"{path}.1"), bytes_max - len(data))
        text = before + data
        if len(text) >= bytes_max:
            # Of a line that is cut the rest could be misread.
            text = text.partition(b"\n")[2]
        return text.decode(errors="replace")


def _end(path: Path, bytes_max: int) -> bytes:
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - bytes_max))
            return file.read(bytes_max)
    except FileNotFoundError:
        return b""
