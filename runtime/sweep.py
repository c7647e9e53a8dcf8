"""Directories of one agent, named so that a later one can tell whether their owner lives.

The name holds boot, pid namespace, pid and start time, as a doorbell's does (hazard 39): pids are
reused, and containers may share a /tmp without seeing each other's processes. Only directories of
our own user, boot and namespace are ever removed.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path

SOCKET_DIRECTORY_CHARS_MAX = 85
"""A unix socket's path ends at 107 characters; the fork server adds a name of about 20."""
_SHORT_ROOT = "/tmp"
_NAME = re.compile(r"penstock-(\d+)-([0-9a-f]{6})-(\d+)-(\d+)-(\d+)(?:-\w+)?")


def start_time(pid: int) -> int | None:
    """When the process started, in clock ticks since boot; None when there is none.

    A zombie counts as none: it holds nothing any more.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The second field is the program's name in parentheses and may hold anything.
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text()[:6]


def _namespace() -> int:
    return os.stat("/proc/self/ns/pid").st_ino


def directory_name() -> str:
    """The name of a directory of this process."""
    started = start_time(os.getpid())
    return f"penstock-{os.getuid()}-{_boot()}-{_namespace()}-{os.getpid()}-{started}"


def make_scratch_root() -> str:
    """A fresh private directory of this process, under the system's temporary directory."""
    path = os.path.join(tempfile.gettempdir(), directory_name())
    os.mkdir(path, 0o700)
    return path


def socket_directory(scratch_root: str) -> str:
    """Where the fork server's socket goes: `scratch_root`, unless its path is too long."""
    if len(scratch_root) <= SOCKET_DIRECTORY_CHARS_MAX:
        return scratch_root
    path = os.path.join(_SHORT_ROOT, directory_name())
    os.mkdir(path, 0o700)
    return path


def make_job_root() -> str:
    """A fresh private directory of this process for a job that has no state directory."""
    return tempfile.mkdtemp(prefix=f"{directory_name()}-")


def remove_own() -> None:
    """Remove this process's directories, as its last act."""
    for root in _roots():
        shutil.rmtree(os.path.join(root, directory_name()), ignore_errors=True)


def sweep_directories() -> list[str]:
    """Remove directories whose owner is dead; returns their paths."""
    removed: list[str] = []
    for root in _roots():
        for entry in _entries(root):
            match = _NAME.fullmatch(entry.name)
            if match is None or not _is_stale(entry, match):
                continue
            shutil.rmtree(entry.path, ignore_errors=True)
            removed.append(entry.path)
    return removed


def _roots() -> set[str]:
    return {tempfile.gettempdir(), _SHORT_ROOT}


def _entries(root: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(root) as entries:
            return list(entries)
    except OSError:
        return []


def _is_stale(entry: os.DirEntry[str], match: re.Match[str]) -> bool:
    user, boot, namespace, pid, started = match.groups()
    if (int(user), boot, int(namespace)) != (os.getuid(), _boot(), _namespace()):
        return False
    try:
        owner = entry.stat(follow_symlinks=False).st_uid
    except OSError:
        return False
    # Anyone may make a directory of this name in a shared /tmp; only ours are ours to remove.
    return owner == os.getuid() and start_time(int(pid)) != int(started)
