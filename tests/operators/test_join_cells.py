"""The compiled cells against the plain ones: any order of linking, pairing and clearing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.elements.hash import hash_columns
from penstock.operators.join_sides import key_hashes
from penstock.operators.kernels import join_cells
from penstock.operators.kernels.join_cells import CompiledCells
from penstock.operators.kernels.join_cells_reference import PlainCells

# Few cells apart, on both sides of the end of the index, and equal in the low bits.
HASHES = [0, 1, 2, 1023, 1024, 2**63, 2**64 - 1, 2**64 - 1025, 0x7FB5D329728EA185]

steps = st.lists(
    st.tuples(
        st.sampled_from([0, 1, 0, 1, None]),
        st.lists(st.tuples(st.sampled_from(HASHES), st.integers(0, 6)), max_size=12),
        st.booleans(),
    ),
    max_size=20,
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps, st.sampled_from([1, 3, 1 << 17]))
def test_both_forms_pair_what_has_an_equal_hash(
    monkeypatch: pytest.MonkeyPatch, steps: list[Any], room: int
) -> None:
    monkeypatch.setattr(join_cells, "PAIRS_MAX", room)
    forms = [CompiledCells(), PlainCells()]
    kept: list[list[tuple[int, int]]] = [[], []]
    for port, rows, timed in steps:
        if port is None:
            kept = [[], []]
            for form in forms:
                form.clear(3, len(rows))
            continue
        hashes = np.array([hash64 for hash64, _ in rows], np.uint64)
        low = np.array([time for _, time in rows], np.int64)
        theirs = np.array([time for _, time in kept[1 - port]], np.int64)
        within = (theirs, low, low + 2) if timed else None
        first = len(kept[port])
        kept[port] += rows
        expected = [
            (row, slot)
            for row, (hash64, time) in enumerate(rows)
            for slot, (other, at) in reversed(list(enumerate(kept[1 - port])))
            if hash64 == other and (not timed or time <= at <= time + 2)
        ]
        for form in forms:
            found = form.link(port, hashes, first)
            assert pairs_of(form.pairs(port, found, within)) == expected


def pairs_of(parts: Any) -> list[tuple[int, int]]:
    made: list[tuple[int, int]] = []
    for rows, slots in parts:
        rows = np.arange(len(slots)) if rows is None else rows
        made += zip(rows.tolist(), slots.tolist(), strict=True)
    return made


def test_more_hashes_than_cells_are_all_found() -> None:
    cells = CompiledCells()
    rows = 10 * join_cells.CELLS_MIN
    hashes = np.arange(rows, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    for start in range(0, rows, 700):
        assert (cells.link(0, hashes[start : start + 700], start) == -1).all()
    (index, slots), *_ = cells.pairs(1, cells.link(1, hashes[::-1], 0), None)
    assert index is None
    assert slots.tolist() == list(range(rows))[::-1]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(-(2**63), 2**63 - 1)))
def test_the_compiled_hash_of_integers_is_the_frozen_one(values: list[int]) -> None:
    for kind in (pa.int64(), pa.timestamp("us")):
        column = pa.array([0, *values], pa.int64()).view(kind).slice(1)
        batch = pa.RecordBatch.from_arrays([column], ["k"])
        assert key_hashes(batch, ["k"]).tolist() == hash_columns(batch, ["k"]).tolist()
