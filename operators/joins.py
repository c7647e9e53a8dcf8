"""Joins of two streams by key: within a window, or within a bound on the distance in time.

1. A pair is given as soon as its second row has arrived; `_time` is the later of the two.
2. A row without a match is given once it can have none any more; its `_time` lies behind the last
   watermark: one nanosecond before its window's end, or the end of its interval.
3. A row that is late on arrival goes to LATE (left) or LATE_RIGHT as it came, and is counted.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import pyarrow as pa

from penstock.elements.errors import PlanError
from penstock.elements.hash import Hashes
from penstock.elements.signals import TIME_COLUMN, WATERMARK_MAX, WATERMARK_MIN

from .event_times import times_of
from .grouping import Mask
from .join_sides import (
    LATE_RIGHT,
    LEFT,
    RIGHT,
    Kept,
    Numbers,
    Results,
    Side,
    checked_how,
    join_schema,
    key_hashes,
    without_null_keys,
)
from .processor import LATE, Processor, ProcessorContext

FOREVER_NS = 2**62
"""A bound this wide is none: nothing expires."""


class JoinProcessor(Processor):
    """Two ports, LEFT and RIGHT, routed by the same keys. MAIN has `out_schema`."""

    ways: ClassVar[tuple[str, ...]] = ("inner", "left", "right", "full", "semi", "anti")

    def __init__(
        self,
        keys: Sequence[str],
        left: pa.Schema,
        right: pa.Schema,
        how: str = "inner",
        who: str = "join",
        location: str = "",
    ) -> None:
        self._how = checked_how(how, who, location)
        if self._how not in self.ways:
            raise PlanError(f"{who}: how={how!r} needs  window=  {location}".rstrip())
        if not keys:
            raise PlanError(f"{who}: a join needs at least one key  {location}".rstrip())
        self.sides = (Side(LEFT, left, tuple(keys)), Side(RIGHT, right, tuple(keys)))
        self.out_schema = join_schema(left, right, keys, self._how, who, location)
        self._keys = tuple(keys)
        self._results = Results(self.sides[LEFT], self.sides[RIGHT], self.out_schema, self._how)

    @property
    def late_schemas(self) -> dict[str, pa.Schema]:
        """The side outputs for late rows."""
        return {LATE: self.sides[LEFT].schema, LATE_RIGHT: self.sides[RIGHT].schema}

    def open(self, ctx: ProcessorContext) -> None:
        """Find the rows of the checkpoint."""
        self._ctx = ctx
        self._kept = (Kept(self.sides[LEFT], ctx.state), Kept(self.sides[RIGHT], ctx.state))

    def _needs_alone(self, port: int) -> bool:
        """Whether rows of this side are given also by themselves."""
        wanted = ("left", "full", "semi", "anti") if port == LEFT else ("right", "full")
        return self._how in wanted

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """Match rows with the other side, then keep them."""
        times = self._kept[port].times(batch)
        late = self._late(times, port)
        if late.any():
            rows = batch.filter(pa.array(late))
            self._ctx.count("late", rows.num_rows)
            self._ctx.collect(rows, LATE if port == LEFT else LATE_RIGHT)
            batch, times = batch.filter(pa.array(~late)), times[~late]
        if not self._needs_alone(port):
            usable = without_null_keys(batch, self._keys)
            if not usable.all():
                batch, times = batch.filter(pa.array(usable)), times[usable]
        if not batch.num_rows:
            return
        hashes = key_hashes(batch, self._keys)
        if self._how not in ("semi", "anti"):
            self._match(batch, times, port, hashes)
        self._keep(batch, times, port, hashes)

    def _keep(self, batch: pa.RecordBatch, times: Numbers, port: int, hashes: Hashes) -> None:
        self._kept[port].append(batch, times, hashes)

    def _match(self, batch: pa.RecordBatch, times: Numbers, port: int, hashes: Hashes) -> None:
        low, high = self._range(times, port)
        keys = batch.select(list(self._keys))
        index, found = self._kept[1 - port].probe(keys, low, high, hashes)
        if len(index):
            given = batch.take(pa.array(index))
            pair = (given, found) if port == LEFT else (found, given)
            self._collect_pairs(*pair)

    def _collect_pairs(self, left: pa.RecordBatch, right: pa.RecordBatch) -> None:
        self._ctx.collect(self._results.pairs(left, right))

    def _collect_alone(self, rows: pa.RecordBatch, port: int, times: Numbers) -> None:
        if rows.num_rows:
            self._ctx.collect(self._results.alone(rows, port, times))

    @abstractmethod
    def _late(self, times: Numbers, port: int) -> Mask:
        """Which rows came too late."""

    @abstractmethod
    def _range(self, times: Numbers, port: int) -> tuple[Numbers, Numbers]:
        """The times of the other side, inclusive, at which rows of this side may match."""


class IntervalJoinProcessor(JoinProcessor):
    """The right row's event time minus the left one's lies in [low_ns, high_ns].

    FOREVER_NS on both sides keeps everything, and then the streams need no event time.
    """

    ways = ("inner", "left", "right", "full")

    def __init__(
        self,
        low_ns: int,
        high_ns: int,
        keys: Sequence[str],
        left: pa.Schema,
        right: pa.Schema,
        how: str = "inner",
        who: str = "join",
        location: str = "",
    ) -> None:
        if low_ns > high_ns:
            raise PlanError(f"{who}: within=(low, high) has low > high  {location}".rstrip())
        super().__init__(keys, left, right, how, who, location)
        self._low_ns = max(-FOREVER_NS, low_ns)
        self._high_ns = min(FOREVER_NS, high_ns)
        timed = TIME_COLUMN in left.names and TIME_COLUMN in right.names
        if not timed and not self._forever:
            raise PlanError(f"{who}: within= needs event time on both sides  {location}".rstrip())
        if not timed and TIME_COLUMN in (*left.names, *right.names):
            raise PlanError(f"{who}: only one side has event time  {location}".rstrip())
        if how != "inner" and self._forever:
            raise PlanError(
                f"{who}: how={how!r} gives rows without a match, which needs a bound  {location}"
            )

    @property
    def _forever(self) -> bool:
        return self._low_ns == -FOREVER_NS and self._high_ns == FOREVER_NS

    def _late(self, times: Numbers, port: int) -> Mask:
        if self._forever:
            return np.zeros(len(times), np.bool_)
        return times <= self._ctx.watermark

    def _range(self, times: Numbers, port: int) -> tuple[Numbers, Numbers]:
        if self._forever:
            return np.full_like(times, WATERMARK_MIN), np.full_like(times, WATERMARK_MAX)
        if port == LEFT:
            return times + self._low_ns, times + self._high_ns
        return times - self._high_ns, times - self._low_ns

    def _reach(self, port: int) -> int:
        """How far behind a row's own time its last possible match is."""
        return self._high_ns if port == LEFT else -self._low_ns

    def open(self, ctx: ProcessorContext) -> None:
        """Find the rows of the checkpoint."""
        super().open(ctx)
        # In a full join a row is compared with the other side after its own time has come, so
        # rows wait for their own time in tables of their own.
        self._waiting = (
            tuple(Kept(side, ctx.state, "_waiting") for side in self.sides)
            if self._how == "full"
            else self._kept
        )

    def _keep(self, batch: pa.RecordBatch, times: Numbers, port: int, hashes: Hashes) -> None:
        super()._keep(batch, times, port, hashes)
        if self._how == "full":
            self._waiting[port].append(batch, times, hashes)

    def on_watermark(self, watermark: int) -> None:
        """Give rows that can have no match any more; forget what is out of reach."""
        if self._forever:
            return
        alone = [port for port in (LEFT, RIGHT) if self._needs_alone(port)]
        for port in alone:
            self._give_unmatched(port, watermark)
        for port in (LEFT, RIGHT):
            if self._how == "full" or port not in alone:
                # The other side's rows are compared with these when their own time has come,
                # which is at most the whole width later.
                width = self._high_ns - self._low_ns if 1 - port in alone else self._reach(port)
                before = _unreachable_before(watermark, max(self._reach(port), width))
                self._kept[port].take_before(before)

    def _give_unmatched(self, port: int, watermark: int) -> None:
        before = _unreachable_before(watermark, self._reach(port))
        rows = self._waiting[port].take_before(before)
        if rows is None:
            return
        times = times_of(rows)
        low, high = self._range(times, port)
        keys = rows.select(list(self._keys))
        hashes = key_hashes(rows, self._keys)
        index, _ = self._kept[1 - port].probe(keys, low, high, hashes)
        single = np.ones(rows.num_rows, np.bool_)
        single[index] = False
        at = np.maximum(times, times + self._reach(port))[single]
        self._collect_alone(rows.filter(pa.array(single)), port, at)


def _unreachable_before(watermark: int, reach_ns: int) -> int:
    """Rows older than this have had the watermark pass `reach_ns` behind them."""
    return WATERMARK_MAX if watermark == WATERMARK_MAX else watermark - reach_ns + 1
