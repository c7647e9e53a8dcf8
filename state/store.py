"""Where a job keeps its log, manifests and runs: named, immutable, create-if-absent objects.

1. `put` creates or does nothing: of several writers of one name exactly one wins.
2. A name never stands for part of its bytes, not even after power was lost.
3. What a `sync` that returned has covered survives power loss (durability "machine") or the death
   of every process (durability "process").

LocalStore holds on to the directory itself, not to its path: once the directory was moved aside
for a fresh start, a forgotten writer goes on in the old one and disturbs nobody.
"""

from __future__ import annotations

import errno
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

from penstock.elements.errors import StateError

Durability = Literal["process", "machine"]

STAGING = ".staging"
"""Half-written objects; whatever lies here has no name yet."""
WRITE_BYTES = 16 * 1024 * 1024
"""One write(2); larger ones are cut."""


@dataclass(frozen=True, order=True)
class Stored:
    """One object. `modified_ns` is by the store's own clock, see `Store.now_ns`."""

    name: str
    size: int
    modified_ns: int


class Store(Protocol):
    """Names are a folder and a plain name: `run/5f2c`."""

    def put(self, name: str, body: bytes | memoryview) -> bool:
        """Create `name`; False if it exists already, whatever it holds."""
        ...

    def get(self, name: str) -> bytes:
        """All bytes of `name`; StateError if there is no such object."""
        ...

    def size(self, name: str) -> int | None:
        """Bytes of `name`, None if there is no such object."""
        ...

    def list(self, folder: str) -> list[Stored]:
        """The objects directly in `folder`, by name; none if there is no such folder."""
        ...

    def delete(self, name: str) -> None:
        """Remove `name`; nothing happens if there is no such object."""
        ...

    def sync(self) -> None:
        """Everything put before, by whomever, is durable once this returns."""
        ...

    def now_ns(self) -> int:
        """The clock that `Stored.modified_ns` is measured by."""
        ...


class LocalStore:
    """A directory of this machine. Made if absent; safe from several threads and processes."""

    def __init__(
        self, root: str, durability: Durability = "machine", *, made_elsewhere: bool = False
    ) -> None:
        """`made_elsewhere`: whoever runs the job has made it, so it is an error if it is not here.
        What was written to a directory of this machine alone would be lost to all others."""
        self.root = os.path.abspath(root)
        self._machine = durability == "machine"
        if made_elsewhere and not os.path.isdir(self.root):
            raise StateError(
                f"the state directory {self.root} is not on this machine: it must be one that the "
                "controller and all nodes reach under the same path (docs/cluster.md)"
            )
        with self._errors(""):
            _make_directories(self.root, self._machine)
            self._directory = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._make_folder(STAGING)

    def close(self) -> None:
        """Let go of the directory; later calls fail."""
        os.close(self._directory)

    def put(self, name: str, body: bytes | memoryview) -> bool:
        """Write aside, fsync, then link: the name appears with all its bytes or not at all."""
        _check(name)
        with self._errors(name):
            staged = f"{STAGING}/{uuid.uuid4().hex}"
            try:
                self._write(staged, body)
                return self._link(staged, name)
            finally:
                self._unlink(staged)

    def _write(self, staged: str, body: bytes | memoryview) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        handle = os.open(staged, flags, 0o644, dir_fd=self._directory)
        try:
            left = memoryview(body)
            while left:
                left = left[os.write(handle, left[:WRITE_BYTES]) :]
            if self._machine:
                os.fsync(handle)
        finally:
            os.close(handle)

    def _link(self, staged: str, name: str) -> bool:
        here = self._directory
        for folder_may_be_missing in (True, False):
            try:
                os.link(staged, name, src_dir_fd=here, dst_dir_fd=here)
                return True
            except FileExistsError:
                return False
            except FileNotFoundError:
                if not folder_may_be_missing:
                    raise
                self._make_folder(os.path.dirname(name))
        raise AssertionError("unreachable")

    def _make_folder(self, folder: str) -> None:
        try:
            os.mkdir(folder, 0o755, dir_fd=self._directory)
        except FileExistsError:
            pass

    def get(self, name: str) -> bytes:
        """The whole object."""
        _check(name)
        with self._errors(name):
            handle = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._directory)
            with os.fdopen(handle, "rb") as file:
                return file.read()

    def size(self, name: str) -> int | None:
        """Bytes, None if absent."""
        _check(name)
        with self._errors(name):
            try:
                return os.stat(name, dir_fd=self._directory).st_size
            except FileNotFoundError:
                return None

    def list(self, folder: str) -> list[Stored]:
        """By name."""
        _check(folder)
        found = []
        with self._errors(folder):
            try:
                handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._directory)
            except FileNotFoundError:
                return []
            try:
                for name in os.listdir(handle):
                    try:
                        facts = os.stat(name, dir_fd=handle)
                    except FileNotFoundError:
                        continue
                    found.append(Stored(f"{folder}/{name}", facts.st_size, facts.st_mtime_ns))
            finally:
                os.close(handle)
        return sorted(found)

    def delete(self, name: str) -> None:
        """Unlink; gone objects stay gone."""
        _check(name)
        with self._errors(name):
            self._unlink(name)

    def _unlink(self, name: str) -> None:
        try:
            os.unlink(name, dir_fd=self._directory)
        except FileNotFoundError:
            pass

    def sync(self) -> None:
        """Files are durable since they got their names; this makes the names durable."""
        if not self._machine:
            return
        with self._errors(""):
            # Folders lie directly in the root; none is listed, since the log's grows for ever.
            for folder in (*self._folders(), "."):
                handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._directory)
                try:
                    os.fsync(handle)
                finally:
                    os.close(handle)

    def _folders(self) -> tuple[str, ...]:
        # Opened anew: listing through a shared descriptor would share its position, too.
        handle = os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._directory)
        try:
            with os.scandir(handle) as entries:
                return tuple(e.name for e in entries if e.is_dir(follow_symlinks=False))
        finally:
            os.close(handle)

    def now_ns(self) -> int:
        """The file system's clock, read off a file made just now."""
        with self._errors(""):
            staged = f"{STAGING}/{uuid.uuid4().hex}"
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            handle = os.open(staged, flags, 0o644, dir_fd=self._directory)
            try:
                return os.fstat(handle).st_mtime_ns
            finally:
                os.close(handle)
                self._unlink(staged)

    @contextmanager
    def _errors(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            where = f"{self.root}/{name}" if name else self.root
            if error.errno == errno.ENOENT and name:
                raise StateError(f"{where}: there is no such object") from error
            if not name:
                where = f"the state directory {where} cannot be used"
            raise StateError(f"{where}: {error.strerror or error}") from error


def _check(name: str) -> None:
    parts = name.split("/")
    assert len(parts) <= 2, name
    assert all(part not in ("", ".", "..") for part in parts), name


def _make_directories(path: str, durable: bool) -> None:
    missing = []
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    for directory in reversed(missing):
        os.makedirs(directory, exist_ok=True)
        if durable:
            parent = os.open(os.path.dirname(directory), os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(parent)
            finally:
                os.close(parent)
