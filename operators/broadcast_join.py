"""BroadcastJoinProcessor: a large stream, wherever its rows are, with a small table held by all.

1. A row waits until the watermark has passed it and is joined with the table as it was at the
   row's own event time: what was added at or before it and not taken back until then. `_time` is
   the row's. So results depend on no interleaving of the two streams.
2. A table without event time must come to its end: until then no watermark comes. It holds then
   for all times.
3. Rows at or behind the watermark go to LATE; changes of the table that come late hold from now on
   and are counted.
Every subtask holds the whole table; the large stream is not shuffled.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from penstock.elements.changelog import HIDDEN
from penstock.elements.errors import PlanError
from penstock.elements.signals import TIME_COLUMN, WATERMARK_MIN

from .event_times import times_of
from .join_condition import JoinCondition
from .join_sides import (
    LEFT,
    RIGHT,
    Numbers,
    Results,
    Side,
    checked_how,
    join_schema,
    key_hashes,
    without_null_keys,
)
from .processor import LATE, MAIN, Processor, ProcessorContext
from .timed_table import TimedTable
from .waiting_rows import split_at


class BroadcastJoinProcessor(Processor):
    """Port LEFT has the large stream, port RIGHT the table's rows, all of them."""

    def __init__(
        self,
        keys: Sequence[str],
        how: str,
        left: pa.Schema,
        right: pa.Schema,
        condition: JoinCondition | None = None,
        who: str = "join_broadcast",
        location: str = "",
    ) -> None:
        self._how = checked_how(how, who, location)
        if self._how not in ("inner", "left"):
            raise PlanError(f"{who}: how={how!r}; there are inner and left  {location}".rstrip())
        if TIME_COLUMN not in left.names:
            raise PlanError(f"{who}: the stream has no event time  {location}".rstrip())
        self._keys = tuple(keys)
        self._in = (left, right)
        plain = pa.schema([field for field in right if field.name not in HIDDEN])
        self.out_schema = join_schema(left, plain, keys, self._how, who, location)
        sides = (Side(LEFT, left, self._keys), Side(RIGHT, plain, self._keys))
        self._results = Results(*sides, self.out_schema, self._how)
        self._condition = condition

    @property
    def outputs(self) -> dict[str, pa.Schema]:
        """Results, and rows of the stream that came too late."""
        return {MAIN: self.out_schema, LATE: self._in[LEFT]}

    def open(self, ctx: ProcessorContext) -> None:
        """Find the rows of the checkpoint."""
        self._ctx = ctx
        self._rows_state = ctx.state.operator_list("rows", "list")
        # Subtasks are at different watermarks, and so have forgotten different rows of the table:
        # each restores the copy of the one that had forgotten least.
        self._table_state = ctx.state.operator_list("table", "union")
        self._waiting = [_from_bytes(item) for item in self._rows_state.items()]
        self._table = TimedTable(self._in[RIGHT], self._keys)
        self._stored: bytes | None = None
        copies = [pickle.loads(item) for item in self._table_state.items()]
        # Rows may come from a split that another subtask read before, and are late only if they
        # would have been late there.
        self._passed = min((int(passed) for passed, _ in copies), default=WATERMARK_MIN)
        if copies:
            _, stored = min(copies, key=lambda copy: int(copy[0]))
            self._table.add(_from_bytes(stored))
        if self._condition is not None:
            self._condition.open(ctx)

    def before_snapshot(self, checkpoint_id: int) -> None:
        """Bring what waits, and the table, into state."""
        waiting = [_to_bytes(pa.concat_batches(self._waiting))] if self._waiting else []
        self._rows_state.replace(waiting)
        if self._table.changed or self._stored is None:
            self._stored = _to_bytes(self._table.content())
            self._table.changed = False
        self._table_state.replace([pickle.dumps((self._passed, self._stored))])

    def on_end(self) -> None:
        """Nothing waits any more; others of this operator may go on and be dealt out anew."""
        self._waiting = []
        self._rows_state.replace([])

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """Let rows wait for their time; the table's changes wait for theirs."""
        if port == RIGHT:
            late = self._table.add(batch, self._passed)
            if late:
                self._ctx.count("late", late)
            return
        late_rows = times_of(batch) <= self._passed
        if late_rows.any():
            rows = batch.filter(pa.array(late_rows))
            self._ctx.count("late", rows.num_rows)
            self._ctx.collect(rows, LATE)
            batch = batch.filter(pa.array(~late_rows))
        if batch.num_rows:
            self._waiting.append(batch.take(pa.array(np.arange(batch.num_rows))))

    def on_watermark(self, watermark: int) -> None:
        """Join the rows whose time has come with the table of their time."""
        if watermark == WATERMARK_MIN:
            return
        self._passed = watermark
        self._table.advance(watermark)
        if self._waiting:
            due, later = split_at(pa.concat_batches(self._waiting), watermark)
            self._waiting = [later] if later.num_rows else []
            if due.num_rows:
                self._join(due)
        self._table.forget()

    def _join(self, rows: pa.RecordBatch) -> None:
        usable = np.flatnonzero(without_null_keys(rows, self._keys))
        asking = rows if len(usable) == rows.num_rows else rows.take(pa.array(usable))
        hashes = key_hashes(asking, self._keys)
        times = times_of(asking)
        single = np.ones(rows.num_rows, np.bool_)
        for index, slots in self._table.probe(asking, hashes, times):
            if self._condition is not None:
                kept = self._table.rows
                true = self._condition.of_slots(asking, index, kept, slots, LEFT)
                index, slots = index[true], slots[true]
            single[usable[index]] = False
            self._give(asking, index, slots, times)
        if self._how == "left" and single.any():
            alone = rows.filter(pa.array(single))
            self._ctx.collect(self._results.alone(alone, LEFT, times_of(alone)))

    def _give(self, rows: pa.RecordBatch, index: Numbers, slots: Numbers, times: Numbers) -> None:
        if len(index):
            left, right = rows.take(pa.array(index)), self._table.rows.take(slots)
            self._ctx.collect(self._results.beside(left, right, times[index]))


def _to_bytes(batch: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())


def _from_bytes(stored: bytes) -> pa.RecordBatch:
    with pa.ipc.open_stream(pa.py_buffer(stored)) as reader:
        batch = reader.read_next_batch()
    return batch
