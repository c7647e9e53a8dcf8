"""RowIntake: rows, batches and frames of a test → batches with event time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.types as pat

from penstock.elements.conform import conform
from penstock.elements.errors import PlanError
from penstock.elements.row_schema import row_schema
from penstock.elements.rows import RowCodec
from penstock.elements.signals import TIME_COLUMN
from penstock.operators.event_time_column import has_time, with_time_field, with_times
from penstock.operators.instants import Instant, instant_ns
from penstock.operators.python_operator import to_batches


class RowIntake:
    """Encodes what a test sends, as a source would."""

    def __init__(self, schema: type[Any] | pa.Schema, event_time: str | None) -> None:
        self.codec = (
            RowCodec(None, schema)
            if isinstance(schema, pa.Schema)
            else RowCodec(schema, row_schema(schema))
        )
        self._column = event_time or _only_instant(self.codec.schema)
        if self._column is not None and self._column not in self.codec.schema.names:
            raise PlanError(f"drive(event_time={event_time!r}): there is no such column")

    @classmethod
    def of(cls, codec: RowCodec) -> RowIntake:
        """The intake of rows whose codec is known."""
        return cls(codec.cls if not codec.by_attribute else codec.schema, None)

    def batch(self, rows: Sequence[Any], at: Instant | None, watermark: int) -> pa.RecordBatch:
        """One batch of `rows` (or of one frame) with `_time`."""
        made = self._encoded(rows)
        if has_time(made.schema):
            return made
        count = made.num_rows
        if at is not None:
            return with_times(made, np.full(count, instant_ns(at, "send(at=)"), np.int64))
        if self._column is None:
            # Without a time of its own a row is as early as it can be without being late.
            return with_times(made, np.full(count, max(watermark + 1, 0), np.int64))
        column = made.column(self._column)
        if column.null_count:
            raise ValueError(f"event time {self._column} is null in a row that was sent")
        stamps = column.cast(pa.timestamp("ns")).cast(pa.int64()).to_numpy()
        return with_times(made, np.array(stamps, np.int64))

    def _encoded(self, rows: Sequence[Any]) -> pa.RecordBatch:
        if len(rows) == 1 and _is_frame(rows[0]):
            timed = with_time_field(self.codec.schema)
            batches = list(to_batches(rows[0], self.codec.schema))
            wanted = timed if TIME_COLUMN in batches[0].schema.names else self.codec.schema
            fitted = [conform(batch, wanted, "drive.send") for batch in batches]
            return pa.Table.from_batches(fitted, wanted).combine_chunks().to_batches()[0]
        return self.codec.encode(list(rows))


def comparable(row: Any) -> str:
    """A row as text in which floats that differ in their last bits are equal."""
    if isinstance(row, float):
        return "nan" if math.isnan(row) else f"{row:.9g}"
    if isinstance(row, dict):
        return "{" + ", ".join(f"{k!r}: {comparable(v)}" for k, v in row.items()) + "}"
    if isinstance(row, list | tuple):
        return "(" + ", ".join(map(comparable, row)) + ")"
    if hasattr(row, "__dataclass_fields__"):
        return comparable({name: getattr(row, name) for name in row.__dataclass_fields__})
    return repr(row)


def _only_instant(schema: pa.Schema) -> str | None:
    found = [field.name for field in schema if pat.is_timestamp(field.type)]
    return found[0] if len(found) == 1 else None


def _is_frame(value: Any) -> bool:
    return isinstance(value, pa.RecordBatch | pa.Table) or any(
        hasattr(value, name) for name in ("to_arrow", "iloc")
    )
