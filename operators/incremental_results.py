"""Changes: the result rows that one batch of an incremental join leads to.

Rows taken back come before rows added, so that a reader that goes by key ends with the new ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from penstock.elements.changelog import CHANGE, HIDDEN, weight_array
from penstock.elements.equality import equal_values
from penstock.elements.hash import hash_arrays
from penstock.elements.signals import TIME_COLUMN

from .event_times import time_array
from .join_rows import Mask, ordinals
from .join_sides import LEFT, Numbers


class Changes:
    """Gathers pairs and rows given alone, as columns of `out_schema`."""

    def __init__(
        self,
        keys: Sequence[str],
        inputs: tuple[pa.Schema, pa.Schema],
        out_schema: pa.Schema,
        both: bool,
    ) -> None:
        self._keys = keys
        self._schema = out_schema
        left, right = (
            [f for f in schema if f.name not in keys and f.name not in HIDDEN] for schema in inputs
        )
        self._others = (left, right if both else [])
        self._updating = CHANGE in out_schema.names
        self._taken_back: list[pa.RecordBatch] = []
        self._added: list[pa.RecordBatch] = []

    def pairs(
        self,
        left: pa.RecordBatch,
        right: pa.RecordBatch,
        weights: Numbers,
        times: Numbers | None,
    ) -> None:
        """Equally many rows of both sides, side by side."""
        self._add(left, left, right, weights, times)

    def alone(
        self, rows: pa.RecordBatch, port: int, weights: Numbers, times: Numbers | None
    ) -> None:
        """Rows of one side, the other's columns being null."""
        left, right = (rows, None) if port == LEFT else (None, rows)
        self._add(rows, left, right, weights, times)

    def _add(
        self,
        keyed: pa.RecordBatch,
        left: pa.RecordBatch | None,
        right: pa.RecordBatch | None,
        weights: Numbers,
        times: Numbers | None,
    ) -> None:
        if not len(weights):
            return
        arrays = [keyed.column(name) for name in self._keys]
        for fields, rows in zip(self._others, (left, right), strict=True):
            for field in fields:
                if rows is None:
                    arrays.append(pa.nulls(len(weights), field.type))
                else:
                    arrays.append(rows.column(field.name))
        if self._updating:
            arrays.append(weight_array(weights))
        if TIME_COLUMN in self._schema.names:
            assert times is not None
            arrays.append(time_array(times))
        made = pa.RecordBatch.from_arrays(arrays, schema=self._schema)
        if not self._updating:
            self._added.append(made)
            return
        added = weights > 0
        if added.all():
            self._added.append(made)
        elif not added.any():
            self._taken_back.append(made)
        else:
            self._added.append(made.filter(pa.array(added)))
            self._taken_back.append(made.filter(pa.array(np.logical_not(added))))

    def batches(self, as_they_are: bool) -> Iterator[pa.RecordBatch]:
        """All of it: as one batch where rows are taken back, else piece by piece."""
        pieces = [*self._taken_back, *self._added]
        if as_they_are or len(pieces) <= 1:
            yield from pieces
        else:
            yield pa.concat_batches(pieces)


def uncancelled(batch: pa.RecordBatch, weights: Numbers) -> Mask:
    """Rows left when each +1 and -1 of equal rows in the batch have cancelled out."""
    names = [name for name in batch.schema.names if name != TIME_COLUMN]
    hashes = hash_arrays([batch.column(name) for name in names], batch.num_rows)
    _, first, codes = np.unique(hashes, return_index=True, return_inverse=True)
    representative = batch.take(pa.array(first[codes]))
    for name in names:
        if not equal_values(batch.column(name), representative.column(name)).all():
            return np.ones(batch.num_rows, np.bool_)
    added = np.bincount(codes[weights > 0], minlength=len(first))
    back = np.bincount(codes[weights < 0], minlength=len(first))
    cancelled = np.minimum(added, back)
    place = ordinals(codes * 2 + (weights > 0))
    return place >= cancelled[codes]
