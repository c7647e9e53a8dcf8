"""Which logical nodes become one operator: runs of value nodes, and everything else alone.

Two value nodes are one stage if nothing can tell: the first has no other reader, both have the
same error policy, and the user did not name, break or scale the second apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from penstock.operators.processor import MAIN

from .graph import Node
from .values import ValueLogic


@dataclass(frozen=True, eq=False)
class Stage:
    """Nodes in a row that run as one operator."""

    nodes: tuple[Node, ...]

    @property
    def first(self) -> Node:
        """Its ports are the stage's ports."""
        return self.nodes[0]

    @property
    def last(self) -> Node:
        """Its outputs are the stage's outputs."""
        return self.nodes[-1]

    @property
    def is_values(self) -> bool:
        """Whether it becomes a ValueStage."""
        return isinstance(self.first.logic, ValueLogic)

    @property
    def name(self) -> str:
        """The user's name, else the kinds in a row."""
        return self.first.options.name or "_".join(dict.fromkeys(n.name for n in self.nodes))


def fuse(nodes: Sequence[Node]) -> list[Stage]:
    """Stages in topological order. Requires: `nodes` are topological and complete."""
    readers = Counter(id(tap.node) for node in nodes for tap in node.upstream)
    stages: dict[int, list[Node]] = {}
    order: list[list[Node]] = []
    for node in nodes:
        above = _single_upstream(node)
        if above is not None and readers[id(above)] == 1 and _fits(above, node):
            stage = stages[id(above)]
            stage.append(node)
        else:
            stage = [node]
            order.append(stage)
        stages[id(node)] = stage
    # A stage grows only by nodes whose single input it is: the order of first nodes stays valid.
    return [Stage(tuple(stage)) for stage in order]


def _single_upstream(node: Node) -> Node | None:
    taps = node.upstream
    return taps[0].node if len(taps) == 1 and taps[0].output == MAIN else None


def _fits(above: Node, node: Node) -> bool:
    if not (isinstance(above.logic, ValueLogic) and isinstance(node.logic, ValueLogic)):
        return False
    mine, theirs = node.options, above.options
    return (
        mine.name is None
        and not mine.chain_break
        and mine.parallelism in (None, theirs.parallelism)
        and mine.on_error == theirs.on_error
    )
