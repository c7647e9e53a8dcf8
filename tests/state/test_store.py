from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.elements.errors import StateError
from penstock.state.store import STAGING, Durability, LocalStore
from penstock.testing.store import DroppingStore, check_store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[LocalStore]:
    made = LocalStore(str(tmp_path / "a" / "b"), durability="process")
    yield made
    made.close()


@pytest.mark.parametrize("durability", ["process", "machine"])
def test_the_local_store_keeps_its_promises(tmp_path: Path, durability: Durability) -> None:
    made: list[LocalStore] = []

    def make() -> LocalStore:
        made.append(LocalStore(str(tmp_path / "s"), durability))
        return made[-1]

    check_store(make)
    made[0].sync()
    assert made[0].list(STAGING) == []
    made[0].close()


def test_the_dropping_store_keeps_its_promises_through_power_loss() -> None:
    seeds = iter(range(100))
    check_store(lambda: DroppingStore(next(seeds)), lambda store: store.lose_power())  # type: ignore[attr-defined]


def test_the_kit_catches_a_store_that_tears_objects() -> None:
    seeds = iter(range(100))
    with pytest.raises(AssertionError, match="part of its bytes"):
        check_store(
            lambda: DroppingStore(next(seeds), torn=True),
            lambda store: store.lose_power(),  # type: ignore[attr-defined]
        )


def test_the_kit_catches_a_store_that_forgets_what_was_synced() -> None:
    class Forgetful(DroppingStore):
        def sync(self) -> None:
            pass

    seeds = iter(range(100))
    with pytest.raises((AssertionError, StateError)):
        check_store(lambda: Forgetful(next(seeds)), lambda store: store.lose_power())  # type: ignore[attr-defined]


def test_the_kit_catches_a_store_that_replaces() -> None:
    class Replacing(DroppingStore):
        def put(self, name: str, body: bytes) -> bool:
            self.delete(name)
            return super().put(name, body)

    with pytest.raises(AssertionError, match="created twice"):
        check_store(Replacing)


def test_machine_durability_syncs_the_file_before_its_name_and_directories_on_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    real_fsync, real_link = os.fsync, os.link

    def fsync(handle: int) -> None:
        steps.append("fsync " + os.readlink(f"/proc/self/fd/{handle}").rsplit("/", 1)[-1])
        real_fsync(handle)

    def link(*args: object, **options: object) -> None:
        steps.append("link")
        real_link(*args, **options)  # type: ignore[arg-type]

    store = LocalStore(str(tmp_path / "s"))
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "link", link)
    store.put("run/x", b"1")
    # The folder is missing at first, so the link is tried again.
    assert [step.split()[0] for step in steps] == ["fsync", "link", "link"]
    steps.clear()
    store.sync()
    assert {"fsync s", "fsync run"} <= set(steps)
    store.close()


def test_a_store_stays_with_its_directory_when_that_is_moved_aside(tmp_path: Path) -> None:
    old = LocalStore(str(tmp_path / "job"), "process")
    old.put("log/1", b"old")
    os.rename(tmp_path / "job", tmp_path / "job.old")
    new = LocalStore(str(tmp_path / "job"), "process")
    old.put("log/2", b"zombie")
    assert [s.name for s in new.list("log")] == []
    assert [s.name for s in old.list("log")] == ["log/1", "log/2"]
    old.close()
    new.close()


def test_errors_say_which_object(store: LocalStore) -> None:
    with pytest.raises(StateError, match=r"b/run/none: there is no such object"):
        store.get("run/none")


def test_a_failed_write_leaves_no_name_and_no_staging(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int, body: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StateError, match="No space left"):
        store.put("run/x", b"1")
    monkeypatch.undo()
    assert store.size("run/x") is None
    assert store.list(STAGING) == []


def test_a_directory_that_cannot_be_had_is_called_one(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    # Nobody can make a directory below /proc, root neither.
    for place in (f"{tmp_path}/file/state", "/proc/absent/state"):
        with pytest.raises(StateError, match=f"the state directory {place} cannot be used"):
            LocalStore(place)


def test_a_directory_that_others_made_is_not_made_again(tmp_path: Path) -> None:
    """A node that does not share the state directory would keep snapshots for itself."""
    with pytest.raises(StateError, match="not on this machine: it must be one that"):
        LocalStore(str(tmp_path / "job"), made_elsewhere=True)
    assert not (tmp_path / "job").exists()
    LocalStore(str(tmp_path / "job")).close()
    LocalStore(str(tmp_path / "job"), made_elsewhere=True).close()
