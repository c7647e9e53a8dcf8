"""A program before it is planned: what is sent to whoever plans it, perhaps on another machine.

A Program holds the ends of a pipeline and all that they depend on. It can be planned again and
again, at other parallelisms, and operators keep their ids, so state is found (hazard 29). It is
pickled flat, node after node: a long program must not run into Python's recursion limit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import cloudpickle

from penstock.elements.errors import PlanError
from penstock.elements.row_hints import Resolved, recorded_hints, remember_hints

from .graph import Node, Options, Port, Tap, topological
from .planner import Planned, make_plan
from .schema_check import check_sendable

DEFAULT_WIDTH = ""
"""The name that stands for the parallelism of all operators that name none themselves."""


@dataclass(frozen=True, eq=False)
class Program:
    """What a pipeline computes. `functions` are those that its expressions know."""

    name: str
    ends: tuple[Node, ...]
    functions: Any
    _hints: list[Resolved] = field(default_factory=list, repr=False)
    """What annotations meant when it was planned here: names in them do not travel."""

    def plan(self, parallelism: int, overrides: Mapping[str, int] | None = None) -> Planned:
        """The plan at this parallelism; it carries this program.

        `overrides` give single operators another width, whatever the program says of them: by the
        id or the name that explain() shows. The name "" overrides `parallelism`. Raises PlanError.
        """
        widths = dict(overrides or {})
        default = widths.pop(DEFAULT_WIDTH, parallelism)
        if default < 1:
            raise PlanError(f"parallelism {default}: an operator has one subtask at least")
        with recorded_hints() as hints:
            planned = make_plan(self.name, self.ends, self.functions, default, widths)
        self._hints[:] = hints
        return replace(planned, plan=replace(planned.plan, program=self))

    def to_bytes(self) -> bytes:
        """By cloudpickle; PlanError names the operator that cannot travel."""
        if not self._hints:
            self.plan(1)
        try:
            blob: bytes = cloudpickle.dumps(self)
        except Exception as error:
            for node in topological(self.ends):
                for part in (*vars(node.logic).values(), *vars(node.options).values()):
                    check_sendable(part, node.name, node.location)
            raise PlanError(
                f"pipeline {self.name!r} cannot be sent: {type(error).__name__}: {error}\n"
                "  It travels by cloudpickle, with everything that it refers to."
            ) from error
        return blob

    def __reduce__(self) -> tuple[Any, ...]:
        nodes = topological(self.ends)
        places = {id(node): place for place, node in enumerate(nodes)}
        flat = [_flat(node, places) for node in nodes]
        ends = [places[id(node)] for node in self.ends]
        hints = {id(target): (target, found) for target, found in self._hints}
        return _assemble, (self.name, flat, ends, self.functions, [*hints.values()])


def program_of(blob: bytes) -> Program:
    """The inverse of to_bytes. Runs what the bytes say: only for those of a trusted sender."""
    found = cloudpickle.loads(blob)
    if not isinstance(found, Program):
        raise PlanError(f"these bytes hold a {type(found).__name__}, not a program")
    return found


_FlatPort = tuple[list[tuple[int, str]], str, tuple[str, ...]]
_FlatNode = tuple[Any, list[_FlatPort], dict[str, Any], str, Options, object]


def _flat(node: Node, places: Mapping[int, int]) -> _FlatNode:
    ports: list[_FlatPort] = [
        ([(places[id(tap.node)], tap.output) for tap in port.taps], port.exchange, port.keys)
        for port in node.ports
    ]
    return node.logic, ports, node.outputs, node.location, node.options, node.origin


def _assemble(
    name: str,
    flat: Sequence[_FlatNode],
    ends: Sequence[int],
    functions: Any,
    hints: list[Resolved],
) -> Program:
    remember_hints(hints)
    nodes: list[Node] = []
    for logic, flat_ports, outputs, location, options, origin in flat:
        ports = tuple(
            Port(tuple(Tap(nodes[place], output) for place, output in taps), exchange, keys)  # type: ignore[arg-type]
            for taps, exchange, keys in flat_ports
        )
        nodes.append(Node(logic, ports, outputs, location, options, origin))
    return Program(name, tuple(nodes[place] for place in ends), functions, hints)
