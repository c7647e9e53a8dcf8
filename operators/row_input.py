"""Rows of a batch, with those that cannot be decoded set apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa

from penstock.elements.errors import PlanError
from penstock.elements.rows import RowCodec

PART_ROWS = 512
"""Rows that are decoded at once: they stay in the processor's cache until they are encoded."""
Bad = Callable[[pa.RecordBatch, Exception], None]
"""Told of one undecodable row, as a batch; raises under the policy Fail."""


def decode_rows(
    codec: RowCodec, batch: pa.RecordBatch, bad: Bad
) -> tuple[list[Any], pa.RecordBatch]:
    """(rows, the batch without those that could not be decoded)."""
    rows, good = decode_good(codec, batch, bad)
    return rows, batch if good is None else batch.take(pa.array(good, pa.int64()))


def decode_good(
    codec: RowCodec, batch: pa.RecordBatch, bad: Bad
) -> tuple[list[Any], list[int] | None]:
    """(rows, where in the batch they stand; None if all could be decoded)."""
    try:
        return codec.decode(batch), None
    except PlanError:
        raise
    except Exception:
        # Something in this batch is wrong: look at each row alone.
        rows: list[Any] = []
        good: list[int] = []
        for index in range(batch.num_rows):
            one = batch.slice(index, 1)
            try:
                rows += codec.decode(one)
                good.append(index)
            except Exception as error:
                bad(one, error)
        return rows, good
