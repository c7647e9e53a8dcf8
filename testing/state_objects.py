"""Laws of object state, timers, operator lists and declarations; see penstock.testing.state."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from penstock.elements.errors import StateError
from penstock.elements.hash import hash_array
from penstock.elements.keygroup import subtask_of
from penstock.elements.keys import NAN, canonical_key
from penstock.state.backend import BackendFactory, ObjectState, StateBackend, Timers
from penstock.state.run import write_run

from .state import RESCALES, Fleet

STEPS_PER_LIFE = 150
"""Operations between two restarts."""


@lru_cache(maxsize=None, typed=True)
def hash_of(key: Any) -> int:
    """A stand-in for the hash of a key's columns: stable, and equal for some unequal keys."""
    return int(hash_array(pa.array([repr(key)]))[0]) & ~0xFF


def _key(rng: random.Random) -> Hashable:
    keys: list[Hashable] = [None, NAN, 0.5, "", ("a", NAN), (1, None)]
    keys += [rng.randrange(40), f"k{rng.randrange(40)}", (rng.randrange(5), "x")]
    return rng.choice(keys)


def _owner(fleet: Fleet, hash64: int) -> StateBackend:
    target = subtask_of(np.array([hash64], np.uint64), fleet.parallelism)[0]
    return fleet.backends[int(target)]


def law_objects_equal_a_dict_through_kills_and_rescaling(
    factory: BackendFactory, rng: random.Random
) -> None:
    """Values put, changed in place or removed are those of a dict."""

    def declare(backend: StateBackend) -> ObjectState:
        return backend.objects("seen", "value")

    fleet = Fleet(factory, declare, RESCALES[0])
    model: dict[Hashable, Any] = {}
    for parallelism in RESCALES:
        for _ in range(STEPS_PER_LIFE):
            key = _key(rng)
            state = declare(_owner(fleet, hash_of(key)))
            step = rng.choice(["put", "put", "mutate", "remove", "get"])
            if step == "put":
                value = rng.choice([rng.random(), {"n": [1]}, [rng.randrange(9)], None])
                state.put(key, hash_of(key), value)
                model[key] = value if not isinstance(value, list | dict) else _copy(value)
            elif step == "mutate":
                value = state.get(key)
                if isinstance(value, list):
                    value.append(7)
                    model[key].append(7)
                elif isinstance(value, dict):
                    value["n"].append(8)
                    model[key]["n"].append(8)
            elif step == "remove":
                state.remove(key)
                model.pop(key, None)
            assert state.get(key, "absent") == model.get(key, "absent")
            if rng.random() < 0.05:
                fleet.seal()  # a checkpoint that nobody restores from
        fleet.restart(parallelism)
        found: dict[Hashable, Any] = {}
        for backend in fleet.backends:
            held = declare(backend)
            found |= {key: held.get(key) for key in held.keys()}  # noqa: SIM118
        assert len(found) == len(model)
        assert all(found[canonical_key(key)] == value for key, value in model.items())


def _copy(value: Any) -> Any:
    return {k: list(v) for k, v in value.items()} if isinstance(value, dict) else list(value)


def law_a_change_in_place_after_a_cut_is_in_the_next_cut_only(
    factory: BackendFactory, rng: random.Random
) -> None:
    """Hazard 27: a list that grows after the cut is in that cut as it was."""

    def declare(backend: StateBackend) -> ObjectState:
        return backend.objects("seen", "list")

    fleet = Fleet(factory, declare)
    declare(fleet.backends[0]).put("k", hash_of("k"), [1])
    snapshot = fleet.backends[0].seal()
    declare(fleet.backends[0]).get("k").append(2)
    first = [write_run(snapshot.sections())]
    second = fleet.seal()
    fleet.restart(2, first)
    assert declare(_owner(fleet, hash_of("k"))).get("k") == [1]
    fleet.restart(3, second)
    assert declare(_owner(fleet, hash_of("k"))).get("k") == [1, 2]


