"""Partial results as record batches: keys, group columns, a row count, and accumulator columns.

Rows become partials, partials merge into fewer partials, and partials become results. Group
columns beside the keys are int64: panes while collecting, window ends when finishing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penstock.elements.buffers import fixed_values
from penstock.elements.hash import Hashes, hash_arrays
from penstock.operators.aggregates import Aggregation
from penstock.operators.grouping import Groups, group_rows
from penstock.operators.multisets import finish, fold_values

ROWS_FIELD = pa.field("__rows", pa.int64(), nullable=False)
"""How many input rows a partial stands for; it also makes groups exist that have no aggregates."""
ONLY_KEY = pa.field("__all", pa.int8(), nullable=False)
"""Stands for the key where a stream has none."""

Numbers = npt.NDArray[np.int64]


@dataclass
class Partials:
    """Aligned columns: one row per group."""

    keys: list[pa.Array]
    times: Numbers
    """The pane or the window end."""
    parts: list[pa.Array]
    """The row count, then the accumulators' columns."""

    def __len__(self) -> int:
        return len(self.times)

    def take(self, rows: Numbers) -> Partials:
        """These rows, in this order."""
        at = pa.array(rows)
        return Partials(
            [key.take(at) for key in self.keys],
            self.times[rows],
            [part.take(at) for part in self.parts],
        )


def concat(pieces: Sequence[Partials]) -> Partials:
    """All rows, one piece behind the other."""
    if len(pieces) == 1:
        return pieces[0]
    return Partials(
        [pa.concat_arrays(columns) for columns in zip(*(p.keys for p in pieces), strict=True)],
        np.concatenate([p.times for p in pieces]),
        [pa.concat_arrays(columns) for columns in zip(*(p.parts for p in pieces), strict=True)],
    )


class Folding:
    """Makes and merges partials of one Aggregation over given keys."""

    def __init__(self, aggregation: Aggregation, keys: Sequence[pa.Field]) -> None:
        self.aggregation = aggregation
        self.key_schema: pa.Schema = pa.schema(list(keys) or [ONLY_KEY])
        self.value_schema: pa.Schema = pa.schema([ROWS_FIELD, *aggregation.stored])
        self._keyless = not keys

    def keys_of(self, batch: pa.RecordBatch) -> list[pa.Array]:
        """The key columns, a constant where there is none."""
        if self._keyless:
            return [pa.array(np.zeros(batch.num_rows, np.int8))]
        return [batch.column(name) for name in self.key_schema.names]

    def result_keys(self, keys: list[pa.Array]) -> list[pa.Array]:
        """The key columns that users see."""
        return [] if self._keyless else keys

    def hashes(self, keys: list[pa.Array], rows: int) -> Hashes:
        """The frozen hash of the keys, by which rows were routed."""
        return hash_arrays(self.result_keys(keys), rows)

    def groups(self, keys: list[pa.Array], times: Numbers) -> Groups:
        """Groups by time and key."""
        first, last = int(times.min()), int(times.max())
        columns = [] if self._keyless else keys
        if first != last:
            columns = [pa.array(times), *columns]
        return group_rows(columns, len(times))

    def from_rows(
        self,
        keys: list[pa.Array],
        groups: Groups,
        panes: Numbers,
        arguments: list[pa.Array],
        times_ns: Numbers,
    ) -> Partials:
        """One partial per group of rows."""
        parts = [pa.array(groups.sizes)]
        for call in self.aggregation.calls:
            if call.accumulator is not None:
                argument = None if call.argument is None else arguments[call.argument]
                parts.extend(call.accumulator.partial(groups, argument, times_ns))
        firsts = groups.firsts
        rows = pa.array(firsts)
        return Partials([key.take(rows) for key in keys], panes[firsts], parts)

    def merge(self, partials: Partials) -> Partials:
        """One partial per distinct time and key."""
        groups = self.groups(partials.keys, partials.times)
        if groups.count == len(partials):
            return partials
        return self.merge_groups(partials, groups)

    def merge_groups(self, partials: Partials, groups: Groups) -> Partials:
        """One partial per group; it has the key and the time of the group's first."""
        parts = [pa.array(groups.add(fixed_values(partials.parts[0])))]
        at = 1
        for accumulator in self.aggregation.accumulators:
            width = len(accumulator.stored)
            parts.extend(accumulator.merge(groups, partials.parts[at : at + width]))
            at += width
        firsts = groups.firsts
        rows = pa.array(firsts)
        return Partials([key.take(rows) for key in partials.keys], partials.times[firsts], parts)

    def results(self, partials: Partials, values: Sequence[MultisetRows]) -> list[pa.Array]:
        """The items of the aggregation, one row per partial; `partials` are merged already.

        `values` are the multisets' rows with times like those of the partials.
        """
        sets = [self._by_group(partials, rows) for rows in values]
        calculated = []
        at = 1
        for call in self.aggregation.calls:
            if call.accumulator is not None:
                width = len(call.accumulator.stored)
                calculated.append(call.accumulator.final(partials.parts[at : at + width]))
                at += width
            else:
                assert call.multiset is not None
                assert call.reading is not None
                groups, content, counts = sets[call.multiset]
                calculated.append(finish(call.reading, groups, len(partials), content, counts))
        return self.aggregation.finish(calculated)

    def _by_group(
        self, partials: Partials, rows: MultisetRows
    ) -> tuple[Numbers, pa.Array, pa.Array]:
        """(partial's row, value, how often) with each value once per partial."""
        owner = match_rows(self, partials, rows.keys, rows.times)
        assert (owner >= 0).all()
        folded = fold_values([pa.array(owner)], rows.content, rows.counts)
        return fixed_values(folded.column(0)), folded.column("value"), folded.column("n")


@dataclass
class MultisetRows:
    """Rows of a multiset: keys, pane or window end, the value, how often."""

    keys: list[pa.Array]
    times: Numbers
    content: pa.Array
    counts: pa.Array

    def take(self, rows: Numbers) -> MultisetRows:
        """These rows, in this order."""
        at = pa.array(rows)
        keys = [key.take(at) for key in self.keys]
        return MultisetRows(keys, self.times[rows], self.content.take(at), self.counts.take(at))


def match_rows(
    folding: Folding, partials: Partials, keys: list[pa.Array], times: Numbers
) -> Numbers:
    """For each row of (keys, times): the partial with the same key and time, or -1.

    Requires: no two partials have the same key and time.
    """
    if not len(times):
        return np.zeros(0, np.int64)
    if not len(partials):
        return np.full(len(times), -1, np.int64)
    both = [pa.concat_arrays(pair) for pair in zip(partials.keys, keys, strict=True)]
    groups = folding.groups(both, np.concatenate([partials.times, times]))
    owner = np.full(groups.count, -1, np.int64)
    owner[groups.codes[: len(partials)]] = np.arange(len(partials))
    found: Numbers = owner[groups.codes[len(partials) :]]
    return found
