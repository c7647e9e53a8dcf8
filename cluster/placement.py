"""Which node runs which subtask: index → slot → node. Pure.

A slot holds one subtask of each vertex: index i of every vertex goes to slot i mod slots, so a
forward edge, which joins equal indices, never leaves a node. Slots are numbered node after node in
the order of the grant, so neighbours in a shuffle are neighbours on a machine where that is free.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from penstock.dataflow.plan import Plan
from penstock.runtime.messages import SubtaskKey

from .job_messages import GrantedNode
from .node_messages import NodeName


def slots_needed(plan: Plan) -> int:
    """As many as the widest vertex has subtasks."""
    return max(vertex.parallelism for vertex in plan.vertices)


def slots_of(nodes: Sequence[GrantedNode]) -> list[NodeName]:
    """The node of each slot."""
    return [granted.name for granted in nodes for _ in range(granted.slots)]


def place(
    subtasks: Iterable[SubtaskKey], nodes: Sequence[GrantedNode]
) -> dict[SubtaskKey, NodeName]:
    """The node of each subtask. Requires: the grant has a slot."""
    slots = slots_of(nodes)
    assert slots, "a grant without slots"
    return {key: slots[key.index % len(slots)] for key in subtasks}
