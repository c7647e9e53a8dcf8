"""The compiled chains against the plain ones: any order of linking, unlinking and probing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.operators.kernels import join_chains
from penstock.operators.kernels.join_chains import CompiledChains
from penstock.operators.kernels.join_chains_reference import PlainChains

# Few cells apart, on both sides of the end of the index, and equal in the low bits.
HASHES = [0, 1, 2, 1023, 1024, 2**63, 2**64 - 1, 2**64 - 1025, 0x7FB5D329728EA185]
SLOTS = 40

operations = st.lists(
    st.tuples(
        st.sampled_from(["link", "link", "unlink", "probe"]),
        st.lists(st.tuples(st.sampled_from(HASHES), st.integers(0, SLOTS - 1)), max_size=12),
    ),
    max_size=20,
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(operations, st.sampled_from([1, 3, 1 << 17]))
def test_both_forms_find_the_same(
    monkeypatch: pytest.MonkeyPatch, steps: list[tuple[str, list[tuple[int, int]]]], room: int
) -> None:
    monkeypatch.setattr(join_chains, "PAIRS_MAX", room)
    forms = [CompiledChains(), PlainChains()]
    for form in forms:
        form.resize(SLOTS)
    times = np.arange(SLOTS) % 7
    linked: dict[int, int] = {}
    for what, pairs in steps:
        if what == "link":
            pairs = [(h, s) for s, h in {s: h for h, s in pairs if s not in linked}.items()]
            linked |= {slot: hash64 for hash64, slot in pairs}
        elif what == "unlink":
            slots = {slot for _, slot in pairs if slot in linked}
            pairs = [(linked.pop(slot), slot) for slot in sorted(slots)]
        hashes = np.array([hash64 for hash64, _ in pairs], np.uint64)
        numbers = np.array([slot for _, slot in pairs], np.int64)
        if what != "probe":
            for form in forms:
                getattr(form, what)(hashes, numbers)
            continue
        low, high = numbers % 5, numbers % 5 + 3
        found = [
            sorted(
                (int(row), int(slot))
                for rows, slots in form.probe(hashes, low, high, times)
                for row, slot in zip(rows, slots, strict=True)
            )
            for form in forms
        ]
        assert found[0] == found[1]
        assert found[0] == sorted(
            (row, slot)
            for row, hash64 in enumerate(hashes.tolist())
            for slot, other in linked.items()
            if hash64 == other and low[row] <= times[slot] <= high[row]
        )


def test_an_index_of_hashes_that_come_and_go_does_not_grow() -> None:
    chains = CompiledChains()
    chains.resize(100)
    slots = np.arange(100)
    none, ever = np.full(100, -1), np.full(100, 10**6)
    for turn in range(200):
        hashes = (np.arange(100, dtype=np.uint64) + np.uint64(turn * 1000)) * np.uint64(2654435761)
        chains.link(hashes, slots)
        found = [pair for step in chains.probe(hashes, none, ever, slots) for pair in zip(*step)]
        assert found == [(slot, slot) for slot in range(100)]
        chains.unlink(hashes, slots)
        assert not list(chains.probe(hashes, none, ever, slots))
    assert len(chains._cell_head) == join_chains.CELLS_MIN
