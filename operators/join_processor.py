"""What joins in windows and intervals have in common; window_join.py and interval_join.py differ.

1. A pair is given as soon as its second row has arrived; `_time` is the later of the two, or just
   behind the watermark where both rows are late in a window that is still open.
2. A row without a match is given once it can have none any more; its `_time` lies behind the last
   watermark: one nanosecond before its window's end, or the end of its interval.
3. A row that is late on arrival goes to LATE (left) or LATE_RIGHT as it came, and is counted.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from penstock.elements.errors import PlanError
from penstock.elements.hash import Hashes
from penstock.elements.signals import TIME_COLUMN

from .event_times import times_of
from .grouping import Mask
from .join_condition import JoinCondition
from .join_paired_rows import PairedRows
from .join_rows import JoinRows, Pairs
from .join_side_rows import rows_of
from .join_sides import (
    LATE_RIGHT,
    LEFT,
    RIGHT,
    Numbers,
    Results,
    Side,
    checked_how,
    join_schema,
    key_hashes,
    without_null_keys,
)
from .processor import LATE, MAIN, Processor, ProcessorContext


class JoinProcessor(Processor):
    """Two ports, LEFT and RIGHT, routed by the same keys. MAIN has `out_schema`."""

    keeps_by_key_only = True

    def __init__(
        self,
        keys: Sequence[str],
        how: str,
        left: pa.Schema,
        right: pa.Schema,
        condition: JoinCondition | None = None,
        who: str = "join",
        location: str = "",
    ) -> None:
        self._how = checked_how(how, who, location)
        if not keys:
            raise PlanError(f"{who}: a join needs at least one key  {location}".rstrip())
        for side, schema in (("left", left), ("right", right)):
            if TIME_COLUMN not in schema.names:
                raise PlanError(f"{who}: the {side} side has no event time  {location}".rstrip())
        self.sides = (Side(LEFT, left, tuple(keys)), Side(RIGHT, right, tuple(keys)))
        self.out_schema = join_schema(left, right, keys, self._how, who, location)
        self._keys = tuple(keys)
        self._condition = condition
        self._results = Results(self.sides[LEFT], self.sides[RIGHT], self.out_schema, self._how)

    @property
    def outputs(self) -> dict[str, pa.Schema]:
        """Results, and the late rows of either side."""
        late = {LATE: self.sides[LEFT].schema, LATE_RIGHT: self.sides[RIGHT].schema}
        return {MAIN: self.out_schema, **late}

    def open(self, ctx: ProcessorContext) -> None:
        """Find the rows of the checkpoint."""
        self._ctx = ctx
        self._paired: PairedRows | None = None
        if self._how == "inner":
            self._paired = PairedRows(
                self.sides, self.out_schema, ctx.state, self._condition, bounded=True
            )
        else:
            left, right = (
                JoinRows(
                    name,
                    self.sides[port].schema,
                    self._keys,
                    ctx.state,
                    counted=self._counts(port),
                )
                for port, name in enumerate(("left", "right"))
            )
            self._kept = (left, right)
        if self._condition is not None:
            self._condition.open(ctx)

    @property
    def rows(self) -> list[int]:
        """Rows that are kept, per side."""
        return [side.rows for side in (self._paired.sides if self._paired else self._kept)]

    def before_snapshot(self, checkpoint_id: int) -> None:
        """Bring what changed into state."""
        for kept in [self._paired] if self._paired else self._kept:
            kept.store()

    def _needs_alone(self, port: int) -> bool:
        """Whether rows of this side are given also by themselves."""
        wanted = ("left", "full", "semi", "anti") if port == LEFT else ("right", "full")
        return self._how in wanted

    def _counts(self, port: int) -> bool:
        """Whether rows of this side remember how often they matched."""
        return self._needs_alone(port)

    # Rows -------------------------------------------------------------------------------------

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """Match rows with the other side, then keep them."""
        times = times_of(batch)
        late = self._late(times, port)
        if late.any():
            rows = batch.filter(pa.array(late))
            self._ctx.count("late", rows.num_rows)
            self._ctx.collect(rows, LATE if port == LEFT else LATE_RIGHT)
            batch, times = batch.filter(pa.array(~late)), times[~late]
        usable = without_null_keys(batch, self._keys)
        if not usable.all() and not self._needs_alone(port):
            batch, times, usable = batch.filter(pa.array(usable)), times[usable], usable[usable]
        if not batch.num_rows:
            return
        hashes = key_hashes(batch, self._keys)
        if self._paired is not None:
            self._pair(self._paired, batch, times, hashes, port)
            return
        counts = np.zeros(batch.num_rows, np.int64)
        if usable.all():
            self._match(batch, times, hashes, port, counts)
        else:
            some = np.flatnonzero(usable)
            counted = np.zeros(len(some), np.int64)
            self._match(batch.take(pa.array(some)), times[some], hashes[some], port, counted)
            counts[some] = counted
        slots = self._kept[port].insert(batch, times, hashes)
        if self._counts(port):
            self._kept[port].matches[slots] = counts

    def _pair(
        self, paired: PairedRows, batch: pa.RecordBatch, times: Numbers, hashes: Hashes, port: int
    ) -> None:
        """Keep the rows of an inner join and give their pairs."""
        between = self._range(times, port)
        for index, slots in paired.take(batch, times, hashes, port, between):
            mine, theirs = paired.pair_times(times, index, slots, port)
            shared = self._windows_shared(mine, theirs)
            if shared is not None:
                index = np.repeat(rows_of(index, slots), shared)
                slots, mine, theirs = (np.repeat(each, shared) for each in (slots, mine, theirs))
            if len(slots):
                later = self._times_of_pairs(mine, theirs)
                self._ctx.collect(paired.results(batch, later, index, slots, port))

    def _match(
        self, batch: pa.RecordBatch, times: Numbers, hashes: Hashes, port: int, counts: Numbers
    ) -> None:
        """Give pairs; adds to `counts`, the matches per row, and to those of the other side."""
        for index, slots in self._matches(batch, times, hashes, port):
            if self._how not in ("semi", "anti"):
                mine, theirs = batch.take(pa.array(index)), self._kept[1 - port].take(slots)
                self._collect_pairs(*((mine, theirs) if port == LEFT else (theirs, mine)))
            if self._counts(port):
                counts += np.bincount(index, minlength=len(counts))
            if self._counts(1 - port):
                others = self._kept[1 - port]
                fresh = np.unique(slots[others.matches[slots] == 0])
                others.note_matches(fresh, np.ones(len(fresh), np.int64))

    def _matches(
        self, batch: pa.RecordBatch, times: Numbers, hashes: Hashes, port: int
    ) -> Iterator[Pairs]:
        """(row of `batch`, slot of the other side) of rows that match, condition included."""
        low, high = self._range(times, port)
        for index, slots in self._kept[1 - port].probe(batch, hashes, low, high):
            if self._condition is not None:
                true = self._condition.of_slots(batch, index, self._kept[1 - port], slots, port)
                index, slots = index[true], slots[true]
            if len(index):
                yield index, slots

    def _collect_pairs(self, left: pa.RecordBatch, right: pa.RecordBatch) -> None:
        later = self._times_of_pairs(times_of(left), times_of(right))
        self._ctx.collect(self._results.beside(left, right, later))

    def _times_of_pairs(self, mine: Numbers, theirs: Numbers) -> Numbers:
        # A pair behind the watermark would be late for the windows behind this operator.
        later: Numbers = np.maximum(np.maximum(mine, theirs), self._ctx.watermark + 1)
        return later

    def _collect_alone(self, rows: pa.RecordBatch, port: int, times: Numbers) -> None:
        if rows.num_rows:
            self._ctx.collect(self._results.alone(rows, port, times))

    def _windows_shared(self, mine: Numbers, theirs: Numbers) -> Numbers | None:
        """How often each pair is given, by the times of its rows; None: once."""
        return None

    @abstractmethod
    def _late(self, times: Numbers, port: int) -> Mask:
        """Which rows came too late."""

    @abstractmethod
    def _range(self, times: Numbers, port: int) -> tuple[Numbers, Numbers]:
        """The times of the other side, inclusive, at which rows of this side may match."""
