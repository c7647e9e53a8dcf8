"""The bundles of a node: fetched from the controller in chunks, checked, unpacked once.

Nothing is imported or unpickled here; a bundle is believed when its bytes have the hash that
names it. Checking and unpacking happen in a thread, since the lease is kept meanwhile.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
import shutil
import threading
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from penstock.elements.errors import PenstockError

from .bundle import read_bundle, unpack_modules
from .node_messages import BUNDLE_BYTES_MAX, BundleChunk, NeedBundle

log = logging.getLogger("penstock.node")

HELD_MAX = 32
"""Bundles that are kept beyond those in use: jobs that start again find theirs."""
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Unpacked:
    """A bundle at hand. `modules` goes onto Python's path; `cwd` is where it was submitted."""

    modules: str
    cwd: str


@dataclass(frozen=True)
class BundleSettled:
    """A fetch is over: `unpacked`, or why there will be none."""

    sha256: str
    unpacked: Unpacked | None
    failure: str = ""


class _Fetch:
    """A bundle on its way."""

    def __init__(self, sha256: str, size: int, path: Path) -> None:
        self.sha256 = sha256
        self.size = size
        self.path = path
        self.have = 0
        self._digest = hashlib.sha256()
        self._file: BinaryIO = path.open("wb")

    def add(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self.have += len(data)

    def close(self) -> None:
        self._file.close()

    def damage(self) -> str:
        """Why these are not the bundle's bytes, or nothing."""
        if self._digest.hexdigest() == self.sha256:
            return ""
        return f"bundle {self.sha256[:12]} arrived damaged: its bytes have another hash"


class NodeBundles:
    """All of one node's. For one thread; `settled` is called from others too."""

    def __init__(
        self,
        directory: Path,
        ask: Callable[[NeedBundle], None],
        settled: Callable[[BundleSettled], None],
    ) -> None:
        """`ask` says something to the controller."""
        self._directory = directory
        self._ask = ask
        self._settled = settled
        self._held: dict[str, Unpacked] = {}
        self._fetches: dict[str, _Fetch] = {}
        self._unpacking: set[str] = set()

    def find(self, sha256: str) -> Unpacked | None:
        """The bundle, if it is at hand."""
        return self._held.get(sha256)

    def want(self, sha256: str, size: int) -> None:
        """Fetch it unless it is on its way; BundleSettled follows."""
        if sha256 in self._held:
            self._settled(BundleSettled(sha256, self._held[sha256]))
            return
        if sha256 in self._fetches or sha256 in self._unpacking:
            return
        if not _SHA256.fullmatch(sha256) or not 0 < size <= BUNDLE_BYTES_MAX:
            self._settled(
                BundleSettled(sha256, None, f"there is no bundle {sha256!r} of {size:,} bytes")
            )
            return
        try:
            self._fetches[sha256] = _Fetch(sha256, size, self._directory / f".{sha256}.part")
        except OSError as error:
            self._settled(BundleSettled(sha256, None, f"the bundle cannot be kept: {error}"))
            return
        self._ask(NeedBundle(sha256, 0))

    def on_chunk(self, chunk: BundleChunk) -> None:
        """The next piece; anything that was not asked for is dropped."""
        fetch = self._fetches.get(chunk.sha256)
        if fetch is None or chunk.offset != fetch.have:
            return
        if not chunk.data or fetch.have + len(chunk.data) > fetch.size:
            held = f"{fetch.have + len(chunk.data):,}"
            self._fail(
                fetch,
                f"the controller has {held} bytes of bundle {fetch.sha256[:12]}, "
                f"which should have {fetch.size:,}",
            )
            return
        try:
            fetch.add(chunk.data)
            if fetch.have < fetch.size:
                self._ask(NeedBundle(fetch.sha256, fetch.have))
                return
            fetch.close()
        except OSError as error:
            self._fail(fetch, f"the bundle cannot be kept: {error}")
            return
        if damage := fetch.damage():
            self._fail(fetch, damage)
            return
        del self._fetches[fetch.sha256]
        self._unpacking.add(fetch.sha256)
        threading.Thread(
            target=self._unpack, args=(fetch,), name="unpack-bundle", daemon=True
        ).start()

    def on_settled(self, settled: BundleSettled) -> None:
        """To be called with what `settled` was given, in the thread of all other calls."""
        self._unpacking.discard(settled.sha256)
        if settled.unpacked is not None:
            self._held[settled.sha256] = settled.unpacked

    def trim(self, in_use: AbstractSet[str]) -> None:
        """Remove the oldest that nobody uses, above HELD_MAX."""
        unused = [sha256 for sha256 in self._held if sha256 not in in_use]
        for sha256 in unused[: max(0, len(unused) - HELD_MAX)]:
            unpacked = Path(self._held.pop(sha256).modules)
            doomed = unpacked.with_name(f".{sha256}.doomed")
            with contextlib.suppress(OSError):
                # A folder under its own name must be whole, also while it is being removed.
                unpacked.rename(doomed)
            threading.Thread(
                target=shutil.rmtree, args=(doomed, True), name="drop-bundle", daemon=True
            ).start()

    def forget_fetches(self) -> None:
        """The controller that was asked is gone; what is being unpacked goes on."""
        for fetch in self._fetches.values():
            _drop(fetch)
        self._fetches.clear()

    def _fail(self, fetch: _Fetch, why: str) -> None:
        del self._fetches[fetch.sha256]
        _drop(fetch)
        self._settled(BundleSettled(fetch.sha256, None, why))

    def _unpack(self, fetch: _Fetch) -> None:
        try:
            meta = read_bundle(fetch.path).meta
            directory = self._directory / fetch.sha256
            unpack_modules(fetch.path, directory)
        except (PenstockError, OSError) as error:
            settled = BundleSettled(fetch.sha256, None, str(error))
        except Exception as error:
            # Whoever waits for the bundle must hear of it, whatever went wrong.
            log.exception("bundle %s", fetch.sha256)
            settled = BundleSettled(fetch.sha256, None, f"it cannot be unpacked: {error!r}")
        else:
            settled = BundleSettled(fetch.sha256, Unpacked(str(directory), meta.cwd))
        _drop(fetch)
        self._settled(settled)


def _drop(fetch: _Fetch) -> None:
    with contextlib.suppress(OSError):
        fetch.close()
    with contextlib.suppress(OSError):
        fetch.path.unlink(missing_ok=True)
