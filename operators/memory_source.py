"""Rows that the program already holds: a bounded source, resumable at any row.

They travel inside the plan, so this is for tests, examples and small tables.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pyarrow as pa

from penstock.elements.conform import plain_array, plain_schema, plain_type
from penstock.elements.errors import PlanError

from .source import Chunk, EndOfSplit, Position, ReaderContext, SourceConnector, Split, SplitReader

SPLIT_ROWS = 256 * 1024
"""Rows per split, fixed so that split names mean the same at every parallelism."""


def plain_table(table: pa.Table) -> pa.Table:
    """`table` with plain types and without metadata."""
    columns = [
        pa.chunked_array([plain_array(chunk) for chunk in column.chunks], plain_type(column.type))
        for column in table.columns
    ]
    return pa.Table.from_arrays(columns, schema=plain_schema(table.schema))


class MemorySource(SourceConnector[Any]):
    """Read a table that is held in memory."""

    name = "memory"
    bounded = True

    def __init__(self, table: pa.Table) -> None:
        self._table: pa.Table = plain_table(table).combine_chunks()

    @property
    def schema(self) -> pa.Schema:
        """The table's columns."""
        return self._table.schema

    def splits(self) -> Sequence[Split]:
        """Pieces of SPLIT_ROWS rows, by their first row."""
        total = self._table.num_rows
        starts = range(0, max(total, 1), SPLIT_ROWS)
        return [
            Split(f"rows@{start}", max(1, min(SPLIT_ROWS, total - start)), {"start": start})
            for start in starts
        ]

    def reader(self, split: Split, position: Position, ctx: ReaderContext) -> SplitReader:
        """Open a piece at a row of the whole table."""
        start = split.detail["start"]
        stop = min(start + SPLIT_ROWS, self._table.num_rows)
        return _MemoryReader(self._table, start if position is None else position, stop)

    def with_columns_read(self, columns: Sequence[str]) -> MemorySource:
        """Keep only these columns, in the table's order."""
        wanted = [name for name in self._table.column_names if name in set(columns)]
        # A table without columns has no rows to speak of: keep one column for their number.
        return MemorySource(self._table.select(wanted or self._table.column_names[:1]))


class _MemoryReader(SplitReader):
    def __init__(self, table: pa.Table, row: int, stop: int) -> None:
        self._table = table
        self._row = row
        self._stop = stop

    def poll(self, limit_rows: int) -> Chunk | None:
        if self._row >= self._stop:
            raise EndOfSplit
        first = self._row
        self._row = min(self._stop, first + limit_rows)
        piece = self._table.slice(first, self._row - first).combine_chunks()
        batches = piece.to_batches()
        assert len(batches) == 1
        return Chunk(cast(pa.RecordBatch, batches[0]), self._row, f"row {first}")


def empty_source_error(what: str) -> PlanError:
    """An empty list has no columns."""
    return PlanError(
        f"source({what}): an empty list does not say which columns it has\n"
        "  Pass an empty table instead:  p.source(pa.schema([...]).empty_table())"
    )
