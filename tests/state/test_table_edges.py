"""Tables: what is refused, and with which words."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from penstock.elements.errors import StateError
from penstock.elements.keygroup import ALL_GROUPS, owned_groups
from penstock.state.backend import RestoredState, StateBackend
from penstock.state.memory import memory_backend
from penstock.state.slot_index import SlotIndex

KEY = pa.schema([("k", pa.int64())])
VALUE = pa.schema([("n", pa.int64())])
NONE = np.zeros(1, np.int64)


def _backend() -> StateBackend:
    return memory_backend("op", RestoredState([], ALL_GROUPS, 0, 1))


def _rows(schema: pa.Schema, *values: object) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array(values, schema.field(0).type)], schema=schema)


def test_a_table_is_either_keyed_or_appended() -> None:
    keyed = _backend().table("t", KEY, VALUE)
    keyed.upsert(_rows(KEY, 1), _rows(VALUE, 1))
    with pytest.raises(StateError, match="op: table t holds one row per key"):
        keyed.append(_rows(KEY, 1), _rows(VALUE, 1), NONE)
    appended = _backend().table("t", KEY, VALUE)
    appended.append(_rows(KEY, 1), _rows(VALUE, 1), NONE)
    with pytest.raises(StateError, match="op: table t holds appended rows"):
        appended.get(_rows(KEY, 1))


def test_a_batch_of_another_type_is_refused_with_both_types() -> None:
    table = _backend().table("t", KEY, VALUE)
    other = pa.schema([("k", pa.int32())])
    with pytest.raises(StateError, match=r"key is \(k int32\), declared as \(k int64\)"):
        table.get(_rows(other, 1))
    with pytest.raises(StateError, match=r"value is \(k int32\), declared as \(n int64\)"):
        table.upsert(_rows(KEY, 1), _rows(other, 1))


def test_a_merge_that_cannot_be_is_refused_when_declared() -> None:
    text = pa.schema([("s", pa.utf8())])
    with pytest.raises(StateError, match="column s of type string cannot be merged by 'sum'"):
        _backend().table("t", KEY, text, merge={"s": "sum"})
    lists = pa.schema([("l", pa.list_(pa.int64()))])
    with pytest.raises(StateError, match="column l"):
        _backend().table("t", KEY, lists, merge={"l": "max"})
    with pytest.raises(StateError, match="no value column: m"):
        _backend().table("t", KEY, VALUE, merge={"m": "max"})


def test_a_key_that_cannot_be_hashed_is_refused_when_declared() -> None:
    with pytest.raises(StateError, match="key column k: decimal256"):
        _backend().table("t", pa.schema([("k", pa.decimal256(40, 2))]), VALUE)


@pytest.mark.parametrize("parallelism", [1, 64])
def test_the_index_does_not_cluster_though_keys_share_their_top_bits(parallelism: int) -> None:
    """Hazard 31: an index by the high bits would put all keys of a subtask into one cell of 64."""
    groups = owned_groups(parallelism // 2, parallelism)
    rng = np.random.default_rng(1)
    low = groups.start << 52
    hashes = np.uint64(low) + rng.integers(0, (groups.stop << 52) - low, 20_000, np.uint64)
    index = SlotIndex(KEY)
    keys = [pa.array(np.arange(20_000))]
    slots, new = index.find_or_insert(hashes, keys)
    assert len(new) == 20_000
    distances = (index.cells_of(slots) - index.home_of(hashes)) % index.cell_count
    assert distances.mean() < 2
    assert (index.find(hashes, keys) == slots).all()


def test_stored_rows_do_not_refer_to_the_batch_they_came_in() -> None:
    """Hazard 4: a batch may lie in shared memory that is reused after the call."""
    key = pa.schema([("k", pa.utf8())])
    value = pa.schema([("n", pa.int64()), ("l", pa.list_(pa.utf8()))])
    table = _backend().table("t", key, value)
    numbers = np.array([7, 8])
    rows = [
        pa.Array.from_buffers(pa.int64(), 2, [None, pa.py_buffer(numbers)]),
        pa.array([["x"], ["y"]]),
    ]
    before = pa.total_allocated_bytes()
    table.upsert(_rows(key, "a", "b"), pa.RecordBatch.from_arrays(rows, schema=value))
    numbers[:] = 0
    del rows
    _, found = table.get(_rows(key, "a", "b"))
    assert found.to_pylist() == [{"n": 7, "l": ["x"]}, {"n": 8, "l": ["y"]}]
    assert pa.total_allocated_bytes() < before + 1_000_000
