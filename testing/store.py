"""Stores for tests: one that loses what was not synced, one that fails on request, and the law.

`check_store` holds every Store to its promises; give it `lose_power` where that can be simulated.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

from penstock.elements.errors import StateError
from penstock.state.store import Store, Stored

WRITERS = 8


class DroppingStore:
    """A store in memory that forgets like a disk: `lose_power` drops what no sync has covered.

    Puts and deletes since the last sync are each kept or undone at random; an object that is kept
    is whole. With `torn=True` it may be cut short as well, as on a store that never fsyncs.
    `fail` is called before each put and may raise StateError; with `fail_after` the put has then
    happened, but its caller cannot know.
    """

    def __init__(self, seed: int = 0, torn: bool = False) -> None:
        self._random = random.Random(seed)
        self._torn = torn
        self._lock = threading.Lock()
        self._objects: dict[str, tuple[bytes, int]] = {}
        self._durable: dict[str, tuple[bytes, int]] = {}
        self._clock_ns = 0
        self.fail: Callable[[str], None] = lambda name: None
        self.fail_after: Callable[[str], None] = lambda name: None

    def put(self, name: str, body: bytes | memoryview) -> bool:
        self.fail(name)
        with self._lock:
            if name in self._objects:
                return False
            self._objects[name] = (bytes(body), self._clock_ns)
        self.fail_after(name)
        return True

    def get(self, name: str) -> bytes:
        with self._lock:
            if name not in self._objects:
                raise StateError(f"{name}: there is no such object")
            return self._objects[name][0]

    def size(self, name: str) -> int | None:
        with self._lock:
            found = self._objects.get(name)
        return None if found is None else len(found[0])

    def list(self, folder: str) -> list[Stored]:
        prefix = f"{folder}/"
        with self._lock:
            found = [
                Stored(name, len(body), modified_ns)
                for name, (body, modified_ns) in self._objects.items()
                if name.startswith(prefix) and "/" not in name[len(prefix) :]
            ]
        return sorted(found)

    def delete(self, name: str) -> None:
        with self._lock:
            self._objects.pop(name, None)

    def sync(self) -> None:
        with self._lock:
            self._durable = dict(self._objects)

    def now_ns(self) -> int:
        return self._clock_ns

    def advance_ns(self, step_ns: int) -> None:
        """Let time pass for the objects' age."""
        self._clock_ns += step_ns

    def lose_power(self) -> None:
        """Go back to what was synced, plus or minus whatever happened to reach the disk."""
        with self._lock:
            after = dict(self._durable)
            for name in sorted(self._objects.keys() | self._durable.keys()):
                if self._random.random() < 0.5:
                    continue
                if name not in self._objects:
                    after.pop(name)
                elif name not in self._durable:
                    body, modified_ns = self._objects[name]
                    if self._torn:
                        body = body[: self._random.randrange(len(body) + 1)]
                    after[name] = (body, modified_ns)
            self._objects = after
            self._durable = dict(after)


def check_store(
    make: Callable[[], Store], lose_power: Callable[[Store], None] | None = None
) -> None:
    """Assert the promises of penstock.state.store on a fresh store."""
    store = make()
    _creates_once(store)
    _lists(store)
    _deletes(store)
    _one_writer_wins(store)
    _tells_ages(store)
    if lose_power is not None:
        for _ in range(20):
            _survives(make(), lose_power)


def _creates_once(store: Store) -> None:
    large = bytes(range(256)) * 4096
    assert store.size("a/x") is None
    assert store.put("a/x", large)
    assert not store.put("a/x", b"other"), "a name was created twice"
    assert store.get("a/x") == large
    assert store.size("a/x") == len(large)
    assert store.put("a/empty", b"")
    assert store.get("a/empty") == b""
    assert store.size("a/empty") == 0


def _lists(store: Store) -> None:
    assert store.list("nowhere") == []
    for name in ("l/3", "l/1", "l/2", "l2/1"):
        store.put(name, name.encode())
    assert [(s.name, s.size) for s in store.list("l")] == [("l/1", 3), ("l/2", 3), ("l/3", 3)]


def _deletes(store: Store) -> None:
    store.put("d/x", b"1")
    store.delete("d/x")
    store.delete("d/x")
    assert store.size("d/x") is None
    assert "d/x" in _error_of(store, "d/x"), "the error must name the object"
    assert store.put("d/x", b"2")


def _error_of(store: Store, name: str) -> str:
    try:
        store.get(name)
    except StateError as error:
        return str(error)
    raise AssertionError(f"get of {name}, which is deleted, returned")


def _one_writer_wins(store: Store) -> None:
    for turn in range(20):
        name = f"race/{turn}"
        barrier = threading.Barrier(WRITERS)
        won: list[int] = []

        def write(
            me: int, name: str = name, barrier: threading.Barrier = barrier, won: list[int] = won
        ) -> None:
            barrier.wait()
            if store.put(name, b"%d" % me * 1000):
                won.append(me)

        threads = [threading.Thread(target=write, args=(me,)) for me in range(WRITERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1, f"{len(won)} writers created {name}"
        assert store.get(name) == b"%d" % won[0] * 1000


def _tells_ages(store: Store) -> None:
    store.put("age/x", b"1")
    assert store.now_ns() >= store.list("age")[0].modified_ns


def _survives(store: Store, lose_power: Callable[[Store], None]) -> None:
    kept = {f"p/{n}": b"%d" % n * 100 for n in range(10)}
    late = {f"q/{n}": b"%d" % n * 100 for n in range(10)}
    for name, body in kept.items():
        store.put(name, body)
    store.sync()
    for name, body in late.items():
        store.put(name, body)
    lose_power(store)
    for name, body in kept.items():
        assert store.get(name) == body, f"{name} was synced and is lost"
    for name, body in late.items():
        if store.size(name) is not None:
            assert store.get(name) == body, f"{name} stands for part of its bytes"
