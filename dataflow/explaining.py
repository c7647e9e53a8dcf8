"""explain(): what a program does and where, as text."""

from __future__ import annotations

from .lowering import Operation
from .plan import Edge, Plan, Vertex
from .planner import Planned
from .settings import JobSettings

MIB = 1024 * 1024


def explain_plan(planned: Planned, settings: JobSettings) -> str:
    """Vertices with their operators, the edges between them, and the memory of channels."""
    plan = planned.plan
    by_processor = {id(operation.processor): operation for operation in planned.operations}
    lines = [f"pipeline {plan.name}, parallelism {settings.parallelism}"]
    for vertex in plan.vertices:
        lines += _vertex_lines(plan, vertex, by_processor)
    lines += _memory_lines(plan, settings)
    lines += [f"note: {warning}" for warning in plan.warnings]
    return "\n".join(lines)


def _vertex_lines(plan: Plan, vertex: Vertex, operations: dict[int, Operation]) -> list[str]:
    subtasks = "1 subtask" if vertex.parallelism == 1 else f"{vertex.parallelism} subtasks"
    lines = [f"  {vertex.id}: {subtasks}"]
    for edge in plan.inputs(vertex.id):
        lines.append(f"    <- {_edge(edge)}")
    depth = {0: 0}
    for link in vertex.links:
        depth[link.target] = depth[link.source] + 1
    sides = {link.target: link.output for link in vertex.links if link.output != "main"}
    for index, spec in enumerate(vertex.operators):
        operation = operations[id(spec.processor)]
        indent = "    " + "  " * depth[index]
        side = f"[{sides[index]}] " if index in sides else ""
        where = f"  ({spec.location})" if spec.location else ""
        named = f"{spec.id}: " if operation.stateful or operation.given_name else ""
        first, *rest = operation.lines or (operation.name,)
        lines.append(f"{indent}{side}{named}{first}{where}")
        lines += [f"{indent}  {line}" for line in rest]
    return lines


def _edge(edge: Edge) -> str:
    how = edge.partition + (f"({', '.join(edge.keys)})" if edge.keys else "")
    output = "" if edge.output == "main" else f".{edge.output}"
    port = f" port {edge.port}" if edge.port else ""
    return f"{edge.source_vertex}{output} {how}{port}: {', '.join(edge.schema.names)}"


def _memory_lines(plan: Plan, settings: JobSettings) -> list[str]:
    shuffles = {(edge.target_vertex, edge.port) for edge in plan.edges}
    subtasks = sum(vertex.parallelism for vertex in plan.vertices)
    bound = len(shuffles) * settings.shuffle_memory_bytes / MIB
    return [
        f"  memory: {subtasks} subtask processes; channels at most {bound:,.0f} MiB"
        f" ({len(shuffles)} exchanges x {settings.shuffle_memory_bytes // MIB} MiB)"
    ]
