"""CastColumns: picks columns in a given order and casts those whose type differs.

Planning puts it before an exchange, so that only needed columns travel, and before inputs that
must fit each other: the branches of a union, the keys of a join (hazard 30). Zero copies where
the types are equal. A value that does not fit the target is an error, never a changed value.
"""

from __future__ import annotations

import pyarrow as pa

from penstock.elements.errors import StateError

from .processor import Processor, ProcessorContext


class CastColumns(Processor):
    """Rows of `schema`. Requires: every column of `schema` is in the input."""

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema

    def open(self, ctx: ProcessorContext) -> None:
        """Nothing is remembered."""
        self._ctx = ctx

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """One batch in, one batch out."""
        if not len(self.schema):
            self._ctx.collect(batch.select([]))
            return
        columns = [self._column(batch, field) for field in self.schema]
        self._ctx.collect(pa.RecordBatch.from_arrays(columns, schema=self.schema))

    def _column(self, batch: pa.RecordBatch, field: pa.Field) -> pa.Array:
        column = batch.column(field.name)
        if column.type != field.type:
            column = column.cast(field.type)
        if not field.nullable and column.null_count:
            raise StateError(
                f"{self._ctx.operator_name}: column {field.name!r} has a null,"
                " though it was declared without"
            )
        return column
