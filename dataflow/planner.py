"""Plans: from the ends of a program to the physical plan that the runtime deploys.

Steps: reach, prune, push predicates, fuse, lower, name, chain; one module each. Pure: the same
program and parallelism give the same plan, whatever the machine; only sources are asked for their
schema and splits.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cloudpickle

from penstock.elements.errors import PlanError
from penstock.operators.error_policy import DeadLetter

from .chaining import chain
from .ends import SinkLogic, SourceLogic
from .fusion import fuse
from .graph import Node, topological
from .identity import Claim, operator_ids
from .lowering import Lowering, Operation
from .plan import Plan
from .pruning import column_needs, pushed_predicate
from .split_keys import with_parts
from .widths import widths_of

DEAD_LETTER_ROLL = "1 second"
"""Dead letters are few and wanted soon: a file at most this old at the next checkpoint."""

PLACED_BY_PLANNING = ("keep", "fold")
"""Kinds of operations that stand where rows cross: ids must not depend on whether they do."""


@dataclass(frozen=True)
class Planned:
    """A plan, and the lines about it that explain() shows."""

    plan: Plan
    operations: tuple[Operation, ...]


def make_plan(
    name: str,
    ends: Sequence[Node],
    functions: object,
    parallelism: int,
    overrides: Mapping[str, int] | None = None,
) -> Planned:
    """The plan of everything the ends depend on; raises PlanError.

    `overrides` are widths by operator id or name that stand above what the program says.
    """
    if not ends:
        raise PlanError(
            f"pipeline {name!r} has no sink, so there is nothing to run\n"
            '  End a stream:  stream.sink(ps.FileSink("out/"))   or look:  stream.collect()'
        )
    written = topological(ends)
    ends = with_parts(ends, written)
    nodes = topological(ends)
    sources = [node for node in nodes if isinstance(node.logic, SourceLogic)]
    pushed = {id(node): pushed_predicate(node, nodes) for node in sources}
    predicates = {key: sql for key, sql in pushed.items() if sql is not None}
    stages, needs = fuse(nodes), column_needs(nodes)

    def lowered(widths: dict[int, int]) -> tuple[Lowering, list[str]]:
        lowering = Lowering(needs, predicates, functions, parallelism, dead_letter_sink, widths)
        for stage in stages:
            lowering.add(stage)
        return lowering, operator_ids(
            [_claim(operation, lowering.operations) for operation in lowering.operations]
        )

    lowering, ids = lowered({})
    if overrides:
        # Ids do not depend on widths, so those of the plan without overrides are the right ones.
        lowering, ids = lowered(widths_of(stages, lowering, ids, overrides))
    operations = tuple(lowering.operations)
    _refuse_unsendable(operations)
    vertices, edges = chain(operations, ids)
    plan = Plan(
        name,
        vertices,
        edges,
        tuple(_warnings(nodes)),
        tuple(i for i, operation in zip(ids, operations, strict=True) if operation.is_source),
    )
    return Planned(plan, operations)


def _claim(operation: Operation, operations: Sequence[Operation]) -> Claim:
    upstream = tuple(
        _written(index, operations) for one in operation.inputs for index, _ in one.feeds
    )
    return Claim(
        operation.kind,
        operation.name,
        operation.rule,
        operation.facts,
        upstream,
        operation.given_name,
        operation.location,
    )


def _written(index: int, operations: Sequence[Operation]) -> int:
    """The operation itself, or the one above what planning put between at some widths only."""
    while operations[index].kind in PLACED_BY_PLANNING:
        index = operations[index].inputs[0].feeds[0][0]
    return index


def _refuse_unsendable(operations: Sequence[Operation]) -> None:
    """What the user gave was looked at line by line; this is for what they changed since."""
    for operation in operations:
        try:
            cloudpickle.dumps(operation.processor)
        except Exception as error:
            raise PlanError(
                f"{operation.name} cannot be sent to its process:"
                f" {type(error).__name__}: {error}  ({operation.location})"
            ) from error


def _warnings(nodes: Sequence[Node]) -> list[str]:
    lines = []
    for node in nodes:
        logic = node.logic
        if isinstance(logic, SourceLogic) and not logic.connector.replay:
            lines.append(
                f"source {node.name} cannot be read again: at most once from there"
                f"  ({node.location})"
            )
        if isinstance(logic, SinkLogic) and not logic.sink.transactional:
            lines.append(
                f"sink {node.name} has no prepare(): at least once there  ({node.location})"
            )
        if isinstance(node.options.on_error, DeadLetter):
            lines.append(f"bad rows of {node.name} go to {node.options.on_error.path}")
    return lines


def dead_letter_sink(path: str) -> SinkLogic:
    """JSON lines below `path`. Found by name, since connectors stand above dataflow."""
    files = importlib.import_module("penstock.connectors.file_sink")
    return SinkLogic(files.FileSink(path, format="jsonl", roll_interval=DEAD_LETTER_ROLL))
