"""`.options(split_keys=8)`: one aggregate becomes a salt, an aggregate of parts, and their merge.

The node keeps saying what the user wrote until the plan is made; then it is replaced by three, so
that pruning, exchanges, identity and explain() need to know nothing of it. Names and ids say the
number of salts: parts that were kept by other salts mean something else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from penstock.elements.changelog import HIDDEN
from penstock.operators.processor import LATE, MAIN, Processor
from penstock.operators.split_parts import SALT, distinct_argument
from penstock.operators.split_salt import SaltProcessor, with_salt
from penstock.operators.updating_split import UpdatingMergeProcessor, UpdatingPartsProcessor
from penstock.operators.windows.descriptors import PaneWindow
from penstock.operators.windows.split import (
    UpdatingWindowMergeProcessor,
    UpdatingWindowPartsProcessor,
    WindowMergeProcessor,
    WindowPartsProcessor,
)

from .graph import BuildContext, Columns, Logic, Node, Options, Port, Tap, make_node, user_columns
from .schema_check import plan_error
from .updating_nodes import UpdatingLogic
from .window_nodes import WindowLogic

SALTS_MAX = 1024
"""More parts of a key than this cost the merge more than they could save."""
AggregateLogic = WindowLogic | UpdatingLogic


def check_split(node: Node, salts: Any, location: str) -> int:
    """`split_keys=` of an aggregate that can be split; PlanError of the user's line."""
    if not isinstance(salts, int) or isinstance(salts, bool) or not 2 <= salts <= SALTS_MAX:
        raise plan_error(
            f"split_keys={salts!r}", f"it is a number of parts from 2 to {SALTS_MAX}", location
        )
    logic = node.logic
    fits = isinstance(logic, UpdatingLogic) or (
        isinstance(logic, WindowLogic) and isinstance(logic.window, PaneWindow)
    )
    if not fits:
        raise plan_error(
            f"split_keys on {node.name}",
            "only aggregates can be split, and merged again",
            location,
            "It is for .aggregate(...) over ps.tumble, ps.hop, ps.cumulate, or without a window.",
        )
    assert isinstance(logic, AggregateLogic)
    if isinstance(logic, UpdatingLogic) and logic.ttl_ns is not None:
        raise plan_error(
            f"split_keys on {node.name}",
            "parts of a key would be forgotten at different times",
            location,
            "Say ttl=ps.FOREVER, or cut rows into windows.",
        )
    if isinstance(logic, WindowLogic) and logic.lateness_ns and not logic.updating:
        raise plan_error(
            f"split_keys on {node.name}",
            "with allowed_lateness its windows would be given again in parts",
            location,
            "Say refine=True as well: late rows then take results back and give them anew.",
        )
    distinct_argument(logic.aggregation(node.ports[0].schema), logic.who, location)
    return salts


def with_parts(ends: Sequence[Node], nodes: Sequence[Node]) -> list[Node]:
    """The ends of the graph in which split aggregates are three nodes. `nodes` are topological."""
    if all(node.options.split_keys is None for node in nodes):
        return list(ends)
    became: dict[tuple[int, str], Tap] = {}
    made: dict[int, Node] = {}
    for node in nodes:
        ports = tuple(_port(port, became) for port in node.ports)
        new = replace(node, ports=ports) if ports != node.ports else node
        if new.options.split_keys is None:
            made[id(node)] = new
            became.update({(id(node), output): Tap(new, output) for output in new.outputs})
        else:
            parts, merge = _stages(new, new.options.split_keys)
            made[id(node)] = merge
            became[id(node), MAIN] = Tap(merge)
            if LATE in parts.outputs:
                became[id(node), LATE] = Tap(parts, LATE)
    return [made[id(end)] for end in ends]


def _port(port: Port, became: Mapping[tuple[int, str], Tap]) -> Port:
    taps = tuple(became[id(tap.node), tap.output] for tap in port.taps)
    same = all(new.node is old.node for new, old in zip(taps, port.taps, strict=True))
    return port if same else replace(port, taps=taps)


def _stages(node: Node, salts: int) -> tuple[Node, Node]:
    logic = node.logic
    assert isinstance(logic, AggregateLogic)
    (port,) = node.ports
    where = node.location
    salted = [make_node(SaltLogic(logic, salts), [Port((tap,))], where) for tap in port.taps]
    rows = Port(tuple(Tap(each) for each in salted), "hash", (*logic.keys, SALT))
    options = replace(node.options, split_keys=None)
    parts = make_node(PartsLogic(logic, salts, port.schema), [rows], where, options)
    # Without a key all parts meet in one subtask, however many make them.
    merge_options = options if logic.keys else replace(options, parallelism=None)
    given = Port((Tap(parts),), "hash" if logic.keys else "none", logic.keys)
    merge = MergeLogic(logic, salts, port.schema)
    made = make_node(merge, [given], where, merge_options)
    assert made.outputs[MAIN].equals(node.outputs[MAIN])
    return parts, replace(made, origin=node.origin)


