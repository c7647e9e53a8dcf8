"""What an updating stream amounts to: the rows that were added and not taken back."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from penstock.elements.buffers import fixed_values
from penstock.elements.changelog import CHANGE
from penstock.elements.errors import EngineError

from .grouping import group_rows


def net_rows(changes: pa.Table) -> pa.Table:
    """The result table behind `changes`, without `_change`; a table without it as it is.

    Equal rows appear as often as they were added more than taken back. EngineError if a row was
    taken back that was never there.
    """
    if CHANGE not in changes.column_names:
        return changes
    rows = changes.drop_columns([CHANGE])
    if not rows.num_rows:
        return rows
    weights = fixed_values(changes.column(CHANGE).combine_chunks())
    columns = [rows.column(name).combine_chunks() for name in rows.column_names]
    groups = group_rows(columns, rows.num_rows)
    left = groups.add(weights.astype(np.int64))
    if left.min() < 0:
        wrong = rows.take(pa.array(groups.firsts[np.flatnonzero(left < 0)[:1]])).to_pylist()
        raise EngineError(f"an updating stream took back a row that it had not added: {wrong[0]}")
    return rows.take(pa.array(np.repeat(groups.firsts, left)))
