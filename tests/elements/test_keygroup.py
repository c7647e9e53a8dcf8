"""Key groups: one routing function, whose borders are exactly the owned ranges (hazard 32)."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from penstock.elements.keygroup import (
    ALL_GROUPS,
    KEY_GROUPS,
    KeyGroupRange,
    group_to_subtask,
    owned_groups,
    subtask_of,
)

FIRST_HASHES = np.arange(KEY_GROUPS, dtype=np.uint64) << np.uint64(52)
LAST_HASHES = FIRST_HASHES | np.uint64((1 << 52) - 1)


@pytest.mark.parametrize("parallelism", range(1, 65))
def test_every_border_of_every_group_routes_to_its_owner(parallelism: int) -> None:
    expected = np.empty(KEY_GROUPS, np.int64)
    for subtask in range(parallelism):
        groups = owned_groups(subtask, parallelism)
        expected[groups.start : groups.stop] = subtask
    assert (subtask_of(FIRST_HASHES, parallelism) == expected).all()
    assert (subtask_of(LAST_HASHES, parallelism) == expected).all()
    closed_form = ((np.arange(KEY_GROUPS) + 1) * parallelism - 1) // KEY_GROUPS
    assert (closed_form == expected).all()


@pytest.mark.parametrize("parallelism", [1, 3, 64, 257, KEY_GROUPS])
def test_ranges_cover_all_groups_without_overlap(parallelism: int) -> None:
    ranges = [owned_groups(subtask, parallelism) for subtask in range(parallelism)]
    assert ranges[0].start == 0
    assert ranges[-1].stop == KEY_GROUPS
    assert all(a.stop == b.start for a, b in pairwise(ranges))
    assert all(r.stop > r.start for r in ranges)


def test_the_table_is_narrow_and_cannot_be_changed() -> None:
    assert group_to_subtask(256).dtype == np.uint8
    assert group_to_subtask(257).dtype == np.uint16
    with pytest.raises(ValueError, match="read-only"):
        group_to_subtask(4)[0] = 1


def test_overlap_and_membership_are_half_open() -> None:
    low, high = KeyGroupRange(0, 10), KeyGroupRange(10, 20)
    assert not low.overlaps(high)
    assert low.overlaps(KeyGroupRange(9, 11))
    assert 9 in low
    assert 10 not in low
    assert ALL_GROUPS.overlaps(high)
