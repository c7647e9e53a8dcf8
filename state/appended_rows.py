"""Appended tables of the memory backend: a multimap from key and time to rows, for joins.

Rows lie in columns in order of insertion and are never rewritten. Sorted runs of row numbers, by
(group of the key, time), answer probes, others by time make expiry cheap; small runs are merged
into larger ones, so there are logarithmically many. Rows are sorted when they are first asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from penstock.elements.buffers import grown
from penstock.elements.signals import WATERMARK_MIN

from .backend import Hashes
from .columns import Column, Slots, column_for
from .keyed_rows import DEAD_SLOTS_MIN, SCAN_ROWS, TableShape, record_batch, take_declared
from .slot_index import SlotIndex

MERGE_FACTOR = 3
"""A run is merged with its elder while that one is less than this many times as large."""
DENSE_FACTOR = 8
"""A run with at least one row per this many groups has a table of where each group starts."""


@dataclass(frozen=True)
class GroupRun:
    """Row numbers by (group, time): what a probe searches."""

    groups: Slots
    times: Slots
    rows: Slots
    starts: Slots | None
    """Where each group starts, in runs that hold rows of many of the groups."""

    def ranges(self, groups: Slots) -> tuple[Slots, Slots]:
        """Where each group's rows begin and end."""
        if self.starts is None:
            low = np.searchsorted(self.groups, groups, side="left")
            return low, np.searchsorted(self.groups, groups, side="right")
        # Groups that are younger than this run have no rows in it.
        at = np.minimum(groups, len(self.starts) - 2)
        known = groups <= len(self.starts) - 2
        low = self.starts[at]
        return low, np.where(known, self.starts[at + 1], low)


@dataclass
class TimeRun:
    """Row numbers by time: what expiry takes from the front."""

    times: Slots
    rows: Slots
    expired: int = 0


