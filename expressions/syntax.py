"""The tree of an expression: what was written where, and how to print it.

Promises: `render` prints an expression that DataFusion reads as exactly this tree (operators
are put in parentheses), so what we say about columns, types and overflow is about what is run.
Knows nothing of schemas: names are as written until someone resolves them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from .lexer import quote_name

NodeKind = Literal[
    "column",  # a name, quoted or not
    "literal",  # numbers, texts, null, true, typed texts such as DATE '2020-01-01'
    "param",  # $name
    "unary",  # operator name, one child
    "binary",  # operator name, two children
    "call",  # function name, arguments
    "pieces",  # other syntax: its own words with the children in between
]


@dataclass(frozen=True)
class Node:
    """One node. `name` is the column, function, operator or parameter, or a literal's text.

    A node of kind "pieces" prints `parts[0] child[0] parts[1] child[1] … parts[-1]`; its `name`
    says which syntax it is: case, cast, between, in, like, is, subscript, array, interval …
    """

    kind: NodeKind
    name: str
    start: int
    end: int
    children: tuple[Node, ...] = ()
    parts: tuple[str, ...] = ()
    quoted: bool = False
    distinct: bool = False
    star: bool = False
    where: Node | None = None
    """FILTER (WHERE …) of a call to an aggregate function."""

    def walk(self) -> Iterator[Node]:
        """This node and all below it, parents first."""
        yield self
        for child in self.children:
            yield from child.walk()
        if self.where is not None:
            yield from self.where.walk()


Replacement = Callable[[Node], str | None]
"""Gives the text that stands for a node, or None to print it as it is."""


def render(node: Node, replace: Replacement | None = None) -> str:
    """The text of `node`; `replace` is asked first for every node, top down."""
    if replace is not None:
        text = replace(node)
        if text is not None:
            return text
    inner = [render(child, replace) for child in node.children]
    if node.kind == "column":
        return quote_name(node.name)
    if node.kind == "param":
        return f"${node.name}"
    if node.kind == "literal":
        return node.name
    if node.kind == "unary":
        return f"({node.name} {inner[0]})"
    if node.kind == "binary":
        return f"({inner[0]} {node.name} {inner[1]})"
    if node.kind == "call":
        return _render_call(node, inner, replace)
    text = node.parts[0]
    for child_text, part in zip(inner, node.parts[1:], strict=True):
        text += child_text + part
    return text


def _render_call(node: Node, inner: list[str], replace: Replacement | None) -> str:
    name = quote_name(node.name) if node.quoted else node.name
    text = "*" if node.star else ", ".join(inner)
    text = f"{name}({'DISTINCT ' if node.distinct else ''}{text})"
    if node.where is not None:
        text += f" FILTER (WHERE {render(node.where, replace)})"
    return text


def shown(node: Node) -> str:
    """The text of `node` for messages: without the quotes and outer parentheses of `render`.

    >>> shown(Node("column", "a", 0, 1))
    'a'
    """
    text = re.sub(r'"([a-z_][a-z0-9_]*)"', r"\1", render(node))
    if node.kind in ("binary", "unary"):
        return text[1:-1]
    return text
