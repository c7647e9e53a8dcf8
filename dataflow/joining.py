"""join(): two streams, keys of one type on both sides, and exactly one bound on what is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from penstock.elements.changelog import HIDDEN
from penstock.elements.durations import FOREVER, duration_ns
from penstock.elements.errors import PlanError
from penstock.expressions.expression import ExprLike, as_expr
from penstock.expressions.types import type_text
from penstock.operators.join_condition import JoinCondition
from penstock.operators.joins import (
    FOREVER_NS,
    LATE_RIGHT,
    IncrementalJoinProcessor,
    IntervalJoinProcessor,
    WindowJoinProcessor,
)
from penstock.operators.processor import LATE, MAIN, Processor
from penstock.operators.windows.descriptors import Cumulate, Hop, Tumble

from .graph import BuildContext, Columns, Logic, Options, Port, has_time, user_columns
from .keyed_stream import require_event_time
from .schema_check import at_line, check_keys, common_type, plan_error
from .stream import Stream

KINDS = ("inner", "left", "right", "full", "semi", "anti")
ONE_SIDED = ("semi", "anti")
"""Kinds that give rows of the left stream only."""


@dataclass(frozen=True)
class Bound:
    """What limits a join's state: a window, a distance in event time, or an age."""

    kind: str
    window: Any = None
    low_ns: int = 0
    high_ns: int = 0
    text: str = ""


@dataclass(frozen=True, eq=False)
class JoinLogic(Logic):
    """Rows of two inputs with equal keys."""

    on: tuple[str, ...]
    how: str
    bound: Bound
    location: str
    where: ExprLike | None = None
    functions: Any = None
    kind = "join"
    stateful = True
    identity_rule = "class"

    @property
    def title(self) -> str:
        """For people."""
        return "join"

    @property
    def takes_updates(self) -> bool:  # type: ignore[override]
        """Joins in a window or an interval give rows that stay."""
        return self.bound.kind == "ttl"

    @property
    def who(self) -> str:
        """Its name in errors."""
        return f"join({self.bound.text})"

    def outputs(self, inputs: Sequence[pa.Schema]) -> dict[str, pa.Schema]:
        """Pairs, and late rows of either side as they came."""
        return dict(self._make(inputs).outputs)

    def needs(
        self, inputs: Sequence[pa.Schema], required: Mapping[str, Columns]
    ) -> Sequence[Columns]:
        """Keys, and from each side what is required of it."""
        wanted = required.get(MAIN, frozenset()) | set(self.on)
        condition = self._condition(inputs)
        if condition is not None:
            wanted |= condition.columns_read
        needed = []
        for schema, late in zip(inputs, (LATE, LATE_RIGHT), strict=True):
            of_side = (wanted & set(schema.names)) | required.get(late, frozenset())
            needed.append(of_side - HIDDEN)
        return needed

    def processor(self, inputs: Sequence[pa.Schema], build: BuildContext) -> Processor:
        """One of the engine's joins."""
        made: Processor = self._make(inputs)
        return made

    def _make(self, inputs: Sequence[pa.Schema]) -> Any:
        left, right = inputs
        bound, condition = self.bound, self._condition(inputs)
        rest = (left, right, condition, self.who, self.location)
        if bound.window is not None:
            return WindowJoinProcessor(bound.window, self.on, self.how, *rest)
        if bound.kind == "within":
            return IntervalJoinProcessor((bound.low_ns, bound.high_ns), self.on, self.how, *rest)
        return IncrementalJoinProcessor(bound.high_ns, self.on, self.how, *rest)

    def _condition(self, inputs: Sequence[pa.Schema]) -> JoinCondition | None:
        if self.where is None:
            return None
        left, right = inputs
        said = (self.functions, f"{self.who}, where", self.location)
        return JoinCondition(self.where, left, right, self.on, *said)

    def identity(self) -> tuple[str, ...]:
        """Kind, bound, condition and key."""
        where = () if self.where is None else (as_expr(self.where).text,)
        return (self.how, self.bound.text, *where, ", ".join(self.on))

    def describe(self) -> str:
        """Kind, key and bound."""
        where = "" if self.where is None else f", where {as_expr(self.where).text}"
        return f"{self.how} join on {', '.join(self.on)}, {self.bound.text}{where}"


def join_streams(
    left: Stream[Any],
    right: Any,
    on: str | Sequence[str],
    how: str,
    bounds: Mapping[str, Any],
    where: ExprLike | None,
    location: str,
    options: Options,
) -> Stream[Any]:
    """The joined stream; raises PlanError of the user's line."""
    right = other_stream(left, right, "join", location)
    if how not in KINDS:
        raise plan_error("join", f"how={how!r}; there are {', '.join(KINDS)}", location)
    try:
        bound = _bound(bounds, location)
    except PlanError as error:
        raise at_line(error, location) from None
    keys = join_keys(left, right, on, "join", location)
    who = f"join({bound.text})"
    timed = [has_time(stream._schema) for stream in (left, right)]
    if bound.kind != "ttl" or timed[0] != timed[1]:
        for stream in (left, right):
            require_event_time(stream, who, location)
    if how not in ONE_SIDED or where is not None:
        refuse_equal_names(left, right, keys, location)
    left, right = one_key_type(left, right, keys, location)
    ports = [Port(left._taps, "hash", tuple(keys)), Port(right._taps, "hash", tuple(keys))]
    functions = left._pipeline.functions
    logic = JoinLogic(tuple(keys), how, bound, location, where, functions)
    return left._made(logic, ports, location, options)


