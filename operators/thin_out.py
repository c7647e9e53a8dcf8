"""Leaves out, before an exchange, rows that cannot be among the first n of their key.

Promises: a row is left out only if this subtask has passed on n rows of its key that stand before
it, in this batch or an earlier one, so whoever keeps the first n for ever misses nothing. Keeps no
state: after a restart it passes on more rows, never fewer. Where it finds little to leave out it
looks at fewer batches. Not: keys that are forgotten by a TTL, which would want the rows again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pyarrow as pa

from penstock.elements.buffers import fixed_dtype, fixed_values, validity

from .kernels.key_bars import LAST, new_bars
from .kernels.slot_index import SlotIndex
from .key_slots import Keys
from .processor import Processor, ProcessorContext
from .row_order import Numbers, has_words, sort_words

THIN_COUNT_MAX = 16
"""With more rows per key than this, comparing costs more than it saves."""
KEYS_MAX = 1 << 16
"""Keys of text or of several columns that are told apart before all are forgotten."""
SKIPPED_BATCHES_MAX = 31
WORTHWHILE = 1 / 8
"""The part of a batch's rows that must be left out for the next one to be looked at."""
FirstBy = Literal["first come", "last come"] | tuple[str, bool]
"""What stands first: by arrival, or a column (`_time`, for event time) and whether it goes down."""


class ThinOutProcessor(Processor):
    """Input and MAIN: rows of `schema`."""

    def __init__(self, keys: Sequence[str], first: FirstBy, count: int, schema: pa.Schema) -> None:
        """Requires: the type of the column that decides has words (`thins`)."""
        assert 0 < count <= THIN_COUNT_MAX
        assert isinstance(first, str) or has_words(schema.field(first[0]).type)
        self.in_schema = self.out_schema = schema
        self._keys = Keys(schema, keys)
        self._first, self._count = first, count
        self._plain_key = len(keys) == 1 and _is_integer(schema.field(keys[0]).type)

    def open(self, ctx: ProcessorContext) -> None:
        """Nothing to find."""
        self._ctx = ctx
        self._bars = new_bars(self._count)
        self._index = SlotIndex(self._keys.schema)
        self._arrived = 0
        self._skip = self._skipped = 0

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """Pass on what may count."""
        rows = batch.num_rows
        if rows < 2 or self._skipped < self._skip:
            self._skipped += 1
            self._arrived += rows
            self._ctx.collect(batch)
            return
        keep = self._kept(batch)
        at = np.flatnonzero(keep)
        # Looking is dearer than what it saves where nearly every key is new.
        good = rows - len(at) >= rows * WORTHWHILE
        self._skip = 0 if good else min(2 * self._skip + 1, SKIPPED_BATCHES_MAX)
        self._skipped = 0
        self._ctx.collect(batch if len(at) == rows else batch.take(pa.array(at)))

    def _kept(self, batch: pa.RecordBatch) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        words = self._words(batch)
        if not self._plain_key:
            keep: np.ndarray[tuple[int], np.dtype[np.bool_]] = self._bars.let_through(
                self._slots(batch), words
            )
            return keep
        column = batch.column(self._keys.names[0])
        values = fixed_values(column)
        keys = values.view(np.int64) if values.dtype.itemsize == 8 else values.astype(np.int64)
        valid = validity(column)
        if valid is None:
            return self._bars.let_through(keys, words)
        # What lies under a null is arbitrary: such rows count for no key.
        return self._bars.let_through(keys, np.where(valid, words, LAST)) | ~valid

    def _slots(self, batch: pa.RecordBatch) -> Numbers:
        if not self._keys.names:
            return np.zeros(batch.num_rows, np.int64)
        if self._index.rows > KEYS_MAX:
            self._index = SlotIndex(self._keys.schema)
            self._bars.forget()
        columns = self._keys.columns(batch)
        return self._index.add(self._keys.batch(columns), self._keys.hashes(columns))[0]

    def _words(self, batch: pa.RecordBatch) -> Numbers:
        """What sorts as the order does, as far as that is said in one word; LAST for nulls."""
        if not isinstance(self._first, str):
            name, down = self._first
            words = sort_words(batch.column(name), down)
            return words[0] if len(words) == 1 else np.where(words[0] == 1, LAST, words[1])
        word = np.arange(self._arrived, self._arrived + batch.num_rows)
        self._arrived += batch.num_rows
        return word if self._first == "first come" else ~word


def thins(first: FirstBy, count: int, schema: pa.Schema) -> bool:
    """Whether there is such a stage for the first `count` rows by `first`."""
    if count > THIN_COUNT_MAX:
        return False
    return isinstance(first, str) or has_words(schema.field(first[0]).type)


def _is_integer(kind: pa.DataType) -> bool:
    dtype = fixed_dtype(kind)
    return dtype is not None and dtype.kind in "iub"