@dataclass(frozen=True, eq=False)
class SaltLogic(Logic):
    """Adds the salt."""

    aggregate: AggregateLogic
    salts: int
    kind = "salt"
    takes_updates = True

    @property
    def title(self) -> str:
        """For people."""
        return "salt"

    def outputs(self, inputs: Sequence[pa.Schema]) -> dict[str, pa.Schema]:
        """The rows with it."""
        return {MAIN: with_salt(inputs[0])}

    def needs(
        self, inputs: Sequence[pa.Schema], required: Mapping[str, Columns]
    ) -> Sequence[Columns]:
        """What is read behind it, and what says the salt."""
        read = frozenset(self.aggregate.aggregation(inputs[0]).columns_read) - HIDDEN
        return [(required.get(MAIN, frozenset()) - {SALT}) | read]

    def processor(self, inputs: Sequence[pa.Schema], build: BuildContext) -> Processor:
        """By the DISTINCT of the aggregate, if it has one."""
        logic = self.aggregate
        aggregation = logic.aggregation(inputs[0])
        distinct = distinct_argument(aggregation, logic.who, logic.location)
        return SaltProcessor(aggregation, self.salts, distinct, inputs[0])

    def describe(self) -> str:
        """How many."""
        by = ", ".join(self.aggregate.keys) or "all rows"
        return f"split {by} into {self.salts} parts"


@dataclass(frozen=True, eq=False)
class StageLogic(Logic):
    """What the two stages share. `rows` is the schema before the salt."""

    aggregate: AggregateLogic
    salts: int
    rows: pa.Schema
    stage = ""
    kind = "aggregate"
    stateful = True
    identity_rule = "class"
    takes_updates = True

    @property
    def title(self) -> str:
        """As without being split."""
        return self.aggregate.title

    def state_name(self, name: str) -> str:
        """State of other salts is not this state."""
        return f"{name}_{self.stage}{self.salts}"

    def identity(self) -> tuple[str, ...]:
        """The stage, what is computed, and the number of salts."""
        return (f"{self.stage} of {self.salts}", *self.aggregate.identity())

    def _where(self) -> dict[str, Any]:
        return {"who": self.aggregate.who, "location": self.aggregate.location}


class PartsLogic(StageLogic):
    """Aggregates each part of a key."""

    stage = "parts"

    def outputs(self, inputs: Sequence[pa.Schema]) -> dict[str, pa.Schema]:
        """Parts; late rows as they came."""
        found = {MAIN: self._make(inputs[0]).out_schema}
        if isinstance(self.aggregate, WindowLogic):
            at = inputs[0].names.index(SALT)
            found[LATE] = inputs[0].remove(at)
        return found

    def _make(self, schema: pa.Schema) -> Any:
        logic, where = self.aggregate, self._where()
        aggregation = logic.aggregation(schema)
        if isinstance(logic, UpdatingLogic):
            return UpdatingPartsProcessor(logic.keys, aggregation, schema, logic.flush_ns, **where)
        if logic.updating:
            return UpdatingWindowPartsProcessor(
                logic.window,
                logic.keys,
                aggregation,
                schema,
                logic.early_ns,
                logic.lateness_ns,
                **where,
            )
        return WindowPartsProcessor(logic.window, logic.keys, aggregation, schema, **where)

    def needs(
        self, inputs: Sequence[pa.Schema], required: Mapping[str, Columns]
    ) -> Sequence[Columns]:
        """Key, salt, arguments, and what is read of late rows."""
        found = self.aggregate.needs(inputs, required)[0]
        return [found | {SALT}]

    def processor(self, inputs: Sequence[pa.Schema], build: BuildContext) -> Processor:
        """The first stage."""
        made: Processor = self._make(inputs[0])
        return made

    def describe(self) -> str:
        """What is computed, per part."""
        return f"parts of {self.aggregate.describe()}"


class MergeLogic(StageLogic):
    """Merges the parts of each key."""

    stage = "split"

    def outputs(self, inputs: Sequence[pa.Schema]) -> dict[str, pa.Schema]:
        """Results as without being split."""
        return {MAIN: self._make().out_schema}

    def _make(self) -> Any:
        logic, where = self.aggregate, self._where()
        aggregation = logic.aggregation(self.rows)
        if isinstance(logic, UpdatingLogic):
            return UpdatingMergeProcessor(
                logic.keys, aggregation, self.rows, logic.flush_ns, **where
            )
        if logic.updating:
            return UpdatingWindowMergeProcessor(
                logic.window,
                logic.keys,
                aggregation,
                self.rows,
                logic.early_ns,
                logic.lateness_ns,
                **where,
            )
        return WindowMergeProcessor(logic.window, logic.keys, aggregation, self.rows, **where)

    @property
    def parallelism_max(self) -> int | None:  # type: ignore[override]
        """Without a key all parts meet in one place."""
        return None if self.aggregate.keys else 1

    def needs(
        self, inputs: Sequence[pa.Schema], required: Mapping[str, Columns]
    ) -> Sequence[Columns]:
        """All of every part."""
        return [frozenset(user_columns(inputs[0]))]

    def processor(self, inputs: Sequence[pa.Schema], build: BuildContext) -> Processor:
        """The second stage."""
        made: Processor = self._make()
        return made

    def describe(self) -> str:
        """What comes out."""
        return f"merge {self.salts} parts of {self.aggregate.describe()}"


def split_options(node: Node, salts: Any, location: str) -> Options:
    """Options that say it, checked."""
    return Options(split_keys=check_split(node, salts, location))
