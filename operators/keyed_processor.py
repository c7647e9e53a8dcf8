"""KeyedProcessor: runs a KeyedOperator: rows by key, timers in order, state behind handles.

Rows go through user code in the order of the batch; what a row yields carries its `_time`. Timers
set at or before the watermark fire after the batch in which they were set (hazard 24). A row that
raises leaves nothing behind but what it wrote to state before it raised.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from penstock.elements.errors import PlanError
from penstock.elements.hash import hash_columns
from penstock.elements.keys import python_keys
from penstock.elements.rows import RowCodec
from penstock.elements.signals import WATERMARK_MAX, WATERMARK_MIN
from penstock.state.backend import ObjectState

from .broadcast_input import BROADCAST_PORT, BroadcastInput, broadcast_codec
from .context import Context
from .current_row import CurrentRow, Times
from .declared import KeyedState, Output, Timer, fired
from .declared_value import ValueCell
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
from .row_groups import RowGroups
from .row_input import PART_ROWS, decode_good, decode_rows
from .row_loop import CELLS_MAX, row_loop
from .row_outputs import RowOutputs
from .timer_calls import TimerCalls
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
        cls = type(self.operator)
        self._grouped = cls.process_group is not KeyedOperator.process_group
        self._row = CurrentRow(0 if self._grouped else CELLS_MAX)
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
        self._call_rows = row_loop(self.operator.process, self._context, self._row)
        self._calls.passed = ctx.watermark
        # Timers that came due while nothing ran fire in order before the first row (hazard 24).
        next_ns = self._wall.next_ns()
        self._overdue = next_ns is not None and next_ns <= ctx.clock.wall_ns()

    def _bind(self) -> None:
        self._asks_hashes = False
        self._page_shift: int | None = None
        self._fires_at_end: dict[str, bool] = {}
        timers: dict[str, Timer] = {}
        for name, declared in declared_of(self.operator).items():
            bound: object
            if isinstance(declared, KeyedState):
                bound = declared.bind(self._ctx.state, self._row)
                if declared.ttl_ns is not None:
                    self._states.append(bound._state)
                if isinstance(bound, ValueCell):
                    self._page_shift = bound.direct.dirty_shift
                else:
                    self._asks_hashes = True
            elif isinstance(declared, Timer):
                service = self._wall if declared.processing_time else self._event
                bound = declared.bind(service, self._row)
                self._fires_at_end[name] = declared.fire_at_end
                timers[name] = declared
                self._asks_hashes = True
            else:
                continue
            object.__setattr__(self.operator, name, bound)
        operator, context = self.operator, self._context
        self._calls = TimerCalls(
            lambda key, timer: operator.on_timer(key, timer, context),
            timers,
            self._row,
            self._out,
            self._failures,
            self._timed,
        )

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
        if not batch.num_rows:
            return
        # Rows come and go by thousands and are no cycles: the garbage collector would walk those
        # that wait to be emitted again and again. It is off for one batch at a time.
        collects = gc.isenabled()
        gc.disable()
        try:
            if self._grouped:
                self._run_groups(batch)
            else:
                self._run_rows(batch)
        finally:
            self._row.leave()
            if collects:
                gc.enable()
        self._fire_event_timers(self._ctx.watermark)

    def _enter(self, batch: pa.RecordBatch) -> Times | None:
        """User code is called for rows of this batch from now on; returns their times."""
        times = times_of(batch) if self._timed else None
        self._row.enter()
        self._row.times = times
        hashes = hash_columns(batch, self.keys)
        # As a list they are found faster, but making it costs more than the few lookups of cells.
        self._row.hashes = hashes.tolist() if self._asks_hashes else hashes
        shift = self._page_shift
        self._pages: Sequence[int] = (
            range(batch.num_rows) if shift is None else (hashes >> np.uint64(shift)).tolist()
        )
        return times

    def _undecodable(self, one: pa.RecordBatch, error: Exception) -> None:
        self._failures.row("process", error, one)

    def _run_rows(self, batch: pa.RecordBatch) -> None:
        times = self._enter(batch)
        self._out.drop()
        # In parts, so that few rows live at once: they stay in the cache, and out of the
        # garbage collector's sight.
        for start in range(0, batch.num_rows, PART_ROWS):
            part = batch.slice(start, PART_ROWS)
            items: list[Any] = []
            owners: list[int] = []
            rows, good = decode_good(self._codec, part, self._undecodable)
            if good is None:
                self._run_part(part, range(start, start + len(rows)), rows, items, owners)
            elif good:
                part = part.take(pa.array(good, pa.int64()))
                self._run_part(part, [start + at for at in good], rows, items, owners)
            self._out.hold(
                items, owners, times, lambda index, error: self._bad(batch, index, error)
            )
        self._out.flush()

    def _run_part(
        self,
        part: pa.RecordBatch,
        indices: Sequence[int],
        rows: list[Any],
        items: list[Any],
        owners: list[int],
    ) -> None:
        """Call user code for rows that stand at `indices` of the batch."""
        keys = python_keys(part, self.keys)
        pages = self._pages[indices[0] : indices[-1] + 1]
        if len(pages) > len(rows):
            pages = [self._pages[index] for index in indices]
        done = 0
        while done < len(rows):
            try:
                self._call_rows(
                    indices[done:], keys[done:], pages[done:], rows[done:], items, owners
                )
                done = len(rows)
            except Exception as error:
                self._row.store()
                at = indices.index(self._row.index)
                del items[len(owners) :]
                self._bad_row(part.slice(at, 1), rows[at], keys[at], error)
                done = at + 1

    def _bad(self, batch: pa.RecordBatch, index: int, error: Exception) -> None:
        """What was yielded for a row does not fit."""
        one = batch.slice(index, 1)
        (row,) = self._codec.decode(one)
        (key,) = python_keys(one, self.keys)
        self._bad_row(one, row, key, error)

    def _bad_row(self, one: pa.RecordBatch, row: Any, key: Any, error: Exception) -> None:
        self._failures.row("process", error, one, row=row, key=key, keyed=True)

    def _run_groups(self, batch: pa.RecordBatch, decoded: list[Any] | None = None) -> None:
        """`decoded` are the rows of `batch`, which then lie group by group already."""
        times = self._enter(batch)
        groups = RowGroups(batch, self.keys, times)
        rest: pa.RecordBatch | None = None
        items: list[Any] = []
        owners: list[int] = []
        for part in groups.parts(PART_ROWS):
            offset, end = groups.spans[part.start][0], groups.spans[part.stop - 1][1]
            try:
                rows = (
                    decoded[offset:end] if decoded else self._codec.decode(groups.rows(offset, end))
                )
            except PlanError:
                raise
            except Exception:
                rest = groups.rows(offset, batch.num_rows)
                break
            for group in part:
                start, end = groups.spans[group]
                self._call_group(groups, group, rows[start - offset : end - offset], items, owners)
        by_owner = dict(zip(groups.latest, range(len(groups.keys)), strict=True))
        self._out.emit(
            items,
            owners,
            times,
            lambda index, error: self._bad_group(groups, by_owner[index], error),
        )
        if rest is not None:
            # Groups are made of rows that can be decoded, so the others must be known first.
            rows, rest = decode_rows(self._codec, rest, self._undecodable)
            if rows:
                self._run_groups(rest, rows)

    def _call_group(
        self, groups: RowGroups, group: int, rows: list[Any], items: list[Any], owners: list[int]
    ) -> None:
        row = self._row
        row.key, row.index = groups.keys[group], groups.latest[group]
        try:
            made = self.operator.process_group(row.key, rows, self._context)
            if made is None:
                return
            items.extend(made)
        except Exception as error:
            del items[len(owners) :]
            self._bad_group(groups, group, error)
        owners.extend([row.index] * (len(items) - len(owners)))

    def _bad_group(self, groups: RowGroups, group: int, error: Exception) -> None:
        given = groups.rows(*groups.spans[group])
        self._failures.row("process_group", error, given, key=groups.keys[group], keyed=True)

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
        self._calls.passed = watermark

    def _fire_event_timers(self, watermark: int) -> None:
        next_ns = self._event.next_ns()
        if next_ns is not None and next_ns <= watermark:
            self._event.fire(watermark, self._calls.fire, at_end=watermark == WATERMARK_MAX)
            self._calls.flush()
            if self._event.dropped:
                self._ctx.count("timers_dropped", self._event.dropped)
                self._event.dropped = 0

    def next_wakeup_ns(self) -> int | None:
        """The earliest processing-time timer."""
        return self._wall.next_ns()

    def on_processing_time(self, now_ns: int) -> None:
        """Fire the processing-time timers that are due."""
        self._overdue = False
        self._wall.fire(now_ns, self._calls.fire)
        self._calls.flush()

    def _catch_up(self) -> None:
        if self._overdue:
            self.on_processing_time(self._ctx.clock.wall_ns())

    def _end_wall_timers(self) -> None:
        """At the end of data they fire or are dropped, as declared; dropped ones are counted."""
        dropped = 0
        for entry in self._wall.drain():
            if self._fires_at_end.get(fired(entry.tag, 0).name, False):
                self._calls.fire(entry)
            else:
                dropped += 1
        self._calls.flush()
        dropped += len(self._wall.drain())
        if dropped:
            self._ctx.count("timers_dropped", dropped)
