"""IntervalJoinProcessor: pairs of rows with equal keys whose event times are not too far apart.

A row without a match is given when the watermark has passed its last possible match; its `_time`
is then, so it lies behind what was promised before. Rows at or behind the watermark are late.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from penstock.elements.errors import PlanError
from penstock.elements.signals import WATERMARK_MAX

from .grouping import Mask
from .join_condition import JoinCondition
from .join_processor import JoinProcessor
from .join_sides import LEFT, RIGHT, Numbers


class IntervalJoinProcessor(JoinProcessor):
    """The right row's event time minus the left one's lies in `between`, ends included."""

    def __init__(
        self,
        between: tuple[int, int],
        keys: Sequence[str],
        how: str,
        left: pa.Schema,
        right: pa.Schema,
        condition: JoinCondition | None = None,
        who: str = "join",
        location: str = "",
    ) -> None:
        low_ns, high_ns = between
        if low_ns > high_ns:
            raise PlanError(f"{who}: within=(low, high) has low > high  {location}".rstrip())
        super().__init__(keys, how, left, right, condition, who, location)
        self._low_ns, self._high_ns = low_ns, high_ns

    def _late(self, times: Numbers, port: int) -> Mask:
        return times <= self._ctx.watermark

    def _range(self, times: Numbers, port: int) -> tuple[Numbers, Numbers]:
        if port == LEFT:
            return times + self._low_ns, times + self._high_ns
        return times - self._high_ns, times - self._low_ns

    def _reach(self, port: int) -> int:
        """How far behind a row's own time its last possible match is."""
        return self._high_ns if port == LEFT else -self._low_ns

    def on_watermark(self, watermark: int) -> None:
        """Forget rows that can have no match any more; give those that had none."""
        edges = [_unreachable_before(watermark, self._reach(port)) for port in (LEFT, RIGHT)]
        if self._paired is not None:
            self._paired.cut((edges[LEFT], edges[RIGHT]))
            return
        for port in (LEFT, RIGHT):
            reach, kept = self._reach(port), self._kept[port]
            slots = kept.older(edges[port])
            if not len(slots):
                continue
            if self._needs_alone(port):
                matched = kept.matches[slots] > 0
                given = slots[matched if self._how == "semi" else ~matched]
                times = kept.times[given]
                # It was certain at the end of its reach, but not before the row itself came.
                self._collect_alone(kept.take(given), port, np.maximum(times, times + reach))
            kept.remove(slots)


def _unreachable_before(watermark: int, reach_ns: int) -> int:
    """Rows older than this have had the watermark pass `reach_ns` behind them."""
    return WATERMARK_MAX if watermark == WATERMARK_MAX else watermark - reach_ns + 1