def other_stream(left: Stream[Any], right: Any, who: str, location: str) -> Stream[Any]:
    """`right`, if it is a stream of the same pipeline."""
    if not isinstance(right, Stream):
        raise plan_error(who, f"{type(right).__name__} is not a stream", location)
    left._require_same_pipeline(right, who, location)
    return right


def join_keys(
    left: Stream[Any], right: Stream[Any], on: str | Sequence[str], who: str, location: str
) -> list[str]:
    """The key columns, which both streams have."""
    names = [on] if isinstance(on, str) else list(on)
    keys = check_keys(names, left._schema, f"{who}(on=), left stream", location)
    if check_keys(keys, right._schema, f"{who}(on=), right stream", location) != keys:
        raise plan_error(who, "the keys have different names on the two sides", location)
    return keys


def _bound(bounds: Mapping[str, Any], location: str) -> Bound:
    given = {name: value for name, value in bounds.items() if value is not None}
    if len(given) != 1:
        said = " and ".join(given) or "nothing"
        raise plan_error(
            "join",
            f"it needs exactly one bound on what it remembers, and {said} is given",
            location,
            'window=ps.tumble("1 hour")     rows of the same window',
            'within=("-5 min", "1 hour")    the other row at most so far before or behind',
            'ttl="1 day"                    rows that old are forgotten; ps.FOREVER: never',
        )
    ((kind, value),) = given.items()
    if kind == "window":
        if not isinstance(value, (Tumble, Hop, Cumulate)):
            raise plan_error("join", f"window={value!r}; ps.tumble or ps.hop", location)
        return Bound(kind, window=value, text=value.text)
    if kind == "within":
        return _within(value, location)
    return _ttl(value, location)


def _ttl(value: Any, location: str) -> Bound:
    """Rows that old are forgotten, in event time: the same whatever the order of arrival."""
    if value == FOREVER:
        return Bound("ttl", low_ns=-FOREVER_NS, high_ns=FOREVER_NS, text="ttl FOREVER")
    ttl_ns = duration_ns(value, "join(ttl=)")
    if ttl_ns < 0:
        raise plan_error("join", f"ttl={value!r} is negative", location)
    return Bound("ttl", low_ns=-ttl_ns, high_ns=ttl_ns, text=f"ttl {value}")


def _within(value: Any, location: str) -> Bound:
    if not isinstance(value, tuple) or len(value) != 2:
        raise plan_error(
            "join",
            f"within={value!r} is not a pair of durations",
            location,
            'Write  within=("-5 min", "1 hour")',
        )
    low_ns, high_ns = (duration_ns(each, "join(within=)") for each in value)
    if low_ns > high_ns:
        raise plan_error("join", f"within={value!r}: the first is the lower bound", location)
    text = f"within {value[0]} to {value[1]}"
    return Bound("within", low_ns=low_ns, high_ns=high_ns, text=text)


def refuse_equal_names(
    left: Stream[Any], right: Stream[Any], keys: Sequence[str], location: str
) -> None:
    """Results have each column once, and none is renamed in silence."""
    theirs = set(user_columns(right._schema)) - set(keys)
    both = [name for name in user_columns(left._schema) if name in theirs]
    if both:
        raise plan_error(
            "join",
            f"both streams have a column {', '.join(both)}",
            location,
            f'Rename one first:  right.rename({both[0]}_2="{both[0]}")',
        )


def one_key_type(
    left: Stream[Any], right: Stream[Any], keys: Sequence[str], location: str
) -> tuple[Stream[Any], Stream[Any]]:
    """Both streams with one key schema: what is hashed must be of one type (hazard 30)."""
    types: dict[str, pa.DataType] = {}
    for key in keys:
        kinds = [stream._schema.field(key).type for stream in (left, right)]
        common = common_type(kinds)
        if common is None:
            listed = " and ".join(type_text(kind) for kind in kinds)
            raise plan_error(
                "join",
                f'the key "{key}" is {listed}',
                location,
                f'Cast one first:  .with_columns({key}="CAST({key} AS ...)")',
            )
        types[key] = common
    return _cast(left, types, location), _cast(right, types, location)


def _cast(stream: Stream[Any], types: Mapping[str, pa.DataType], location: str) -> Stream[Any]:
    fields = [field.with_type(types.get(field.name, field.type)) for field in stream._schema]
    return Stream(stream._pipeline, stream._fitted(pa.schema(fields), location))
