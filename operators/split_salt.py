"""Deals the rows of a key out over a few parts of it: adds the column `__salt`.

The salt is said by content: by the value that a DISTINCT counts, elsewhere by the columns that the
aggregate reads. Nothing is kept; where nothing is read, rows take salts in turn.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penstock.elements.buffers import validity
from penstock.elements.changelog import HIDDEN
from penstock.elements.hash import Hashes, hash_arrays, refuse_unhashable

from .aggregates import Aggregation
from .processor import Processor, ProcessorContext
from .split_parts import SALT_FIELD

SPREAD = np.uint64(0xD6E8FEB86659FD93)
"""Salts must not go with the routing of keys, which reads the same hash from above."""
HALF = np.uint64(32)


def with_salt(schema: pa.Schema) -> pa.Schema:
    """`schema` with the salt behind the user's columns."""
    at = sum(name not in HIDDEN for name in schema.names)
    return schema.insert(at, SALT_FIELD)


class SaltProcessor(Processor):
    """Input: rows; output: MAIN, the rows with their salt."""

    def __init__(
        self, aggregation: Aggregation, salts: int, distinct: int | None, in_schema: pa.Schema
    ) -> None:
        """`distinct` is the argument whose equal values must have one salt."""
        self.in_schema = in_schema
        self.out_schema = with_salt(in_schema)
        self._aggregation = aggregation
        self._distinct = distinct
        self._salts = np.uint64(salts)
        self._at = self.out_schema.names.index(SALT_FIELD.name)
        self._read = [
            name
            for name in aggregation.columns_read
            if name not in HIDDEN and _hashable(in_schema.field(name).type)
        ]

    def open(self, ctx: ProcessorContext) -> None:
        """Nothing is remembered."""
        self._ctx = ctx
        self._turn = 0

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """One batch in, one batch out."""
        if not batch.num_rows:
            return
        salts = pa.array(self._salts_of(batch).astype(np.int16))
        columns = batch.columns
        columns.insert(self._at, salts)
        self._ctx.collect(pa.RecordBatch.from_arrays(columns, schema=self.out_schema))

    def _salts_of(self, batch: pa.RecordBatch) -> npt.NDArray[np.uint64]:
        rows = batch.num_rows
        if self._distinct is None and not self._read:
            first, self._turn = self._turn, (self._turn + rows) % int(self._salts)
            return np.arange(first, first + rows, dtype=np.uint64) % self._salts
        if self._distinct is None:
            return self._mixed(self._hash_of_read(batch))
        values = self._aggregation.argument_columns(batch)[self._distinct]
        hashes = hash_arrays([values], rows)
        valid = validity(values)
        if valid is not None:
            # What is not counted need not meet, and would otherwise all be in one part.
            hashes = np.where(valid, hashes, self._hash_of_read(batch))
        return self._mixed(hashes)

    def _hash_of_read(self, batch: pa.RecordBatch) -> Hashes:
        return hash_arrays([batch.column(name) for name in self._read], batch.num_rows)

    def _mixed(self, hashes: Hashes) -> npt.NDArray[np.uint64]:
        mixed: npt.NDArray[np.uint64] = ((hashes * SPREAD) >> HALF) % self._salts
        return mixed


def _hashable(kind: pa.DataType) -> bool:
    try:
        refuse_unhashable(kind)
    except TypeError:
        return False
    return True