class AppendedRows:
    """Rows by key and time, without replacing."""

    def __init__(self, shape: TableShape) -> None:
        self._shape = shape
        self._index = SlotIndex(shape.key)
        self._values: list[Column] = [column_for(item.type) for item in shape.value]
        self._capacity = 0
        self._count = 0
        self._groups = np.zeros(0, np.int64)
        self._times = np.zeros(0, np.int64)
        self._alive = np.zeros(0, np.bool_)
        self._live = 0
        self._group_runs: list[GroupRun] = []
        self._grouped = 0  # rows below are in the runs
        self._time_runs: list[TimeRun] = []
        self._timed = 0
        self._now_ns = WATERMARK_MIN
        self._adds_time = "_time" not in shape.rows_schema().names

    @property
    def rows(self) -> int:
        """Rows that have not expired."""
        return self._live

    def append(
        self, hashes: Hashes, keys: Sequence[pa.Array], values: Sequence[pa.Array], times: Slots
    ) -> None:
        """Copy the rows behind the others."""
        count = len(times)
        if count == 0:
            return
        groups, _ = self._index.find_or_insert(hashes, keys)
        first = self._count
        self._reserve(first + count)
        rows = np.arange(first, first + count)
        for column, array in zip(self._values, values, strict=True):
            column.write(rows, array)
        self._groups[rows] = groups
        self._times[rows] = times
        self._alive[rows] = True
        self._count += count
        self._live += count

    def probe(
        self, hashes: Hashes, keys: Sequence[pa.Array], low: Slots, high: Slots, usable: Slots
    ) -> tuple[Slots, pa.RecordBatch]:
        """Matches of the rows `usable` (those without a null key), by row, then by insertion."""
        self._add_group_run()
        groups = self._index.find(hashes[usable], [key.take(pa.array(usable)) for key in keys])
        known = groups >= 0
        usable, groups = usable[known], groups[known]
        low, high = low[usable], high[usable]
        matches = [_matches(run, usable, groups, low, high) for run in self._group_runs]
        index = np.concatenate([np.zeros(0, np.int64), *(pair[0] for pair in matches)])
        rows = np.concatenate([np.zeros(0, np.int64), *(pair[1] for pair in matches)])
        if self._live < self._count:
            alive = self._alive[rows]
            index, rows = index[alive], rows[alive]
        index, rows = _sorted_pairs(index, rows, len(hashes), self._count)
        return index, self._batch(rows, with_time=False)

    def expire(self, before_ns: int) -> list[pa.RecordBatch]:
        """Drop what is older; the dropped rows in order of insertion."""
        self._add_time_run()
        dropped = []
        for run in self._time_runs:
            upto = int(np.searchsorted(run.times, before_ns, side="left"))
            if upto > run.expired:
                dropped.append(run.rows[run.expired : upto])
                run.expired = upto
        if not dropped:
            return []
        rows = np.sort(np.concatenate(dropped))
        self._alive[rows] = False
        self._live -= len(rows)
        batches = self._batches(rows)
        self._compact_if_mostly_dead()
        return batches

    def advance(self, time_ns: int) -> None:
        """Drop rows older than the TTL; nobody is told of them."""
        if self._shape.ttl_ns is not None and time_ns > self._now_ns:
            self._now_ns = time_ns
            self.expire(time_ns - self._shape.ttl_ns)

    def scan(self) -> list[pa.RecordBatch]:
        """All rows in order of insertion, copied."""
        return self._batches(np.flatnonzero(self._alive[: self._count]))

    def freeze(self) -> FrozenAppended:
        """The rows as of now; only the marks of the dead are copied."""
        count = self._count
        return FrozenAppended(
            self._index.hashes[: self._index.count],
            [column.freeze(self._index.count, shared=True) for column in self._index.keys.columns],
            [column.freeze(count, shared=True) for column in self._values],
            self._groups[:count],
            self._times[:count],
            np.flatnonzero(self._alive[:count]),
        )

    def _reserve(self, count: int) -> None:
        if count <= self._capacity:
            return
        self._capacity = max(count, 2 * self._capacity, 1024)
        for column in self._values:
            column.resize(self._capacity)
        self._groups = grown(self._groups, self._capacity)
        self._times = grown(self._times, self._capacity)
        self._alive = grown(self._alive, self._capacity)

    def _add_group_run(self) -> None:
        rows = np.arange(self._grouped, self._count)
        self._grouped = self._count
        if len(rows) == 0:
            return
        runs = self._group_runs
        while runs and len(runs[-1].rows) < MERGE_FACTOR * len(rows):
            rows = np.concatenate([runs.pop().rows, rows])
        rows = rows[self._alive[rows]]
        groups, times = self._groups[rows], self._times[rows]
        order = _order_by(groups, times)
        groups = groups[order]
        starts = None
        if len(rows) * DENSE_FACTOR >= self._index.count:
            counts = np.bincount(groups, minlength=self._index.count)
            starts = np.concatenate([[0], np.cumsum(counts)])
        runs.append(GroupRun(groups, times[order], rows[order], starts))

    def _add_time_run(self) -> None:
        rows = np.arange(self._timed, self._count)
        self._timed = self._count
        if len(rows) == 0:
            return
        runs = self._time_runs
        while runs and len(runs[-1].rows) - runs[-1].expired < MERGE_FACTOR * len(rows):
            elder = runs.pop()
            rows = np.concatenate([elder.rows[elder.expired :], rows])
        times = self._times[rows]
        order = np.argsort(times, kind="stable")
        runs.append(TimeRun(times[order], rows[order]))

    def _batch(self, rows: Slots, with_time: bool) -> pa.RecordBatch:
        groups = self._groups[rows]
        arrays = take_declared(self._index.keys.columns, self._shape.key, groups)
        arrays += take_declared(self._values, self._shape.value, rows)
        schema = self._shape.rows_schema()
        if with_time and self._adds_time:
            arrays.append(pa.array(self._times[rows]))
            schema = schema.append(pa.field("_time", pa.int64()))
        return record_batch(arrays, schema, len(rows))

    def _batches(self, rows: Slots) -> list[pa.RecordBatch]:
        return [
            self._batch(rows[at : at + SCAN_ROWS], with_time=True)
            for at in range(0, len(rows), SCAN_ROWS)
        ]

    def _compact_if_mostly_dead(self) -> None:
        if self._count - self._live <= max(DEAD_SLOTS_MIN, self._live):
            return
        keep = np.flatnonzero(self._alive[: self._count])
        used, groups = np.unique(self._groups[keep], return_inverse=True)
        self._index.rebuild(used)
        self._count = self._live = len(keep)
        self._capacity = max(2 * len(keep), 1024)
        for column in self._values:
            column.compact(keep, self._capacity)
        self._groups = grown(groups.astype(np.int64), self._capacity)
        self._times = grown(self._times[keep], self._capacity)
        self._alive = grown(np.ones(len(keep), np.bool_), self._capacity)
        self._group_runs, self._grouped = [], 0
        self._time_runs, self._timed = [], 0


