"""BatchProcessor: runs an Operator, or a function given to map_batches.

Every yielded frame is held to its declared schema. On streams with event time the batch holds
`_time`: a frame that still has it keeps it row by row; one without it, but with as many rows as
came in, gets it back in their order; anything else is an error, since its times are unknown.
When a batch fails it is halved until the rows that fail are alone; those follow the error policy.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pyarrow as pa

from penstock.elements.conform import ConformError, UnfitValue, conform
from penstock.elements.errors import PenstockError
from penstock.elements.rows import RowError
from penstock.elements.signals import TIME_COLUMN, WATERMARK_MAX

from .broadcast_input import BROADCAST_PORT, BroadcastInput, broadcast_codec
from .context import Context
from .current_row import CurrentRow
from .declared import Side
from .error_policy import ErrorPolicy, Fail, Failures, dead_output
from .event_time_column import has_time, with_time_field
from .frozen import freeze
from .processor import MAIN, Processor, ProcessorContext
from .python_operator import (
    Operator,
    frame_kind,
    frames_of,
    operator_outputs,
    to_batches,
    to_frame,
)

Made = list[tuple[str, pa.RecordBatch]]


class BatchProcessor(Processor):
    """Checks all that can be checked when made; with `broadcast_schema`, port 1 takes its rows."""

    def __init__(
        self,
        operator: Operator,
        in_schema: pa.Schema,
        policy: ErrorPolicy = Fail(),  # noqa: B008 - frozen and without fields
        broadcast_schema: pa.Schema | None = None,
    ) -> None:
        self.operator = operator
        self.in_schema = in_schema
        self.policy = policy
        self._timed = has_time(in_schema)
        self._declared = {
            name: with_time_field(schema) if self._timed else schema
            for name, schema in operator_outputs(operator, in_schema).items()
        }
        self._broadcast_codec = broadcast_codec(operator, broadcast_schema)
        self._who = function_name(operator)

    @property
    def outputs(self) -> dict[str, pa.Schema]:
        """Each output's schema as collected, with `_time` if the input has it."""
        return self._declared | dead_output(self.policy)

    # Life ----------------------------------------------------------------------------------------

    def open(self, ctx: ProcessorContext) -> None:
        """Open the user's operator and freeze it."""
        self._ctx = ctx
        self._row = CurrentRow()
        self._context = Context(ctx, self._row)
        self._failures = Failures(ctx, self.policy)
        self._passed = ctx.watermark
        self._flushed = False
        try:
            self.operator.open(self._context)
        except Exception as error:
            self._failures.whole("open", error)
        self._broadcast = None
        if self._broadcast_codec is not None:
            self._broadcast = BroadcastInput(
                self.operator, self._broadcast_codec, self._context, self._failures, ctx.state
            )
        freeze(self.operator)

    def before_snapshot(self, checkpoint_id: int) -> None:
        """The user's hook, then broadcast state."""
        if not self._flushed:
            try:
                self.operator.before_snapshot(self._context)
            except Exception as error:
                self._failures.whole("before_snapshot", error)
        if self._broadcast is not None:
            self._broadcast.store()

    def on_watermark(self, watermark: int) -> None:
        """Remember what has passed, for rows that on_end makes."""
        if watermark < WATERMARK_MAX:
            self._passed = watermark

    def on_end(self) -> None:
        """Rows that were held back; those without `_time` get the earliest that is not late."""
        try:
            made = self._outgoing(self.operator.on_end(self._context), None)
        except Exception as error:
            self._failures.whole("on_end", error)
        self._collect(made)
        if type(self.operator).on_end is not Operator.on_end:
            # While others of this operator still read, a restart deals all list state out again:
            # what has just been yielded would be yielded a second time.
            self._flushed = True
            self._context.forget_dealt_out()

    def close(self) -> None:
        """The user's close."""
        self.operator.close()

    # Rows ----------------------------------------------------------------------------------------

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """Rows of the stream, or of the broadcast stream."""
        if port == BROADCAST_PORT:
            assert self._broadcast is not None
            self._broadcast.take(batch)
            return
        if batch.num_rows == 0:
            return
        try:
            made = self._attempt(batch)
        except PenstockError:
            raise
        except Exception as error:
            self._collect(self._isolate(batch, error))
            if self._failures.ends_attempt:
                # No row fails alone: it is the batch as a whole.
                self._failures.whole("process", error, batch)
            return
        self._collect(made)

    def _attempt(self, batch: pa.RecordBatch) -> Made:
        """Call user code and check what it makes; nothing is collected before all is well."""
        frame = to_frame(batch, self.operator._penstock_frame)
        try:
            return self._outgoing(self.operator.process(frame, self._context), batch)
        except ConformError as error:
            if not isinstance(error, UnfitValue):
                self._failures.whole("process", error, batch)
            raise

    def _isolate(self, batch: pa.RecordBatch, error: Exception) -> Made:
        """The output of the rows that work; the others go to the policy one by one."""
        if batch.num_rows == 1:
            self._failures.row("process", error, batch, row=batch.to_pylist()[0])
            return []
        middle = batch.num_rows // 2
        made: Made = []
        for half in (batch.slice(0, middle), batch.slice(middle)):
            try:
                made += self._attempt(half)
            except PenstockError:
                raise
            except Exception as inner:
                made += self._isolate(half, inner)
        return made

    def _collect(self, made: Made) -> None:
        for output, batch in made:
            self._ctx.collect(batch, output)

    def _outgoing(self, made: Any, given: pa.RecordBatch | None) -> Made:
        outgoing: Made = []
        for item in frames_of(made):
            output, frame = (item.output, item.row) if type(item) is Side else (MAIN, item)
            declared = self._declared.get(output)
            if declared is None:
                raise RowError(f"there is no side output {output!r} on this operator")
            for batch in to_batches(frame, declared):
                if self._timed and TIME_COLUMN not in batch.schema.names:
                    batch = self._timed_batch(batch, given)
                outgoing.append((output, conform(batch, declared, self._who)))
        return outgoing

    def _timed_batch(self, batch: pa.RecordBatch, given: pa.RecordBatch | None) -> pa.RecordBatch:
        """Give a frame without `_time` that of its rows, where they can be told."""
        if given is None:
            stamp = min(self._passed, WATERMARK_MAX - 1) + 1
            times = pa.repeat(pa.scalar(stamp, pa.int64()), batch.num_rows)
            times = times.cast(pa.timestamp("ns", "UTC"))
        elif batch.num_rows == given.num_rows:
            times = given.column(TIME_COLUMN)
        else:
            raise ConformError(
                f"{self._who}: {given.num_rows} rows came in, {batch.num_rows} came out, and their "
                f"event time is gone\n  Keep the column {TIME_COLUMN} in the frame, so that every "
                "row has one."
            )
        return batch.append_column(TIME_COLUMN, times)


