"""The controller's bundles on disk: what a slow or full one does to whoever keeps leases."""

from __future__ import annotations

import hashlib
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from penstock.cluster.bundle_store import BundleStore


@contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    """As on a full disk, writing fails (Python ignores SIGXFSZ)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def send_on(store: BundleStore, name: str, data: bytes) -> None:
    for end in range(10_000, len(data) + 1, 1000):
        store.put("c", name, len(data), end - 1000, data[end - 1000 : end])


def test_each_piece_is_on_disk_before_the_next_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sync of a whole bundle would take longer than the leases that wait behind it."""
    synced: list[int] = []
    really = os.fdatasync

    def fdatasync(descriptor: int) -> None:
        really(descriptor)
        synced.append(os.fstat(descriptor).st_size)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    store = BundleStore(tmp_path / "bundles")
    data = os.urandom(3000)
    name = hashlib.sha256(data).hexdigest()
    for at in range(0, 3000, 1000):
        assert store.put("c", name, 3000, at, data[at : at + 1000]) == at + 1000
    assert synced == [1000, 2000, 3000]
    assert store.read(name, 0) == data


def test_a_disk_without_room_fails_the_upload_and_nothing_else(tmp_path: Path) -> None:
    store = BundleStore(tmp_path / "bundles")
    data = os.urandom(40_000)
    name = hashlib.sha256(data).hexdigest()
    store.put("c", name, len(data), 0, data[:9000])
    with no_file_larger_than(10_000), pytest.raises(OSError, match="large"):
        send_on(store, name, data)
    with no_file_larger_than(10_000):
        # The sender hangs up: what cannot be written must not be tried again.
        store.ended("c")
    assert list((tmp_path / "bundles").iterdir()) == []
    assert store.put("d", name, len(data), 0, data) == len(data)