def law_objects_expire_by_event_time(factory: BackendFactory, rng: random.Random) -> None:
    """A value is gone when event time is further than its ttl past its last put."""

    def declare(backend: StateBackend) -> ObjectState:
        return backend.objects("seen", "value", ttl_ns=100)

    fleet = Fleet(factory, declare)
    model: dict[int, int] = {}  # key -> time of the last put
    now: int | None = None
    for parallelism in (1, 1, 1):
        for _ in range(STEPS_PER_LIFE):
            state = declare(fleet.backends[0])
            key = rng.randrange(30)
            if rng.random() < 0.6:
                state.put(key, hash_of(key), [key])
                model[key] = -1 if now is None else now
            elif rng.random() < 0.5:
                now = (5000 if now is None else now) + rng.choice([0, 1, 30])
                state.advance(now)
                model = {k: (now if at < 0 else at) for k, at in model.items()}
                model = {k: at for k, at in model.items() if at >= now - 100}
            assert (state.get(key) is not None) == (key in model)
            assert sorted(map(str, state.keys())) == sorted(map(str, model))
        fleet.restart(parallelism)
        if now is not None:
            declare(fleet.backends[0]).advance(now)


class _TimerFleet:
    """Timers over a fleet, with their model."""

    def __init__(self, factory: BackendFactory) -> None:
        self.fleet = Fleet(factory, lambda backend: backend.timers("t"), RESCALES[0])
        self.model: dict[tuple[Hashable, str], int] = {}

    def timers(self, key: Hashable) -> Timers:
        return _owner(self.fleet, hash_of(key)).timers("t")

    def fire(self, upto: int) -> None:
        fired = []
        for backend in self.fleet.backends:
            entries = backend.timers("t").due(upto)
            order = [(e.time_ns, e.hash64, e.tag) for e in entries]
            assert order == sorted(order)
            assert all(entry.hash64 == hash_of(entry.key) for entry in entries)
            fired += [(entry.time_ns, entry.key, entry.tag) for entry in entries]
        expected = {(at, key, tag) for (key, tag), at in self.model.items() if at <= upto}
        assert len(fired) == len(expected)
        assert set(fired) == expected
        self.model = {slot: at for slot, at in self.model.items() if at > upto}
        pending = [backend.timers("t").next_ns() for backend in self.fleet.backends]
        earliest = min((at for at in pending if at is not None), default=None)
        assert earliest == min(self.model.values(), default=None)


def law_timers_fire_once_in_order_through_kills_and_rescaling(
    factory: BackendFactory, rng: random.Random
) -> None:
    """One timer per key and tag; the last call wins (hazard 24)."""
    timers = _TimerFleet(factory)
    now = 0
    for parallelism in RESCALES:
        for _ in range(STEPS_PER_LIFE):
            key, tag = _key(rng), rng.choice(["", "a", "b"])
            if rng.random() < 0.8:
                at = now + rng.randrange(1, 60)
                timers.timers(key).set(key, hash_of(key), tag, at)
                timers.model[key, tag] = at
            else:
                timers.timers(key).cancel(key, tag)
                timers.model.pop((key, tag), None)
            assert timers.timers(key).pending(key, tag) == timers.model.get((key, tag))
            if rng.random() < 0.05:
                now += rng.randrange(20)
                timers.fire(now)
        timers.fleet.restart(parallelism)
        timers.fire(now)
    timers.fire(10**9)
    assert timers.model == {}


def law_timers_that_move_often_do_not_pile_up(factory: BackendFactory, rng: random.Random) -> None:
    """A timer that is set thousands of times fires once, at its last time."""
    timers = _TimerFleet(factory)
    for at in range(1, 20_000):
        key = at % 3
        timers.timers(key).set(key, hash_of(key), "session", at + 50_000)
        timers.model[key, "session"] = at + 50_000
    timers.fire(60_000)
    timers.timers(1).set(1, hash_of(1), "session", 70_001)
    timers.timers(1).set(1, hash_of(1), "session", 70_002)
    timers.timers(1).set(1, hash_of(1), "session", 70_001)
    timers.model[1, "session"] = 70_001
    timers.fire(80_000)


