"""The logical graph: what the user asked for, node by node, before anyone thinks of processes.

Nodes are immutable and know only their inputs; a graph is what can be reached from its ends.
Every node carries the schema of each of its outputs, computed when the user's line ran, and that
line. What a node does is its Logic: one frozen class per kind, also asked again after pruning.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pyarrow as pa

from penstock.elements.changelog import CHANGE, HIDDEN, is_updating
from penstock.elements.errors import PlanError
from penstock.elements.signals import TIME_COLUMN
from penstock.operators.processor import MAIN, Processor

Exchange = Literal["none", "hash", "broadcast"]
Columns = frozenset[str]
IdentityRule = Literal["position", "class", "class and name"]


@dataclass(frozen=True)
class Options:
    """What may be said of any operator. `on_error` None: fail."""

    name: str | None = None
    parallelism: int | None = None
    chain_break: bool = False
    on_error: Any = None
    split_keys: int | None = None
    """Into how many parts each key of an aggregate is dealt out."""

    def merged(self, other: Options) -> Options:
        """These, overridden by what `other` says."""
        return Options(
            other.name if other.name is not None else self.name,
            other.parallelism if other.parallelism is not None else self.parallelism,
            other.chain_break or self.chain_break,
            other.on_error if other.on_error is not None else self.on_error,
            other.split_keys if other.split_keys is not None else self.split_keys,
        )


@dataclass(frozen=True)
class BuildContext:
    """What a Logic gets to make its processor; `name` is the operator's, for messages."""

    name: str
    functions: Any
    on_error: Any
    location: str = ""


class Logic(ABC):
    """What one node does, as far as planning must know. `_time` is never in a set of columns."""

    kind: str = ""
    stateful: bool = False
    identity_rule: IdentityRule = "position"
    parallelism_max: int | None = None
    takes_updates: bool = False
    """Whether its inputs may be updating streams; else make_node refuses them."""

    @property
    @abstractmethod
    def title(self) -> str:
        """Its name for people, such as `late_inbound`."""

    @abstractmethod
    def outputs(self, inputs: Sequence[pa.Schema]) -> dict[str, pa.Schema]:
        """Schemas by output, from those of its inputs; again after pruning."""

    @abstractmethod
    def needs(
        self, inputs: Sequence[pa.Schema], required: Mapping[str, Columns]
    ) -> Sequence[Columns]:
        """The columns of each input that it reads, if others read `required` of its outputs."""

    @abstractmethod
    def processor(self, inputs: Sequence[pa.Schema], build: BuildContext) -> Processor:
        """The processor for the pruned inputs."""

    def identity(self) -> tuple[str, ...]:
        """What makes it itself across edits, if it is stateful: class and key."""
        return (self.kind,)

    def state_name(self, name: str) -> str:
        """The id under the name that the user gave it."""
        return name

    def describe(self) -> str:
        """One line for explain()."""
        return self.title


@dataclass(frozen=True, eq=False)
class Tap:
    """One output of one node."""

    node: Node
    output: str = MAIN

    @property
    def schema(self) -> pa.Schema:
        """Its columns, `_time` included."""
        found = self.node.outputs.get(self.output)
        if found is None:
            raise PlanError(
                f"{self.node.name}: it yields only to side outputs  ({self.node.location})\n"
                "  Read those:  stream.output(MyOperator.my_output)"
            )
        return found


@dataclass(frozen=True, eq=False)
class Port:
    """One input: the union of `taps`, which have one schema, and how rows are dealt out."""

    taps: tuple[Tap, ...]
    exchange: Exchange = "none"
    keys: tuple[str, ...] = ()

    @property
    def schema(self) -> pa.Schema:
        """The columns that come in."""
        return self.taps[0].schema


@dataclass(frozen=True, eq=False)
class Node:
    """One operator as the user wrote it. `origin` is shared by copies with other options."""

    logic: Logic
    ports: tuple[Port, ...]
    outputs: dict[str, pa.Schema]
    location: str
    options: Options = field(default_factory=Options)
    origin: object = field(default_factory=object)

    def with_options(self, options: Options) -> Node:
        """A copy that says more."""
        return replace(self, options=self.options.merged(options))

    @property
    def name(self) -> str:
        """For people: the user's name, else the logic's title."""
        return self.options.name or self.logic.title

    @property
    def upstream(self) -> list[Tap]:
        """All taps that it reads, by port."""
        return [tap for port in self.ports for tap in port.taps]


def make_node(
    logic: Logic, ports: Iterable[Port], location: str, options: Options | None = None
) -> Node:
    """A node whose output schemas follow from its inputs. Requires: `_time` only as last column."""
    found = tuple(ports)
    if not logic.takes_updates and any(is_updating(port.schema) for port in found):
        raise PlanError(
            f"{logic.title}: the stream is updating, rows in it are taken back, and {logic.title}"
            f" takes rows that stay  ({location})\n"
            f'  Read the changes as rows:  stream.changes("change")  adds a column of +1 and -1.'
        )
    outputs = logic.outputs([port.schema for port in found])
    return Node(logic, found, outputs, location, options or Options())


def topological(ends: Sequence[Node]) -> list[Node]:
    """Every node that the ends can see, inputs first, in the order of the program.

    Raises PlanError if both a node and its copy with other options are in use: it would run twice.
    """
    order: list[Node] = []
    seen: set[int] = set()
    # An explicit stack: a generated program may be deeper than Python's.
    stack: list[tuple[Node, bool]] = [(node, False) for node in reversed(ends)]
    while stack:
        node, ready = stack.pop()
        if ready:
            order.append(node)
        elif id(node) not in seen:
            seen.add(id(node))
            stack.append((node, True))
            stack.extend((tap.node, False) for tap in reversed(node.upstream))
    _refuse_twins(order)
    return order


def _refuse_twins(nodes: Sequence[Node]) -> None:
    origins: dict[int, Node] = {}
    for node in nodes:
        twin = origins.setdefault(id(node.origin), node)
        if twin is not node:
            raise PlanError(
                f"{node.name}: used both with and without its options  ({node.location})\n"
                "  Streams are immutable: options() and on_error() return a new stream.\n"
                "  Go on with that one everywhere:  s = s.options(...)"
            )


def user_columns(schema: pa.Schema) -> list[str]:
    """Names of the user's columns: all but `_change` and `_time`."""
    return [name for name in schema.names if name not in HIDDEN]


def has_time(schema: pa.Schema) -> bool:
    """Whether the stream has event time."""
    return TIME_COLUMN in schema.names


def select_columns(schema: pa.Schema, names: Iterable[str]) -> pa.Schema:
    """`schema` cut down to these columns, in its own order; `_change` and `_time` stay."""
    wanted = {*names, CHANGE, TIME_COLUMN}
    return pa.schema([schema.field(name) for name in schema.names if name in wanted])
