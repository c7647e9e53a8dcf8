"""Rows of a window by key in an order: the first N, ranks, or all of them sorted.

1. A window gives its rows once, when the watermark has reached its end - 1, in the order asked
   for, in one batch where they fit; `_time` is the window's end - 1.
2. `row_number` counts from 1 under the total order, `rank` and `dense_rank` look at `by` alone.
3. A row that came after all its windows had been given goes to LATE as it came, and is counted.
Rows wait in the state backend by pane, cut down to the first N per key and pane where only those
can matter: the first N of a window are among the first N of its panes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import pyarrow as pa

from penstock.elements.errors import PlanError
from penstock.elements.signals import TIME_COLUMN, WATERMARK_MAX, WATERMARK_MIN
from penstock.state.backend import StateBackend

from .event_times import TIME_FIELD, TIME_TYPE, time_array, times_of
from .grouping import group_rows
from .key_slots import Keys
from .processor import LATE, Processor, ProcessorContext
from .row_order import Numbers, RowOrder, run_starts
from .windows.assign import PaneGrid, expand, grid_of
from .windows.descriptors import PaneWindow
from .windows.results import END, START

RankKind = Literal["row_number", "rank", "dense_rank"]
PENDING_ROWS_MAX = 32 * 1024
"""Rows gathered before they are cut down and brought into state."""
GIVEN_ROWS_MAX = 1 << 20
"""Rows times windows handled at once when many windows complete together."""


def ranked_schema(
    schema: pa.Schema, ranks: Mapping[str, RankKind], who: str, location: str = ""
) -> pa.Schema:
    """The columns of the rows, the window's bounds, and the ranks by the names they are given."""
    fields = [field for field in schema if field.name != TIME_COLUMN]
    fields += [pa.field(name, TIME_TYPE, nullable=False) for name in (START, END)]
    fields += [pa.field(name, pa.int64(), nullable=False) for name in ranks]
    names = [field.name for field in fields]
    for name in names:
        if names.count(name) > 1:
            raise PlanError(f'{who}: two result columns are called "{name}"  {location}'.rstrip())
    return pa.schema([*fields, TIME_FIELD])