@dataclass(frozen=True)
class FrozenAppended:
    """Appended rows at a cut, to be brought into the order of a run in another thread."""

    hashes: Hashes
    keys: list[Column]
    values: list[Column]
    groups: Slots
    times: Slots
    rows: Slots

    def columns(self) -> tuple[Hashes, list[pa.Array], list[pa.Array], Slots]:
        """(sorted hashes, keys, values, times), rows of one hash in order of insertion."""
        groups = self.groups[self.rows]
        hashes = self.hashes[groups]
        order = _order_by_hash(self.hashes, groups)
        rows, groups = self.rows[order], groups[order]
        keys = [column.take(groups) for column in self.keys]
        values = [column.take(rows) for column in self.values]
        return hashes[order], keys, values, self.times[rows]


def _order_by_hash(hashes: Hashes, groups: Slots) -> Slots:
    """A stable order by the hashes of the groups, of which there are fewer than rows."""
    by_hash = np.argsort(hashes, kind="stable")
    ascending = hashes[by_hash]
    rank = np.zeros(len(hashes), np.int64)
    rank[by_hash[1:]] = np.cumsum(ascending[1:] != ascending[:-1])
    # One word per row: sorting words is several times faster than a stable order of them.
    bits = len(groups).bit_length()
    packed = np.sort((rank[groups] << bits) | np.arange(len(groups)))
    return packed & ((1 << bits) - 1)


def _order_by(groups: Slots, times: Slots) -> Slots:
    """A stable order by (group, time)."""
    if len(times) == 0:
        return np.zeros(0, np.int64)
    first, last = int(times.min()), int(times.max())
    time_bits = (last - first).bit_length()
    if time_bits + int(groups.max()).bit_length() <= 63:
        # One word per row: sorting it is linear where sorted runs meet.
        return np.argsort((groups << time_bits) | (times - first), kind="stable")
    return np.lexsort((times, groups))


def _matches(
    run: GroupRun, index: Slots, groups: Slots, low: Slots, high: Slots
) -> tuple[Slots, Slots]:
    """(index, row) of each match in this run, expired rows included."""
    start, stop = run.ranges(groups)
    some = np.flatnonzero(start < stop)
    index, start, stop = index[some], start[some], stop[some]
    begin = _bisect(run.times, start, stop, low[some], after_equal=False)
    end = _bisect(run.times, begin, stop, high[some], after_equal=True)
    counts = end - begin
    total = int(counts.sum())
    within = np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(index, counts), run.rows[np.repeat(begin, counts) + within]


def _bisect(times: Slots, start: Slots, stop: Slots, wanted: Slots, after_equal: bool) -> Slots:
    """Binary search in many ranges at once."""
    low, high = start.copy(), stop.copy()
    while True:
        open_rows = np.flatnonzero(low < high)
        if len(open_rows) == 0:
            return low
        middle = (low[open_rows] + high[open_rows]) // 2
        found, sought = times[middle], wanted[open_rows]
        right = found <= sought if after_equal else found < sought
        low[open_rows[right]] = middle[right] + 1
        high[open_rows[~right]] = middle[~right]


def _sorted_pairs(index: Slots, rows: Slots, indices: int, count: int) -> tuple[Slots, Slots]:
    """The pairs by index, then by row."""
    row_bits = max(count, 1).bit_length()
    if indices.bit_length() + row_bits <= 63:
        packed = np.sort((index << row_bits) | rows)
        return packed >> row_bits, packed & ((1 << row_bits) - 1)
    order = np.lexsort((rows, index))
    return index[order], rows[order]
