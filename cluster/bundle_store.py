"""The controller's bundles: files named by the hash of their content, and never believed before.

A bundle arrives in pieces over one link, beside its final name, and gets it once its hash fits and
it is on disk. Each piece is hashed and synced as it comes: the thread that does it renews leases
too, and must never be held up by a whole bundle. Bundles that no live job names, and that nobody
connected has sent, are swept.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection, Hashable
from dataclasses import dataclass, field
from pathlib import Path

from penstock.elements.errors import ProtocolError, SettingsError

from .node_messages import BUNDLE_BYTES_MAX, CHUNK_BYTES

UPLOADS_MAX = 16
"""Unfinished ones at the same time, of all clients together."""
_NAME = re.compile(r"[0-9a-f]{64}")


@dataclass
class _Upload:
    owner: Hashable
    size: int
    path: Path
    descriptor: int
    held: int = 0
    digest: hashlib._Hash = field(default_factory=hashlib.sha256)


class BundleStore:
    """One directory. `owner` stands for the link that sends; it is told when that has ended."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._uploads: dict[tuple[Hashable, str], _Upload] = {}
        self._pinned: dict[Hashable, set[str]] = {}
        for path in directory.glob(".*.part"):
            path.unlink()

    def path(self, sha256: str) -> Path:
        """Where the bundle is, or would be."""
        if not _NAME.fullmatch(sha256):
            raise ProtocolError("a bundle is named by the 64 hexadecimal digits of its hash")
        return self._directory / f"{sha256}.zip"

    def size(self, sha256: str) -> int | None:
        """Bytes of a whole bundle; None if it is not here."""
        try:
            return self.path(sha256).stat().st_size
        except FileNotFoundError:
            return None

    def read(self, sha256: str, offset: int) -> bytes:
        """One chunk; empty beyond the end, or if it is not here."""
        try:
            with self.path(sha256).open("rb") as file:
                file.seek(max(0, offset))
                return file.read(CHUNK_BYTES)
        except FileNotFoundError:
            return b""

    def put(self, owner: Hashable, sha256: str, size: int, offset: int, data: bytes) -> int:
        """Take a piece; how many bytes are here now, which is `size` once all are and are right.

        Raises SettingsError for what is too large or not what its name says.
        """
        self._pinned.setdefault(owner, set()).add(sha256)
        whole = self.size(sha256)
        if whole is not None:
            return whole
        if not 0 < size <= BUNDLE_BYTES_MAX:
            raise SettingsError(
                f"a bundle of {size:,} bytes: the limit is {BUNDLE_BYTES_MAX:,}; programs carry "
                "code, let a source read large data from files"
            )
        upload = self._uploads.get((owner, sha256))
        if upload is None or offset == 0:
            upload = self._begin(owner, sha256, size)
        if offset != upload.held or size != upload.size or not data:
            # What is held tells the sender where to go on.
            return upload.held
        if len(data) > CHUNK_BYTES or upload.held + len(data) > size:
            raise ProtocolError("a piece of a bundle is larger than was announced")
        try:
            self._write(upload, data)
        except OSError:
            # What is half written counts for nothing; whoever sends it begins anew.
            self._drop((owner, sha256))
            raise
        if upload.held == size:
            self._finish(owner, sha256)
        return upload.held

    def ended(self, owner: Hashable) -> None:
        """Nothing more comes from there."""
        self._pinned.pop(owner, None)
        for key in [key for key in self._uploads if key[0] == owner]:
            self._drop(key)

    def sweep(self, named: Collection[str]) -> None:
        """Remove what is neither named by a job nor sent by somebody who is still connected."""
        keep = set(named).union(*self._pinned.values())
        for path in self._directory.glob("*.zip"):
            if path.stem not in keep:
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of unfinished uploads."""
        for key in list(self._uploads):
            self._drop(key)

    def _begin(self, owner: Hashable, sha256: str, size: int) -> _Upload:
        if (owner, sha256) in self._uploads:
            self._drop((owner, sha256))
        if len(self._uploads) >= UPLOADS_MAX:
            raise SettingsError(f"{UPLOADS_MAX} bundles are being sent already; try again")
        path = self._directory / f".{sha256}.{os.urandom(8).hex()}.part"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        upload = _Upload(owner, size, path, os.open(path, flags, 0o600))
        self._uploads[owner, sha256] = upload
        return upload

    def _write(self, upload: _Upload, data: bytes) -> None:
        left = memoryview(data)
        while left:
            left = left[os.write(upload.descriptor, left) :]
        os.fdatasync(upload.descriptor)
        upload.digest.update(data)
        upload.held += len(data)

    def _finish(self, owner: Hashable, sha256: str) -> None:
        upload = self._uploads[owner, sha256]
        os.fsync(upload.descriptor)
        found = upload.digest.hexdigest()
        if found != sha256:
            self._drop((owner, sha256))
            raise SettingsError(f"the bundle is damaged: it should be {sha256}, and is {found}")
        os.replace(upload.path, self.path(sha256))
        directory = os.open(self._directory, os.O_RDONLY)
        try:
            # Jobs that name it are on disk before long; so must be its name.
            os.fsync(directory)
        finally:
            os.close(directory)
        self._drop((owner, sha256))

    def _drop(self, key: tuple[Hashable, str]) -> None:
        upload = self._uploads.pop(key)
        os.close(upload.descriptor)
        upload.path.unlink(missing_ok=True)
