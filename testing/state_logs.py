"""Laws of logs: rows that come back after a restore, and otherwise only leave by a cut.

See penstock.testing.state. Checkpoints here go through a store, as a job's do: some complete, some
are given up, and of some the subtasks never hear.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from penstock.elements.errors import StateError
from penstock.elements.keygroup import owned_groups
from penstock.elements.keys import python_keys
from penstock.state.backend import (
    AppendLog,
    BackendFactory,
    RestoredState,
    SealedLog,
    Section,
    StateBackend,
)
from penstock.state.log_history import LogPart
from penstock.state.log_parts import store_log
from penstock.state.run import read_run, write_run

from .state import OPERATOR, RESCALES, Fleet
from .state_keys import KEY_MAKERS, colliding_hash, parts, true_hash
from .store import DroppingStore

STEPS_PER_LIFE = 24
TIME_MAX = 1000
PADDING = "x" * 400
"""Makes some appends large enough for a part of their own."""
VALUE = pa.schema([("id", pa.int64()), ("text", pa.utf8())])

Row = tuple[Any, int, int]
"""Key, time, id."""


@dataclass
class Checkpoint:
    """One checkpoint of all subtasks, with what a restore from it must find."""

    runs: list[bytes] = field(default_factory=list)
    parts: list[LogPart] = field(default_factory=list)
    logs: list[SealedLog] = field(default_factory=list)
    model: list[Row] = field(default_factory=list)

    @property
    def named(self) -> set[str]:
        """The objects it needs."""
        return {part.run for part in self.parts}


class LogFleet:
    """One log over subtasks that share a store."""

    def __init__(self, factory: BackendFactory, key: pa.Schema) -> None:
        self._factory = factory
        self._key = key
        self.store = DroppingStore()
        self.model: list[Row] = []
        self.complete = Checkpoint()
        self.before = Checkpoint()
        self._next = 0
        self.backends: list[StateBackend] = []

    @property
    def parallelism(self) -> int:
        """How many subtasks there are."""
        return len(self.backends)

    def log(self, subtask: int) -> AppendLog:
        """The log, declared again."""
        return self.backends[subtask].log("log", self._key, VALUE)

    def append(self, keys: pa.RecordBatch, hashes: Any, times: list[int], text: str) -> None:
        """Rows for whichever subtasks own them."""
        ids = np.arange(self._next, self._next + keys.num_rows)
        self._next += keys.num_rows
        clock = pa.record_batch({"t": pa.array(times, pa.int64())})
        values = pa.RecordBatch.from_arrays(
            [pa.array(ids), pa.array([text] * len(ids), pa.utf8())], schema=VALUE
        )
        for subtask, mine, (k, v, t) in parts(self, hashes, keys, values, clock):  # type: ignore[arg-type]
            self.log(subtask).append(k, v, t.column(0).to_numpy(), mine)
        names = python_keys(keys, keys.schema.names)
        self.model += list(zip(names, times, ids.tolist(), strict=True))

    def cut(self, before: int) -> None:
        """Everywhere, as time passes everywhere."""
        for subtask in range(self.parallelism):
            self.log(subtask).cut(before)
        self.model = [row for row in self.model if row[1] >= before]

    def checkpoint(self) -> Checkpoint:
        """Seal and write all; whether it completes is for others to say."""
        made = Checkpoint(model=list(self.model))
        for subtask, backend in enumerate(self.backends):
            groups = owned_groups(subtask, self.parallelism)
            snapshot = backend.seal()
            sections = list(snapshot.sections())
            for log in snapshot.logs():
                section, named, _ = store_log(self.store, log, groups)
                sections.append(section)
                made.parts += named
                made.logs.append(log)
            made.runs.append(write_run(sections))
        return made

    def completed(self, checkpoint: Checkpoint) -> None:
        """It counts."""
        for name in checkpoint.named:
            assert self.store.size(name) is not None, "a checkpoint names what was deleted"
        self.before, self.complete = self.complete, checkpoint
        self.collect()

    def collect(self) -> None:
        """Delete what neither the last complete checkpoint nor the one before it names."""
        for stored in self.store.list("run"):
            if stored.name not in self.complete.named | self.before.named:
                self.store.delete(stored.name)

    def restart(self, parallelism: int) -> None:
        """Kill all; go on from the last complete checkpoint."""
        self.model = list(self.complete.model)
        self.backends = []
        found: list[Row] = []
        for subtask in range(parallelism):
            groups = owned_groups(subtask, parallelism)
            sections: list[Section] = []
            for run in self.complete.runs:
                sections += read_run(run, {OPERATOR}, groups)
            restored = RestoredState(
                sections, groups, subtask, parallelism, self.complete.parts, self.store
            )
            self.backends.append(self._factory(OPERATOR, restored))
            for batch in self.log(subtask).restored():
                assert batch.schema.names == [*self._key.names, *VALUE.names, "_time"]
                assert set(batch.column("text").to_pylist()) <= {"", PADDING}
                keys = python_keys(batch, self._key.names)
                times = batch.column("_time").to_pylist()
                found += list(zip(keys, times, batch.column("id").to_pylist(), strict=True))
            assert self.backends[-1].undeclared() == []
        self._check(found)

    def _check(self, found: list[Row]) -> None:
        def by_key(rows: list[Row]) -> dict[str, list[Row]]:
            grouped: dict[str, list[Row]] = {}
            for row in rows:
                grouped.setdefault(repr(row[0]), []).append(row)
            return grouped

        assert repr(by_key(found)) == repr({k: by_key(self.model)[k] for k in by_key(found)})
        assert len(found) == len(self.model)


def law_logs_give_back_what_the_last_complete_checkpoint_holds(
    factory: BackendFactory, rng: random.Random
) -> None:
    """Whatever completes, is given up or is never heard of, at any parallelism."""
    name = rng.choice(["int", "text", "mixed"])
    make = KEY_MAKERS[name]
    hash_of = rng.choice([true_hash, colliding_hash])
    fleet = LogFleet(factory, make(rng, 1).schema)
    for parallelism in (1, *RESCALES, *RESCALES):
        fleet.restart(parallelism)
        for _ in range(STEPS_PER_LIFE):
            step = rng.random()
            if step < 0.45:
                keys = make(rng, rng.choice([1, 5, 300]))
                times = [rng.randrange(TIME_MAX) for _ in range(keys.num_rows)]
                fleet.append(keys, hash_of(keys), times, rng.choice(["", PADDING]))
            elif step < 0.5:
                fleet.cut(rng.randrange(TIME_MAX))
            else:
                _run_checkpoint(fleet, rng)


def _run_checkpoint(fleet: LogFleet, rng: random.Random) -> None:
    made = fleet.checkpoint()
    fate = rng.random()
    if fate < 0.6:
        fleet.completed(made)
        for log in made.logs:
            if rng.random() < 0.8:
                log.confirm()
    else:
        for log in made.logs if fate < 0.9 else ():
            log.discard()
        # Nobody may build upon what it wrote, whether they have heard of its end or not.
        fleet.collect()


def law_a_sealed_log_does_not_see_what_is_appended_or_cut_later(
    factory: BackendFactory, rng: random.Random
) -> None:
    """As with all state: a snapshot is of its cut."""
    make = KEY_MAKERS["int"]
    fleet = LogFleet(factory, make(rng, 1).schema)
    fleet.restart(1)
    keys = make(rng, 500)
    fleet.append(keys, true_hash(keys), [5] * 500, PADDING)
    first = fleet.checkpoint()
    fleet.completed(first)
    first.logs[0].confirm()
    more = make(rng, 20)
    fleet.append(more, true_hash(more), [7] * 20, "")
    snapshot = fleet.backends[0].seal()
    fleet.append(more, true_hash(more), [8] * 20, "")
    fleet.cut(100)
    (log,) = snapshot.logs()
    assert log.section().rows == 20
    assert [part.cut_ns < 5 for part in log.parts] == [True]


def law_restored_logs_cannot_change_their_columns(
    factory: BackendFactory, rng: random.Random
) -> None:
    """Another schema under the same name is refused, and names both."""
    key = KEY_MAKERS["int"](rng, 1).schema
    fleet = Fleet(factory, lambda backend: backend.log("log", key, VALUE))
    other = pa.schema([("id", pa.int32())])
    runs = fleet.seal()
    fleet.declare = lambda backend: backend.log("log", key, other)
    refused = ""
    try:
        fleet.restart(1, runs)
    except StateError as error:
        refused = str(error)
    assert "int32" in refused
    assert "int64" in refused
