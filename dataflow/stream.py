"""Stream: the fluent API. Every method returns a new stream; nothing runs before run().

A stream is one output of an operator, or the union of several. Everything that can be known to be
wrong is a PlanError of the line that is wrong. Strings are expressions, keywords are names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import pyarrow as pa

from penstock.elements.changelog import is_updating, without_change
from penstock.elements.durations import Duration
from penstock.elements.errors import PlanError
from penstock.expressions.check import Checker, require_condition
from penstock.expressions.expression import ExprLike, as_expr
from penstock.operators.declared import Output
from penstock.operators.error_policy import DeadLetter, Drop, Fail
from penstock.operators.joins import LATE_RIGHT
from penstock.operators.processor import LATE
from penstock.operators.sink import Sink

from .aggregate_methods import StreamAggregates
from .analytic_methods import StreamAnalytics
from .ends import SinkLogic, without_time
from .graph import Logic, Node, Options, Port, Tap, make_node, user_columns
from .join_methods import StreamJoins
from .location import user_location
from .schema_check import (
    at_line,
    check_keys,
    check_sendable,
    find_column,
    plan_error,
    union_schema,
)
from .stream_checks import (
    checked_items,
    checked_options,
    checked_policy,
    kept_columns,
    renaming,
    require_operator,
    side_tap,
)
from .values import Cast, Filter, Select, WithColumns
from .values import Drop as DropColumns

if TYPE_CHECKING:
    from penstock.operators.python_operator import Operator
    from penstock.operators.windows.descriptors import Window

    from .keyed_stream import KeyedStream, WindowedStream
    from .pipeline import Pipeline

T = TypeVar("T")
R = TypeVar("R")


class BroadcastStream(Generic[T]):
    """A stream whose every row goes to every subtask; what `process` takes as `broadcast`."""

    def __init__(self, stream: Stream[T]) -> None:
        self._stream = stream


class Stream(StreamAggregates, StreamJoins, StreamAnalytics, Generic[T]):
    """Rows that flow. `T` is the row class where one is known."""

    def __init__(self, pipeline: Pipeline, taps: Sequence[Tap]) -> None:
        self._pipeline = pipeline
        self._taps = tuple(taps)

    # Looking ----------------------------------------------------------------------------------

    @property
    def schema(self) -> pa.Schema:
        """The columns that expressions and user code see."""
        return without_time(self._schema)

    @property
    def updating(self) -> bool:
        """Whether rows may be taken back later, as those of an aggregate without a window are."""
        return is_updating(self._schema)

    @property
    def _schema(self) -> pa.Schema:
        return self._taps[0].schema

    def __repr__(self) -> str:
        columns = ", ".join(f"{f.name}: {f.type}" for f in self.schema)
        return f"Stream({columns})"

    # Values -----------------------------------------------------------------------------------

    def filter(self, condition: ExprLike | Callable[[T], object]) -> Stream[T]:
        """Keep the rows for which the condition is true; null is not true.

        A string, or a function of a row, which is much slower.
        """
        location = user_location()
        if callable(condition):
            return self._function("filter", condition, None, location)
        checker = Checker(without_change(self._schema), self._pipeline.functions)
        checked = checker.check(condition, "filter", location)
        require_condition(checked, as_expr(condition).text, "filter", location)
        return self._then(Filter(checked), location)

    def select(self, *columns: str, **items: ExprLike) -> Stream[Any]:
        """Exactly these columns: existing ones by name, new ones as `name="expression"`.

        Event time rides along by itself.
        """
        location = user_location()
        functions = self._pipeline.functions
        seen = without_change(self._schema)
        kept = kept_columns(columns, seen, functions, location)
        made = checked_items(items, seen, functions, "select", location)
        names = [name for name, _ in [*kept, *made]]
        for name in names:
            if names.count(name) > 1:
                raise plan_error("select", f'two columns are called "{name}"', location)
        if not names:
            raise plan_error("select", "no column is named", location, 'Write  select("a", "b")')
        return self._then(Select((*kept, *made)), location)

    def with_columns(self, **items: ExprLike) -> Stream[Any]:
        """Add columns, or replace them in their place; all see the columns before this line."""
        location = user_location()
        if not items:
            raise plan_error(
                "with_columns", "no column is given", location, 'Write  with_columns(c="a + b")'
            )
        seen = without_change(self._schema)
        made = checked_items(items, seen, self._pipeline.functions, "with_columns", location)
        return self._then(WithColumns(tuple(made)), location)

    def rename(self, **names: str) -> Stream[Any]:
        """`rename(new="old")`: keywords are names, as everywhere."""
        location = user_location()
        return self._then(renaming(names, self._schema, location), location) if names else self

    def drop(self, *columns: str) -> Stream[Any]:
        """All columns but these."""
        location = user_location()
        names = tuple(
            dict.fromkeys(find_column(c, self._schema, "drop", location) for c in columns)
        )
        if len(names) == len(user_columns(self._schema)):
            raise plan_error("drop", "no column would be left", location)
        return self._then(DropColumns(names), location) if names else self

    def changes(self, column: str = "change") -> Stream[Any]:
        """An updating stream as rows that stay: `column` is 1 for rows added, -1 for rows taken
        back. What an update replaces comes just before what replaces it."""
        from .changes import changes_of

        return changes_of(self, column, user_location())

    # User code --------------------------------------------------------------------------------

    def map(
        self, function: Callable[[T], R], *, returns: type[R] | pa.Schema | None = None
    ) -> Stream[R]:
        """One row in, one row out. The row class out is the return annotation or `returns`."""
        return self._function("map", function, returns, user_location())

    def flat_map(
        self, function: Callable[[T], Iterable[R]], *, returns: type[R] | pa.Schema | None = None
    ) -> Stream[R]:
        """One row in, any number out: the function yields, or returns an iterable."""
        return self._function("flat_map", function, returns, user_location())

    def map_batches(
        self, function: Callable[[Any], Any], *, returns: type[R] | pa.Schema | None = None
    ) -> Stream[R]:
        """Batches in, batches out; the annotation picks pa.RecordBatch, pl.DataFrame or pandas.

        Same schema unless `returns` declares another. Where a batch ends means nothing.
        """
        return self._function("map_batches", function, returns, user_location())

    def process(
        self,
        operator: Operator,
        broadcast: Stream[Any] | BroadcastStream[Any] | None = None,
        *,
        name: str | None = None,
        parallelism: int | None = None,
    ) -> Stream[Any]:
        """Run a batch-level Operator. For a KeyedOperator call key_by() first.

        `broadcast` is the stream for its process_broadcast; every subtask gets all its rows.
        """
        from penstock.operators.keyed_operator import KeyedOperator

        from .python_nodes import OperatorLogic

        location = user_location()
        who = type(operator).__name__
        if isinstance(operator, KeyedOperator):
            raise plan_error(
                f"process({who})",
                "a KeyedOperator needs to know its key",
                location,
                f'Write  stream.key_by("...").process({who}(...))',
            )
        require_operator(operator, location)
        check_sendable(operator, who, location)
        options = checked_options(name, parallelism, location)
        ports = [Port(self._taps), *self._broadcast_port(broadcast, who, location)]
        return self._made(OperatorLogic(operator), ports, location, options)

    # Shapes -----------------------------------------------------------------------------------

    def key_by(self, *columns: str) -> KeyedStream[T]:
        """Rows with equal keys meet in one place, in the order in which they came there."""
        from .keyed_stream import KeyedStream

        keys = check_keys(columns, self._schema, "key_by", user_location())
        return KeyedStream(self, tuple(keys))

    def window(
        self,
        window: Window,
        *,
        allowed_lateness: Duration | None = None,
        early: Duration | None = None,
        refine: bool = False,
    ) -> WindowedStream[T]:
        """Windows over all rows, whatever their key; they meet in one subtask. See key_by()."""
        from .keyed_stream import KeyedStream, windowed

        keyed = KeyedStream(self, ())
        return windowed(keyed, window, allowed_lateness, early, refine, user_location())

    def union(self, *others: Stream[Any]) -> Stream[T]:
        """The rows of all streams, which have the same columns; in no particular order."""
        location = user_location()
        streams: list[Stream[Any]] = [self, *others]
        for other in others:
            if not isinstance(other, Stream):
                raise plan_error("union", f"{type(other).__name__} is not a stream", location)
            self._require_same_pipeline(other, "union", location)
        schema = union_schema([s._schema for s in streams], "union", location)
        return Stream(self._pipeline, [tap for s in streams for tap in s._fitted(schema, location)])

    def broadcast(self) -> BroadcastStream[T]:
        """Says that every subtask gets every row: `process(operator, rules.broadcast())`."""
        return BroadcastStream(self)

    # Outputs ----------------------------------------------------------------------------------

    def output(self, declared: Output[R]) -> Stream[R]:
        """A side output of the operator before: `knocks.output(LateInbound.unknown)`."""
        return self._side(declared.name, user_location())

    @property
    def late(self) -> Stream[Any]:
        """Rows that came later than the allowed lateness; of a join, those of the left stream."""
        return self._side(LATE, user_location())

    @property
    def late_right(self) -> Stream[Any]:
        """Late rows of the right stream of the join before."""
        return self._side(LATE_RIGHT, user_location())

    def sink(self, sink: Sink, *, name: str | None = None, parallelism: int | None = None) -> None:
        """Hand the rows to a sink, and make all this part of the pipeline's run."""
        location = user_location()
        if not isinstance(sink, Sink):
            raise plan_error(
                "sink",
                f"{type(sink).__name__} is not a sink",
                location,
                "Pass an instance of a ps.Sink, such as ps.FileSink(...).",
            )
        check_sendable(sink, type(sink).__name__, location)
        try:
            sink.check(self.schema)
        except PlanError as error:
            raise at_line(error, location) from None
        options = checked_options(name, parallelism, location)
        node = make_node(SinkLogic(sink), [Port(self._taps)], location, options)
        self._pipeline._add_end(node)

    # Options ----------------------------------------------------------------------------------

    def options(
        self,
        *,
        name: str | None = None,
        parallelism: int | None = None,
        split_keys: int | None = None,
    ) -> Stream[T]:
        """Name the operator before, which is how its state is found, or choose its subtasks.

        `split_keys=8` deals each key of an aggregate out over so many parts and merges them: for
        hot keys under DISTINCT, or under min and max of rows that are taken back.
        """
        location = user_location()
        options = checked_options(name, parallelism, location)
        if split_keys is not None:
            from .split_keys import split_options

            tap = self._one_tap("options", location)
            options = options.merged(split_options(tap.node, split_keys, location))
        return self._with_options(options, location)

    def chain_break(self) -> Stream[T]:
        """Run the operator before in a process of its own, apart from what feeds it."""
        return self._with_options(Options(chain_break=True), user_location())

    def on_error(self, policy: Fail | Drop | DeadLetter) -> Stream[T]:
        """What becomes of rows that the operator before cannot take; the default is ps.Fail()."""
        location = user_location()
        policy = checked_policy(policy, self._one_tap("on_error", location), location)
        return self._with_options(Options(on_error=policy), location)

    # Results ----------------------------------------------------------------------------------

    def head(self, rows: int = 10) -> pa.Table:
        """Run until there are so many rows, and look at them."""
        from .collecting import head

        return head(self, rows)

    def collect(self) -> pa.Table:
        """Run to the end of the data and return all rows; refuses sources that have no end."""
        from .collecting import collect

        return collect(self)

    def explain(self) -> str:
        """What would run to make this stream."""
        from .collecting import explain

        return explain(self)

    # Inside -----------------------------------------------------------------------------------

    def _then(self, logic: Logic, location: str, options: Options | None = None) -> Stream[Any]:
        return self._made(logic, [Port(self._taps)], location, options)

    def _made(
        self, logic: Logic, ports: Sequence[Port], location: str, options: Options | None = None
    ) -> Stream[Any]:
        try:
            node = make_node(logic, ports, location, options)
        except PlanError as error:
            raise at_line(error, location) from None
        return Stream(self._pipeline, [Tap(node)])

    def _broadcast_port(
        self, broadcast: Stream[Any] | BroadcastStream[Any] | None, who: str, location: str
    ) -> list[Port]:
        if broadcast is None:
            return []
        rows = broadcast._stream if isinstance(broadcast, BroadcastStream) else broadcast
        if not isinstance(rows, Stream):
            raise plan_error(
                f"process({who})",
                f"broadcast={type(rows).__name__} is not a stream",
                location,
                f"Write  .process({who}(...), broadcast=rules)",
            )
        self._require_same_pipeline(rows, f"process({who})", location)
        return [Port(rows._taps, "broadcast")]

    def _function(
        self, kind: Any, function: Callable[..., Any], returns: Any, location: str
    ) -> Stream[Any]:
        from .python_nodes import FunctionLogic

        if not callable(function):
            raise plan_error(kind, f"{function!r} is not a function", location)
        logic = FunctionLogic(kind, function, returns)
        check_sendable(function, f"{kind}({logic.title})", location)
        return self._then(logic, location)

    def _fitted(self, schema: pa.Schema, location: str) -> Sequence[Tap]:
        """Its taps with exactly `schema`, cast and reordered where they differ."""
        if self._schema.equals(schema):
            return self._taps
        return self._then(Cast(tuple(schema)), location)._taps

    def _side(self, output: str, location: str) -> Stream[Any]:
        tap = self._one_tap(f"output({output})", location)
        return Stream(self._pipeline, [side_tap(tap, output, location)])

    def _one_tap(self, who: str, location: str) -> Tap:
        if len(self._taps) != 1:
            raise plan_error(
                who, "a union is not an operator; say it of the streams before", location
            )
        return self._taps[0]

    def _with_options(self, options: Options, location: str) -> Stream[T]:
        tap = self._one_tap("options", location)
        return Stream(self._pipeline, [Tap(tap.node.with_options(options), tap.output)])

    def _require_same_pipeline(self, other: Stream[Any], who: str, location: str) -> None:
        if other._pipeline is not self._pipeline:
            raise plan_error(
                who,
                f"the streams belong to two pipelines, {self._pipeline.name!r}"
                f" and {other._pipeline.name!r}",
                location,
            )


def nodes_above(stream: Stream[Any]) -> list[Node]:
    """The operators that the stream's rows come from."""
    return [tap.node for tap in stream._taps]
