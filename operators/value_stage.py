"""The value stage: consecutive filter, with_columns, select, drop and rename as one operator.

Promises: rows stay in order and keep their `_time`. A row whose values cannot be computed
(overflow, bad cast, division by zero, an exception in a Python function) follows the error
policy alone: the batch is halved until the row stands by itself. Keeps no state.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from penstock.elements.signals import TIME_COLUMN
from penstock.expressions.failures import ExpressionError
from penstock.expressions.functions import NONE, Functions
from penstock.expressions.projection import Projection

from .error_policy import DEAD_SCHEMA, ErrorPolicy, Fail, Failures
from .processor import Processor, ProcessorContext
from .value_steps import CONDITION, Segment, Step, fuse

__all__ = ["DEAD_SCHEMA", "Step", "ValueStage"]


class ValueStage(Processor):
    """Runs `steps` on batches with `in_schema`; `.schema` is what comes out."""

    def __init__(
        self,
        steps: Sequence[Step],
        in_schema: pa.Schema,
        functions: Functions = NONE,
        policy: ErrorPolicy | None = None,
        *,
        who: str = "expression",
        location: str = "",
    ) -> None:
        self._segments, self.schema = fuse(steps, in_schema, functions, who, location)
        self._functions = functions
        self._policy: ErrorPolicy = policy if policy is not None else Fail()
        self._suspects: dict[tuple[int, int], Projection] = {}
        self._method = " + ".join(dict.fromkeys(step.kind for step in steps))

    @property
    def projections(self) -> int:
        """How many projections the steps were fused into."""
        return len(self._segments)

    def open(self, ctx: ProcessorContext) -> None:
        """The projections open their sessions with their first rows."""
        self._ctx = ctx
        self._failures = Failures(ctx, self._policy)

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """Collects what comes of `batch`; nothing of it is kept."""
        if batch.num_rows == 0:
            return
        try:
            made = self._run(batch)
        except ExpressionError as error:
            made = self._isolate(batch, error)
        if made.num_rows:
            self._ctx.collect(made)

    def _run(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        for segment in self._segments:
            batch = segment.projection(batch)
            if segment.conditional:
                batch = _kept(batch)
        return batch

    def _isolate(self, batch: pa.RecordBatch, error: ExpressionError) -> pa.RecordBatch:
        """What comes of the good rows; each bad one goes to the policy."""
        good: list[pa.RecordBatch] = []
        # Pieces still to be tried, the next one last, so that rows stay in order.
        pending: list[tuple[pa.RecordBatch, ExpressionError | None]] = [(batch, error)]
        while pending:
            piece, failed = pending.pop()
            if failed is None:
                try:
                    good.append(self._run(piece))
                    continue
                except ExpressionError as again:
                    failed = again
            if piece.num_rows == 1:
                self._bad_row(piece, failed)
                continue
            half = piece.num_rows // 2
            pending += [(piece.slice(half), None), (piece.slice(0, half), None)]
        if not good:
            return pa.RecordBatch.from_pylist([], schema=self.schema)
        return pa.concat_batches(good)

    def _bad_row(self, row: pa.RecordBatch, error: ExpressionError) -> None:
        cause = error.__cause__
        where = self._culprit(row)
        if not isinstance(cause, Exception):
            cause = ValueError(f"{error}{where}")
        else:
            cause.add_note(f"in{where.removeprefix(', in')}") if where else None
        self._failures.row(self._method, cause, row, row=_shown(row))

    def _culprit(self, row: pa.RecordBatch) -> str:
        """Which of the expressions cannot take this row, as text."""
        for at, segment in enumerate(self._segments):
            expressions = zip(segment.projection.schema.names, segment.projection.expressions)
            for index, (name, checked) in enumerate(expressions):
                if checked.column is not None:
                    continue
                suspect = self._suspects.get((at, index))
                if suspect is None:
                    schema = segment.projection.input_schema
                    suspect = Projection([(name, checked.sql)], schema, self._functions)
                    self._suspects[at, index] = suspect
                try:
                    suspect(row)
                except ExpressionError:
                    what = "the condition" if name == CONDITION else name
                    return f", in {what} = {checked.sql}"
            row = segment.projection(row)
            if segment.conditional:
                row = _kept(row)
        return ""


def _shown(row: pa.RecordBatch) -> dict[str, object]:
    """The user's columns of one row, for a report."""
    values: dict[str, object] = {}
    for name, column in zip(row.schema.names, row.columns):
        if name != TIME_COLUMN:
            try:
                values[name] = column[0].as_py()
            except ValueError:  # nanoseconds have no form in plain Python
                values[name] = str(column[0])
    return values


def _kept(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The rows whose condition, the last column, is true; without that column."""
    mask = batch.column(batch.num_columns - 1)
    batch = batch.select(range(batch.num_columns - 1))
    rows = len(mask)
    true: int = mask.true_count
    if true == rows:
        return batch
    if true == 0:
        return batch.slice(0, 0)
    if batch.num_columns == 0:
        return _empty_rows(true)
    return batch.filter(mask)


def _empty_rows(rows: int) -> pa.RecordBatch:
    """A batch without columns that still has rows (hazard 44)."""
    return pa.RecordBatch.from_arrays([pa.nulls(rows)], names=["x"]).select([])


def stage_segments(stage: ValueStage) -> Sequence[Segment]:
    """The fused segments, for `explain` and tests."""
    return tuple(stage._segments)
