"""MapAsyncProcessor: one call of a user's function per row, or per few rows, many at once.

1. Each row gives one row, which keeps its `_time`. The order is the input's, or free between two
   watermarks; watermarks wait for the rows before them.
2. The rows in flight are in every snapshot and are called for again after a restart, so side
   effects happen at least once. No barrier waits for a call; the end of data does.
3. While too many rows wait for their turn the subtask leaves its inputs unread (`saturated`).
4. A row whose last try fails follows the error policy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pyarrow as pa

from penstock.elements.conform import conform
from penstock.elements.errors import PlanError
from penstock.elements.row_hints import function_hints
from penstock.elements.row_schema import is_row_class, strip
from penstock.elements.rows import RowCodec, RowError
from penstock.elements.signals import WATERMARK_MAX, WATERMARK_MIN

from .async_calls import AsyncCalls, CallSettings, Outcome
from .async_order import AsyncOrder
from .batch_processor import function_name
from .error_policy import ErrorPolicy, Fail, Failures, dead_output
from .event_time_column import has_time, with_time_field, without_time_field
from .processor import MAIN, Processor, ProcessorContext
from .python_operator import declared_schema, frame_kind, to_batches, to_frame
from .row_input import decode_rows

WAITING_ROWS_MAX = 1024
"""Rows beyond those in flight that may wait for their turn before the inputs are left unread."""
STORED_ROWS_MAX = 256
"""Rows in one item of the snapshot: items are what a rescale deals out."""


@dataclass(frozen=True)
class Call:
    """Rows of an owned batch that one call is for, and what the function is given."""

    batch: pa.RecordBatch
    start: int
    rows: int
    argument: Any

    def times(self) -> pa.Array:
        """`_time` of its rows."""
        return self.batch.column(self.batch.num_columns - 1).slice(self.start, self.rows)

    def given(self) -> pa.RecordBatch:
        """Its rows as they came."""
        return self.batch.slice(self.start, self.rows)


class MapAsyncProcessor(Processor):
    """`batch_rows` None: a call per row; else per batch of at most so many rows."""

    holds_watermarks = True

    def __init__(
        self,
        function: Callable[..., Any],
        in_schema: pa.Schema,
        returns: Any = None,
        settings: CallSettings = CallSettings(100),  # noqa: B008 - frozen
        ordered: bool = True,
        batch_rows: int | None = None,
        policy: ErrorPolicy = Fail(),  # noqa: B008 - frozen and without fields
    ) -> None:
        self.function, self.in_schema, self.policy = function, in_schema, policy
        self._settings, self._ordered, self._batch_rows = settings, ordered, batch_rows
        self._method = function_name(function)
        self.who = f"map_async({self._method})"
        self._timed = has_time(in_schema)
        hints = {} if isinstance(function, type) else function_hints(function)
        if batch_rows is None:
            self._codec: RowCodec | None = RowCodec(_row_in(hints, self.who), in_schema, self.who)
            cls, schema = self._row_out(hints, returns)
            self._out_codec: RowCodec | None = RowCodec(cls, schema, self.who)
        else:
            self._codec = self._out_codec = None
            self._frame = frame_kind(function, self.who)
            said = None if returns is None else declared_schema(returns, self.who)
            schema = without_time_field(in_schema) if said is None else said
        self._schema: pa.Schema = schema
        self.out_schema = with_time_field(schema) if self._timed else schema
        self.columns_read: tuple[str, ...] | None = None
        if self._codec is not None:
            self.columns_read = tuple(self._codec.columns_read())

    @property
    def outputs(self) -> dict[str, pa.Schema]:
        """Rows, and those that the error policy sets aside."""
        return {MAIN: self.out_schema} | dead_output(self.policy)

    def _row_out(self, hints: dict[str, Any], returns: Any) -> tuple[type[Any] | None, pa.Schema]:
        assert self._codec is not None
        if returns is None:
            hint = hints.get("return")
            if hint not in (None, Any, object):
                hint = strip(hint)[0]
                if not is_row_class(hint):
                    raise PlanError(
                        f"{self.who}: it returns {getattr(hint, '__name__', hint)}, which is no row"
                        " class\n  Annotate it, or say  map_async(..., returns=MyRow)"
                    )
                returns = hint
        if returns is None:
            cls = None if self._codec.by_attribute else self._codec.cls
            whole = list(self._codec.columns_read()) == self._codec.schema.names
            return cls if whole else None, without_time_field(self.in_schema)
        return (returns if is_row_class(returns) else None), declared_schema(returns, self.who)

    # Life --------------------------------------------------------------------------------------

    def open(self, ctx: ProcessorContext) -> None:
        """Start the thread; call again for what was in flight."""
        self._ctx = ctx
        self._failures = Failures(ctx, self.policy)
        self._order: AsyncOrder[Call, Outcome] = AsyncOrder(
            self._settings.concurrency, self._ordered
        )
        self._calls = AsyncCalls(self.function, self._settings, ctx.wake)
        self._list = ctx.state.operator_list("in flight", "list")
        for item in self._list.items():
            self._take(_unpacked(item, self.in_schema))
        # What was heard before the cut goes on behind the rows that were in flight then.
        if WATERMARK_MIN < ctx.watermark < WATERMARK_MAX:
            self._order.watermark(ctx.watermark)
        ctx.wake()

    def close(self) -> None:
        """Stop the thread."""
        self._calls.close()

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """Call for these rows as soon as there is room; give what is done."""
        self._take(batch.take(pa.array(np.arange(batch.num_rows))))
        self._go_on()

    def on_watermark(self, watermark: int) -> None:
        """It goes on behind the rows before it; the last one is the runtime's, with the end."""
        if watermark < WATERMARK_MAX:
            self._order.watermark(watermark)
            self._go_on()

    def on_processing_time(self, now_ns: int) -> None:
        """Calls have come to their end."""
        self._go_on()

    def busy(self) -> bool:
        """Rows, or watermarks behind them, have not gone on."""
        return self._order.busy

    def saturated(self) -> bool:
        """Enough rows wait for their turn."""
        return self._order.waiting * (self._batch_rows or 1) >= WAITING_ROWS_MAX

    def before_snapshot(self, checkpoint_id: int) -> None:
        """Keep the rows in flight: done or not, their results have not gone on."""
        calls = self._order.unfinished()
        items: list[bytes] = []
        rows: list[pa.RecordBatch] = []
        for call in calls:
            rows.append(call.given())
            if sum(batch.num_rows for batch in rows) >= STORED_ROWS_MAX:
                items.append(_packed(rows))
                rows = []
        self._list.replace([*items, _packed(rows)] if rows else items)

    # Rows --------------------------------------------------------------------------------------

    def _take(self, batch: pa.RecordBatch) -> None:
        """`batch` is owned."""
        if self._codec is None:
            for start in range(0, batch.num_rows, self._batch_rows or 1):
                rows = batch.slice(start, self._batch_rows)
                plain = rows.select(without_time_field(self.in_schema).names)
                frame = to_frame(plain, self._frame)
                self._order.call(Call(batch, start, rows.num_rows, frame))
            return
        bad = self._failed_row
        arguments, batch = decode_rows(self._codec, batch, bad)
        for at, argument in enumerate(arguments):
            self._order.call(Call(batch, at, 1, argument))

    def _failed_row(self, rows: pa.RecordBatch, error: Exception) -> None:
        self._failures.row(self._method, error, rows)

    def _go_on(self) -> None:
        """Start and deliver what can be; in the subtask's thread only."""
        for number, outcome in self._calls.finished():
            self._order.done(number, outcome)
        done: list[tuple[Call, Outcome]] = []
        for item in self._order.ready():
            if isinstance(item, int):
                self._give(done)
                done = []
                self._ctx.forward_watermark(item)
            else:
                done.append(item)
        self._give(done)
        begun = [(number, call.argument) for number, call in self._order.start()]
        self._calls.begin(begun)

    def _give(self, done: Sequence[tuple[Call, Outcome]]) -> None:
        good = []
        for call, outcome in done:
            if outcome.error is None:
                good.append((call, outcome.value))
            else:
                shown = None if self._codec is None else call.argument
                self._failures.row(self._method, outcome.error, call.given(), row=shown)
        if good:
            self._collect(good)

    def _collect(self, good: list[tuple[Call, Any]]) -> None:
        """Give results together; if they do not fit, one by one, so that the bad ones stand out."""
        try:
            if self._out_codec is not None:
                if any(value is None for _, value in good):
                    raise RowError("map_async must give a row for each")
                made = [self._out_codec.encode([value for _, value in good])]
            else:
                made = [self._framed(call, value) for call, value in good]
        except Exception as error:
            if len(good) > 1:
                for one in good:
                    self._collect([one])
                return
            call = good[0][0]
            self._failures.row(self._method, error, call.given(), row=call.argument)
            return
        whole = made[0] if len(made) == 1 else pa.concat_batches(made)
        if self._timed:
            stamps = [call.times() for call, _ in good]
            times = pa.concat_arrays(stamps)
            whole = pa.RecordBatch.from_arrays([*whole.columns, times], schema=self.out_schema)
        self._ctx.collect(whole)

    def _framed(self, call: Call, frame: Any) -> pa.RecordBatch:
        batches = [conform(b, self._schema, self.who) for b in to_batches(frame, self._schema)]
        made = (
            pa.concat_batches(
                batches,
            )
            if batches
            else None
        )
        count = 0 if made is None else made.num_rows
        if made is None or count != call.rows:
            raise RowError(f"{call.rows} rows went in, {count} came out: map_async gives one each")
        return made


def _row_in(hints: dict[str, Any], who: str) -> type[Any] | None:
    for name, hint in hints.items():
        if name in ("self", "return"):
            continue
        if is_row_class(hint):
            return cast("type[Any]", hint)
        if hint in (Any, object):
            return None
        raise PlanError(
            f"{who}: it takes {getattr(hint, '__name__', hint)}, which is no row class\n"
            "  Annotate its parameter with a dataclass, NamedTuple or pydantic model, or not at\n"
            "  all for attribute rows. For batches of up to n rows say  map_async(..., batch=n)."
        )
    return None


def _packed(batches: Sequence[pa.RecordBatch]) -> bytes:
    rows = pa.concat_batches(batches)
    body = rows.serialize().to_pybytes()
    return cast(bytes, body)


def _unpacked(item: bytes, schema: pa.Schema) -> pa.RecordBatch:
    return pa.ipc.read_record_batch(pa.py_buffer(item), schema)
