"""Aggregates without a window: one row per key that is taken back and given anew as it changes.

1. A group's row is there while it has rows; changes are given every `flush_ns` of processing time,
   before each cut and at the end, and only where a result differs: the old row with -1, then the
   new one with +1.
2. A group that was not touched for `ttl_ns` is taken back and forgotten: in event time where there
   is one (when the watermark has passed), else in processing time. The end of data forgets none.
3. `_time` of a change is the latest of its group's rows, or just behind the watermark.
No row is late here. What survives: the groups and, for min, max and their like, their values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from penstock.elements.buffers import fixed_values
from penstock.elements.changelog import ADDED, TAKEN_BACK, is_updating, weights_of, with_change
from penstock.elements.errors import PlanError
from penstock.elements.hash import Hashes, hash_arrays
from penstock.elements.signals import TIME_COLUMN, WATERMARK_MAX

from .aggregates import Aggregation
from .event_times import TIME_FIELD, time_array, times_of
from .grouping import Groups, group_rows
from .processor import Processor, ProcessorContext
from .updating_calls import UpdatingCalls
from .updating_groups import LiveGroups, Mask, Slots
from .updating_values import LiveValues
from .windows.partials import ONLY_KEY

SWEEPS_PER_TTL = 32
"""Groups are forgotten at most this part of the TTL too late: a sweep looks at all of them."""


class UpdatingAggregateProcessor(Processor):
    """Input: rows, or partial rows of `updating_fold`; output: MAIN with `out_schema`."""

    keeps_by_key_only = True
    _some_given = False
    """At a cut readers have all groups."""

    def __init__(
        self,
        keys: Sequence[str],
        aggregation: Aggregation,
        rows_schema: pa.Schema,
        ttl_ns: int | None,
        flush_ns: int,
        who: str = "aggregate",
        location: str = "",
        *,
        partial_input: bool = False,
    ) -> None:
        """`ttl_ns` None: groups are kept for ever. `rows_schema` is that of the rows themselves."""
        fields = self.group_fields([rows_schema.field(name) for name in keys])
        self._keys: pa.Schema = pa.schema(fields or [ONLY_KEY])
        self._keyless = not fields
        self._timed = TIME_COLUMN in rows_schema.names
        self._calls = UpdatingCalls(aggregation, is_updating(rows_schema), who, location)
        self.in_schema = rows_schema
        self._partial = partial_input
        if partial_input:
            assert self._calls.foldable
            self.in_schema = folded_schema(rows_schema, keys, self._calls)
        names = [*(field.name for field in fields), *aggregation.results.names]
        for name in names:
            if names.count(name) > 1:
                said = f'{who}: two result columns are called "{name}"  {location}'
                raise PlanError(said.rstrip())
        schema = pa.schema([*fields, *aggregation.results])
        self.out_schema: pa.Schema = with_change(
            schema.append(TIME_FIELD) if self._timed else schema
        )
        self._result_fields: list[pa.Field] = list(aggregation.results)
        self._ttl_ns = ttl_ns
        self._flush_ns = flush_ns

    def group_fields(self, keys: list[pa.Field]) -> list[pa.Field]:
        """What tells groups apart: the keys."""
        return keys

    @property
    def _kinds(self) -> list[pa.DataType]:
        return [field.type for field in self._result_fields]

    def open(self, ctx: ProcessorContext) -> None:
        """Find the groups of the checkpoint."""
        self._ctx = ctx
        self._watermark = ctx.watermark
        self._groups = LiveGroups(self._calls, self._keys, self._result_fields, self._some_given)
        self._groups.open(ctx.state, self._hashes)
        self._values = [
            LiveValues(f"values{at}", self._keys, kind)
            for at, (_, kind) in enumerate(self._calls.values)
        ]
        self._open_values(ctx)
        self._flush_at: int | None = None
        self._sweep_at: int | None = None
        live = self._groups.index.live
        if len(live):
            self._had_given(live)
            self._expect(int(self._groups.touched[live].min()))

    def _open_values(self, ctx: ProcessorContext) -> None:
        for values in self._values:
            values.open(ctx.state, self._groups, self._hashes)

    def _had_given(self, live: Slots) -> None:
        """Changes were given before the cut: readers have what the accumulators say."""
        found, seen = self._look(live)
        there = np.flatnonzero(seen)
        at = pa.array(there)
        self._groups.give(live[there], [column.take(at) for column in found])

    def _hashes(self, keys: pa.RecordBatch) -> Hashes:
        return hash_arrays([] if self._keyless else keys.columns, keys.num_rows)

    # Rows -------------------------------------------------------------------------------------

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """Add rows to their groups."""
        if not batch.num_rows:
            return
        times = times_of(batch) if self._timed else self._now(batch.num_rows)
        self._add(batch, self._keys_of(batch), times, times)
        if not self._flush_ns:
            self._flush()

    def _add(self, batch: pa.RecordBatch, keys: pa.RecordBatch, times: Slots, ages: Slots) -> None:
        """Add rows to the groups of `keys`; a group is as old as the greatest of its `ages`."""
        hashes = self._hashes(keys)
        slots, groups, distinct, fresh = self._groups.slots_of(keys, hashes)
        if self._partial:
            parts = self._calls.merge(
                groups, [batch.column(field.name) for field in self._calls.stored]
            )
        else:
            arguments = self._calls.aggregation.argument_columns(batch)
            weights = weights_of(batch).astype(np.int64)
            parts = self._calls.from_rows(groups, arguments, times, weights)
            for values, (argument, _) in zip(self._values, self._calls.values, strict=True):
                values.add(slots, keys, hashes, arguments[argument], weights)
        touched = groups.reduce(np.maximum, ages) if self._timed else ages[: groups.count]
        self._groups.merge(distinct, fresh, parts, touched)
        if fresh.any():
            self._expect(int(touched[fresh].min()))
        if self._flush_at is None:
            self._flush_at = self._ctx.clock.wall_ns() + self._flush_ns

    def _keys_of(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        if not self._keyless:
            return batch.select(self._keys.names)
        return pa.RecordBatch.from_arrays(
            [pa.array(np.zeros(batch.num_rows, np.int8))], schema=self._keys
        )

    def _groups_of(self, keys: pa.RecordBatch) -> Groups:
        return group_rows([] if self._keyless else keys.columns, keys.num_rows)

    def _now(self, rows: int) -> Slots:
        return np.full(rows, self._ctx.clock.wall_ns(), np.int64)

    # Changes ----------------------------------------------------------------------------------

    def _flush(self) -> None:
        """Give what has changed."""
        self._flush_at = None
        self._give(self._groups.changed.take())

    def _give(self, slots: Slots) -> None:
        """Give the changes of these groups."""
        if not len(slots):
            return
        results, there = self._look(slots)
        had = self._groups.is_given[slots]
        differs = ~self._groups.same_as_given(slots, results)
        back = np.flatnonzero(had & (~there | differs))
        added = np.flatnonzero(there & (~had | differs))
        at = pa.array(added)
        new = [column.take(at) for column in results]
        self._collect(slots, back, added, new)
        self._groups.take_back(slots[back])
        self._groups.give(slots[added], new)
        self._remove_empty(slots[~there])

    def _collect(self, slots: Slots, back: Slots, added: Slots, new: list[pa.Array]) -> None:
        """One batch: of each slot first what is taken back, then what is added."""
        if not len(back) and not len(added):
            return
        order = np.argsort(np.concatenate([2 * back, 2 * added + 1]), kind="stable")
        mine = slots[np.concatenate([back, added])[order]]
        columns = self._shown_keys(mine)
        old = self._groups.given_of(slots[back], self._kinds)
        for before, after in zip(old, new, strict=True):
            columns.append(pa.concat_arrays([before, after]).take(pa.array(order)))
        weights = np.full(len(order), ADDED, np.int8)
        weights[order < len(back)] = TAKEN_BACK
        columns.append(pa.array(weights))
        if self._timed:
            touched = np.maximum(self._groups.touched[mine], self._watermark + 1)
            columns.append(time_array(touched))
        self._ctx.collect(pa.RecordBatch.from_arrays(columns, schema=self.out_schema))

    def _shown_keys(self, slots: Slots) -> list[pa.Array]:
        """What users see of the groups' keys."""
        return [] if self._keyless else list(self._groups.index.keys_of(slots).columns)

    def _look(self, slots: Slots) -> tuple[list[pa.Array], Mask]:
        """(results of these groups, which of them readers should have)."""
        return self._results(slots), self._rows(slots) > 0

    def _rows(self, slots: Slots) -> Slots:
        found: Slots = fixed_values(self._groups.parts_of(slots)[0])
        return found

    def _results(self, slots: Slots) -> list[pa.Array]:
        values = [each.of(slots) for each in self._values]
        return self._calls.results(self._groups.parts_of(slots), values)

    def _remove_empty(self, slots: Slots) -> None:
        """Forget groups without rows, unless something of them was taken back too early."""
        if not len(slots):
            return
        self._forget(slots[self._empty(slots)])

    def _empty(self, slots: Slots) -> Mask:
        empty = self._calls.empty(self._groups.parts_of(slots))
        for values in self._values:
            empty &= ~values.any_of(slots)
        return empty

    def _forget(self, slots: Slots) -> None:
        if len(slots):
            for values in self._values:
                values.remove(slots)
            self._groups.remove(slots)

    # Time -------------------------------------------------------------------------------------

    def on_watermark(self, watermark: int) -> None:
        """Forget what is too old; give the last changes when no time is left."""
        if watermark == WATERMARK_MAX:
            self._flush()
        elif self._timed and self._sweep_at is not None and watermark >= self._sweep_at:
            self._sweep(watermark)
        self._watermark = max(self._watermark, watermark)

    def next_wakeup_ns(self) -> int | None:
        """When to give changes, or to forget groups of a stream without event time."""
        times = [self._flush_at, None if self._timed else self._sweep_at]
        return min((time for time in times if time is not None), default=None)

    def on_processing_time(self, now_ns: int) -> None:
        """Give changes; forget groups of a stream without event time."""
        if self._flush_at is not None and now_ns >= self._flush_at:
            self._flush()
        if not self._timed and self._sweep_at is not None and now_ns >= self._sweep_at:
            self._sweep(now_ns)

    def _expect(self, touched_ns: int) -> None:
        """A group was touched then: it may be forgotten a TTL later."""
        if self._ttl_ns is not None:
            due = touched_ns + self._ttl_ns
            self._sweep_at = due if self._sweep_at is None else min(self._sweep_at, due)

    def _sweep(self, now_ns: int) -> None:
        assert self._ttl_ns is not None
        live = self._groups.index.live
        touched = self._groups.touched[live]
        old = touched <= now_ns - self._ttl_ns
        gone = live[old]
        back = np.flatnonzero(self._groups.is_given[gone])
        nothing: list[Any] = [pa.nulls(0, kind) for kind in self._kinds]
        self._collect(gone, back, np.zeros(0, np.int64), nothing)
        self._forget(gone)
        self._sweep_at = None
        if not old.all():
            step = self._ttl_ns // SWEEPS_PER_TTL
            self._expect(max(int(touched[~old].min()), now_ns + step - self._ttl_ns))

    def on_end(self) -> None:
        """Give the last changes of a stream without event time."""
        self._flush()

    def before_snapshot(self, checkpoint_id: int) -> None:
        """Give changes, so that readers have what state says; then bring groups into state."""
        self._flush()
        self._save()

    def _save(self) -> None:
        for values in self._values:
            values.save()
        self._groups.save()


def folded_schema(rows: pa.Schema, keys: Sequence[str], calls: UpdatingCalls) -> pa.Schema:
    """What crosses an exchange in place of rows: keys, stored columns, `_time`."""
    fields = [*(rows.field(name) for name in keys), *calls.stored]
    return pa.schema([*fields, TIME_FIELD] if TIME_COLUMN in rows.names else fields)
