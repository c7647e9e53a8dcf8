"""Which subtask gets which row: forward, hash, rebalance, broadcast.

A router never copies rows that stay together; hash routing gathers once (`take`) and slices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penstock.dataflow.plan import Edge
from penstock.elements.buffers import fixed_dtype, fixed_values
from penstock.elements.hash import hash_columns
from penstock.elements.keygroup import group_to_subtask, subtask_of
from penstock.operators.kernels.compile import uses_reference
from penstock.operators.kernels.deal_rows import dealt

Rows = npt.NDArray[np.int64]
Routed = Sequence[tuple[int, pa.RecordBatch]]


class Router(Protocol):
    """Deals the rows of one batch out to targets 0..parallelism-1."""

    def __call__(self, batch: pa.RecordBatch) -> Routed: ...


class ForwardRouter:
    """Everything to the one sender this subtask has."""

    def __call__(self, batch: pa.RecordBatch) -> Routed:
        return ((0, batch),)


class BroadcastRouter:
    """Everything to everyone."""

    def __init__(self, parallelism: int) -> None:
        self._targets = range(parallelism)

    def __call__(self, batch: pa.RecordBatch) -> Routed:
        return [(target, batch) for target in self._targets]


class RebalanceRouter:
    """Whole batches in turn, beginning at the sender's own index so that senders spread out.

    A batch much larger than `batch_rows` is cut, so that one reader does not keep it all.
    """

    def __init__(self, parallelism: int, first: int, batch_rows: int) -> None:
        self._parallelism = parallelism
        self._next = first % parallelism
        self._batch_rows = batch_rows

    def __call__(self, batch: pa.RecordBatch) -> Routed:
        routed = []
        for start in range(0, batch.num_rows, self._batch_rows):
            routed.append((self._next, batch.slice(start, self._batch_rows)))
            self._next = (self._next + 1) % self._parallelism
        return routed


class HashRouter:
    """Rows by key group (hazard 32), in their order per target."""

    def __init__(self, keys: Sequence[str], parallelism: int) -> None:
        self._keys = tuple(keys)
        self._parallelism = parallelism
        self._table = group_to_subtask(parallelism).copy()
        self._compiled = self._table.dtype == np.uint8 and not uses_reference()

    def __call__(self, batch: pa.RecordBatch) -> Routed:
        if self._parallelism == 1:
            return ((0, batch),)
        order, counts = self._dealt(batch)
        filled = np.flatnonzero(counts)
        if len(filled) == 1:
            return ((int(filled[0]), batch),)
        gathered = batch.take(pa.array(order))
        routed, start = [], 0
        for target, count in enumerate(counts.tolist()):
            if count:
                routed.append((target, gathered.slice(start, count)))
                start += count
        return routed

    def _dealt(self, batch: pa.RecordBatch) -> tuple[Rows, Rows]:
        """(row numbers, target by target; rows per target)."""
        if not self._compiled:
            targets = subtask_of(hash_columns(batch, self._keys), self._parallelism)
            # A stable argsort of uint8 is a radix sort, so the order within a target is kept.
            order = np.argsort(targets, kind="stable")
            return order, np.bincount(targets, minlength=self._parallelism)
        words = _whole_numbers(batch, self._keys)
        if words is not None:
            return dealt(words, False, self._table, self._parallelism)
        return dealt(hash_columns(batch, self._keys), True, self._table, self._parallelism)


def _whole_numbers(batch: pa.RecordBatch, keys: Sequence[str]) -> npt.NDArray[np.uint64] | None:
    """What is hashed of a key that is one column of whole numbers without nulls."""
    if len(keys) != 1:
        return None
    column = batch.column(keys[0])
    dtype = fixed_dtype(column.type)
    if dtype is None or dtype.kind not in "iu" or column.null_count:
        return None
    wide = fixed_values(column).astype(np.int64 if dtype.kind == "i" else np.uint64, copy=False)
    return wide.view(np.uint64)


def router_of(edge: Edge, parallelism: int, source_index: int, batch_rows: int) -> Router:
    """The router of an edge to `parallelism` targets, for sender `source_index`."""
    if edge.partition == "forward":
        return ForwardRouter()
    if edge.partition == "broadcast":
        return BroadcastRouter(parallelism)
    if edge.partition == "hash":
        return HashRouter(edge.keys, parallelism)
    return RebalanceRouter(parallelism, source_index, batch_rows)
