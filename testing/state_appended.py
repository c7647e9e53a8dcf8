"""Laws of appended tables: rows by key and time; see penstock.testing.state."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pyarrow as pa

from penstock.elements.keys import python_keys
from penstock.state.backend import BackendFactory, StateBackend, Table

from .state import RESCALES, Fleet
from .state_keys import KEY_MAKERS, HashOf, colliding_hash, parts, true_hash

STEPS_PER_LIFE = 6
"""Appends and probes between two restarts."""

ROW_VALUE = pa.schema([("id", pa.int64()), ("text", pa.utf8())])


class _AppendedFleet:
    """An appended table over a fleet, with its model: rows in order of insertion."""

    def __init__(self, factory: BackendFactory, key: pa.Schema, hash_of: HashOf) -> None:
        self.key = key
        self.hash_of = hash_of
        self.fleet = Fleet(factory, self._declare, RESCALES[0])
        self.model: list[tuple[Any, int, int, str | None]] = []
        self._next_id = 0

    def _declare(self, backend: StateBackend) -> Table:
        return backend.table("rows", self.key, ROW_VALUE)

    def table(self, subtask: int) -> Table:
        return self._declare(self.fleet.backends[subtask])

    def append(self, rng: random.Random, keys: pa.RecordBatch, time_max: int) -> None:
        count = keys.num_rows
        ids = list(range(self._next_id, self._next_id + count))
        self._next_id += count
        texts = [rng.choice([None, f"text {i}"]) for i in ids]
        values = pa.RecordBatch.from_arrays(
            [pa.array(ids, pa.int64()), pa.array(texts, pa.utf8())], schema=ROW_VALUE
        )
        times = np.array([rng.randrange(time_max) for _ in ids], np.int64)
        clock = pa.record_batch({"t": pa.array(times)})
        for subtask, hashes, (k, v, t) in parts(
            self.fleet, self.hash_of(keys), keys, values, clock
        ):
            self.table(subtask).append(k, v, t.column(0).to_numpy(), hashes)
        names = python_keys(keys, keys.schema.names)
        self.model += list(zip(names, times.tolist(), ids, texts, strict=True))

    def probe(self, rng: random.Random, keys: pa.RecordBatch, time_max: int) -> None:
        low = np.array([rng.randrange(time_max) for _ in range(keys.num_rows)], np.int64)
        bounds = pa.record_batch({"low": pa.array(low), "high": pa.array(low + time_max // 4)})
        for subtask, hashes, (k, b) in parts(self.fleet, self.hash_of(keys), keys, bounds):
            lows, highs = b.column(0).to_numpy(), b.column(1).to_numpy()
            index, rows = self.table(subtask).probe(k, lows, highs, hashes)
            expected = []
            for i, key in enumerate(python_keys(k, k.schema.names)):
                names = key if isinstance(key, tuple) and len(self.key) > 1 else (key,)
                if any(part is None for part in names):
                    continue
                for name, time, row_id, text in self.model:
                    if name == key and lows[i] <= time <= highs[i]:
                        expected.append((i, key, row_id, text))
            found_keys = python_keys(rows, self.key.names)
            ids, texts = rows.column("id").to_pylist(), rows.column("text").to_pylist()
            assert list(zip(index.tolist(), found_keys, ids, texts, strict=True)) == expected

    def expire(self, before: int) -> None:
        dropped = set()
        for subtask in range(self.fleet.parallelism):
            for batch in self.table(subtask).expire(before):
                times = batch.column("_time").to_pylist()
                keys = python_keys(batch, self.key.names)
                ids, texts = batch.column("id").to_pylist(), batch.column("text").to_pylist()
                dropped |= set(zip(keys, times, ids, texts, strict=True))
        assert dropped == {row for row in self.model if row[1] < before}
        self.model = [row for row in self.model if row[1] >= before]
        live = [self.table(subtask) for subtask in range(self.fleet.parallelism)]
        assert sum(table.rows for table in live) == len(self.model)
        scanned = {
            (row_id, time)
            for table in live
            for batch in table.scan()
            for row_id, time in zip(
                batch.column("id").to_pylist(), batch.column("_time").to_pylist(), strict=True
            )
        }
        assert scanned == {(row_id, time) for _, time, row_id, _ in self.model}


def law_appended_rows_are_found_by_key_and_time(
    factory: BackendFactory, rng: random.Random
) -> None:
    """Probes find what a list would find, after kills, rescaling and expiry too."""
    for make, hash_of in [("int", true_hash), ("mixed", colliding_hash), ("text", true_hash)]:
        maker = KEY_MAKERS[make]
        rows = _AppendedFleet(factory, maker(rng, 0).schema, hash_of)
        time_max = 1000
        for parallelism in RESCALES:
            for _ in range(STEPS_PER_LIFE):
                rows.append(rng, maker(rng, rng.choice([0, 1, 30])), time_max)
                rows.probe(rng, maker(rng, 12), time_max)
                if rng.random() < 0.3:
                    rows.expire(rng.randrange(time_max // 2))
            rows.fleet.restart(parallelism)
            rows.probe(rng, maker(rng, 12), time_max)
        rows.expire(time_max)


def law_appended_rows_survive_mass_expiry(factory: BackendFactory, rng: random.Random) -> None:
    """Rows that stay are found after nearly all others have expired."""
    key = pa.schema([("k", pa.int64())])
    fleet = Fleet(factory, lambda backend: backend.table("rows", key, ROW_VALUE))
    table = fleet.backends[0].table("rows", key, ROW_VALUE)
    count = 12_000
    for first in range(0, 3 * count, count):
        ids = np.arange(first, first + count)
        values = [pa.array(ids), pa.array(ids).cast(pa.utf8())]
        table.append(
            pa.record_batch([pa.array(ids % 7)], schema=key),
            pa.RecordBatch.from_arrays(values, schema=ROW_VALUE),
            ids,
        )
        gone = sum(batch.num_rows for batch in table.expire(first + count - 100))
        assert gone == (count - 100 if first == 0 else count)
    assert table.rows == 100
    probe = pa.record_batch([pa.array([0, 3, 99])], schema=key)
    index, rows = table.probe(probe, -(2**63), 2**63 - 1)
    expected = [(i, n) for i, k in [(0, 0), (1, 3)] for n in range(35_900, 36_000) if n % 7 == k]
    assert list(zip(index.tolist(), rows.column("id").to_pylist(), strict=True)) == expected
