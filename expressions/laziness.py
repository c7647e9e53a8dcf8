"""Left to right, for every row by itself: what AND, OR and CASE guard is never evaluated.

DataFusion short-cuts AND and OR only when a whole batch agrees, and turns a CASE of truth values
into AND and OR: whether `b <> 0 AND a / b > 1` fails would depend on which rows arrived together.
A CASE of numbers does evaluate its branches for their own rows only, so guards in front of what
may fail are written as one, and a function that DataFusion cannot see through makes truth values
of the numbers. Guards in front of what cannot fail stay as they are, and as fast.
"""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from .analysis import bare, may_fail
from .check import Checker
from .session import Native
from .syntax import Node

_ONE = pa.scalar(1, pa.int8())
TRUTH = Native("__truth", lambda number: pc.equal(number, _ONE), (pa.int8(),), pa.bool_())
"""1 is true, 0 is false, null is null."""


def guarded(tree: Node, checker: Checker) -> Node:
    """The tree with its guards made to hold row by row; the same value otherwise."""
    if not tree.children:
        return tree
    children = tuple(guarded(child, checker) for child in tree.children)
    if tree.kind == "binary" and tree.name in ("AND", "OR"):
        if may_fail(tree.children[1], checker):
            return _connective(tree, *children)
    elif tree.kind == "pieces" and tree.name == "case" and _risky_truth(tree, checker):
        return _case(tree, children)
    if all(new is old for new, old in zip(children, tree.children)):
        return tree
    return replace(tree, children=children)


def _connective(tree: Node, left: Node, right: Node) -> Node:
    """What the left side decides, else both sides: null follows SQL's three values."""
    test, decided = ("FALSE", "0") if tree.name == "AND" else ("TRUE", "1")
    return Node(
        "pieces",
        "guarded",
        tree.start,
        tree.end,
        (left, left, right),
        (
            f"{TRUTH.name}(CASE WHEN (",
            f") IS {test} THEN CAST({decided} AS TINYINT) ELSE CAST((",
            f" {tree.name} ",
            ") AS TINYINT) END)",
        ),
    )


def _risky_truth(tree: Node, checker: Checker) -> bool:
    """Whether a CASE gives truth values and could fail."""
    if not may_fail(tree, checker):
        return False
    return bool(pa.types.is_boolean(checker.types([tree])[id(tree)]))


def _case(tree: Node, children: tuple[Node, ...]) -> Node:
    """Results become numbers, and the whole is seen as truth values."""
    numbers = tuple(
        _as_number(child) if _is_result(tree, at) else child for at, child in enumerate(children)
    )
    inner = replace(tree, children=numbers)
    return Node("pieces", "guarded", tree.start, tree.end, (inner,), (f"{TRUTH.name}(", ")"))


def _is_result(tree: Node, at: int) -> bool:
    """Whether the child stands behind THEN or ELSE."""
    return tree.parts[at].endswith(("THEN ", "ELSE "))


def _as_number(node: Node) -> Node:
    parts = ("CAST(", " AS TINYINT)")
    return Node("pieces", "cast", node.start, node.end, (bare(node),), parts)
