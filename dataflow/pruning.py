"""Which columns anyone needs, from the ends up to the sources, and filters that sources may use.

Sources read only what is needed, exchanges carry only what is needed behind them. A predicate is
a hint: the filter stays in the plan, since skipping is an optimisation and never a promise.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from penstock.elements.signals import TIME_COLUMN
from penstock.expressions.analysis import columns_of, conjuncts, is_simple
from penstock.expressions.syntax import render
from penstock.operators.error_policy import DeadLetter

from .graph import Columns, Node, user_columns
from .values import Filter, Rename, Select, ValueLogic, WithColumns

Required = dict[str, Columns]


@dataclass(frozen=True)
class Needs:
    """By id(node): what others read of its outputs, and what it reads of its ports."""

    outputs: dict[int, Required] = field(default_factory=dict)
    ports: dict[int, tuple[Columns, ...]] = field(default_factory=dict)

    def of_output(self, node: Node, output: str) -> Columns:
        """The columns of one output that are read by anyone."""
        return self.outputs.get(id(node), {}).get(output, frozenset())

    def of_port(self, node: Node, port: int) -> Columns:
        """The columns that `node` reads of one input."""
        return self.ports[id(node)][port]


def column_needs(nodes: Sequence[Node]) -> Needs:
    """Needs of all nodes. Requires: `nodes` are topological and complete."""
    outputs: dict[int, Required] = defaultdict(dict)
    ports: dict[int, tuple[Columns, ...]] = {}
    for node in reversed(nodes):
        required = dict(outputs[id(node)])
        found = node.logic.needs([port.schema for port in node.ports], required)
        assert len(found) == len(node.ports)
        if isinstance(node.options.on_error, DeadLetter):
            # Rows are set aside to be repaired and sent again: whole.
            found = [frozenset(user_columns(port.schema)) for port in node.ports]
        # What is hashed must be there, whether or not the operator looks at it.
        ports[id(node)] = tuple(
            columns | set(port.keys) for columns, port in zip(found, node.ports, strict=True)
        )
        for port, columns in zip(node.ports, ports[id(node)], strict=True):
            for tap in port.taps:
                above = outputs[id(tap.node)]
                above[tap.output] = above.get(tap.output, frozenset()) | columns
    return Needs(dict(outputs), ports)


def pushed_predicate(source: Node, nodes: Sequence[Node]) -> str | None:
    """A condition on the source's own columns that every row used later meets; None: no such.

    Follows the values behind the source as long as each has one reader.
    """
    readers = Counter(id(tap.node) for node in nodes for tap in node.upstream)
    below = {id(node.upstream[0].node): node for node in nodes if len(node.upstream) == 1}
    found: list[str] = []
    changed: set[str] = {TIME_COLUMN}
    node = source
    while readers[id(node)] == 1 and id(node) in below:
        node = below[id(node)]
        logic = node.logic
        if isinstance(logic, Filter):
            found.extend(
                render(part)
                for part in conjuncts(logic.condition.tree)
                if is_simple(part) and not changed & columns_of(part)
            )
        elif isinstance(logic, WithColumns):
            changed |= {name for name, _ in logic.items}
        elif isinstance(logic, Select):
            changed |= {name for name, e in logic.items if e.column != name}
        elif isinstance(logic, Rename):
            changed |= {name for pair in logic.names for name in pair}
        elif not isinstance(logic, ValueLogic):
            break
    return " AND ".join(found) or None
