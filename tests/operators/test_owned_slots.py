"""Slots by owner: lists through arrays against a plain dict, and against the reference."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.operators.kernels.owned_slots import LinkedSlots, OwnedSlots, ScannedSlots

OWNERS, SLOTS = 5, 20


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(
        st.tuples(
            st.sets(st.integers(0, SLOTS - 1)),
            st.integers(0, OWNERS - 1),
            st.lists(st.integers(0, OWNERS - 1), unique=True),
        ),
        max_size=12,
    )
)
def test_every_owner_has_just_its_slots_after_any_linking_and_unlinking(steps: list) -> None:  # type: ignore[type-arg]
    made: list[OwnedSlots] = [LinkedSlots(), ScannedSlots()]
    owner_of: dict[int, int] = {}
    for slots, owner, asked in steps:
        gone = np.array(sorted(slots & owner_of.keys()), np.int64)
        come = np.array(sorted(slots - owner_of.keys()), np.int64)
        for slot in gone.tolist():
            del owner_of[slot]
        # One batch may hold slots of several owners.
        owners = (np.arange(len(come)) + owner) % OWNERS
        owner_of.update(zip(come.tolist(), owners.tolist(), strict=True))
        for each in made:
            each.reserve(OWNERS, SLOTS)
            each.unlink(gone)
            each.link(come, owners)
            numbers, found = each.of(np.array(asked, np.int64))
            assert (np.diff(numbers) >= 0).all()
            pairs = sorted(zip(numbers.tolist(), found.tolist(), strict=True))
            assert pairs == sorted(
                (asked.index(of), slot) for slot, of in owner_of.items() if of in asked
            )