class FunctionOperator(Operator):
    """A function of map_batches as an Operator. It takes (batch) or (batch, ctx)."""

    def __init__(self, function: Callable[..., Any], returns: Any = None) -> None:
        self.function = function
        self.returns = returns
        self._with_ctx = takes_context(function)
        self._penstock_frame = frame_kind(function, function_name(function))

    def process(self, batch: Any, ctx: Context) -> Any:
        """Call the function."""
        return self.function(batch, ctx) if self._with_ctx else self.function(batch)


def batch_function(
    function: Callable[..., Any],
    in_schema: pa.Schema,
    returns: Any = None,
    policy: ErrorPolicy = Fail(),  # noqa: B008 - frozen and without fields
) -> BatchProcessor:
    """The processor of `stream.map_batches(function, returns=...)`."""
    return BatchProcessor(FunctionOperator(function, returns), in_schema, policy)


def takes_context(function: Callable[..., Any]) -> bool:
    """Whether a function has a second required parameter, which then is the Context."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # A built-in that does not tell.
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = [p for p in parameters if p.kind in positional and p.default is p.empty]
    return len(required) >= 2


def function_name(function: Any) -> str:
    """How errors call a user's function or operator."""
    if isinstance(function, FunctionOperator):
        return f"map_batches({function_name(function.function)})"
    if isinstance(function, Operator):
        return type(function).__name__
    return getattr(function, "__name__", None) or type(function).__name__
