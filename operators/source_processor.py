"""The head of a source chain: reads splits, computes `_time`, promises watermarks.

1. A checkpoint keeps, per split, the position after the rows already collected and the watermark
   promised from them; ended splits stay in it by name, so that none is read twice.
2. Of the splits that have rows, the one furthest behind in event time is read first.
3. A record that cannot be decoded, or has no usable event time, follows the policy: fail, drop
   and count, or a row of DEAD_SCHEMA on the DEAD output.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from penstock.elements.errors import ConnectorError, PenstockError
from penstock.elements.signals import WATERMARK_MIN
from penstock.expressions.functions import NONE, Functions
from penstock.expressions.projection import Projection

from .error_policy import DEAD_SCHEMA, RAW_CHARS_MAX, Drop, ErrorPolicy, Fail
from .event_times import evaluate_rows, time_array, time_projection, with_time
from .processor import DEAD, ProcessorContext
from .source import (
    Chunk,
    EndOfSplit,
    Position,
    ReaderContext,
    SourceConnector,
    SourceProcessor,
    Split,
    SplitReader,
)
from .watermarks import EventTime, ExpressionWatermark, SplitWatermarks

OPEN_SPLITS_MAX = 64
"""Readers open at once per subtask; further splits wait, and hold the watermark back."""
FAIL = Fail()
POLL_NS_MAX = 8_000_000
"""Quiet readers are asked until this much of the poll's 10 ms is spent."""
WATERMARK_INTERVAL_NS = 50_000_000
"""Watermarks are sent at most this often; a barrier always sends the latest (hazard 7)."""


@dataclass
class _Open:
    """A split that is being read."""

    split: Split
    position: Position
    reader: SplitReader | None = None
    ready: bool = True
    """Its last poll gave rows, or it was never polled."""


@dataclass
class _Rejects:
    """Records set aside since the last poll; appended to from any thread."""

    records: deque[tuple[str, str, str]] = field(default_factory=deque)

    def add(self, raw: bytes | str, error: str, position: Any) -> None:
        text = raw.decode(errors="backslashreplace") if isinstance(raw, bytes) else raw
        self.records.append((text[:RAW_CHARS_MAX], error, str(position)))


