"""Marked slots: a set, whichever way it is taken out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import penstock.operators.updating_groups as module
from penstock.operators.updating_groups import Marked

SLOTS = 40


@settings(max_examples=100, deadline=None)
@given(
    steps=st.lists(st.tuples(st.booleans(), st.sets(st.integers(0, SLOTS - 1))), max_size=12),
    marks_per_slot=st.sampled_from([0, 1, 100]),
)
def test_what_is_added_and_not_removed_is_taken_in_order_once(
    steps: list[tuple[bool, set[int]]], marks_per_slot: int
) -> None:
    marked, expected = Marked(), set()
    marked.room(SLOTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MARKS_PER_SLOT", marks_per_slot)
        for at, (adds, slots) in enumerate(steps):
            given_ = np.array(sorted(slots, reverse=True), np.int64)
            if adds:
                marked.add(given_)
                expected |= slots
            else:
                marked.remove(given_)
                expected -= slots
            if at % 5 == 4:
                assert marked.take().tolist() == sorted(expected)
                expected = set()
        assert marked.take().tolist() == sorted(expected)
        assert marked.take().tolist() == []
