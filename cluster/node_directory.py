"""A node agent's directory: one agent at a time, and what earlier ones left in it.

lock  bundles/<sha256>/  logs/<job>/<launch>.log (and .log.1)
"""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path
from urllib.parse import quote

from penstock.elements.errors import SettingsError

LAUNCHES_KEPT = 5
"""Logs of one job."""
JOBS_KEPT = 50
"""Jobs whose logs are kept, the newest."""
_NAME_BYTES_MAX = 250


class NodeDirectory:
    """Holds the lock until `close`, or until this process ends."""

    def __init__(self, path: str) -> None:
        """Makes what is missing. Raises SettingsError if the directory cannot be had."""
        self.root = Path(os.path.abspath(os.path.expanduser(path)))
        self.bundles = self.root / "bundles"
        self.logs = self.root / "logs"
        try:
            for folder in (self.root, self.bundles, self.logs):
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise SettingsError(
                f"the agent's directory {self.root}: {error.strerror}; choose another one with "
                "--directory"
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.pread(self._lock, 32, 0).decode(errors="replace").strip()
            os.close(self._lock)
            raise SettingsError(
                f"another agent (pid {owner or 'unknown'}) works in {self.root}: give this one "
                "a directory of its own with --directory"
            ) from error
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)

    def close(self) -> None:
        """Let another agent have the directory."""
        os.close(self._lock)

    def sweep(self) -> None:
        """Remove bundles, whole or not, and old logs. Requires: no job agent runs."""
        for entry in self.bundles.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)
        self.sweep_logs()

    def sweep_logs(self) -> None:
        """Keep the logs of the newest launches of the newest jobs."""
        jobs = sorted(self.logs.iterdir(), key=_changed_ns, reverse=True)
        for folder in jobs[JOBS_KEPT:]:
            shutil.rmtree(folder, ignore_errors=True)
        for folder in jobs[:JOBS_KEPT]:
            for launch in launches(folder)[LAUNCHES_KEPT:]:
                for name in (f"{launch}.log", f"{launch}.log.1"):
                    (folder / name).unlink(missing_ok=True)

    def job_logs(self, job: str) -> Path:
        """Where the job's logs lie; any name gives a plain name of a folder."""
        name = quote(job, safe=" ").replace(".", "%2E")[:_NAME_BYTES_MAX]
        return self.logs / name


def launches(folder: Path) -> list[int]:
    """Launches that have a log in a job's folder, newest first."""
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    stems = [name.removesuffix(".log") for name in names if name.endswith(".log")]
    return sorted((int(stem) for stem in stems if stem.isdecimal()), reverse=True)


def _changed_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
