"""What joins of two streams by key have in common; window_join.py and interval_join.py differ.

1. A pair is given as soon as its second row has arrived; `_time` is the later of the two.
2. A row without a match is given once it can have none any more; its `_time` lies behind the last
   watermark: one nanosecond before its window's end, or the end of its interval.
3. A row that is late on arrival goes to LATE (left) or LATE_RIGHT as it came, and is counted.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import pyarrow as pa

from penstock.elements.errors import PlanError
from penstock.elements.hash import Hashes

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
from .processor import LATE, MAIN, Processor, ProcessorContext


class JoinProcessor(Processor):
    """Two ports, LEFT and RIGHT, routed by the same keys. MAIN has `out_schema`."""

    ways: ClassVar[tuple[str, ...]] = ("inner", "left", "right", "full", "semi", "anti")

    def __init__(
        self,
        keys: Sequence[str],
        how: str,
        left: pa.Schema,
        right: pa.Schema,
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
    def outputs(self) -> dict[str, pa.Schema]:
        """Results, and the late rows of either side."""
        late = {LATE: self.sides[LEFT].schema, LATE_RIGHT: self.sides[RIGHT].schema}
        return {MAIN: self.out_schema, **late}

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
