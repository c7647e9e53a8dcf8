"""Integer arithmetic that raises instead of wrapping around (hazard 20).

DataFusion 55 wraps silently in + - * and unary minus. Each largest tree of these becomes one
call of a function of ours, which evaluates it by Arrow's checked kernels: one crossing per tree,
constants stay scalars. Trees that cannot leave their type, as int32 + 1 in int64, stay as they
are. Division, casts and abs raise by themselves, and decimals do too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from penstock.elements.errors import PlanError

from .session import Native
from .syntax import Node, render, shown
from .types import type_text

_KERNELS = {"+": "add_checked", "-": "subtract_checked", "*": "multiply_checked"}
_PREFIX = "__checked_"

NodeTypes = Mapping[int, pa.DataType]
"""id(node) -> type, for every node of a tree that `arithmetic_nodes` names."""


def arithmetic_nodes(tree: Node) -> list[Node]:
    """The nodes whose types must be known: + - * and minus, and what they work on."""
    found: dict[int, Node] = {}
    for node in tree.walk():
        if _is_arithmetic(node):
            for each in (node, *node.children):
                found[id(each)] = each
    return list(found.values())


def _is_arithmetic(node: Node) -> bool:
    return (node.kind == "binary" and node.name in _KERNELS) or (
        node.kind == "unary" and node.name == "-"
    )


def _bare(node: Node) -> Node:
    """The node inside any parentheses."""
    while node.kind == "pieces" and node.name == "paren":
        node = node.children[0]
    return node


@dataclass(frozen=True)
class _Step:
    """One node of a program: an argument, a constant, or a kernel over steps."""

    operation: str
    kind: pa.DataType
    inputs: tuple[_Step, ...] = ()
    argument: int = -1
    constant: int = 0


def _evaluator(step: _Step) -> Callable[[tuple[pa.Array, ...]], Any]:
    """Closures instead of a walk per batch; constants are made once."""
    kind = step.kind
    if step.operation == "argument":
        at = step.argument
        return lambda columns: columns[at]
    if step.operation == "constant":
        value = pa.scalar(step.constant, kind)
        return lambda columns: value
    if step.operation == "widen":
        inner = _evaluator(step.inputs[0])
        return lambda columns: inner(columns).cast(kind)
    kernel = step.operation
    call = pc.call_function
    if len(step.inputs) == 1:
        only = _evaluator(step.inputs[0])
        return lambda columns: call(kernel, [only(columns)])
    left, right = (_evaluator(each) for each in step.inputs)
    return lambda columns: call(kernel, [left(columns), right(columns)])


@dataclass(frozen=True)
class Program:
    """A tree of checked arithmetic as a function; plain data, so it travels by pickle."""

    name: str
    root: _Step
    arguments: tuple[pa.DataType, ...]
    text: str
    """The arithmetic as messages show it."""

    def native(self) -> Native:
        """What to register with a session."""
        evaluate = _evaluator(self.root)
        kind = type_text(self.root.kind)

        def call(*columns: pa.Array) -> pa.Array:
            try:
                return evaluate(columns)
            except pa.ArrowInvalid:
                raise OverflowError(f"{self.text} does not fit in {kind}") from None

        return Native(self.name, call, self.arguments, self.root.kind)


class Rewriter:
    """Rewrites trees of one projection; `programs` are what its session must know."""

    def __init__(self) -> None:
        self.programs: list[Program] = []
        self._calls: dict[tuple[_Step, tuple[str, ...]], str] = {}

    def rewrite(self, tree: Node, types: NodeTypes) -> str:
        """The text of `tree` with its integer arithmetic checked."""

        def replace(node: Node) -> str | None:
            if not _is_arithmetic(node) or not pa.types.is_integer(types[id(node)]):
                return None
            if not all(pa.types.is_integer(types[id(child)]) for child in node.children):
                return None  # a difference of dates, for example
            if _bounds(node, types)[1]:
                return None
            return self._call(node, types, replace)

        return render(tree, replace)

    def _call(self, node: Node, types: NodeTypes, replace: Callable[[Node], str | None]) -> str:
        texts: list[str] = []
        kinds: list[pa.DataType] = []
        root = self._step(node, types, replace, texts, kinds)
        assert texts, "constants that do not fit were refused"
        known = self._calls.get((root, tuple(texts)))
        if known is not None:
            return known
        name = f"{_PREFIX}{len(self.programs)}"
        program = Program(name, root, tuple(kinds), shown(node))
        self.programs.append(program)
        call = f"{program.name}({', '.join(texts)})"
        self._calls[root, tuple(texts)] = call
        return call

    def _step(
        self,
        node: Node,
        types: NodeTypes,
        replace: Callable[[Node], str | None],
        texts: list[str],
        kinds: list[pa.DataType],
    ) -> _Step:
        bare = _bare(node)
        kind = types[id(bare)] if id(bare) in types else types[id(node)]
        if _is_arithmetic(bare) and id(bare) in types:
            _refuse_constant(bare, types)
            inputs = []
            for child in bare.children:
                step = self._step(child, types, replace, texts, kinds)
                inputs.append(step if step.kind == kind else _widened(step, kind))
            kernel = "negate_checked" if bare.kind == "unary" else _KERNELS[bare.name]
            return _Step(kernel, kind, tuple(inputs))
        value = _constant(bare)
        if value is not None:
            return _Step("constant", kind, constant=value)
        text = render(node, replace)
        if text in texts:
            at = texts.index(text)
        else:
            at = len(texts)
            texts.append(text)
            kinds.append(kind)
        return _Step("argument", kind, argument=at)


def _is_constant(node: Node) -> bool:
    node = _bare(node)
    if _is_arithmetic(node):
        return all(_is_constant(child) for child in node.children)
    return _constant(node) is not None


def _refuse_constant(node: Node, types: NodeTypes) -> None:
    """A sum of constants that does not fit would fail for every row: say so when planning."""
    if _is_constant(node) and not _bounds(node, types)[1]:
        raise PlanError(
            f"{shown(node)} does not fit in {type_text(types[id(node)])}\n"
            "  Make one of the numbers a float or a decimal."
        )


def _widened(step: _Step, kind: pa.DataType) -> _Step:
    if step.operation == "constant":
        return _Step("constant", kind, constant=step.constant)
    return _Step("widen", kind, (step,))


def _constant(node: Node) -> int | None:
    if node.kind != "literal":
        return None
    try:
        return int(node.name.strip("()"))
    except ValueError:
        return None


def _range(kind: pa.DataType) -> tuple[int, int]:
    bits: int = kind.bit_width
    if pa.types.is_signed_integer(kind):
        return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    return 0, int(2**bits - 1)


def _bounds(node: Node, types: NodeTypes) -> tuple[tuple[int, int], bool]:
    """(least and greatest value, whether no step below can leave its type)."""
    bare = _bare(node)
    value = _constant(bare)
    if value is not None:
        return (value, value), True
    kind = types.get(id(bare), types.get(id(node)))
    assert kind is not None
    if not _is_arithmetic(bare) or id(bare) not in types:
        return _range(kind), True
    below = [_bounds(child, types) for child in bare.children]
    safe = all(each[1] for each in below)
    low, high = below[0][0]
    if bare.kind == "unary":
        low, high = -high, -low
    else:
        low, high = _combine(bare.name, (low, high), below[1][0])
    least, greatest = _range(kind)
    if least <= low and high <= greatest:
        return (low, high), safe
    return (least, greatest), False


def _combine(sign: str, left: tuple[int, int], right: tuple[int, int]) -> tuple[int, int]:
    if sign == "+":
        return left[0] + right[0], left[1] + right[1]
    if sign == "-":
        return left[0] - right[1], left[1] - right[0]
    corners = [a * b for a in left for b in right]
    return min(corners), max(corners)
