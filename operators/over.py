"""OverProcessor: each row with what its key's rows before it, and after it, say: lag, lead, sums.

1. Rows of a key are taken in the order of event time (ties: row_order), once the watermark has
   passed them; what is given does not depend on the order of arrival.
2. With lead(x, n) a row is given when the n-th row behind it is known; its `_time` is then that of
   this row, which is certain only then. At the end of data there is nothing behind, and lead is
   null.
3. A row that is late on arrival goes to LATE as it came, and is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa

from penstock.elements.buffers import fixed_values
from penstock.elements.signals import TIME_COLUMN, WATERMARK_MAX, WATERMARK_MIN

from .event_times import time_array, times_of
from .key_slots import Keys
from .over_history import History
from .over_items import OverCall, OverItems
from .pending_rows import PendingRows
from .processor import LATE, MAIN, Processor, ProcessorContext
from .rate_limit import without_late
from .row_order import Numbers, time_order
from .running import Stretches, averages, counts, extremes, sums, take_or_null


class OverProcessor(Processor):
    """Input and LATE: rows of `in_schema`, with `_time`. MAIN: `items.out_schema`."""

    def __init__(
        self,
        keys: Sequence[str],
        items: OverItems,
        preceding: int | None,
        in_schema: pa.Schema,
        who: str = "over",
    ) -> None:
        self.in_schema = in_schema
        self.out_schema = items.out_schema
        self._keys = Keys(in_schema, keys)
        self._items, self._preceding, self._who = items, preceding, who
        self._ahead = max((c.away for c in items.calls if c.function == "lead"), default=0)
        back = [call.away for call in items.calls if call.function == "lag"]
        framed = any(c.function not in ("lag", "lead", "row_number") for c in items.calls)
        self._depth = max([*back, preceding or 0 if framed else 0])
        kinds = items.argument_kinds()
        self._carried: list[pa.DataType] = []
        for call in items.calls:
            self._carried += self._carries(call, kinds)
        computed = [items.seen.field(at) for at in range(len(in_schema), len(items.seen))]
        # Until the rows behind it are known a row waits with what is known already.
        self._held_schema = pa.schema([*in_schema, *(f.with_nullable(True) for f in computed)])

    @property
    def outputs(self) -> dict[str, pa.Schema]:
        """Rows with their items, and late rows as they came."""
        return {MAIN: self.out_schema, LATE: self.in_schema}

    def _carries(self, call: OverCall, kinds: list[pa.DataType]) -> list[pa.DataType]:
        """The types of what a call needs to know of all rows before; none if the last ones do."""
        if call.function == "row_number" or call.function in ("lag", "lead", "last"):
            return []
        if self._preceding is not None:
            return []
        if call.function == "count":
            return [pa.int64()]
        if call.function == "avg":
            assert call.argument is not None
            return [_total(kinds[call.argument]), pa.int64()]
        return [call.kind]

    def open(self, ctx: ProcessorContext) -> None:
        """Find the keys and the waiting rows of the checkpoint."""
        self._ctx = ctx
        self._passed = ctx.watermark
        kinds = self._items.argument_kinds()
        self._history = History(self._keys, self._carried, kinds, self._depth, ctx.state)
        self._waiting = PendingRows(self.in_schema, self._keys, ctx.state, "waiting")
        self._held: PendingRows | None = None
        if self._ahead:
            self._held = PendingRows(self._held_schema, self._keys, ctx.state, "held")

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """Rows wait for the watermark."""
        self._waiting.add(without_late(batch, self._ctx))

    def on_watermark(self, watermark: int) -> None:
        """Work on what is complete."""
        rows = self._waiting.release(watermark)
        if rows is not None:
            self._take(rows)
        if watermark == WATERMARK_MAX and self._held is not None:
            self._give_last()
        self._passed = watermark

    def before_snapshot(self, checkpoint_id: int) -> None:
        """Write the keys that changed, and the rows that wait."""
        self._history.store()
        self._waiting.store()
        if self._held is not None:
            self._held.store()

    # Rows in order -----------------------------------------------------------------------------

    def _take(self, rows: pa.RecordBatch) -> None:
        slots = self._history.slots(self._keys.columns(rows))
        order = time_order(rows, [slots])
        rows, slots = rows.take(pa.array(order)), slots[order]
        touched, lengths = np.unique(slots, return_counts=True)
        new = Stretches(lengths)
        results = self._results(rows, touched, new)
        if self._held is None:
            self._deliver(self._items.finish(rows, results, rows.column(TIME_COLUMN)))
            return
        made = pa.RecordBatch.from_arrays([*rows.columns, *results], schema=self._held_schema)
        self._give_followed(made, slots)

    def _results(self, rows: pa.RecordBatch, touched: Numbers, new: Stretches) -> list[pa.Array]:
        """The calls' columns for `rows`; those of lead are null yet."""
        history = self._history
        arguments = self._items.argument_columns(rows)
        filled = history.filled(touched)
        known = Stretches(filled + new.lengths)
        is_new = known.nth >= np.repeat(filled, known.lengths)
        new_at = np.flatnonzero(is_new)
        # Where each row of `known` comes from: the last rows of all keys, then the new ones.
        source = np.empty(known.rows, np.int64)
        source[~is_new] = np.arange(int(filled.sum()))
        source[new_at] = int(filled.sum()) + np.arange(new.rows)
        past = history.past(touched) if history.depth else [a.slice(0, 0) for a in arguments]
        extended = [
            pa.concat_arrays([old, values]).take(pa.array(source))
            for old, values in zip(past, arguments, strict=True)
        ]
        carried = iter(history.carried(touched))
        results, carry = [], []
        for call in self._items.calls:
            if self._carries(call, self._items.argument_kinds()):
                made, further = self._running(call, arguments, carried, touched, new)
                carry += further
            else:
                made = self._framed(call, extended, known, touched, new).take(pa.array(new_at))
            results.append(made)
        history.put(touched, new.lengths, carry, known, extended)
        return results

    def _framed(
        self,
        call: OverCall,
        extended: list[pa.Array],
        known: Stretches,
        touched: Numbers,
        new: Stretches,
    ) -> pa.Array:
        """A call that sees the last rows only; one value per row of `known`."""
        name, frame = call.function, self._preceding
        if name == "row_number":
            before = self._history.rows(touched) - self._history.filled(touched)
            return pa.array(known.nth + 1 + np.repeat(before, known.lengths))
        if name == "lead":
            return pa.nulls(known.rows, call.kind)
        values = None if call.argument is None else extended[call.argument]
        present = np.ones(known.rows, np.bool_)
        if values is not None and values.null_count:
            present = values.is_valid().to_numpy(zero_copy_only=False)
        if name == "count":
            return pa.array(counts(present, known, frame))
        assert values is not None
        if name == "last":
            return values
        if name == "lag":
            return take_or_null(values, known.away(call.away))
        if name == "first":
            assert frame is not None
            begin = np.repeat(known.starts, known.lengths)
            return values.take(pa.array(np.maximum(begin, np.arange(known.rows) - frame)))
        if name in ("min", "max"):
            return extremes(values, known, frame, name == "max")
        total = sums(values, known, frame, self._who)
        if name == "avg":
            return averages(total, counts(present, known, frame))
        return total

    def _running(
        self,
        call: OverCall,
        arguments: list[pa.Array],
        carried: object,
        touched: Numbers,
        new: Stretches,
    ) -> tuple[pa.Array, list[pa.Array]]:
        """A call over all rows so far: (its column, what to carry on, one value per key)."""
        take = carried.__next__  # type: ignore[attr-defined]
        name = call.function
        values = None if call.argument is None else arguments[call.argument]
        if name == "count":
            found = self._counted(values, take(), new)
            return pa.array(found), [pa.array(found[new.lasts])]
        assert values is not None
        if name == "avg":
            total = take()
            made = self._behind(total, values.cast(total.type), new, self._summed)
            rows = self._counted(values, take(), new)
            last = pa.array(new.lasts)
            return averages(made, rows), [made.take(last), pa.array(rows[new.lasts])]
        if name == "first":
            before = np.repeat(self._history.rows(touched) > 0, new.lengths)
            both = pa.concat_arrays([take(), values])
            at = np.where(before, new.of_row, len(touched) + np.repeat(new.starts, new.lengths))
            made = both.take(pa.array(at))
        elif name == "sum":
            made = self._behind(take(), values.cast(call.kind), new, self._summed)
        else:
            made = self._behind(
                take(), values, new, lambda v, s: extremes(v, s, None, name == "max")
            )
        return made, [made.take(pa.array(new.lasts))]

    def _summed(self, values: pa.Array, stretches: Stretches) -> pa.Array:
        return sums(values, stretches, None, self._who)

    def _behind(
        self,
        carried: pa.Array,
        values: pa.Array,
        new: Stretches,
        run: Callable[[pa.Array, Stretches], pa.Array],
    ) -> pa.Array:
        """`run` over stretches that begin with what is carried."""
        with_carry = Stretches(new.lengths + 1)
        source = np.empty(with_carry.rows, np.int64)
        source[with_carry.starts] = np.arange(len(carried))
        rest = np.flatnonzero(with_carry.nth)
        source[rest] = len(carried) + np.arange(new.rows)
        both = pa.concat_arrays([carried, values]).take(pa.array(source))
        return run(both, with_carry).take(pa.array(rest))

    def _counted(self, values: pa.Array | None, carried: pa.Array, new: Stretches) -> Numbers:
        present = np.ones(new.rows, np.bool_)
        if values is not None and values.null_count:
            present = values.is_valid().to_numpy(zero_copy_only=False)
        before: Numbers = fixed_values(carried.fill_null(0))
        return counts(present, new, None) + np.repeat(before, new.lengths)

    def _deliver(self, made: pa.RecordBatch) -> None:
        """Finished rows, key by key in their order."""
        self._ctx.collect(made)

    # Rows that wait for those behind them ------------------------------------------------------

    def _give_followed(self, made: pa.RecordBatch, slots: Numbers) -> None:
        """Give the rows that now have enough rows behind them; hold the others."""
        assert self._held is not None
        held = self._held.release(WATERMARK_MAX)
        if held is not None:
            made = pa.concat_batches([held, made])
            slots = np.concatenate([self._history.slots(self._keys.columns(held)), slots])
        order = np.argsort(slots, kind="stable")
        made, slots = made.take(pa.array(order)), slots[order]
        stretches = Stretches(np.unique(slots, return_counts=True)[1])
        behind = stretches.away(-self._ahead)
        ready = behind >= 0
        if ready.any():
            at = np.flatnonzero(ready)
            self._give(made, stretches, at, times_of(made)[behind[at]])
        self._held.add(made.filter(pa.array(~ready)))

    def _give_last(self) -> None:
        """The end: nothing further comes behind the rows that are held."""
        assert self._held is not None
        made = self._held.release(WATERMARK_MAX)
        if made is None:
            return
        slots = self._history.slots(self._keys.columns(made))
        order = np.argsort(slots, kind="stable")
        made, slots = made.take(pa.array(order)), slots[order]
        stretches = Stretches(np.unique(slots, return_counts=True)[1])
        times = times_of(made)
        if self._passed != WATERMARK_MIN:
            times = np.maximum(times, min(self._passed, WATERMARK_MAX - 1) + 1)
        self._give(made, stretches, np.arange(made.num_rows), times)

    def _give(
        self, made: pa.RecordBatch, stretches: Stretches, at: Numbers, times: Numbers
    ) -> None:
        rows = made.select(self.in_schema.names)
        arguments = self._items.argument_columns(rows)
        picked = pa.array(at)
        results = []
        for index, call in enumerate(self._items.calls):
            if call.function == "lead":
                assert call.argument is not None
                behind = stretches.away(-call.away)[at]
                results.append(take_or_null(arguments[call.argument], behind))
            else:
                results.append(made.column(len(self.in_schema) + index).take(picked))
        self._ctx.collect(self._items.finish(rows.take(picked), results, time_array(times)))


def _total(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_decimal(kind):
        return pa.decimal128(38, kind.scale)
    return pa.float64() if pa.types.is_floating(kind) else pa.int64()
