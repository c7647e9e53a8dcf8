"""Harness: drives any Processor without a runtime: rows, watermarks, cuts, restarts, rescaling.

It stands in for the runtime as strictly as it can: input lies in leased memory that must be given
back when `process` returns (hazard 4), a processor is pickled before it is opened, a restart goes
through a sealed run, and rows collected at or behind a forwarded watermark are counted.
"""

from __future__ import annotations

import gc
import importlib
import tempfile
import threading
import weakref
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import cloudpickle
import numpy as np
import pyarrow as pa

from penstock.elements.clock import ManualClock
from penstock.elements.keygroup import ALL_GROUPS, owned_groups
from penstock.elements.signals import TIME_COLUMN, WATERMARK_MAX, WATERMARK_MIN
from penstock.operators.join_sides import LATE_RIGHT
from penstock.operators.processor import DEAD, LATE, MAIN, Processor
from penstock.state.backend import (
    BackendFactory,
    RestoredState,
    Section,
    StateBackend,
    whole_sections,
)

SETTLE_S_MAX = 30.0
"""How long a test waits for other threads before it fails."""


class _Lease:
    """Owns the memory under one input batch; alive as long as somebody keeps a view of it."""

    def __init__(self, content: pa.Buffer) -> None:
        self.content = content


def leased(batch: pa.RecordBatch) -> tuple[pa.RecordBatch, weakref.ref[_Lease]]:
    """A copy of `batch` in memory whose last view can be watched, as a channel hands it out."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    content = sink.getvalue()
    lease = _Lease(content)
    watched = weakref.ref(lease)
    view = pa.foreign_buffer(content.address, content.size, base=lease)
    del lease
    return pa.ipc.open_stream(view).read_next_batch(), watched


def owned(batch: pa.RecordBatch) -> pa.RecordBatch:
    """`batch` in memory of its own."""
    return leased(batch)[0]


def memory_state(operator_id: str, restored: RestoredState) -> StateBackend:
    """The engine's memory backend."""
    module = importlib.import_module("penstock.state.memory")
    return cast(StateBackend, module.memory_backend(operator_id, restored))


class HarnessContext:
    """The ProcessorContext of tests; `Harness` makes it."""

    def __init__(
        self, harness: Harness, state: StateBackend, scratch_dir: str, checkpoint_id: int
    ) -> None:
        self._harness = harness
        self.operator_id = harness.operator_id
        self.origin: str | None = None
        self.operator_name = harness.operator_name
        self.subtask = harness.subtask
        self.parallelism = harness.parallelism
        self.key_groups = owned_groups(harness.subtask, harness.parallelism)
        self.state = state
        self.clock = harness.clock
        self.watermark = harness.watermark
        self.checkpoint_id = checkpoint_id
        self.run_id = harness.run_id
        self.scratch_dir = scratch_dir

    def collect(self, batch: pa.RecordBatch, output: str = MAIN) -> None:
        """Keep a copy: the rows may still lie in the input's memory."""
        self._harness.collected(batch, output)

    def emit_watermark(self, watermark: int) -> None:
        """Remember the promise, which must never shrink."""
        assert watermark >= self._harness.sent_watermark
        self._harness.sent_watermark = watermark
        self.watermark = watermark

    def forward_watermark(self, watermark: int) -> None:
        """A held watermark goes on: rows collected from now on lie behind it."""
        assert self._harness.processor.holds_watermarks
        assert watermark >= self._harness.sent_watermark
        self._harness.sent_watermark = watermark

    def emit_idle(self) -> None:
        """Count it."""
        self._harness.idles += 1

    def wake(self) -> None:
        """`tick` will call on_processing_time."""
        self._harness.woken = True
        self._harness.bell.set()

    def count(self, metric: str, amount: int) -> None:
        """Add to `harness.counters`."""
        self._harness.counters[metric] += amount


