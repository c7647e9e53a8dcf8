"""What can be known of a checked expression without running it.

Promises: answers err on the safe side: `may_fail` says yes when unsure, `pushable` says no. All
functions take resolved trees, as CheckedExpression.tree is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pyarrow as pa

from .check import CheckedExpression, Checker
from .functions import Functions
from .syntax import Node, render

COMPARISONS = frozenset(["=", "<>", "!=", "<", "<=", ">", ">="])
_LOGIC = frozenset(["AND", "OR"])
_ARITHMETIC = frozenset(["+", "-", "*"])
_DIVISION = frozenset(["/", "%"])
_HARMLESS_SYNTAX_NAMES = (
    "paren|case|between|in|like|is distinct|is null|is true|is false|is unknown|try_cast|field|trim"
)
_HARMLESS_SYNTAX = frozenset(_HARMLESS_SYNTAX_NAMES.split("|"))
_HARMLESS_CALL_NAMES = (
    "coalesce nullif upper lower length char_length octet_length concat btrim ltrim rtrim "
    "starts_with ends_with contains isnan floor ceil"
)
_HARMLESS_CALLS = frozenset(_HARMLESS_CALL_NAMES.split())
_VOLATILE_CALLS = frozenset(["random", "uuid"])

Types = Mapping[int, pa.DataType]


def bare(node: Node) -> Node:
    """The node inside any parentheses."""
    while node.kind == "pieces" and node.name == "paren":
        node = node.children[0]
    return node


def columns_of(node: Node) -> frozenset[str]:
    """The names of the columns that the tree reads."""
    return frozenset(each.name for each in node.walk() if each.kind == "column")


def substitute(node: Node, meaning: Mapping[str, Node]) -> Node:
    """The tree with columns replaced by what `meaning` gives for them."""
    if node.kind == "column":
        return meaning.get(node.name, node)
    if not node.children:
        return node
    children = tuple(substitute(child, meaning) for child in node.children)
    return replace(node, children=children)


def conjuncts(node: Node) -> list[Node]:
    """The parts that must all be true for a condition to be true."""
    node = bare(node)
    if node.kind == "binary" and node.name == "AND":
        return [part for child in node.children for part in conjuncts(child)]
    return [node]


def all_of(parts: Sequence[Node]) -> Node:
    """The condition that is true when all of `parts` are; the inverse of `conjuncts`."""
    whole = parts[0]
    for part in parts[1:]:
        whole = Node("binary", "AND", whole.start, part.end, (whole, part))
    return whole


def is_literal(node: Node) -> bool:
    """Whether the node is a constant; casts of constants count, as typed parameters are those."""
    node = bare(node)
    if node.kind == "literal":
        return True
    if node.kind == "pieces" and node.name == "cast":
        return is_literal(node.children[0])
    return (
        node.kind == "call"
        and node.name == "arrow_cast"
        and all(child.kind == "literal" for child in node.children)
    )


def is_simple(node: Node) -> bool:
    """Whether this compares one column with constants: what files and indexes can skip by.

    column op constant, constant op column, BETWEEN, IN, IS [NOT] NULL.
    """
    node = bare(node)
    if node.kind == "binary" and node.name in COMPARISONS:
        left, right = (bare(child) for child in node.children)
        return (left.kind == "column" and is_literal(right)) or (
            right.kind == "column" and is_literal(left)
        )
    if node.kind == "pieces" and node.name in ("between", "in", "is null"):
        first, *rest = node.children
        return bare(first).kind == "column" and all(is_literal(each) for each in rest)
    return False


def pushable(condition: CheckedExpression) -> str | None:
    """The part of a condition that a source may skip rows by, as SQL; None if there is none."""
    parts = [part for part in conjuncts(condition.tree) if is_simple(part)]
    return render(all_of(parts)) if parts else None


def is_volatile(node: Node, functions: Functions) -> bool:
    """Whether evaluating it twice may give two results."""
    for each in node.walk():
        if each.kind != "call":
            continue
        if each.name in _VOLATILE_CALLS:
            return True
        ours = functions.find(each.name)
        if ours is not None and ours.volatility == "volatile":
            return True
    return False


def is_costly(node: Node) -> bool:
    """Whether it is worth leaving out the rows that a filter drops: more than arithmetic."""
    return any(
        each.kind == "call"
        or (each.kind == "pieces" and each.name in ("case", "like", "call", "cast", "trim"))
        or each.name in ("~", "~*", "!~", "!~*", "||")
        for each in node.walk()
        if not is_literal(each)
    )


def may_fail(node: Node, checker: Checker) -> bool:
    """Whether some value of its columns could make it raise."""
    asked = [
        each
        for parent in node.walk()
        if parent.kind in ("binary", "unary")
        or (parent.kind == "pieces" and parent.name in ("between", "in"))
        for each in (parent, *parent.children)
    ]
    types = checker.types(asked)
    return any(_fails(each, types) for each in node.walk())


def _fails(node: Node, types: Types) -> bool:
    if node.kind in ("column", "literal") or is_literal(node):
        return False
    if node.kind == "call":
        return node.name not in _HARMLESS_CALLS or node.quoted
    if node.kind == "unary":
        return node.name != "NOT" and not _floating(types[id(node)])
    if node.kind == "pieces":
        if node.name in ("between", "in"):
            first, *rest = node.children
            return not all(_comparable(first, each, types) for each in rest)
        return node.name not in _HARMLESS_SYNTAX
    if node.name in _LOGIC:
        return False
    left, right = node.children
    if node.name in COMPARISONS:
        return not _comparable(left, right, types)
    if node.name in _ARITHMETIC:
        return not _floating(types[id(node)])
    if node.name in _DIVISION:
        return not _floating(types[id(node)]) and not _harmless_divisor(right)
    return node.name != "||"


def _floating(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind))


def _harmless_divisor(node: Node) -> bool:
    node = bare(node)
    try:
        return node.kind == "literal" and int(node.name) > 0
    except ValueError:
        return False


def _comparable(left: Node, right: Node, types: Types) -> bool:
    """Whether comparing them casts no column to a type that may not hold its values."""
    if _is_text(left) or _is_text(right):
        return True  # a text constant is cast once, when planning
    first, second = types.get(id(left)), types.get(id(right))
    if first is None or second is None:
        return False
    if first == second:
        return True
    numeric = pa.types.is_integer, pa.types.is_floating
    return all(any(is_kind(kind) for is_kind in numeric) for kind in (first, second))


def _is_text(node: Node) -> bool:
    node = bare(node)
    return node.kind == "literal" and (node.name.startswith("'") or node.name == "NULL")
