"""The panes of a window operator: partials by pane and key, in the state backend.

Partials wait in `pending` until there are enough of them, then they are appended to a table whose
time is the pane; complete panes leave by `expire`. A barrier appends what is pending, so nothing
survives anywhere else. What is appended often is merged when it has doubled.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from penstock.elements.buffers import fixed_values
from penstock.elements.signals import WATERMARK_MAX
from penstock.operators.multisets import fold_values
from penstock.state.backend import StateBackend, Table

from .partials import Folding, MultisetRows, Numbers, Partials, concat

PENDING_ROWS_MAX = 32 * 1024
"""Partials gathered before they are merged and appended."""
COMPACT_ROWS_MIN = 64 * 1024
"""Tables smaller than this are never rewritten."""
TIME = "_time"
VALUE, COUNT = "__value", "__n"


class PaneStore:
    """Collects partials and multiset rows; gives them back by pane."""

    def __init__(self, folding: Folding, state: StateBackend) -> None:
        self._folding = folding
        self._pending: list[Partials] = []
        self._pending_rows = 0
        self._table: Table = state.table("panes", folding.key_schema, folding.value_schema)
        self._compacted_rows = self._table.rows
        self._sets: list[Table] = []
        self._set_schemas: list[pa.Schema] = []
        self._set_compacted: list[int] = []
        for at, multiset in enumerate(folding.aggregation.multisets):
            schema = pa.schema([(VALUE, multiset.kind), (COUNT, pa.int64())])
            self._set_schemas.append(schema)
            self._sets.append(state.table(f"values{at}", folding.key_schema, schema))
            self._set_compacted.append(self._sets[-1].rows)
        self._panes: set[int] = set()
        for batch in self._table.scan():
            self._panes.update(np.unique(fixed_values(batch.column(TIME))).tolist())

    @property
    def panes(self) -> Numbers:
        """The panes that hold anything, ascending."""
        return np.array(sorted(self._panes), np.int64)

    def add(self, partials: Partials) -> None:
        """Keep partials; they are owned memory."""
        self._panes.update(np.unique(partials.times).tolist())
        self._pending.append(partials)
        self._pending_rows += len(partials)
        if self._pending_rows >= PENDING_ROWS_MAX:
            self.spill()

    def add_values(self, at: int, keys: list[pa.Array], panes: Numbers, values: pa.Array) -> None:
        """Keep the values of a multiset's argument, one row each per distinct value."""
        self._append_values(at, keys, panes, values, pa.array(np.ones(len(values), np.int64)))
        table = self._sets[at]
        if table.rows > COMPACT_ROWS_MIN + 2 * self._set_compacted[at]:
            everything = self._read_values(table.expire(WATERMARK_MAX))
            assert everything is not None
            self._append_values(
                at, everything.keys, everything.times, everything.content, everything.counts
            )
            self._set_compacted[at] = table.rows

    def _append_values(
        self, at: int, keys: list[pa.Array], panes: Numbers, values: pa.Array, counts: pa.Array
    ) -> None:
        folded = fold_values([pa.array(panes), *keys], values, counts)
        if folded.num_rows:
            columns = folded.columns
            self._sets[at].append(
                pa.RecordBatch.from_arrays(columns[1:-2], schema=self._folding.key_schema),
                pa.RecordBatch.from_arrays(columns[-2:], schema=self._set_schemas[at]),
                fixed_values(columns[0]),
                self._folding.hashes(columns[1:-2], folded.num_rows),
            )

    def spill(self) -> None:
        """Merge what is pending and append it to the table."""
        if not self._pending:
            return
        merged = self._folding.merge(concat(self._pending))
        self._pending, self._pending_rows = [], 0
        self._append(merged)
        if self._table.rows > COMPACT_ROWS_MIN + 2 * self._compacted_rows:
            everything = self._read(self._table.expire(WATERMARK_MAX))
            assert everything is not None
            self._append(self._folding.merge(everything))
            self._compacted_rows = self._table.rows

    def _append(self, partials: Partials) -> None:
        keys = pa.RecordBatch.from_arrays(partials.keys, schema=self._folding.key_schema)
        values = pa.RecordBatch.from_arrays(partials.parts, schema=self._folding.value_schema)
        hashes = self._folding.hashes(partials.keys, len(partials))
        self._table.append(keys, values, partials.times, hashes)

    def take_before(self, pane: int) -> tuple[Partials | None, list[MultisetRows | None]]:
        """Remove and return all panes that start before `pane`."""
        self.spill()
        if not any(each < pane for each in self._panes):
            return None, [None for _ in self._sets]
        self._panes = {each for each in self._panes if each >= pane}
        sets = [self._read_values(table.expire(pane)) for table in self._sets]
        partials = self._read(self._table.expire(pane))
        # What was there before no longer is: the next merge is due when it has doubled again.
        self._compacted_rows = min(self._compacted_rows, self._table.rows)
        return partials, sets

    def read(self) -> tuple[Partials | None, list[MultisetRows | None]]:
        """All panes, which stay."""
        self.spill()
        sets = [self._read_values(table.scan()) for table in self._sets]
        return self._read(self._table.scan()), sets

    def _keys(self, batch: pa.RecordBatch) -> list[pa.Array]:
        return [batch.column(name) for name in self._folding.key_schema.names]

    def _read(self, batches: Iterable[pa.RecordBatch]) -> Partials | None:
        names = self._folding.value_schema.names
        pieces = [
            Partials(
                self._keys(batch),
                fixed_values(batch.column(TIME)),
                [batch.column(name) for name in names],
            )
            for batch in batches
        ]
        return concat(pieces) if pieces else None

    def _read_values(self, batches: Iterable[pa.RecordBatch]) -> MultisetRows | None:
        table = list(batches)
        if not table:
            return None
        whole = pa.concat_batches(table)
        return MultisetRows(
            self._keys(whole),
            fixed_values(whole.column(TIME)),
            whole.column(VALUE),
            whole.column(COUNT),
        )
