"""Aggregates without a window whose keys are split: parts by (key, salt), and what merges them.

1. The first stage is the aggregate by (key, salt), with parts in place of results: an updating
   stream of one row per part. It gives a part as long as anything of it is known, also one that is
   below zero for a while, since only the merged key says whether there are rows.
2. The second keeps the parts that hold now, replaced as they are given anew, and merges those of
   the keys that have changed when changes are due. It needs no values, nor sums of differences:
   its work per flush is bounded by the salts, whatever a key's share of the rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penstock.elements.buffers import fixed_values
from penstock.elements.changelog import is_updating, weights_of, with_change

from .accumulators import Accumulator
from .aggregates import Aggregation
from .event_times import TIME_FIELD, times_of
from .grouping import Groups
from .processor import ProcessorContext
from .segments import groups_of
from .split_live_parts import LiveParts
from .split_parts import (
    SALT_FIELD,
    merging,
    parts_of_values,
    parts_schema,
    updating_accumulators,
)
from .updating_aggregate import UpdatingAggregateProcessor
from .updating_calls import UpdatingCalls
from .updating_groups import Mask, Slots

Numbers = npt.NDArray[np.int64]


class PartCalls(UpdatingCalls):
    """The calls of the first stage: results are parts."""

    def results(
        self, parts: Sequence[pa.Array], values: Sequence[tuple[Numbers, pa.Array, pa.Array]]
    ) -> list[pa.Array]:
        """The row count, then the parts of each call."""
        found = [parts[0]]
        at = 1
        for call in self.calls:
            if call.accumulator is not None:
                width = len(call.accumulator.stored)
                found.extend(parts[at : at + width])
                at += width
            else:
                assert call.reading is not None
                read = values[call.reading.values]
                found.extend(parts_of_values(call.reading.how, read[0], len(parts[0]), *read[1:]))
        return found


class NoCalls(UpdatingCalls):
    """The calls of the second stage keep nothing per key: parts are kept apart."""

    @property
    def stored(self) -> list[pa.Field]:
        """Nothing."""
        return []

    def merge(self, groups: Groups, parts: Sequence[pa.Array]) -> list[pa.Array]:
        """Nothing."""
        return []


class SplitStage(UpdatingAggregateProcessor):
    """What both stages know: the calls as they are kept, and the columns of parts."""

    _merging: Aggregation
    _accumulators: list[Accumulator]

    def _understand(
        self, aggregation: Aggregation, rows_schema: pa.Schema, who: str, location: str
    ) -> None:
        calls = UpdatingCalls(aggregation, is_updating(rows_schema), who, location)
        self._accumulators = updating_accumulators(calls)
        self._merging = merging(aggregation, self._accumulators)

    def _parts_schema(self, groups: Sequence[pa.Field]) -> pa.Schema:
        found = pa.schema(parts_schema(groups, self._accumulators))
        return with_change(found.append(TIME_FIELD) if self._timed else found)


class FirstStage(SplitStage):
    """Makes an aggregate give parts. Mixed into one whose keys end with the salt."""

    def _give_parts(
        self, aggregation: Aggregation, rows_schema: pa.Schema, who: str, location: str
    ) -> None:
        self._understand(aggregation, rows_schema, who, location)
        self._calls = PartCalls(aggregation, is_updating(rows_schema), who, location)
        self._result_fields = parts_schema([], self._accumulators)
        self.out_schema = self._parts_schema(list(self._keys))

    def _look(self, slots: Slots) -> tuple[list[pa.Array], Mask]:
        there = self._rows(slots) > 0
        # Only where there are no rows is it worth a look whether something was taken back early.
        none = np.flatnonzero(~there)
        there[none] = ~self._empty(slots[none])
        return self._results(slots), there


class UpdatingPartsProcessor(FirstStage):
    """Input: rows with a salt; output: MAIN with `out_schema`, an updating stream of parts."""

    def __init__(
        self,
        keys: Sequence[str],
        aggregation: Aggregation,
        rows_schema: pa.Schema,
        flush_ns: int,
        who: str = "aggregate",
        location: str = "",
    ) -> None:
        """`keys` without the salt; `rows_schema` with it."""
        salted = [*keys, SALT_FIELD.name]
        super().__init__(salted, aggregation, rows_schema, None, flush_ns, who, location)
        self._give_parts(aggregation, rows_schema, who, location)


class SecondStage(SplitStage):
    """Merges parts. Mixed into an aggregate by key, whose groups then say what to give."""

    def _merge_parts(
        self, aggregation: Aggregation, rows_schema: pa.Schema, who: str, location: str
    ) -> None:
        self._understand(aggregation, rows_schema, who, location)
        self._calls = NoCalls(self._merging, False, who, location)
        groups = [] if self._keyless else list(self._keys)
        self.in_schema = self._parts_schema(self._with_salt(groups))
        self._part_names = [field.name for field in parts_schema([], self._accumulators)]

    def _with_salt(self, groups: list[pa.Field]) -> list[pa.Field]:
        return [*groups, SALT_FIELD]

    def _open_values(self, ctx: ProcessorContext) -> None:
        self._parts = LiveParts(self._keys, parts_schema([], self._accumulators))
        self._parts.open(ctx.state, self._groups, self._hashes)

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """Put parts in the place of those before; mark their keys."""
        if not batch.num_rows:
            return
        keys = self._keys_of(batch)
        hashes = self._hashes(keys)
        ages = self._ages(batch)
        slots, groups, distinct, fresh = self._groups.slots_of(keys, hashes)
        touched = groups.reduce(np.maximum, ages) if self._timed else ages[: groups.count]
        self._groups.merge(distinct, fresh, [], touched)
        parts = [batch.column(name) for name in self._part_names]
        salts = batch.column(SALT_FIELD.name)
        self._parts.put(slots, keys, hashes, salts, weights_of(batch), parts)
        if self._flush_at is None:
            self._flush_at = self._ctx.clock.wall_ns() + self._flush_ns
        self._expect_changes(ages)

    def _ages(self, batch: pa.RecordBatch) -> Slots:
        return times_of(batch) if self._timed else self._now(batch.num_rows)

    def _expect_changes(self, ages: Slots) -> None:
        if not self._flush_ns:
            self._flush()

    def _look(self, slots: Slots) -> tuple[list[pa.Array], Mask]:
        owners, parts = self._parts.of(slots)
        if not len(owners):
            nothing = [pa.nulls(len(slots), kind) for kind in self._kinds]
            return nothing, np.zeros(len(slots), np.bool_)
        groups, known = groups_of(owners, len(slots))
        rows = groups.add(fixed_values(parts[0]))
        merged: list[list[pa.Array]] = []
        at = 1
        for accumulator in self._accumulators:
            width = len(accumulator.stored)
            merged.append(accumulator.merge(groups, parts[at : at + width]))
            at += width
        results = self._merging.finish(
            [each.final(part) for each, part in zip(self._accumulators, merged, strict=True)]
        )
        # Groups without parts are not there; what stands in their rows is not looked at.
        place = np.zeros(len(slots), np.int64)
        place[known] = np.arange(len(known))
        there = np.zeros(len(slots), np.bool_)
        there[known] = rows > 0
        index = pa.array(place)
        return [column.take(index) for column in results], there

    def _empty(self, slots: Slots) -> Mask:
        return ~self._parts.any_of(slots)

    def _forget(self, slots: Slots) -> None:
        if len(slots):
            self._parts.remove(slots)
        super()._forget(slots)

    def _save(self) -> None:
        self._parts.save()
        super()._save()


class UpdatingMergeProcessor(SecondStage):
    """Input: parts; output: MAIN as of UpdatingAggregateProcessor over the rows themselves."""

    def __init__(
        self,
        keys: Sequence[str],
        aggregation: Aggregation,
        rows_schema: pa.Schema,
        flush_ns: int,
        who: str = "aggregate",
        location: str = "",
    ) -> None:
        """`rows_schema` is that of the rows before they had a salt."""
        super().__init__(keys, aggregation, rows_schema, None, flush_ns, who, location)
        self._merge_parts(aggregation, rows_schema, who, location)
