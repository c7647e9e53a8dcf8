"""Which operations share a subtask: everything up to an exchange, everything from it to the sink.

An operation is called by the one above it if rows need not move: one input, one producer, equal
parallelism, no break asked for. All others head a vertex of their own and read channels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from .lowering import Input, Operation
from .plan import Edge, Link, OperatorSpec, Partition, Vertex


def chain(
    operations: Sequence[Operation], ids: Sequence[str]
) -> tuple[tuple[Vertex, ...], tuple[Edge, ...]]:
    """Vertices and edges. Requires: `operations` are in topological order, `ids` are theirs."""
    heads: list[int] = []
    place: list[tuple[int, int]] = []
    """Per operation: (index of its vertex, its index in there)."""
    members: dict[int, list[int]] = defaultdict(list)
    for index, operation in enumerate(operations):
        above = _caller(operation, operations)
        if above is None:
            vertex = len(heads)
            heads.append(index)
        else:
            vertex = place[above][0]
        place.append((vertex, len(members[vertex])))
        members[vertex].append(index)
    vertices = tuple(
        _vertex(members[vertex], operations, ids, place) for vertex in range(len(heads))
    )
    edges = [
        edge
        for vertex, head in enumerate(heads)
        for edge in _edges(operations[head], vertices[vertex], operations, vertices, place)
    ]
    return vertices, tuple(edges)


def _caller(operation: Operation, operations: Sequence[Operation]) -> int | None:
    if len(operation.inputs) != 1 or operation.chain_break:
        return None
    (only,) = operation.inputs
    if only.exchange != "none" or len(only.feeds) != 1:
        return None
    above = only.feeds[0][0]
    return above if operations[above].parallelism == operation.parallelism else None


def _vertex(
    members: Sequence[int],
    operations: Sequence[Operation],
    ids: Sequence[str],
    place: Sequence[tuple[int, int]],
) -> Vertex:
    specs, links = [], []
    for index in members:
        operation = operations[index]
        specs.append(
            OperatorSpec(
                ids[index],
                operation.name,
                operation.processor,
                operation.outputs,
                operation.location,
                operation.stateful,
                operation.is_source,
                operation.is_sink,
            )
        )
        if index != members[0]:
            above, output = operation.inputs[0].feeds[0]
            links.append(Link(place[above][1], output, place[index][1]))
    head = operations[members[0]]
    name = " > ".join(dict.fromkeys(spec.name for spec in specs))
    return Vertex(ids[members[0]], name, tuple(specs), tuple(links), head.parallelism)


def _edges(
    head: Operation,
    target: Vertex,
    operations: Sequence[Operation],
    vertices: Sequence[Vertex],
    place: Sequence[tuple[int, int]],
) -> list[Edge]:
    found = []
    for port, one in enumerate(head.inputs):
        for at, (index, output) in enumerate(one.feeds):
            vertex, operator = place[index]
            source = vertices[vertex]
            how = _partition(one, source.parallelism, target.parallelism)
            name = f"{source.operators[operator].id}.{output}-{target.id}.{port}"
            if one.feeds.index((index, output)) != at:
                name += f".{at}"  # A stream in union with itself.
            found.append(
                Edge(
                    name,
                    source.id,
                    operator,
                    output,
                    target.id,
                    port,
                    how,
                    one.schema,
                    one.keys if how == "hash" else (),
                )
            )
    return found


def _partition(one: Input, source: int, target: int) -> Partition:
    if one.exchange == "hash":
        return "hash"
    if one.exchange == "broadcast":
        return "broadcast"
    return "forward" if source == target else "rebalance"
