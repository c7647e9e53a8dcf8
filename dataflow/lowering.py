"""From stages to operations: processors on pruned schemas, with what must stand at exchanges.

Decides how many subtasks run each operation and how rows get there. Stateless operations run as
wide as their input, keyed ones as the job; sources as wide as they have splits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import pyarrow as pa

from penstock.elements.keygroup import KEY_GROUPS
from penstock.operators.cast_columns import CastColumns
from penstock.operators.error_policy import DeadLetter
from penstock.operators.processor import DEAD, LATE, MAIN, Processor

from .ends import SinkLogic, SourceLogic
from .fusion import Stage
from .graph import BuildContext, Columns, Exchange, IdentityRule, Logic, Node, Port, select_columns
from .pruning import Needs
from .schema_check import plan_error
from .two_phases import FoldedLogic, first_phase, folds_first, partials_of, second_phase
from .values import ValueLogic, make_stage, shrink

Feed = tuple[int, str]
"""(index of an operation, its output)."""
DeadSink = Callable[[str], SinkLogic]
"""Makes the sink for dead letters below a path."""


@dataclass(frozen=True)
class Input:
    """One port of an operation."""

    feeds: tuple[Feed, ...]
    schema: pa.Schema
    exchange: Exchange = "none"
    keys: tuple[str, ...] = ()
    crosses: bool = False
    """Rows come over channels, not by a call."""


@dataclass(frozen=True)
class Operation:
    """One operator of the physical plan, before it is put into a vertex."""

    name: str
    kind: str
    processor: Processor
    outputs: dict[str, pa.Schema]
    inputs: tuple[Input, ...]
    parallelism: int
    location: str
    rule: IdentityRule
    facts: tuple[str, ...] = ()
    given_name: str | None = None
    chain_break: bool = False
    stateful: bool = False
    is_source: bool = False
    is_sink: bool = False
    lines: tuple[str, ...] = ()
    """What it does, for explain()."""


@dataclass
class Lowering:
    """Lowers stages one after the other; `operations` is the result, in topological order."""

    needs: Needs
    predicates: dict[int, str]
    """By id(node) of sources."""
    functions: object
    parallelism: int
    dead_sink: DeadSink
    widths: dict[int, int] = field(default_factory=dict)
    """Parallelism by id(node) of a stage's first, whatever the program says of it."""
    operations: list[Operation] = field(default_factory=list)
    _made: dict[int, int] = field(default_factory=dict)
    """id(node) -> index of the operation that gives its outputs."""

    def add(self, stage: Stage) -> None:
        """Lower one stage. Requires: the stages above it were lowered."""
        first = stage.first
        wide = self._parallelism(stage)
        inputs = tuple(self._input(first, at, port, wide) for at, port in enumerate(first.ports))
        name = stage.name
        options = first.options
        build = BuildContext(name, self.functions, options.on_error, first.location)
        schemas = [one.schema for one in inputs]
        if stage.is_values:
            made, outputs, lines = self._values(stage, schemas[0], build)
            kind, logic = "values", first.logic
        else:
            logic = self._prepared(first)
            outputs, lines = logic.outputs(schemas), (logic.describe(),)
            kind = logic.kind
            if self._folds(first, inputs[:1]):
                assert isinstance(logic, FoldedLogic)
                inputs = (self._folded(first, logic, inputs[0]),)
                made = second_phase(logic, schemas[0])
                outputs.pop(LATE, None)
            else:
                made = logic.processor(schemas, build)
        index = self._append(
            Operation(
                name,
                kind,
                made,
                outputs,
                inputs,
                wide,
                first.location,
                logic.identity_rule,
                logic.identity() if logic.identity_rule != "position" else (),
                given_name=options.name and logic.state_name(options.name),
                chain_break=options.chain_break,
                stateful=logic.stateful,
                is_source=isinstance(logic, SourceLogic),
                is_sink=isinstance(logic, SinkLogic),
                lines=lines,
            )
        )
        for node in stage.nodes:
            self._made[id(node)] = index
        if isinstance(options.on_error, DeadLetter) and DEAD in outputs:
            self._dead_letters(index, options.on_error.path)

    def operation_of(self, stage: Stage) -> int:
        """The index of what a lowered stage has become."""
        return self._made[id(stage.first)]

    # One stage --------------------------------------------------------------------------------

    def _prepared(self, node: Node) -> Logic:
        if isinstance(node.logic, SourceLogic):
            required = self.needs.of_output(node, MAIN)
            return node.logic.pruned(required, self.predicates.get(id(node)))
        return node.logic

    def _values(
        self, stage: Stage, schema: pa.Schema, build: BuildContext
    ) -> tuple[Processor, dict[str, pa.Schema], tuple[str, ...]]:
        logics = [node.logic for node in stage.nodes if isinstance(node.logic, ValueLogic)]
        assert len(logics) == len(stage.nodes)
        left, after = shrink(logics, schema, self.needs.of_output(stage.last, MAIN))
        made = make_stage(left, schema, build)
        assert made.schema.equals(after), f"{made.schema} is not {after}"
        outputs = {**stage.last.logic.outputs([schema]), MAIN: after}
        return made, outputs, tuple(logic.describe() for logic in left)

    # Two phases -------------------------------------------------------------------------------

    def _folds(self, node: Node, inputs: Sequence[Input]) -> bool:
        """Whether rows are folded before they come to `node`: they cross, and it may."""
        return any(one.crosses for one in inputs) and folds_first(node, self.needs)

    def _folded(self, node: Node, logic: FoldedLogic, rows: Input) -> Input:
        """The input of partials: an operation that folds stands behind each feed."""
        schema = partials_of(logic, rows.schema)
        return replace(
            rows,
            feeds=tuple(self._fold(feed, schema, node, logic) for feed in rows.feeds),
            schema=schema,
        )

    def _fold(self, feed: Feed, schema: pa.Schema, node: Node, logic: FoldedLogic) -> Feed:
        index, output = feed
        above = self.operations[index]
        rows = above.outputs[output]
        made = first_phase(logic, rows)
        assert made.out_schema.equals(schema), f"{made.out_schema} is not {schema}"
        folded = Operation(
            "fold",
            "fold",
            made,
            {MAIN: schema},
            (Input((feed,), rows),),
            above.parallelism,
            node.location,
            "position",
            lines=(f"fold for {logic.describe()}",),
        )
        return self._append(folded), MAIN

    def _parallelism(self, stage: Stage) -> int:
        node = stage.first
        asked = self.widths.get(id(node)) or max(n.options.parallelism or 0 for n in stage.nodes)
        limit = node.logic.parallelism_max or KEY_GROUPS
        if max(asked, self.parallelism) > KEY_GROUPS or asked > limit:
            raise plan_error(
                stage.name,
                f"parallelism {max(asked, self.parallelism)} is more than {limit}",
                node.location,
                "Without key_by() all rows meet in one subtask."
                if limit == 1
                else "There are that many key groups; a subtask owns one at least.",
            )
        if asked or limit == 1:
            return asked or 1
        if isinstance(node.logic, SourceLogic):
            return self._source_parallelism(node.logic)
        if any(port.exchange == "hash" for port in node.ports):
            return self.parallelism
        feeds = [self._made[id(tap.node)] for tap in node.ports[0].taps]
        return max(self.operations[feed].parallelism for feed in feeds)

    def _source_parallelism(self, source: SourceLogic) -> int:
        connector = source.connector
        if self.parallelism == 1 or connector.discovery_interval_ns is not None:
            return self.parallelism
        return max(1, min(self.parallelism, len(connector.splits())))

    # Inputs -----------------------------------------------------------------------------------

    def _input(self, node: Node, at: int, port: Port, wide: int) -> Input:
        feeds = [(self._made[id(tap.node)], tap.output) for tap in port.taps]
        crosses = (
            port.exchange != "none"
            or len(feeds) > 1
            or node.options.chain_break
            or len(node.ports) > 1
            or any(self.operations[index].parallelism != wide for index, _ in feeds)
        )
        if not crosses:
            ((index, output),) = feeds
            return Input(tuple(feeds), self.operations[index].outputs[output])
        schema = self._travelling(port, feeds, self.needs.of_port(node, at))
        return Input(
            tuple(self._keep(feed, schema, node.location) for feed in feeds),
            schema,
            port.exchange,
            port.keys,
            crosses=True,
        )

    def _travelling(self, port: Port, feeds: Sequence[Feed], wanted: Columns) -> pa.Schema:
        """The columns that cross: those that are read behind it, in one order for all branches."""
        schema = select_columns(port.schema, wanted)
        if len(schema):
            return schema
        # Rows are counted by a column: a batch without any keeps no count on a channel.
        present = [set(self.operations[index].outputs[output].names) for index, output in feeds]
        names = [name for name in port.schema.names if all(name in each for each in present)]
        return select_columns(port.schema, names[:1])

    def _keep(self, feed: Feed, schema: pa.Schema, location: str) -> Feed:
        """A feed of exactly `schema`: itself, or an operation that picks the columns."""
        index, output = feed
        above = self.operations[index]
        if above.outputs[output].equals(schema):
            return feed
        kept = Operation(
            "keep",
            "keep",
            CastColumns(schema),
            {MAIN: schema},
            (Input((feed,), above.outputs[output]),),
            above.parallelism,
            location,
            "position",
            # Two readers of one output may need different columns.
            facts=tuple(schema.names),
            lines=("keep " + ", ".join(schema.names),),
        )
        for known, operation in enumerate(self.operations):
            same = operation.kind == "keep" and operation.inputs[0].feeds == (feed,)
            if same and operation.outputs[MAIN].equals(schema):
                return known, MAIN
        return self._append(kept), MAIN

    def _dead_letters(self, index: int, path: str) -> None:
        above = self.operations[index]
        sink = self.dead_sink(path)
        schema = above.outputs[DEAD]
        build = BuildContext(f"{above.name}_dead", self.functions, None, above.location)
        self._append(
            Operation(
                build.name,
                "dead",
                sink.processor([schema], build),
                {},
                (Input(((index, DEAD),), schema),),
                above.parallelism,
                above.location,
                "class and name",
                (*sink.identity(), above.name),
                stateful=True,
                is_sink=True,
                lines=(f"dead letters to {path}",),
            )
        )

    def _append(self, operation: Operation) -> int:
        self.operations.append(operation)
        return len(self.operations) - 1
