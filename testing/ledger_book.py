"""The book of the ledger: an operator that keeps every row in a log, and proves that it came back.

Each row says which of its key's it is. The book holds the same rows in a log, cuts the old ones
off, and after a restore must find each key's rows without a gap, up to the one before the next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penstock.dataflow.graph import BuildContext, Columns, Logic
from penstock.elements.errors import EngineError, StateError
from penstock.elements.hash import hash_columns
from penstock.elements.keygroup import GROUP_SHIFT
from penstock.operators.processor import MAIN, Processor, ProcessorContext

KEPT = 60
"""Rows of a key that are kept, at least: those of some checkpoints."""
NOTE = (
    "a line in the book, as long as it takes to give a checkpoint's rows a part of their own. " * 4
)
KEY = pa.schema([("key", pa.int64())])
VALUE = pa.schema([("note", pa.utf8())])

Numbers = npt.NDArray[np.int64]


class BookProcessor(Processor):
    """Passes rows on; `keys` are below `keys_max`."""

    def __init__(self, keys_max: int) -> None:
        self._keys_max = keys_max

    def open(self, ctx: ProcessorContext) -> None:
        """Find the rows of the checkpoint; StateError unless each key's are there without a gap."""
        self._ctx = ctx
        self._log = ctx.state.log("book", KEY, VALUE)
        self._counts = np.zeros(self._keys_max, np.int64)
        self._fresh: list[tuple[Numbers, Numbers]] = []
        for batch in self._log.restored():
            key, nth = batch.column("key").to_numpy(), batch.column("_time").to_numpy()
            first = self._counts[key] == 0
            # What was cut off need not be there: the first that is says where the key's begin.
            expected = self._counts[key] + _ordinal(key) + 1
            begin = np.full(self._keys_max, np.iinfo(np.int64).max)
            np.minimum.at(begin, key, nth)
            expected[first] = (begin[key] + _ordinal(key))[first]
            if (nth != expected).any():
                raise StateError(f"the book of {ctx.operator_id} came back with a gap or a double")
            np.maximum.at(self._counts, key, nth)

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """A row whose number does not follow from the book is left out, and so is found missing."""
        groups = hash_columns(batch, ["key"]) >> np.uint64(GROUP_SHIFT)
        own = self._ctx.key_groups
        if len(groups) and not own.start <= int(groups.min()) <= int(groups.max()) < own.stop:
            raise EngineError("the book must run as many times as the operator before it")
        key, nth = batch.column("key").to_numpy(), batch.column("nth").to_numpy()
        follows = nth == self._counts[key] + _ordinal(key) + 1
        np.add.at(self._counts, key, 1)
        self._fresh.append((key.copy(), nth.copy()))
        self._ctx.collect(batch if follows.all() else batch.filter(pa.array(follows)))

    def before_snapshot(self, checkpoint_id: int) -> None:
        """Bring what came into the log, cut off what is old."""
        for key, nth in self._fresh:
            notes = pa.array([NOTE] * len(key), pa.utf8())
            self._log.append(
                pa.RecordBatch.from_arrays([pa.array(key)], schema=KEY),
                pa.RecordBatch.from_arrays([notes], schema=VALUE),
                nth,
            )
        self._fresh.clear()
        present = self._counts[self._counts > 0]
        if len(present):
            self._log.cut(int(present.min()) - KEPT)


def _ordinal(key: Numbers) -> Numbers:
    """How many rows of the same key come before, in this batch."""
    order = np.argsort(key, kind="stable")
    ascending = key[order]
    ordinal = np.empty(len(key), np.int64)
    ordinal[order] = np.arange(len(key)) - np.searchsorted(ascending, ascending, side="left")
    return ordinal


class BookLogic(Logic):
    """The node of a BookProcessor; its input has `key` and `nth`, and lies where its key lies."""

    kind = "book"
    stateful = True

    def __init__(self, keys_max: int) -> None:
        self._keys_max = keys_max

    @property
    def title(self) -> str:
        """As explain() shows it."""
        return self.kind

    def outputs(self, inputs: Sequence[pa.Schema]) -> dict[str, pa.Schema]:
        """The rows that come in."""
        return {MAIN: inputs[0]}

    def needs(
        self, inputs: Sequence[pa.Schema], required: Mapping[str, Columns]
    ) -> Sequence[Columns]:
        """What others read, and what the book reads."""
        return [required[MAIN] | {"key", "nth"}]

    def processor(self, inputs: Sequence[pa.Schema], build: BuildContext) -> Processor:
        """A book for the keys there are."""
        return BookProcessor(self._keys_max)
