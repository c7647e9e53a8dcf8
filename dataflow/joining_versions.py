"""join_asof() and join_broadcast(): rows with what held at their own event time."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from penstock.elements.changelog import HIDDEN, is_updating
from penstock.elements.durations import Duration, duration_ns
from penstock.elements.errors import PlanError
from penstock.expressions.expression import ExprLike, as_expr
from penstock.operators.asof_join import AsOfJoinProcessor
from penstock.operators.broadcast_join import BroadcastJoinProcessor
from penstock.operators.join_condition import JoinCondition
from penstock.operators.join_sides import LATE_RIGHT
from penstock.operators.processor import LATE, MAIN, Processor

from .graph import BuildContext, Columns, Logic, Options, Port
from .joining import join_keys, one_key_type, other_stream, refuse_equal_names
from .keyed_stream import require_event_time
from .schema_check import at_line, plan_error
from .stream import Stream

KINDS = ("inner", "left")


class VersionsLogic(Logic):
    """What the two have in common: keys, a condition, two inputs, late rows."""

    on: tuple[str, ...]
    where: ExprLike | None
    functions: Any
    location: str
    stateful = True
    identity_rule = "class"

    @property
    def title(self) -> str:
        """For people."""
        return self.kind

    @abstractmethod
    def _make(self, inputs: Sequence[pa.Schema]) -> Any:
        """The processor."""

    def outputs(self, inputs: Sequence[pa.Schema]) -> dict[str, pa.Schema]:
        """Rows with versions, and late rows as they came."""
        return dict(self._make(inputs).outputs)

    def processor(self, inputs: Sequence[pa.Schema], build: BuildContext) -> Processor:
        """One of the engine's joins."""
        made: Processor = self._make(inputs)
        return made

    def needs(
        self, inputs: Sequence[pa.Schema], required: Mapping[str, Columns]
    ) -> Sequence[Columns]:
        """Keys, what the condition reads, and from each side what is required of it."""
        wanted = required.get(MAIN, frozenset()) | set(self.on) | self._condition_reads(inputs)
        needed = []
        for schema, late in zip(inputs, (LATE, LATE_RIGHT), strict=True):
            of_side = (wanted & set(schema.names)) | required.get(late, frozenset())
            needed.append(of_side - HIDDEN)
        return needed

    def _condition(self, inputs: Sequence[pa.Schema]) -> JoinCondition | None:
        if self.where is None:
            return None
        said = (self.functions, f"{self.kind}(where=)", self.location)
        left, right = inputs
        return JoinCondition(self.where, left, right, self.on, *said)

    def _condition_reads(self, inputs: Sequence[pa.Schema]) -> Columns:
        condition = self._condition(inputs)
        return frozenset() if condition is None else condition.columns_read

    @property
    def _said(self) -> str:
        return "" if self.where is None else f", where {as_expr(self.where).text}"


@dataclass(frozen=True, eq=False)
class AsOfLogic(VersionsLogic):
    """Rows with the version of their time."""

    on: tuple[str, ...]
    how: str
    tolerance_ns: int | None
    where: ExprLike | None
    functions: Any
    location: str
    kind = "join_asof"

    def _make(self, inputs: Sequence[pa.Schema]) -> Any:
        left, right = inputs
        rest = (self.tolerance_ns, "join_asof", self.location)
        condition = self._condition(inputs)
        return AsOfJoinProcessor(self.on, self.how, left, right, *rest, condition=condition)

    def identity(self) -> tuple[str, ...]:
        """Key: which of the versions that held count does not change what is kept."""
        return (self.how, ", ".join(self.on))

    def describe(self) -> str:
        """Kind, key and condition."""
        return f"{self.how} join as of event time on {', '.join(self.on)}{self._said}"


@dataclass(frozen=True, eq=False)
class BroadcastJoinLogic(VersionsLogic):
    """Rows with a table that every subtask holds."""

    on: tuple[str, ...]
    how: str
    where: ExprLike | None
    functions: Any
    location: str
    kind = "join_broadcast"
    takes_updates = True

    def _make(self, inputs: Sequence[pa.Schema]) -> Any:
        left, right = inputs
        condition = self._condition(inputs)
        rest = (condition, self.kind, self.location)
        return BroadcastJoinProcessor(self.on, self.how, left, right, *rest)

    def identity(self) -> tuple[str, ...]:
        """Key: what is kept is the table, and rows that wait."""
        return (self.how, ", ".join(self.on))

    def describe(self) -> str:
        """Kind, key and condition."""
        return f"{self.how} join with a broadcast table on {', '.join(self.on)}{self._said}"


def join_asof(
    left: Stream[Any],
    right: Any,
    on: str | Sequence[str],
    how: str,
    tolerance: Duration | None,
    where: ExprLike | None,
    location: str,
    options: Options,
) -> Stream[Any]:
    """The joined stream; raises PlanError of the user's line."""
    right = other_stream(left, right, "join_asof", location)
    _check_kind(how, "join_asof", location)
    tolerance_ns = None
    if tolerance is not None:
        try:
            tolerance_ns = duration_ns(tolerance, "join_asof(tolerance=)")
        except PlanError as error:
            raise at_line(error, location) from None
        if tolerance_ns < 0:
            raise plan_error("join_asof", f"tolerance={tolerance!r} is negative", location)
    keys = join_keys(left, right, on, "join_asof", location)
    for stream in (left, right):
        require_event_time(stream, "join_asof", location)
    refuse_equal_names(left, right, keys, location)
    left, right = one_key_type(left, right, keys, location)
    ports = [Port(left._taps, "hash", tuple(keys)), Port(right._taps, "hash", tuple(keys))]
    functions = left._pipeline.functions
    logic = AsOfLogic(tuple(keys), how, tolerance_ns, where, functions, location)
    return left._made(logic, ports, location, options)


def join_broadcast(
    left: Stream[Any],
    table: Any,
    on: str | Sequence[str],
    how: str,
    where: ExprLike | None,
    location: str,
    options: Options,
) -> Stream[Any]:
    """The joined stream; raises PlanError of the user's line."""
    table = other_stream(left, table, "join_broadcast", location)
    _check_kind(how, "join_broadcast", location)
    if is_updating(left._schema):
        raise plan_error(
            "join_broadcast",
            "the stream is updating; only the table may be",
            location,
            'Read its changes as rows:  stream.changes("change")',
            "or join both by key:  stream.join(table, on=..., ttl=ps.FOREVER)",
        )
    keys = join_keys(left, table, on, "join_broadcast", location)
    require_event_time(left, "join_broadcast", location)
    refuse_equal_names(left, table, keys, location)
    left, table = one_key_type(left, table, keys, location)
    functions = left._pipeline.functions
    logic = BroadcastJoinLogic(tuple(keys), how, where, functions, location)
    ports = [Port(left._taps), Port(table._taps, "broadcast")]
    return left._made(logic, ports, location, options)


def _check_kind(how: str, who: str, location: str) -> None:
    if how not in KINDS:
        raise plan_error(who, f"how={how!r}; there are {' and '.join(KINDS)}", location)
