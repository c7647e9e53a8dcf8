"""Windows whose keys are split over salts, so that a hot one is worked on by several subtasks.

Results once: the first stage gives the parts of each (key, salt) when a window is complete, the
second folds them by key and window end. Results early or refined: the live groups of
updating_split, by window. Lateness is judged by the first stage, which has the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from penstock.elements.buffers import fixed_values
from penstock.operators.aggregates import Aggregation
from penstock.operators.event_times import TIME_FIELD, TIME_TYPE
from penstock.operators.split_parts import (
    SALT,
    SALT_FIELD,
    accumulators_of,
    merging,
    parts_of_values,
    parts_schema,
)
from penstock.operators.two_phase import PANE_FIELD, GlobalAggregateProcessor
from penstock.operators.updating_groups import Slots
from penstock.operators.updating_split import FirstStage, SecondStage

from .aggregate import WindowAggregateProcessor
from .assign import PaneGrid, Times
from .descriptors import PaneWindow
from .partials import Folding, MultisetRows, Partials
from .results import END, START
from .updating import UpdatingWindowProcessor

BOUNDS = [pa.field(name, TIME_TYPE, nullable=False) for name in (START, END)]


class PartFolding(Folding):
    """Folds rows as ever, and reads parts where others read results."""

    def results(self, partials: Partials, values: Sequence[MultisetRows]) -> list[pa.Array]:
        """The row count, then the parts of each call."""
        sets = [self._by_group(partials, rows) for rows in values]
        found = [partials.parts[0]]
        at = 1
        for call in self.aggregation.calls:
            if call.accumulator is not None:
                width = len(call.accumulator.stored)
                found.extend(partials.parts[at : at + width])
                at += width
            else:
                assert call.multiset is not None
                assert call.reading is not None
                owners, content, counts = sets[call.multiset]
                found.extend(parts_of_values(call.reading, owners, len(partials), content, counts))
        return found


def without_salt(rows: pa.RecordBatch) -> pa.RecordBatch:
    """Late rows as they came."""
    return rows.drop_columns([SALT])


def window_parts(keys: Sequence[pa.Field], aggregation: Aggregation) -> pa.Schema:
    """What crosses between the stages of windows that give results once."""
    parts = parts_schema([*keys, SALT_FIELD, *BOUNDS], accumulators_of(aggregation))
    return pa.schema([*parts, TIME_FIELD])


class WindowPartsProcessor(WindowAggregateProcessor):
    """Input: rows with a salt. Outputs: MAIN, parts by key, salt and window; LATE, without it."""

    def __init__(
        self,
        window: PaneWindow,
        keys: Sequence[str],
        aggregation: Aggregation,
        in_schema: pa.Schema,
        who: str = "aggregate",
        location: str = "",
    ) -> None:
        """`keys` without the salt."""
        salted = [*keys, SALT]
        super().__init__(window, salted, aggregation, in_schema, 0, who, location)
        self.out_schema = window_parts([in_schema.field(name) for name in keys], aggregation)
        self._folding = PartFolding(aggregation, [in_schema.field(name) for name in salted])

    def _send_late(self, rows: pa.RecordBatch) -> None:
        super()._send_late(without_salt(rows))


class WindowMergeProcessor(GlobalAggregateProcessor):
    """Input: parts; output: MAIN as of WindowAggregateProcessor over the rows themselves."""

    def __init__(
        self,
        window: PaneWindow,
        keys: Sequence[str],
        aggregation: Aggregation,
        rows_schema: pa.Schema,
        who: str = "aggregate",
        location: str = "",
    ) -> None:
        """`rows_schema` is that of the rows before they had a salt."""
        merged = merging(aggregation, accumulators_of(aggregation))
        super().__init__(window, keys, merged, rows_schema, 0, who, location)
        self.in_schema = window_parts([rows_schema.field(name) for name in keys], aggregation)
        # Such windows are panes themselves, also where their lengths differ, as days do.
        self._begin_is_pane = self._grid.single
        if not self._begin_is_pane:
            self._grid = EndGrid.of(self._grid)

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """A part belongs to one window, so its end is as good as a pane."""
        if self._begin_is_pane:
            panes = batch.column(START)
        else:
            ends = fixed_values(batch.column(END))
            panes = pa.array(ends - self._grid.pane_ns)
        names = [name for name in self.in_schema.names if name not in (SALT, START, END)]
        kept = batch.select(names)
        super().process(kept.add_column(0, PANE_FIELD, panes.cast(pa.int64())), port)


@dataclass(frozen=True)
class EndGrid(PaneGrid):
    """One pane per window, told by its end; where the window begins is known to `windows`."""

    windows: PaneGrid | None = None

    @staticmethod
    def of(windows: PaneGrid) -> EndGrid:
        """For windows of any kind that end at regular steps."""
        step = windows.step_ns
        shift = windows.offset_ns if windows.cumulative else windows.offset_ns + windows.size_ns
        return EndGrid(step, step, step, step, shift % step, windows=windows)

    def starts(self, ends: Times) -> Times:
        """As of the windows themselves."""
        assert self.windows is not None
        return self.windows.starts(ends)


class UpdatingWindowPartsProcessor(FirstStage, UpdatingWindowProcessor):
    """Input: rows with a salt. Outputs: MAIN, an updating stream of parts; LATE, without it."""

    def __init__(
        self,
        window: PaneWindow,
        keys: Sequence[str],
        aggregation: Aggregation,
        in_schema: pa.Schema,
        early_ns: int | None,
        lateness_ns: int = 0,
        who: str = "aggregate",
        location: str = "",
    ) -> None:
        """`keys` without the salt."""
        salted = [*keys, SALT]
        super().__init__(
            window, salted, aggregation, in_schema, early_ns, lateness_ns, who, location
        )
        self._give_parts(aggregation, in_schema, who, location)

    def _send_late(self, rows: pa.RecordBatch) -> None:
        super()._send_late(without_salt(rows))


class UpdatingWindowMergeProcessor(SecondStage, UpdatingWindowProcessor):
    """Input: parts; output: MAIN as of UpdatingWindowProcessor over the rows themselves."""

    def __init__(
        self,
        window: PaneWindow,
        keys: Sequence[str],
        aggregation: Aggregation,
        rows_schema: pa.Schema,
        early_ns: int | None,
        lateness_ns: int = 0,
        who: str = "aggregate",
        location: str = "",
    ) -> None:
        """`rows_schema` is that of the rows before they had a salt."""
        super().__init__(
            window, keys, aggregation, rows_schema, early_ns, lateness_ns, who, location
        )
        self._merge_parts(aggregation, rows_schema, who, location)

    def _with_salt(self, groups: list[pa.Field]) -> list[pa.Field]:
        return [*groups[:-2], SALT_FIELD, *groups[-2:]]

    def _ages(self, batch: pa.RecordBatch) -> Slots:
        ages: Slots = fixed_values(batch.column(END)) - 1
        return ages

    def _expect_changes(self, ages: Slots) -> None:
        self._expect_end(int(ages.min()))