def law_lists_are_dealt_out_unions_copied_and_broadcasts_kept_once(
    factory: BackendFactory, rng: random.Random
) -> None:
    """Operator state at another parallelism (hazard 26)."""

    def declare(backend: StateBackend) -> None:
        backend.operator_list("splits", "list")
        backend.operator_list("all", "union")
        backend.operator_list("rules", "broadcast")

    fleet = Fleet(factory, declare, 2)
    for index, backend in enumerate(fleet.backends):
        backend.operator_list("splits", "list").replace([b"%d/%d" % (index, i) for i in range(3)])
        backend.operator_list("all", "union").replace([b"from %d" % index])
        backend.operator_list("rules", "broadcast").replace([b"r1", b"", b"r2"])
    whole = [b"0/0", b"0/1", b"0/2", b"1/0", b"1/1", b"1/2"]
    unions = [b"from 0", b"from 1"]
    for parallelism in (3, 1, 4):
        fleet.restart(parallelism)
        shares = [b.operator_list("splits", "list").items() for b in fleet.backends]
        assert shares == [whole[i::parallelism] for i in range(parallelism)]
        whole = [item for share in shares for item in share]
        for backend in fleet.backends:
            assert backend.operator_list("all", "union").items() == unions
            assert backend.operator_list("rules", "broadcast").items() == [b"r1", b"", b"r2"]
        unions = unions * parallelism
    items = fleet.backends[0].operator_list("splits", "list")
    items.replace([b"new"])
    snapshot = fleet.backends[0].seal()
    items.replace([b"newer"])
    fleet.restart(1, [write_run(snapshot.sections())])
    assert fleet.backends[0].operator_list("splits", "list").items() == [b"new"]


def law_another_declaration_under_the_same_name_is_refused_with_both(
    factory: BackendFactory, rng: random.Random
) -> None:
    """At once and after a restore, naming what was and what is declared."""
    key, other_key = pa.schema([("k", pa.int64())]), pa.schema([("k", pa.utf8())])
    value, wide = pa.schema([("n", pa.int64())]), pa.schema([("n", pa.decimal128(20, 2))])
    declarations: list[tuple[Callable[[StateBackend], object], str]] = [
        (lambda b: b.table("s", key, value), "k int64"),
        (lambda b: b.table("s", other_key, value), "k string"),
        (lambda b: b.table("s", key, wide), "n decimal128(20, 2)"),
        (lambda b: b.table("s", key, value, merge={"n": "sum"}), "sum(n)"),
        (lambda b: b.objects("s", "value"), "value"),
        (lambda b: b.objects("s", "map"), "map"),
        (lambda b: b.timers("s"), "timers"),
        (lambda b: b.operator_list("s", "union"), "union"),
        (lambda b: b.operator_list("s", "list"), "list"),
    ]
    for before, before_text in declarations:
        for after, after_text in declarations:
            fleet = Fleet(factory, before)
            if before is after:
                fleet.restart(2)
                assert before(fleet.backends[0]) is before(fleet.backends[0])
                continue
            for attempt in (_declare_now, _reopen):
                text = _refusal(attempt, fleet, after)
                assert all(part in text for part in (" s ", before_text, after_text)), text


def _refusal(
    attempt: Callable[[Fleet, Callable[[StateBackend], object]], None],
    fleet: Fleet,
    declare: Callable[[StateBackend], object],
) -> str:
    try:
        attempt(fleet, declare)
    except StateError as error:
        return str(error)
    return "it was accepted"


def _declare_now(fleet: Fleet, declare: Callable[[StateBackend], object]) -> None:
    declare(fleet.backends[0])


def _reopen(fleet: Fleet, declare: Callable[[StateBackend], object]) -> None:
    fleet.declare = declare
    fleet.restart(1)


def law_restored_state_without_an_owner_is_reported(
    factory: BackendFactory, rng: random.Random
) -> None:
    """State that nothing declares after a restore is named, not dropped."""

    def declare(backend: StateBackend) -> None:
        backend.objects("kept", "value")
        backend.timers("lost timers")
        backend.operator_list("lost list", "list")

    fleet = Fleet(factory, declare)
    missing: list[list[str]] = []

    def less(backend: StateBackend) -> None:
        backend.objects("kept", "value")
        missing.append(backend.undeclared())
        declare(backend)

    _reopen(fleet, less)
    assert missing == [["lost list", "lost timers"]]