class WindowRankProcessor(Processor):
    """Input: rows with `_time`. Outputs: MAIN with `out_schema`, LATE with `in_schema`.

    `count` None: all rows of a window.
    """

    def __init__(
        self,
        window: PaneWindow,
        keys: Sequence[str],
        order: RowOrder,
        in_schema: pa.Schema,
        count: int | None = None,
        ranks: Mapping[str, RankKind] | None = None,
        who: str = "top",
        location: str = "",
    ) -> None:
        self.in_schema = in_schema
        self._ranks: dict[str, RankKind] = dict(ranks or {})
        self.out_schema = ranked_schema(in_schema, self._ranks, who, location)
        self._grid: PaneGrid = grid_of(window)
        self._keys = Keys(in_schema, keys)
        self._order = order
        self._count = count

    def open(self, ctx: ProcessorContext) -> None:
        """Find the rows of the checkpoint."""
        self._ctx = ctx
        self._fired = ctx.watermark
        self._rows = _PaneRows(self._grid, self._keys, self._order, self.in_schema, self._count)
        self._rows.open(ctx.state)
        self._next_end = self._earliest_end(self._rows.panes)

    def _earliest_end(self, panes: Numbers) -> int:
        ends = self._grid.next_ends(panes, self._fired)
        ends = ends[ends <= self._grid.last_ends(panes)]
        return int(ends.min()) if len(ends) else WATERMARK_MAX

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """Keep rows for their windows; send those on that are too late."""
        panes = self._grid.panes(times_of(batch))
        if self._grid.block_ns > self._grid.size_ns:
            # Windows with gaps between them: what falls into a gap belongs to no window.
            inside = self._grid.first_ends(panes) <= self._grid.last_ends(panes)
            batch, panes = batch.filter(pa.array(inside)), panes[inside]
        late = panes < self._grid.unused_before(self._fired, 0)
        if late.any():
            rows = batch.filter(pa.array(late))
            self._ctx.count("late", rows.num_rows)
            self._ctx.collect(rows, LATE)
            batch, panes = batch.filter(pa.array(~late)), panes[~late]
        if batch.num_rows:
            self._rows.add(batch, panes)
            ends = self._earliest_end(np.unique(panes))
            self._next_end = min(self._next_end, ends)

    def on_watermark(self, watermark: int) -> None:
        """Give the windows that are complete now, in the order of their ends."""
        if watermark >= self._next_end - 1:
            self._fire(watermark)
        self._fired = watermark
        if watermark >= self._next_end - 1:
            self._next_end = self._earliest_end(self._rows.panes)

    def _fire(self, watermark: int) -> None:
        upto = WATERMARK_MAX if watermark == WATERMARK_MAX else watermark + 1
        after = self._fired if self._fired == WATERMARK_MIN else self._fired + 1
        found = self._rows.take_before(self._grid.unused_before(watermark, 0))
        left = self._rows.panes
        if len(left) and int(self._grid.first_ends(left[:1])[0]) <= upto:
            found += self._rows.read()
        if not found:
            return
        rows = pa.concat_batches(found)
        panes = self._grid.panes(times_of(rows))
        for at, ends in self._windows(panes, after, upto):
            self._give(rows, at, ends)

    def _windows(self, panes: Numbers, after: int, upto: int) -> Iterator[tuple[Numbers, Numbers]]:
        """(row, window end), whole windows at a time, few enough for memory."""
        if len(panes) * self._grid.windows_per_pane <= GIVEN_ROWS_MAX:
            yield expand(self._grid, panes, after, upto)
            return
        distinct, counts = np.unique(panes, return_counts=True)
        at, ends = expand(self._grid, distinct, after, upto)
        order = np.argsort(ends, kind="stable")
        piece = np.cumsum(counts[at][order]) // GIVEN_ROWS_MAX
        borders = ends[order][np.flatnonzero(np.diff(piece, append=piece[-1:] + 1))]
        low = after
        for high in np.unique(borders).tolist():
            yield expand(self._grid, panes, low, high)
            low = high

    def _give(self, rows: pa.RecordBatch, at: Numbers, ends: Numbers) -> None:
        if not len(at):
            return
        rows = rows.take(pa.array(at))
        keys = group_rows(self._keys.columns(rows), len(at)).codes.astype(np.int64)
        # Numbers of windows are narrower than their times, and sort as fast as one word.
        order = self._order.sort(rows, [np.unique(ends, return_inverse=True)[1], keys])
        starts = run_starts(ends[order], keys[order])
        nth = np.arange(len(order)) - starts
        if self._count is not None:
            first = nth < self._count
            order, starts, nth = order[first], starts[first], nth[first]
            starts = np.arange(len(order)) - nth
        ranks = self._ranked(rows, order, starts, nth)
        given, ends = rows.take(pa.array(order)), ends[order]
        columns = [c for name, c in zip(given.schema.names, given.columns) if name != TIME_COLUMN]
        columns += [time_array(self._grid.starts(ends)), time_array(ends)]
        columns += [pa.array(ranks[kind]) for kind in self._ranks.values()]
        columns.append(time_array(ends - 1))
        self._ctx.collect(pa.RecordBatch.from_arrays(columns, schema=self.out_schema))

    def _ranked(
        self, rows: pa.RecordBatch, order: Numbers, starts: Numbers, nth: Numbers
    ) -> dict[RankKind, Numbers]:
        """The ranks that are asked for, of the rows in `order`."""
        kinds = set(self._ranks.values())
        found: dict[RankKind, Numbers] = {"row_number": nth + 1}
        if not kinds - {"row_number"}:
            return found
        anew = ~self._order.ties(rows, order) | (nth == 0)
        leaders = np.maximum.accumulate(np.where(anew, np.arange(len(order)), 0))
        found["rank"] = nth[leaders] + 1
        steps = np.cumsum(anew)
        found["dense_rank"] = steps - steps[starts] + 1
        return found

    def before_snapshot(self, checkpoint_id: int) -> None:
        """Bring the rows into state."""
        self._rows.spill()


