"""RenameChange: gives `_change` the user's name for it; the rows stay what they are."""

from __future__ import annotations

import pyarrow as pa

from penstock.elements.changelog import CHANGE

from .processor import Processor, ProcessorContext


class RenameChange(Processor):
    """Batches with `_change` become batches of `schema`, which calls it `column`. No state."""

    def __init__(self, schema: pa.Schema, column: str) -> None:
        self._schema = schema
        self._column = column

    def open(self, ctx: ProcessorContext) -> None:
        """Nothing to find."""
        self._ctx = ctx

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """The same columns in another order."""
        names = [CHANGE if name == self._column else name for name in self._schema.names]
        columns = [batch.column(name) for name in names]
        self._ctx.collect(pa.RecordBatch.from_arrays(columns, schema=self._schema))
