"""The physical plan: what the runtime deploys. Pure data; made by planner.py.

A vertex is a chain: a small tree of operators that share a subtask. Operator 0 is its head and
the only one that takes input from edges. Links inside a vertex are calls; edges are channels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import pyarrow as pa

from penstock.operators.processor import MAIN, Processor

if TYPE_CHECKING:
    from .program import Program

Partition = Literal["forward", "hash", "rebalance", "broadcast"]


@dataclass(frozen=True)
class OperatorSpec:
    """One operator: identity, logic, and what it gives out.

    `id` follows hazard 29: the user's name or a hash of kind, upstream ids and ordinal; never of
    parallelism or chaining. `name` is for people. `location` is the user's file:line.
    """

    id: str
    name: str
    processor: Processor
    outputs: dict[str, pa.Schema]
    location: str = ""
    stateful: bool = False
    is_source: bool = False
    is_sink: bool = False


@dataclass(frozen=True)
class Link:
    """Rows of `output` of operator `source` go to operator `target` of the same vertex."""

    source: int
    output: str
    target: int


@dataclass(frozen=True)
class Edge:
    """Rows of an operator's output go to the head of another vertex, at input `port`.

    `keys` are the columns to hash for "hash". Forward requires equal parallelism.
    """

    id: str
    source_vertex: str
    source_operator: int
    output: str
    target_vertex: str
    port: int
    partition: Partition
    schema: pa.Schema
    keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class Vertex:
    """A chain and how many subtasks run it."""

    id: str
    name: str
    operators: tuple[OperatorSpec, ...]
    links: tuple[Link, ...]
    parallelism: int


@dataclass(frozen=True)
class Plan:
    """The whole job. `vertices` are in topological order."""

    name: str
    vertices: tuple[Vertex, ...]
    edges: tuple[Edge, ...]
    warnings: tuple[str, ...] = ()
    """Lines for the start-up message: at-least-once sinks, feeds without replay."""
    sources: tuple[str, ...] = field(default=())
    """Operator ids of the sources; their processors know their connector."""
    program: Program | None = field(default=None, compare=False, repr=False)
    """What it was made from, for launchers that plan elsewhere; subtasks are not sent it."""

    def vertex(self, vertex_id: str) -> Vertex:
        """The vertex with this id."""
        return next(v for v in self.vertices if v.id == vertex_id)

    def inputs(self, vertex_id: str) -> tuple[Edge, ...]:
        """Edges into a vertex, by port then id."""
        found = [e for e in self.edges if e.target_vertex == vertex_id]
        return tuple(sorted(found, key=lambda e: (e.port, e.id)))

    def outputs(self, vertex_id: str) -> tuple[Edge, ...]:
        """Edges out of a vertex, by id."""
        found = [e for e in self.edges if e.source_vertex == vertex_id]
        return tuple(sorted(found, key=lambda e: e.id))

    def explain(self) -> str:
        """The plan as indented text."""
        lines = [f"plan {self.name}"]
        for vertex in self.vertices:
            chain = " > ".join(op.name for op in vertex.operators)
            lines.append(f"  {vertex.id} x{vertex.parallelism}: {chain}")
            for edge in self.inputs(vertex.id):
                how = edge.partition + (f"({', '.join(edge.keys)})" if edge.keys else "")
                output = "" if edge.output == MAIN else f".{edge.output}"
                lines.append(f"    <- {edge.source_vertex}{output} {how} port {edge.port}")
        return "\n".join(lines)