class ConnectorSourceProcessor(SourceProcessor):
    """Runs a SourceConnector; `policy` says what becomes of records that cannot be used."""

    def __init__(
        self,
        connector: SourceConnector[Any],
        event_time: EventTime | None = None,
        policy: ErrorPolicy = FAIL,
        watermark_interval_ns: int = WATERMARK_INTERVAL_NS,
        functions: Functions = NONE,
        who: str = "source",
        location: str = "",
    ) -> None:
        """Raises PlanError if the event time cannot be computed from the connector's columns."""
        self.connector = connector
        self.event_time = event_time
        self._policy = policy
        self._interval_ns = watermark_interval_ns
        self.out_schema: pa.Schema = (
            with_time(connector.schema) if event_time is not None else connector.schema
        )
        self._times: Projection | None = None
        if event_time is not None:
            wanted = [event_time.time]
            if isinstance(event_time.strategy, ExpressionWatermark):
                wanted.append(event_time.strategy.sql)
            self._times = time_projection(wanted, connector.schema, functions, who, location)

    # Life ------------------------------------------------------------------------------------

    def open(self, ctx: ProcessorContext) -> None:
        """Find the splits of the checkpoint; readers are opened when they are first polled."""
        self._ctx = ctx
        self._schema: pa.Schema = self.connector.schema
        timed = self.event_time
        idle_ns = None if timed is None else timed.idle_after_ns(self.connector.bounded)
        self._watermarks = SplitWatermarks(idle_ns)
        self._rejects = _Rejects()
        self._open: dict[str, _Open] = {}
        self._waiting: deque[tuple[Split, Position, int]] = deque()
        self._seen: list[str] = []
        self._no_more = self._drained = self._idle = False
        self._probe_turn = False
        self._sent_ns: int | None = None
        self._kept = ctx.state.operator_list("splits", "list")
        for item in self._kept.items():
            stored = json.loads(item)
            if stored.get("done"):
                self._seen.append(stored["id"])
            else:
                split = Split(stored["id"], stored["size"], stored["detail"])
                self._take(split, stored["position"], stored["watermark"])

    def assign(self, splits: Sequence[Split]) -> None:
        """Take splits that were not seen before; a repeated assignment changes nothing."""
        known = set(self._seen)
        for split in splits:
            if split.id not in known:
                known.add(split.id)
                self._take(split, None, WATERMARK_MIN)

    def _take(self, split: Split, position: Position, watermark: int) -> None:
        self._seen.append(split.id)
        self._waiting.append((split, position, watermark))
        self._admit()

    def _admit(self) -> None:
        while self._waiting and len(self._open) < OPEN_SPLITS_MAX:
            split, position, watermark = self._waiting.popleft()
            self._open[split.id] = _Open(split, position)
            self._watermarks.add(split.id, watermark)

    def no_more_splits(self) -> None:
        """The source ends with its last split."""
        self._no_more = True

    def drain(self) -> None:
        """End the data here; positions stay, so that what was not read could be read later."""
        self._drained = True
        self.close()

    @property
    def ended(self) -> bool:
        """Nothing will be collected any more."""
        return self._drained or (self._no_more and not self._open and not self._waiting)

    @property
    def seen_splits(self) -> list[str]:
        """Ended splits too."""
        return list(self._seen)

    def before_snapshot(self, checkpoint_id: int) -> None:
        """Positions and watermarks of what was collected, after the latest watermark is sent."""
        self._promise(at_once=True)
        items = []
        for one in self._open.values():
            watermark = self._watermarks.watermark_of(one.split.id)
            items.append(self._item(one.split, one.position, watermark))
        items.extend(self._item(*waiting) for waiting in self._waiting)
        live = set(self._open) | {split.id for split, _, _ in self._waiting}
        items.extend(
            json.dumps({"id": name, "done": True}).encode()
            for name in self._seen
            if name not in live
        )
        self._kept.replace(items)

    def _item(self, split: Split, position: Position, watermark: int) -> bytes:
        stored = {
            "id": split.id,
            "size": split.size,
            "detail": split.detail,
            "position": position,
            "watermark": watermark,
        }
        try:
            return json.dumps(stored).encode()
        except (TypeError, ValueError) as error:
            raise ConnectorError(
                f"{self._ctx.operator_name}: split {split.id!r}: position {position!r} cannot be "
                f"kept in a checkpoint: {error}\n"
                "  A position is made of what JSON knows: int, float, str, bool, None, list, dict."
            ) from error

    def close(self) -> None:
        """Close the readers."""
        for one in self._open.values():
            if one.reader is not None:
                one.reader.close()
                one.reader = None

    # Reading ---------------------------------------------------------------------------------

    def poll(self, limit_rows: int) -> bool:
        """One chunk of the split that is furthest behind."""
        if self.ended:
            return False
        if self._sent_ns is None:
            # After a restore: what was promised before holds for the first row already.
            self._promise(at_once=True)
        started_ns = self._ctx.clock.monotonic_ns()
        read = False
        for one in list(self._candidates()):
            read = self._read(one, limit_rows)
            if read or self._ctx.clock.monotonic_ns() - started_ns > POLL_NS_MAX:
                break
        self._flush_rejects()
        self._promise(at_once=False)
        return read

    def _candidates(self) -> Iterator[_Open]:
        """Ready splits by event time, and one quiet split, which comes first every other time.

        The quiet one moves to the back, so that each is asked in turn; one that blocks for its
        full 10 ms cannot keep the ready ones from being read.
        """
        ready = [one for one in self._open.values() if one.ready]
        ready.sort(key=lambda one: self._watermarks.watermark_of(one.split.id))
        quiet = [one for one in self._open.values() if not one.ready]
        if ready:
            quiet = quiet[:1]
        for one in quiet:
            self._open[one.split.id] = self._open.pop(one.split.id)
        self._probe_turn = not self._probe_turn
        first, second = (quiet, ready) if self._probe_turn else (ready, quiet)
        yield from first
        yield from second

    def _read(self, one: _Open, limit_rows: int) -> bool:
        name = one.split.id
        try:
            if one.reader is None:
                surroundings = ReaderContext(self._ctx.subtask, self._ctx.wake, self._rejects.add)
                one.reader = self.connector.reader(one.split, one.position, surroundings)
            chunk = one.reader.poll(limit_rows)
        except EndOfSplit:
            self._end_split(one)
            return False
        except PenstockError:
            raise
        except Exception as error:
            raise ConnectorError(
                f"{self._ctx.operator_name}[{self._ctx.subtask}]: cannot read split {name!r} at "
                f"position {one.position!r}: {type(error).__name__}: {error}"
            ) from error
        if chunk is None:
            one.ready = False
            self._watermarks.on_nothing(name, self._ctx.clock.monotonic_ns())
            return False
        one.ready = True
        # To the back: among equally late splits the next one is read next.
        self._open[name] = self._open.pop(name)
        self._collect(one, chunk)
        return True

    def _end_split(self, one: _Open) -> None:
        if one.reader is not None:
            one.reader.close()
        del self._open[one.split.id]
        self._watermarks.remove(one.split.id)
        self._admit()

    def _collect(self, one: _Open, chunk: Chunk) -> None:
        batch = self._checked(chunk.batch)
        promise = None
        if self.event_time is not None and batch.num_rows:
            batch, promise = self._timed(batch, chunk, one.split.id)
        one.position = chunk.position
        self._watermarks.on_rows(one.split.id, promise)
        self._idle = False
        if batch.num_rows:
            self.reading = chunk.first or f"split {one.split.id}"
            self._ctx.collect(batch)
            self.reading = None

    def _checked(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        if not batch.schema.equals(self._schema):
            raise ConnectorError(
                f"{self._ctx.operator_name}: the source declared\n  {_text(self._schema)}\n"
                f"but read\n  {_text(batch.schema)}"
            )
        return batch

    def _timed(
        self, batch: pa.RecordBatch, chunk: Chunk, split: str
    ) -> tuple[pa.RecordBatch, int | None]:
        assert self.event_time is not None
        assert self._times is not None
        results, errors = evaluate_rows(self._times, batch)
        times_ns, usable = results[0]
        if usable is not None or errors:
            keep = np.ones(batch.num_rows, np.bool_) if usable is None else usable.copy()
            keep[list(errors)] = False
            for row in np.flatnonzero(~keep).tolist():
                self._reject_row(batch, row, errors.get(row), chunk, split)
            batch, times_ns = batch.filter(pa.array(keep)), times_ns[keep]
            results = [
                (values[keep], None if valid is None else valid[keep]) for values, valid in results
            ]
        batch = pa.RecordBatch.from_arrays(
            [*batch.columns, time_array(times_ns)], schema=self.out_schema
        )
        marks, valid = results[-1]
        if valid is not None:
            marks = marks[valid]
        if not len(marks):
            return batch, None
        return batch, self.event_time.strategy.promise(int(marks.max()))

    def _reject_row(
        self, batch: pa.RecordBatch, row: int, error: str | None, chunk: Chunk, split: str
    ) -> None:
        assert self.event_time is not None
        content = batch.slice(row, 1).to_pylist()[0]
        where = f"{chunk.first or split} + {row}" if row or not chunk.first else chunk.first
        if error is None:
            error = f"event time {self.event_time.time!r} is null or outside the years 1778 to 2161"
        self._rejects.add(json.dumps(content, default=str), error, where)

    def _flush_rejects(self) -> None:
        records = []
        while self._rejects.records:
            records.append(self._rejects.records.popleft())
        if not records:
            return
        if isinstance(self._policy, Fail):
            raw, error, position = records[0]
            raise ConnectorError(
                f"{self._ctx.operator_name}[{self._ctx.subtask}]: bad record at {position}\n"
                f"  record {raw[:500]}\n  {error}\n"
                '  To set such records aside: .on_error(ps.DeadLetter("bad/")), or ps.Drop().'
            )
        if isinstance(self._policy, Drop):
            self._ctx.count("dropped", len(records))
            return
        self._ctx.count("dead_lettered", len(records))
        columns = [pa.array(column, pa.string()) for column in zip(*records, strict=True)]
        self._ctx.collect(pa.RecordBatch.from_arrays(columns, schema=DEAD_SCHEMA), DEAD)

    # Time ------------------------------------------------------------------------------------

    def _promise(self, at_once: bool) -> None:
        """Send the watermark if it is time to, and idleness when it begins."""
        if self.event_time is None or self.ended:
            return
        now_ns = self._ctx.clock.monotonic_ns()
        due = self._sent_ns is None or now_ns - self._sent_ns >= self._interval_ns
        quiet = self._watermarks.all_idle and not self._waiting
        if due or at_once or quiet:
            watermark = self._watermarks.combined(mark for _, _, mark in self._waiting)
            if watermark > max(self._ctx.watermark, WATERMARK_MIN):
                self._ctx.emit_watermark(watermark)
                self._sent_ns = now_ns
        if quiet and not self._idle:
            self._idle = True
            self._ctx.emit_idle()


def _text(schema: pa.Schema) -> str:
    return ", ".join(f"{f.name} {f.type}{'' if f.nullable else ' not null'}" for f in schema)
