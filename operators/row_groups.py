"""RowGroups: the rows of a batch by key, for user code that takes all rows of a key at once.

Groups come in the order of their first rows, and rows keep their order within a group.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.types as pt

from penstock.elements.keys import python_keys

from .current_row import Times
from .grouping import Groups, group_rows


class RowGroups:
    """`keys`, `latest` (the row with the latest time, else the first) and `spans` are per group."""

    def __init__(self, batch: pa.RecordBatch, keys: Sequence[str], times: Times | None) -> None:
        groups = _groups(batch, keys)
        self._order = groups.order
        self._batch = batch.take(pa.array(self._order))
        self.keys: list[Any] = python_keys(batch.take(pa.array(groups.firsts)), keys)
        latest = groups.firsts if times is None else _latest(groups, times)
        self.latest: list[int] = latest.tolist()
        ends = groups.starts + groups.sizes
        self.spans: list[tuple[int, int]] = list(
            zip(groups.starts.tolist(), ends.tolist(), strict=True)
        )

    def rows(self, start: int, end: int) -> pa.RecordBatch:
        """The rows of the groups in a span, one group after the other."""
        return self._batch.slice(start, end - start)

    def parts(self, rows_min: int) -> Iterator[range]:
        """Groups in a row that have about `rows_min` rows together."""
        first = 0
        for group, (_, end) in enumerate(self.spans):
            if end - self.spans[first][0] >= rows_min or group == len(self.spans) - 1:
                yield range(first, group + 1)
                first = group + 1


def _groups(batch: pa.RecordBatch, keys: Sequence[str]) -> Groups:
    columns = [batch.column(key) for key in keys]
    if any(pt.is_nested(c.type) or pt.is_dictionary(c.type) for c in columns):
        numbers: dict[Any, int] = {}
        known = [numbers.setdefault(key, len(numbers)) for key in python_keys(batch, keys)]
        return Groups(np.array(known, np.int64), len(numbers))
    found = group_rows(columns, batch.num_rows)
    rank = np.empty(found.count, np.int64)
    rank[np.argsort(found.firsts)] = np.arange(found.count)
    return Groups(rank[found.codes], found.count)


def _latest(groups: Groups, times: Times) -> npt.NDArray[np.int64]:
    """Of each group the first among its rows with the latest time."""
    by_group = times[groups.order]
    most = np.repeat(groups.reduce(np.maximum, times), groups.sizes)
    ties = np.flatnonzero(by_group == most)
    firsts = ties[np.flatnonzero(np.diff(groups.codes[groups.order[ties]], prepend=-1))]
    return groups.order[firsts]