class _PaneRows:
    """Rows by pane: those at hand, and those in the state backend."""

    def __init__(
        self, grid: PaneGrid, keys: Keys, order: RowOrder, schema: pa.Schema, count: int | None
    ) -> None:
        self._grid, self._keys, self._order = grid, keys, order
        self._schema, self._count = schema, count
        self._values = pa.schema([f for f in schema if f.name not in keys.names])
        self._pending: list[pa.RecordBatch] = []
        self._pending_rows = 0
        self._panes: set[int] = set()

    def open(self, state: StateBackend) -> None:
        """Find what there is."""
        self._table = state.table("rows", self._keys.schema, self._values)
        for batch in self._table.scan():
            self._panes.update(np.unique(self._grid.panes(times_of(batch))).tolist())
        self._compacted_rows = self._table.rows

    @property
    def panes(self) -> Numbers:
        """The panes that hold anything, ascending."""
        return np.array(sorted(self._panes), np.int64)

    def add(self, batch: pa.RecordBatch, panes: Numbers) -> None:
        """Keep copies of the rows; those that cannot matter go when enough have come."""
        self._panes.update(np.unique(panes).tolist())
        self._pending.append(batch.take(pa.array(np.arange(batch.num_rows))))
        self._pending_rows += self._pending[-1].num_rows
        if self._pending_rows >= PENDING_ROWS_MAX:
            self.spill()

    def _first(self, batch: pa.RecordBatch) -> Numbers:
        """The rows that are among the first of their key and pane."""
        if self._count is None:
            return np.arange(batch.num_rows)
        panes = pa.array(self._grid.panes(times_of(batch)))
        columns = [panes, *(self._keys.columns(batch) if self._keys.names else ())]
        groups = group_rows(columns, batch.num_rows).codes.astype(np.int64)
        order = self._order.sort(batch, [groups])
        nth = np.arange(len(order)) - run_starts(groups[order])
        return np.sort(order[nth < self._count])

    def spill(self) -> None:
        """Bring what is at hand into state."""
        if not self._pending:
            return
        rows = pa.concat_batches(self._pending)
        self._pending, self._pending_rows = [], 0
        self._append(rows)
        if (
            self._count is not None
            and self._table.rows > PENDING_ROWS_MAX + 2 * self._compacted_rows
        ):
            self._append(pa.concat_batches(self._whole(self._table.expire(WATERMARK_MAX))))
            self._compacted_rows = self._table.rows

    def _append(self, rows: pa.RecordBatch) -> None:
        if self._count is not None:
            rows = rows.take(pa.array(self._first(rows)))
        keys = self._keys.columns(rows)
        values = rows.select(self._values.names)
        panes = self._grid.panes(times_of(rows))
        self._table.append(self._keys.batch(keys), values, panes, self._keys.hashes(keys))

    def take_before(self, pane: int) -> list[pa.RecordBatch]:
        """Remove and return all panes that start before `pane`."""
        self.spill()
        if not any(each < pane for each in self._panes):
            return []
        self._panes = {each for each in self._panes if each >= pane}
        found = self._whole(self._table.expire(pane))
        self._compacted_rows = min(self._compacted_rows, self._table.rows)
        return found

    def read(self) -> list[pa.RecordBatch]:
        """All rows, which stay."""
        self.spill()
        return self._whole(self._table.scan())

    def _whole(self, batches: Iterator[pa.RecordBatch]) -> list[pa.RecordBatch]:
        return [batch.select(self._schema.names) for batch in batches if batch.num_rows]