class Harness:
    """One processor in one subtask.

    `in_schemas` (per port) and `out_schemas` (per output) are checked on every batch when given.
    `restored` are sections from `cut()` of one or several harnesses: restore at any parallelism.
    """

    def __init__(
        self,
        processor: Processor,
        in_schemas: Sequence[pa.Schema] = (),
        *,
        out_schemas: Mapping[str, pa.Schema] | None = None,
        backend: BackendFactory | None = None,
        restored: Sequence[Section] = (),
        subtask: int = 0,
        parallelism: int = 1,
        watermark: int = WATERMARK_MIN,
        clock: ManualClock | None = None,
        operator_id: str = "op",
        operator_name: str = "op",
        run_id: str = "00000000-0000-4000-8000-000000000000",
        checkpoint_id: int = 0,
    ) -> None:
        self._blob = cloudpickle.dumps(processor)
        self._in_schemas = tuple(in_schemas)
        self._out_schemas = dict(out_schemas or {})
        self._backend = backend or memory_state
        self.subtask, self.parallelism = subtask, parallelism
        self.clock = clock or ManualClock(1_700_000_000_000_000_000)
        self.operator_id, self.operator_name, self.run_id = operator_id, operator_name, run_id
        self.counters: dict[str, int] = defaultdict(int)
        self.idles = 0
        self.woken = False
        self.bell = threading.Event()
        self.rows_behind_watermark = 0
        self.watermark = watermark
        self.sent_watermark = watermark
        self.checkpoint_id = checkpoint_id
        self._taken: dict[str, list[pa.RecordBatch]] = defaultdict(list)
        self._settled: dict[str, int] = {}
        self._cut: tuple[list[Section], int] = (list(restored), watermark)
        self._cut_sent = watermark
        self._open(list(restored))

    def _open(self, sections: list[Section]) -> None:
        restored = RestoredState(
            [s for s in sections if s.operator_id == self.operator_id],
            owned_groups(self.subtask, self.parallelism),
            self.subtask,
            self.parallelism,
        )
        self._scratch = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._finalize = weakref.finalize(self, self._scratch.cleanup)
        state = self._backend(self.operator_id, restored)
        self.processor: Processor = cloudpickle.loads(self._blob)
        self.ctx = HarnessContext(self, state, self._scratch.name, self.checkpoint_id)
        self.processor.open(self.ctx)

    # Driving -----------------------------------------------------------------------------------

    def send(self, batch: pa.RecordBatch | pa.Table, port: int = 0) -> Harness:
        """Hand rows over in leased memory; an operator that keeps a view of it fails here."""
        for piece in batch.to_batches() if isinstance(batch, pa.Table) else [batch]:
            if self._in_schemas:
                assert piece.schema.equals(self._in_schemas[port]), piece.schema
            view, watched = leased(piece)
            self.processor.process(view, port)
            del view
            if watched() is not None:
                gc.collect()
            assert watched() is None, f"{type(self.processor).__name__} keeps a view of its input"
        return self

    def advance(self, watermark_ns: int) -> Harness:
        """Event time passes; the rows this collects must still lie behind the watermark before."""
        assert watermark_ns >= self.watermark
        self.watermark = self.ctx.watermark = watermark_ns
        self.processor.on_watermark(watermark_ns)
        if not self.processor.holds_watermarks or watermark_ns == WATERMARK_MAX:
            self.sent_watermark = max(self.sent_watermark, watermark_ns)
        return self

    def tick(self, step_ns: int = 0) -> Harness:
        """Let the wall clock move, then call on_processing_time if it was asked for."""
        self.clock.advance_ns(step_ns)
        now_ns = self.clock.wall_ns()
        at_ns = self.processor.next_wakeup_ns()
        if self.woken or (at_ns is not None and at_ns <= now_ns):
            self.woken = False
            self.processor.on_processing_time(now_ns)
        return self

    def settle(self) -> Harness:
        """Wait until nothing is in flight, delivering what comes back from other threads."""
        while self.processor.busy():
            assert self.bell.wait(SETTLE_S_MAX), "nothing has come back for so long"
            self.bell.clear()
            self.tick()
        return self

    def end(self) -> Harness:
        """End of data on all inputs; it comes behind the rows in flight."""
        self.settle()
        self.advance(WATERMARK_MAX)
        self.processor.on_end()
        return self

    # Cuts --------------------------------------------------------------------------------------

    def cut(self) -> list[Section]:
        """Take a checkpoint that is durable but not yet committed; `crash` comes back to it."""
        self.checkpoint_id += 1
        self.processor.before_snapshot(self.checkpoint_id)
        sections = _through_a_run(whole_sections(self.ctx.state.seal()))
        self._cut = (sections, self.watermark)
        self._cut_sent = self.sent_watermark
        self._settled = {output: len(batches) for output, batches in self._taken.items()}
        return sections

    def commit(self) -> Harness:
        """Tell the processor that every cut so far is durable."""
        self.ctx.checkpoint_id = self.checkpoint_id
        self.processor.on_commit(self.checkpoint_id)
        return self

    def crash(self) -> Harness:
        """Die without a word and come back from the last cut; rows collected since are gone.

        The new instance hears of the cut's commit before its first row, as in the runtime.
        """
        sections, self.watermark = self._cut
        # One that holds watermarks had not passed on all that it had heard.
        self.sent_watermark = self._cut_sent
        for output, batches in self._taken.items():
            del batches[self._settled.get(output, 0) :]
        self._open(sections)
        if self.checkpoint_id:
            self.processor.on_commit(self.checkpoint_id)
        return self

    def restart(self) -> Harness:
        """A cut, a death, and a new instance on the restored state."""
        self.cut()
        return self.crash()

    # What came out -----------------------------------------------------------------------------

    def collected(self, batch: pa.RecordBatch, output: str) -> None:
        """Called by the context."""
        if batch.num_rows == 0:
            return
        expected = self._out_schemas.get(output)
        if expected is not None:
            assert batch.schema.equals(expected), f"{output}: {batch.schema} is not {expected}"
        if TIME_COLUMN in batch.schema.names and output not in (LATE, LATE_RIGHT, DEAD):
            times = batch.column(TIME_COLUMN).cast(pa.int64()).to_numpy()
            self.rows_behind_watermark += int((times <= self.sent_watermark).sum())
        self._taken[output].append(owned(batch))

    def taken(self, output: str = MAIN) -> pa.Table:
        """The rows of `output` since the last call; without any, a table of its schema."""
        batches = self._taken.pop(output, [])
        self._settled.pop(output, None)
        schema = batches[0].schema if batches else self._out_schemas.get(output, pa.schema([]))
        return pa.Table.from_batches(batches, schema)

    def rows(self, output: str = MAIN) -> list[dict[str, Any]]:
        """`taken` as Python rows, without `_time`."""
        table = self.taken(output)
        if TIME_COLUMN in table.column_names:
            table = table.drop_columns([TIME_COLUMN])
        return cast(list[dict[str, Any]], table.to_pylist())


def batch_of(
    schema: pa.Schema, rows: Iterable[Sequence[object]], times_ns: Iterable[int] | None = None
) -> pa.RecordBatch:
    """A batch from row tuples; `times_ns` appends `_time`.

    >>> batch_of(pa.schema([("a", pa.int64())]), [(1,), (2,)], [5, 6]).column_names
    ['a', '_time']
    """
    tuples = list(rows)
    columns = list(zip(*tuples, strict=True)) if tuples else [()] * len(schema)
    arrays = [pa.array(column, f.type) for column, f in zip(columns, schema, strict=True)]
    fields = list(schema)
    if times_ns is not None:
        stamps = np.fromiter(times_ns, np.int64)
        arrays.append(pa.array(stamps).cast(pa.timestamp("ns", "UTC")))
        fields.append(pa.field(TIME_COLUMN, pa.timestamp("ns", "UTC"), nullable=False))
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))


def _through_a_run(sections: list[Section]) -> list[Section]:
    """What a restart would find: the sections after a journey through the run format."""
    try:
        run = importlib.import_module("penstock.state.run")
    except ModuleNotFoundError:
        return sections
    operators = {section.operator_id for section in sections}
    return list(run.read_run(run.write_run(sections), operators, ALL_GROUPS))
