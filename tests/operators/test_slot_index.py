"""The slot index against a dict, compiled and as the reference, with hashes that collide."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.elements.hash import hash_arrays
from penstock.operators.kernels import compile as compiling
from penstock.operators.kernels.slot_cells import CompiledCells, ReferenceCells
from penstock.operators.kernels.slot_index import SlotIndex

KEYS = pa.schema([("a", pa.int64()), ("b", pa.string()), ("c", pa.float64())])


@pytest.fixture(params=["compiled", "reference"])
def mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways."""
    name = str(request.param)
    monkeypatch.setenv(compiling.MODE_VARIABLE, "reference" if name == "reference" else "")
    return name


def batch(rows: list[tuple[Any, ...]], schema: pa.Schema = KEYS) -> pa.RecordBatch:
    columns = zip(*rows, strict=True) if rows else [()] * len(schema)
    arrays = [pa.array(c, f.type) for c, f in zip(columns, schema, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def canonical(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """What makes two keys one."""
    return tuple(
        "nan" if isinstance(v, float) and math.isnan(v) else (v + 0.0 if v == 0 else v) for v in row
    )


key = st.tuples(
    st.sampled_from([None, 0, 1, -1, 2**62, -(2**63)]),
    st.sampled_from([None, "", "a", "é" * 9]),
    st.sampled_from([None, 0.0, -0.0, math.nan, math.inf, 0.1]),
)
steps = st.lists(
    st.tuples(st.sampled_from(["add", "find", "remove"]), st.lists(key, max_size=30)), max_size=12
)


@pytest.mark.parametrize("bits", [64, 3, 0], ids=["real hashes", "8 hashes", "one hash"])
@settings(max_examples=30, deadline=None)
@given(steps=steps)
def test_index_is_a_dict_whatever_the_hashes(bits: int, steps: list[Any]) -> None:
    for reference in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(compiling.MODE_VARIABLE, "reference" if reference else "")
            index = SlotIndex(KEYS)
        known: dict[tuple[Any, ...], int] = {}
        for what, rows in steps:
            keys = batch(rows)
            full = hash_arrays(keys.columns, len(rows))
            hashes = full & np.uint64((1 << bits) - 1)
            names = [canonical(row) for row in rows]
            if what == "add":
                slots, new = index.add(keys, hashes)
                for name, slot, first in zip(names, slots.tolist(), new.tolist(), strict=True):
                    assert first == (name not in known)
                    assert known.setdefault(name, slot) == slot
            elif what == "find":
                assert index.find(keys, hashes).tolist() == [known.get(n, -1) for n in names]
            else:
                gone = sorted({known.pop(name) for name in names if name in known})
                index.remove(np.array(gone, np.int64))
            assert index.rows == len(known) == len(set(known.values()))
            assert index.live.tolist() == sorted(known.values())
        slots = np.array(list(known.values()), np.int64)
        found = [canonical(tuple(row.values())) for row in index.keys_of(slots).to_pylist()]
        assert found == list(known)


def test_slots_of_removed_keys_are_given_again_and_the_index_does_not_grow(mode: str) -> None:
    schema = pa.schema([("a", pa.int64())])
    index = SlotIndex(schema)
    for start in range(0, 100_000, 5_000):
        keys = pa.record_batch([pa.array(np.arange(start, start + 5_000))], schema=schema)
        slots, new = index.add(keys)
        assert new.all()
        assert slots.max() < 5_000
        again, known = index.add(keys)
        assert not known.any()
        assert (again == slots).all()
        index.remove(slots)
        assert index.rows == 0
        assert (index.find(keys) == -1).all()


def test_keys_of_a_subtask_that_share_their_high_bits_are_spread(mode: str) -> None:
    # Hazard 31: at parallelism 64 all hashes begin with the same bits.
    schema = pa.schema([("a", pa.int64())])
    keys = pa.record_batch([pa.array(np.arange(200_000))], schema=schema)
    hashes = hash_arrays(keys.columns, 200_000)
    mine = np.flatnonzero(hashes >> np.uint64(58) == 5)
    kept = keys.take(pa.array(mine))
    index = SlotIndex(schema)
    slots, new = index.add(kept, hashes[mine])
    assert new.all()
    assert (index.find(kept, hashes[mine]) == slots).all()
    assert index.keys_of(slots).equals(kept)


def test_slices_and_read_only_memory_are_taken(mode: str) -> None:
    schema = pa.schema([("a", pa.string())])
    keys = batch([("x",), ("y",), ("x",), ("z",)], schema).slice(1)
    hashes = hash_arrays(keys.columns, 3)
    hashes.flags.writeable = False
    index = SlotIndex(schema)
    slots, new = index.add(keys, hashes)
    assert new.all()
    assert len(set(slots.tolist())) == 3


@given(rows=st.lists(st.integers(0, 40), max_size=60))
@settings(max_examples=40, deadline=None)
def test_numbering_slots_is_the_same_compiled_and_by_reference(rows: list[int]) -> None:
    slots = np.array(rows, np.int64)
    codes, distinct = CompiledCells().number(slots)
    expected_codes, expected = ReferenceCells().number(slots)
    assert codes.tolist() == expected_codes.tolist()
    assert distinct.tolist() == expected.tolist() == list(dict.fromkeys(rows))
