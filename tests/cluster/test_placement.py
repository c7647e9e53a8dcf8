"""Subtasks find their nodes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from penstock.cluster.job_messages import GrantedNode
from penstock.cluster.node_messages import NodeName
from penstock.cluster.placement import place
from penstock.runtime.messages import SubtaskKey


def grant(*slots: int) -> list[GrantedNode]:
    return [GrantedNode(NodeName(f"n{i}", "x"), "host", count) for i, count in enumerate(slots)]


def nodes(keys: list[SubtaskKey], granted: list[GrantedNode]) -> dict[str, str]:
    return {str(key): name.node for key, name in place(keys, granted).items()}


def test_slots_are_filled_node_after_node() -> None:
    keys = [SubtaskKey("a", index) for index in range(4)]
    assert nodes(keys, grant(1, 3)) == {"a[0]": "n0", "a[1]": "n1", "a[2]": "n1", "a[3]": "n1"}


def test_more_subtasks_than_slots_begin_again_at_the_first() -> None:
    keys = [SubtaskKey("a", index) for index in range(5)]
    assert list(nodes(keys, grant(2, 1)).values()) == ["n0", "n0", "n1", "n0", "n0"]


@given(st.lists(st.integers(1, 5), min_size=1, max_size=5), st.integers(1, 20), st.integers(1, 20))
def test_equal_indices_meet_on_one_node_and_no_node_takes_more_than_its_share(
    slots: list[int], wide: int, narrow: int
) -> None:
    granted = grant(*slots)
    keys = [SubtaskKey("a", i) for i in range(wide)] + [SubtaskKey("b", i) for i in range(narrow)]
    placed = place(keys, granted)
    for index in range(min(wide, narrow)):
        assert placed[SubtaskKey("a", index)] == placed[SubtaskKey("b", index)]
    rounds = -(-wide // sum(slots))
    for node in granted:
        held = sum(placed[SubtaskKey("a", i)] == node.name for i in range(wide))
        assert held <= node.slots * rounds
