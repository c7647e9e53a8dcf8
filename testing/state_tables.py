"""Laws of columnar tables; see penstock.testing.state."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa

from penstock.elements.errors import StateError
from penstock.elements.keys import python_keys
from penstock.state.backend import BackendFactory, StateBackend, Table
from penstock.state.run import write_run

from .state import RESCALES, Fleet
from .state_keys import KEY_MAKERS, HashOf, colliding_hash, parts, text_keys, true_hash

STEPS_PER_LIFE = 12
"""Operations between two restarts."""

VALUE = pa.schema(
    [
        ("total", pa.int64()),
        ("top", pa.float64()),
        ("least", pa.utf8()),
        ("money", pa.decimal128(20, 2)),
        ("note", pa.utf8()),
        ("path", pa.list_(pa.int64())),
        ("seen", pa.timestamp("ns", "UTC")),
        ("flag", pa.bool_()),
    ]
)
MERGE: dict[str, Any] = {
    "total": "sum",
    "top": "max",
    "least": "min",
    "money": "sum",
    "note": "replace",
    "path": "replace",
    "seen": "min",
    "flag": "max",
}


def _values(rng: random.Random, count: int) -> pa.RecordBatch:
    def some(make: Callable[[], Any]) -> list[Any]:
        return [None if rng.random() < 0.2 else make() for _ in range(count)]

    stamps = pa.array(some(lambda: rng.randrange(-(10**18), 10**18)), pa.int64())
    arrays = [
        pa.array(some(lambda: rng.randrange(-(10**6), 10**6)), pa.int64()),
        pa.array(some(lambda: rng.uniform(-9, 9)), pa.float64()),
        pa.array(some(lambda: "z" * rng.randrange(4) + "q"), pa.utf8()),
        pa.array(some(lambda: Decimal(rng.randrange(-(10**9), 10**9)) / 100), pa.decimal128(20, 2)),
        pa.array(some(lambda: f"note {rng.random()}"), pa.utf8()),
        pa.array(some(lambda: [rng.randrange(9) for _ in range(rng.randrange(4))])),
        stamps.view(pa.timestamp("ns", "UTC")),
        pa.array(some(lambda: rng.random() < 0.5), pa.bool_()),
    ]
    arrays[5] = arrays[5].cast(pa.list_(pa.int64()))
    return pa.RecordBatch.from_arrays(arrays, schema=VALUE)


def _plain(batch: pa.RecordBatch) -> list[tuple[Any, ...]]:
    """Rows as comparable Python values; nanosecond times as integers."""
    columns = []
    for array in batch.columns:
        if pa.types.is_timestamp(array.type):
            array = array.view(pa.int64())
        columns.append([tuple(v) if isinstance(v, list) else v for v in array.to_pylist()])
    return list(zip(*columns, strict=True)) if columns else [()] * batch.num_rows


def _merged(old: tuple[Any, ...] | None, new: tuple[Any, ...]) -> tuple[Any, ...]:
    if old is None:
        old = (None,) * len(new)
    result = []
    for field, a, b in zip(VALUE, old, new, strict=True):
        function = MERGE[field.name]
        if function == "replace" or a is None:
            result.append(b)
        elif b is None:
            result.append(a)
        else:
            result.append(
                a + b if function == "sum" else min(a, b) if function == "min" else max(a, b)
            )
    return tuple(result)


class _TableFleet:
    """A table over a fleet, with its model."""

    def __init__(self, factory: BackendFactory, key: pa.Schema, hash_of: HashOf) -> None:
        self.key = key
        self.hash_of = hash_of
        self.fleet = Fleet(factory, self._declare, RESCALES[0])
        self.model: dict[Any, tuple[Any, ...]] = {}

    def _declare(self, backend: StateBackend) -> Table:
        return backend.table("t", self.key, VALUE, merge=MERGE)

    def table(self, subtask: int) -> Table:
        return self._declare(self.fleet.backends[subtask])

    def upsert(self, keys: pa.RecordBatch, values: pa.RecordBatch) -> None:
        for subtask, hashes, (k, v) in parts(self.fleet, self.hash_of(keys), keys, values):
            self.table(subtask).upsert(k, v, hashes)
        self.model.update(zip(self.keys(keys), _plain(values), strict=True))

    def accumulate(self, keys: pa.RecordBatch, values: pa.RecordBatch) -> None:
        for subtask, hashes, (k, v) in parts(self.fleet, self.hash_of(keys), keys, values):
            self.table(subtask).accumulate(k, v, hashes)
        for key, row in zip(self.keys(keys), _plain(values), strict=True):
            self.model[key] = _merged(self.model.get(key), row)

    def delete(self, keys: pa.RecordBatch) -> None:
        for subtask, hashes, (k,) in parts(self.fleet, self.hash_of(keys), keys):
            self.table(subtask).delete(k, hashes)
        for key in self.keys(keys):
            self.model.pop(key, None)

    def replace(self, keys: pa.RecordBatch, values: pa.RecordBatch) -> None:
        # Of keys that are there twice the last one counts.
        last = {key: row for row, key in enumerate(self.keys(keys))}
        at = pa.array(list(last.values()), pa.int64())
        keys, values = keys.take(at), values.take(at)
        for subtask in range(self.fleet.parallelism):
            self.table(subtask).replace(keys.slice(0, 0), values.slice(0, 0))
        for subtask, hashes, (k, v) in parts(self.fleet, self.hash_of(keys), keys, values):
            self.table(subtask).replace(k, v, hashes)
        self.model = dict(zip(self.keys(keys), _plain(values), strict=True))

    def keys(self, batch: pa.RecordBatch) -> list[Any]:
        return python_keys(batch, batch.schema.names)

    def check(self, keys: pa.RecordBatch) -> None:
        for subtask, hashes, (part,) in parts(self.fleet, self.hash_of(keys), keys):
            found, values = self.table(subtask).get(part, hashes)
            expected = [self.model.get(key) for key in self.keys(part)]
            assert found.tolist() == [row is not None for row in expected]
            absent = (None,) * len(VALUE)
            assert _plain(values) == [absent if row is None else row for row in expected]
        live = [self.table(subtask) for subtask in range(self.fleet.parallelism)]
        assert sum(table.rows for table in live) == len(self.model)
        scanned: dict[Any, tuple[Any, ...]] = {}
        for table in live:
            for batch in table.scan():
                rows = _plain(batch.select(VALUE.names))
                scanned.update(zip(self.keys(batch.select(self.key.names)), rows, strict=True))
        assert scanned == self.model


def _drive_table(factory: BackendFactory, rng: random.Random, make: str, hash_of: HashOf) -> None:
    maker = KEY_MAKERS[make]
    tables = _TableFleet(factory, maker(rng, 0).schema, hash_of)
    for parallelism in (*RESCALES, 1):
        for _ in range(STEPS_PER_LIFE):
            keys = maker(rng, rng.choice([0, 1, 7, 50]))
            values = _values(rng, keys.num_rows)
            step = rng.choice(["upsert", "accumulate", "accumulate", "delete"])
            if step == "delete":
                tables.delete(keys)
            else:
                getattr(tables, step)(keys, values)
            tables.check(maker(rng, 20))
        tables.fleet.restart(parallelism)
        tables.check(maker(rng, 20))


def law_tables_equal_a_dict_through_kills_and_rescaling(
    factory: BackendFactory, rng: random.Random
) -> None:
    """Upserts, merges and deletions of batches are those of a dict."""
    for make in KEY_MAKERS:
        _drive_table(factory, rng, make, true_hash)


def law_keys_of_equal_hash_stay_apart(factory: BackendFactory, rng: random.Random) -> None:
    """The same with a hash that collides nearly always."""
    for make in ("int", "mixed", "nested"):
        _drive_table(factory, rng, make, colliding_hash)


def law_rows_that_are_handed_over_whole_are_all_there_are(
    factory: BackendFactory, rng: random.Random
) -> None:
    """`replace` at cuts, with and without other writes in between, through kills and rescaling."""
    for make, hash_of in (("int", true_hash), ("mixed", colliding_hash), ("nested", true_hash)):
        maker = KEY_MAKERS[make]
        tables = _TableFleet(factory, maker(rng, 0).schema, hash_of)
        for parallelism in (*RESCALES, 1):
            for step in ("replace", rng.choice(["upsert", "delete", "replace"]), "replace"):
                keys = maker(rng, rng.choice([0, 3, 50]))
                if step == "delete":
                    tables.delete(keys)
                else:
                    getattr(tables, step)(keys, _values(rng, keys.num_rows))
                if rng.random() < 0.5:
                    # Sealed, then read: neither changes what the next cut holds.
                    tables.fleet.seal()
                if rng.random() < 0.5:
                    tables.check(keys)
            tables.fleet.restart(parallelism)
            tables.check(maker(rng, 20))


def law_hashes_are_computed_when_they_are_not_given(
    factory: BackendFactory, rng: random.Random
) -> None:
    """A caller without hashes reaches the same rows, also after rescaling."""
    tables = _TableFleet(factory, text_keys(rng, 0).schema, true_hash)
    tables.fleet.restart(1)
    keys, values = text_keys(rng, 60), _values(rng, 60)
    tables.table(0).upsert(keys, values)
    tables.model.update(zip(tables.keys(keys), _plain(values), strict=True))
    tables.check(keys)
    tables.fleet.restart(3)
    tables.check(keys)


def law_a_sum_that_overflows_names_its_column_and_changes_nothing(
    factory: BackendFactory, rng: random.Random
) -> None:
    """The batch that overflows is refused as a whole."""
    for kind, most in [(pa.int64(), 2**63 - 1), (pa.int32(), 2**31 - 1), (pa.uint64(), 2**64 - 1)]:
        _overflow(factory, kind, most)
    _overflow(factory, pa.decimal128(6, 2), Decimal("9999.99"))


def _overflow(factory: BackendFactory, kind: pa.DataType, most: Any) -> None:
    key = pa.schema([("k", pa.int64())])
    value = pa.schema([("n", pa.int64()), ("total", kind)])

    def declare(backend: StateBackend) -> Table:
        return backend.table("t", key, value, merge={"n": "sum", "total": "sum"})

    table = declare(Fleet(factory, declare).backends[0])

    def add(keys: list[int], totals: list[Any]) -> None:
        rows = pa.record_batch([pa.array(keys, pa.int64())], schema=key)
        arrays = [pa.array([1] * len(keys)), pa.array(totals, kind)]
        table.accumulate(rows, pa.RecordBatch.from_arrays(arrays, schema=value))

    add([1, 2], [most - 2, 1])
    add([1, 2, 1], [1, 1, 1])  # exactly the largest value: no overflow
    message = ""
    try:
        add([2, 1, 3], [1, 1, 1])
    except StateError as error:
        message = str(error)
    assert "total" in message, f"a sum of {kind} beyond {most}: {message or 'was accepted'}"
    found, rows = table.get(pa.record_batch([pa.array([1, 2, 3])], schema=key))
    assert found.tolist() == [True, True, False]
    assert rows.to_pylist()[:2] == [{"n": 3, "total": most}, {"n": 2, "total": 2}]


def law_floats_order_as_in_sql(factory: BackendFactory, rng: random.Random) -> None:
    """NaN is the largest value, nulls are left out."""
    key = pa.schema([("k", pa.int64())])
    value = pa.schema([("low", pa.float64()), ("high", pa.float64())])

    def declare(backend: StateBackend) -> Table:
        return backend.table("t", key, value, merge={"low": "min", "high": "max"})

    table = declare(Fleet(factory, declare).backends[0])
    nan = float("nan")
    xs = pa.array([1.0, nan, -3.0, nan, None])
    rows = pa.record_batch([pa.array([1, 1, 1, 2, 2])], schema=key)
    table.accumulate(rows, pa.RecordBatch.from_arrays([xs, xs], schema=value))
    _, result = table.get(pa.record_batch([pa.array([1, 2])], schema=key))
    low, high = result.column(0).to_pylist(), result.column(1).to_pylist()
    assert low[0] == -3.0
    assert math.isnan(high[0])
    assert math.isnan(low[1])


def law_a_snapshot_does_not_see_later_writes(factory: BackendFactory, rng: random.Random) -> None:
    """A sealed cut holds what was there when it was sealed, however late it is written."""
    tables = _TableFleet(factory, text_keys(rng, 0).schema, true_hash)
    for _ in range(4):
        tables.upsert(text_keys(rng, 80), _values(rng, 80))
        kept = dict(tables.model)
        snapshots = [backend.seal() for backend in tables.fleet.backends]
        tables.accumulate(text_keys(rng, 80), _values(rng, 80))
        tables.delete(text_keys(rng, 10))
        tables.fleet.restart(
            rng.choice(RESCALES), [write_run(snapshot.sections()) for snapshot in snapshots]
        )
        tables.model = kept
        tables.check(text_keys(rng, 20))


def law_large_tables_survive_growth_and_mass_deletion(
    factory: BackendFactory, rng: random.Random
) -> None:
    """The index finds every key after growing, shrinking and growing again."""
    key = pa.schema([("k", pa.int64())])
    value = pa.schema([("n", pa.int64()), ("s", pa.utf8())])
    fleet = Fleet(factory, lambda backend: backend.table("t", key, value))
    count = 40_000

    def rows(first: int, last: int) -> tuple[pa.RecordBatch, pa.RecordBatch]:
        ids = np.arange(first, last)
        texts = pa.array(ids).cast(pa.utf8())
        return (
            pa.record_batch([pa.array(ids)], schema=key),
            pa.RecordBatch.from_arrays([pa.array(ids * 3), texts], schema=value),
        )

    table = fleet.backends[0].table("t", key, value)
    table.upsert(*rows(0, count))
    table.upsert(*rows(0, count))
    table.delete(rows(100, count)[0])
    assert table.rows == 100
    table.upsert(*rows(50, 150))
    fleet.restart(1)
    table = fleet.backends[0].table("t", key, value)
    found, values = table.get(rows(0, 200)[0])
    assert found.tolist() == [True] * 150 + [False] * 50
    assert values.slice(0, 150).equals(rows(0, 150)[1])


def law_a_table_with_a_ttl_forgets_by_event_time(
    factory: BackendFactory, rng: random.Random
) -> None:
    """A row is gone when event time is further than the ttl past its last write."""
    key = pa.schema([("k", pa.int64())])
    value = pa.schema([("n", pa.int64())])

    def declare(backend: StateBackend) -> Table:
        return backend.table("t", key, value, merge={"n": "sum"}, ttl_ns=100)

    fleet = Fleet(factory, declare)

    def put(keys: list[int]) -> None:
        rows = pa.record_batch([pa.array(keys, pa.int64())], schema=key)
        ones = pa.record_batch([pa.array([1] * len(keys))], schema=value)
        declare(fleet.backends[0]).accumulate(rows, ones)

    def present() -> list[int]:
        return sorted(k for b in declare(fleet.backends[0]).scan() for k in b.column(0).to_pylist())

    put([1])  # before any time is known: counts as written at the first time
    declare(fleet.backends[0]).advance(1_000)
    put([2])
    declare(fleet.backends[0]).advance(1_050)
    put([2, 3])
    assert present() == [1, 2, 3]
    fleet.restart(1)
    declare(fleet.backends[0]).advance(1_101)
    assert present() == [2, 3]
    assert declare(fleet.backends[0]).rows == 2
    put([1])  # an expired key starts anew
    found, rows = declare(fleet.backends[0]).get(pa.record_batch([pa.array([1, 2])], schema=key))
    assert found.all()
    assert rows.column(0).to_pylist() == [1, 2]
    declare(fleet.backends[0]).advance(10_000)
    assert present() == []
