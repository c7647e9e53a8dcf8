"""KeyedProcessor: runs a KeyedOperator: rows by key, timers in order, state behind handles.

Rows go through user code in the order of the batch; what a row yields carries its `_time`. Timers
set at or before the watermark fire after the batch in which they were set (hazard 24). Rows of an
overdue timer carry the earliest time that is not late, since its own has passed (hazard 22).
A row that raises leaves nothing behind but what it wrote to state before it raised.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pyarrow as pa

from penstock.elements.hash import hash_columns
from penstock.elements.keys import python_keys
from penstock.elements.rows import RowCodec
from penstock.elements.signals import WATERMARK_MAX, WATERMARK_MIN
from penstock.state.backend import ObjectState, TimerEntry

from .broadcast_input import BROADCAST_PORT, BroadcastInput, broadcast_codec
from .context import Context
from .current_row import CurrentRow
from .declared import KeyedState, Output, Timer, fired
from .error_policy import ErrorPolicy, Fail, Failures, dead_output
from .event_time_column import has_time, times_of, with_time_field
from .frozen import freeze
from .keyed_operator import (
    KeyedOperator,
    check_keyed,
    declared_of,
    keyed_outputs,
    refuse_event_time,
    row_in,
    row_out,
)
from .processor import MAIN, Processor, ProcessorContext
from .row_input import decode_rows
from .row_outputs import RowOutputs
from .timer_service import TimerService

EVENT_TIMERS, WALL_TIMERS = "event timers", "processing-time timers"


class KeyedProcessor(Processor):
    """`keys` are columns of `in_schema`, on which the stream is hashed. Checks all when made.

    With `broadcast_schema`, port 1 takes the rows of the broadcast stream.
    """

    def __init__(
        self,
        operator: KeyedOperator[Any, Any],
        keys: tuple[str, ...] | list[str] | str,
        in_schema: pa.Schema,
        policy: ErrorPolicy = Fail(),  # noqa: B008 - frozen and without fields
        broadcast_schema: pa.Schema | None = None,
    ) -> None:
        check_keyed(operator)
        self.operator = operator
        self.keys = (keys,) if isinstance(keys, str) else tuple(keys)
        self.in_schema = in_schema
        self.policy = policy
        who = type(operator).__name__
        self._timed = has_time(in_schema)
        if not self._timed:
            refuse_event_time(operator)
        self._codec = RowCodec(row_in(operator), in_schema, who)
        self._out_codecs = {
            name: RowCodec(self._row_class(name), schema, who)
            for name, schema in keyed_outputs(operator).items()
        }
        self._broadcast_codec = broadcast_codec(operator, broadcast_schema)
        self.columns_read: tuple[str, ...] = tuple(
            dict.fromkeys((*self.keys, *self._codec.columns_read()))
        )
        """The input columns that are needed, for pruning; `_time` is kept anyway."""

    @property
    def outputs(self) -> dict[str, pa.Schema]:
        """Each output's schema as collected, with `_time` if the input has it."""
        made = {
            name: with_time_field(codec.schema) if self._timed else codec.schema
            for name, codec in self._out_codecs.items()
        }
        return made | dead_output(self.policy)

    def _row_class(self, output: str) -> type[Any] | None:
        if output == MAIN:
            returns = getattr(self.operator, "returns", None)
            return row_out(self.operator) or (returns if isinstance(returns, type) else None)
        declared = declared_of(self.operator)[output]
        assert isinstance(declared, Output)
        return declared.row_class

    # Life ----------------------------------------------------------------------------------------

    def open(self, ctx: ProcessorContext) -> None:
        """Open the user's operator, bind its declarations to the state, freeze it."""
        self._ctx = ctx
        self._row = CurrentRow()
        self._context = Context(ctx, self._row)
        self._failures = Failures(ctx, self.policy)
        self._out = RowOutputs(self._out_codecs, self._timed, ctx.collect)
        self._event = TimerService(ctx.state.timers(EVENT_TIMERS))
        self._wall = TimerService(ctx.state.timers(WALL_TIMERS))
        self._states: list[ObjectState] = []
        try:
            self.operator.open(self._context)
        except Exception as error:
            self._failures.whole("open", error)
        self._bind()
        self._broadcast = None
        if self._broadcast_codec is not None:
            self._broadcast = BroadcastInput(
                self.operator, self._broadcast_codec, self._context, self._failures, ctx.state
            )
        freeze(self.operator)
        cls = type(self.operator)
        self._grouped = cls.process_group is not KeyedOperator.process_group
        self._passed = ctx.watermark
        # Timers that came due while nothing ran fire in order before the first row (hazard 24).
        next_ns = self._wall.next_ns()
        self._overdue = next_ns is not None and next_ns <= ctx.clock.wall_ns()

    def _bind(self) -> None:
        self._fires_at_end: dict[str, bool] = {}
        for name, declared in declared_of(self.operator).items():
            bound: object
            if isinstance(declared, KeyedState):
                bound = declared.bind(self._ctx.state, self._row)
                if declared.ttl_ns is not None:
                    self._states.append(bound._state)
            elif isinstance(declared, Timer):
                service = self._wall if declared.processing_time else self._event
                bound = declared.bind(service, self._row)
                self._fires_at_end[name] = declared.fire_at_end
            else:
                continue
            object.__setattr__(self.operator, name, bound)

    def before_snapshot(self, checkpoint_id: int) -> None:
        """The user's hook, then broadcast state."""
        self._catch_up()
        try:
            self.operator.before_snapshot(self._context)
        except Exception as error:
            self._failures.whole("before_snapshot", error)
        if self._broadcast is not None:
            self._broadcast.store()

    def close(self) -> None:
        """The user's close."""
        self.operator.close()

    # Rows ----------------------------------------------------------------------------------------

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """Rows of the keyed stream, or of the broadcast stream."""
        self._catch_up()
        if port == BROADCAST_PORT:
            assert self._broadcast is not None
            self._broadcast.take(batch)
            return
        rows, batch = decode_rows(
            self._codec, batch, lambda one, error: self._failures.row("process", error, one)
        )
        if not rows:
            return
        row = self._row
        row.hashes = hash_columns(batch, self.keys).tolist()
        row.times = times_of(batch) if self._timed else None
        keys = python_keys(batch, self.keys)
        try:
            if self._grouped:
                self._run_groups(batch, keys, rows)
            else:
                self._run_rows(batch, keys, rows)
        finally:
            row.leave()
        self._fire_event_timers(self._ctx.watermark)

    def _run_rows(self, batch: pa.RecordBatch, keys: list[Any], rows: list[Any]) -> None:
        items: list[Any] = []
        owners: list[int] = []
        start = 0
        while start < len(rows):
            try:
                self._call_rows(keys, rows, start, items, owners)
                start = len(rows)
            except Exception as error:
                index = self._row.index
                del items[len(owners) :]
                self._bad_row(batch, keys, rows, index, error)
                start = index + 1
        self._out.emit(
            items,
            owners,
            self._row.times,
            lambda index, error: self._bad_row(batch, keys, rows, index, error),
        )

    def _call_rows(
        self, keys: list[Any], rows: list[Any], start: int, items: list[Any], owners: list[int]
    ) -> None:
        """The hot loop: one call of user code per row."""
        current, context, process = self._row, self._context, self.operator.process
        extend = items.extend
        if start:
            keys, rows = keys[start:], rows[start:]
        for index, (key, row) in enumerate(zip(keys, rows), start):
            current.key = key
            current.index = index
            made = process(key, row, context)
            if made is None:
                continue
            extend(made)
            count = len(items) - len(owners)
            if count:
                owners.extend([index] * count)

    def _bad_row(
        self, batch: pa.RecordBatch, keys: list[Any], rows: list[Any], index: int, error: Exception
    ) -> None:
        self._failures.row(
            "process", error, batch.slice(index, 1), row=rows[index], key=keys[index], keyed=True
        )

    def _run_groups(self, batch: pa.RecordBatch, keys: list[Any], rows: list[Any]) -> None:
        groups: dict[Any, list[int]] = defaultdict(list)
        for index, key in enumerate(keys):
            groups[key].append(index)
        items: list[Any] = []
        owners: list[int] = []
        row, times = self._row, self._row.times
        time_of = None if times is None else times.tolist().__getitem__
        for key, members in groups.items():
            row.key = key
            row.index = members[0] if time_of is None else max(members, key=time_of)
            try:
                made = self.operator.process_group(key, [rows[i] for i in members], self._context)
                if made is not None:
                    items.extend(made)
            except Exception as error:
                del items[len(owners) :]
                self._bad_group(batch, groups[key], key, error)
            owners.extend([row.index] * (len(items) - len(owners)))
        self._out.emit(
            items,
            owners,
            times,
            lambda index, error: self._bad_group(batch, groups[keys[index]], keys[index], error),
        )

    def _bad_group(
        self, batch: pa.RecordBatch, members: list[int], key: Any, error: Exception
    ) -> None:
        given = batch.take(pa.array(members, pa.int64()))
        self._failures.row("process_group", error, given, key=key, keyed=True)

    # Timers --------------------------------------------------------------------------------------

    def on_watermark(self, watermark: int) -> None:
        """Fire event timers in order; then let state grow old."""
        self._catch_up()
        self._fire_event_timers(watermark)
        if watermark == WATERMARK_MAX:
            self._end_wall_timers()
        elif watermark > WATERMARK_MIN:
            for state in self._states:
                state.advance(watermark)
        self._passed = watermark

    def _fire_event_timers(self, watermark: int) -> None:
        next_ns = self._event.next_ns()
        if next_ns is not None and next_ns <= watermark:
            self._event.fire(watermark, self._fire_one, at_end=watermark == WATERMARK_MAX)
            if self._event.dropped:
                self._ctx.count("timers_dropped", self._event.dropped)
                self._event.dropped = 0

    def next_wakeup_ns(self) -> int | None:
        """The earliest processing-time timer."""
        return self._wall.next_ns()

    def on_processing_time(self, now_ns: int) -> None:
        """Fire the processing-time timers that are due."""
        self._overdue = False
        self._wall.fire(now_ns, self._fire_one)

    def _catch_up(self) -> None:
        if self._overdue:
            self.on_processing_time(self._ctx.clock.wall_ns())

    def _end_wall_timers(self) -> None:
        """At the end of data they fire or are dropped, as declared; dropped ones are counted."""
        dropped = 0
        for entry in self._wall.drain():
            if self._fires_at_end.get(fired(entry.tag, 0).name, False):
                self._fire_one(entry)
            else:
                dropped += 1
        dropped += len(self._wall.drain())
        if dropped:
            self._ctx.count("timers_dropped", dropped)

    def _time_of(self, entry: TimerEntry) -> int:
        """The event time of what a timer makes: its own, unless that would be late already."""
        earliest = min(self._passed, WATERMARK_MAX - 1) + 1
        timer = declared_of(self.operator).get(fired(entry.tag, 0).name)
        if isinstance(timer, Timer) and timer.processing_time:
            return entry.time_ns if self._passed == WATERMARK_MIN else earliest
        return max(entry.time_ns, earliest)

    def _fire_one(self, entry: TimerEntry) -> None:
        row = self._row
        timer = fired(entry.tag, entry.time_ns)
        row.key, row.index, row.hashes, row.timer = entry.key, 0, (entry.hash64,), True
        row.times = np.array([self._time_of(entry)], np.int64) if self._timed else None
        items: list[Any] = []

        def bad(_: int, error: Exception) -> None:
            self._failures.row("on_timer", error, None, row=timer, key=entry.key, keyed=True)

        try:
            made = self.operator.on_timer(entry.key, timer, self._context)
            if made is not None:
                items.extend(made)
            self._out.emit(items, [0] * len(items), row.times, bad)
        except Exception as error:
            bad(0, error)
        finally:
            row.leave()
