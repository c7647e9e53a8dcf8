"""IntervalJoinProcessor: pairs of rows with equal keys whose event times are not too far apart.

A row without a match is given when the watermark has passed its last possible match; its `_time`
is then, so it lies behind what was promised before. Rows at or behind the watermark are late.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from penstock.elements.errors import PlanError
from penstock.elements.hash import Hashes
from penstock.elements.signals import TIME_COLUMN, WATERMARK_MAX, WATERMARK_MIN

from .event_times import times_of
from .grouping import Mask
from .join_processor import JoinProcessor
from .join_sides import LEFT, RIGHT, Kept, Numbers, key_hashes
from .processor import ProcessorContext

FOREVER_NS = 2**62
"""A bound this wide is none: nothing expires."""


class IntervalJoinProcessor(JoinProcessor):
    """The right row's event time minus the left one's lies in `between`, ends included.

    FOREVER_NS on both sides keeps everything, and then the streams need no event time.
    """

    ways = ("inner", "left", "right", "full")

    def __init__(
        self,
        between: tuple[int, int],
        keys: Sequence[str],
        how: str,
        left: pa.Schema,
        right: pa.Schema,
        who: str = "join",
        location: str = "",
    ) -> None:
        low_ns, high_ns = between
        if low_ns > high_ns:
            raise PlanError(f"{who}: within=(low, high) has low > high  {location}".rstrip())
        super().__init__(keys, how, left, right, who, location)
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
