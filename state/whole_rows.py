"""WholeRows: all rows of a table, as its owner handed them over at a cut.

Promises: nothing is done with them in the owner's turn; hashing and sorting come when a section is
built, in another thread. Not: finding a row; a table that is asked for one reads them in first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from penstock.elements.hash import hash_arrays

from .backend import Hashes
from .columns import Slots, column_for


@dataclass(frozen=True)
class WholeRows:
    """Keys and values of equal length; no key twice."""

    keys: pa.RecordBatch
    values: pa.RecordBatch
    hashes: Hashes | None

    @property
    def rows(self) -> int:
        """How many there are."""
        return int(self.keys.num_rows)

    def columns(self) -> tuple[Hashes, list[pa.Array], list[pa.Array], Slots | None]:
        """(sorted hashes, keys, values, None) in the order of the hashes."""
        hashes = self.hashes
        if hashes is None:
            hashes = hash_arrays(self.keys.columns, self.rows)
        # Keys are there once each, so which of equal hashes comes first does not matter.
        order = np.argsort(hashes)
        at = pa.array(order)
        keys, values = (
            [_as_in_runs(column).take(at) for column in batch.columns]
            for batch in (self.keys, self.values)
        )
        return hashes[order], keys, values, None


def _as_in_runs(array: pa.Array) -> pa.Array:
    # Wide offsets first: what is taken may exceed 2 GiB where a piece of it did not.
    kind = column_for(array.type).run_kind
    return array if array.type == kind else array.cast(kind)
