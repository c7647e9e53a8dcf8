"""Context: what user code may ask of its surroundings; the same object in every call."""

from __future__ import annotations

from datetime import datetime

from penstock.elements.clock import Clock
from penstock.elements.signals import WATERMARK_MIN
from penstock.state.backend import OperatorList, Redistribution

from .current_row import CurrentRow
from .instants import instant
from .processor import ProcessorContext


class Context:
    """Time, place and non-keyed state of one operator in one subtask."""

    def __init__(self, ctx: ProcessorContext, row: CurrentRow | None = None) -> None:
        self._ctx = ctx
        self._row = row or CurrentRow()
        self._watermark_ns = WATERMARK_MIN
        self._watermark: datetime | None = None
        self._dealt_out: list[OperatorList] = []

    @property
    def event_time(self) -> datetime | None:
        """The event time of the row (or timer) at hand; None for streams without."""
        time_ns = self._row.time_ns()
        return None if time_ns is None else instant(time_ns)

    @property
    def is_late(self) -> bool:
        """Whether the row came after the watermark had passed its event time."""
        time_ns = self._row.time_ns()
        if time_ns is None or self._row.timer:
            return False
        return time_ns <= self._ctx.watermark

    @property
    def watermark(self) -> datetime | None:
        """Event time up to which all rows have come; None before anything is known."""
        # User code asks for it again and again between two changes.
        if self._ctx.watermark != self._watermark_ns:
            self._watermark_ns = self._ctx.watermark
            self._watermark = instant(self._watermark_ns)
        return self._watermark

    def now(self) -> datetime:
        """The wall clock, aware in UTC; a mock one in tests. Results that use it do not repeat."""
        return instant(self._ctx.clock.wall_ns())

    @property
    def clock(self) -> Clock:
        """The engine's clock."""
        return self._ctx.clock

    @property
    def epoch(self) -> int:
        """The number of the last completed checkpoint."""
        return self._ctx.checkpoint_id

    @property
    def operator(self) -> str:
        """This operator's name."""
        return self._ctx.operator_name

    @property
    def subtask(self) -> int:
        """Which of the `parallelism` instances this is."""
        return self._ctx.subtask

    @property
    def parallelism(self) -> int:
        """How many instances there are in this attempt."""
        return self._ctx.parallelism

    @property
    def run_id(self) -> str:
        """Made once per fresh start of the job, kept over restarts."""
        return self._ctx.run_id

    @property
    def scratch_dir(self) -> str:
        """A local directory for this attempt; removed with it."""
        return self._ctx.scratch_dir

    def operator_state(self, name: str, redistribute: Redistribution = "list") -> OperatorList:
        """Non-keyed state: a list of `bytes` that survives. Declare it in open().

        When the parallelism changes, "list" deals the items out, "union" gives all to everyone,
        "broadcast" keeps one copy of what all hold alike. `before_snapshot` is the time to fill it.
        """
        found = self._ctx.state.operator_list(name, redistribute)
        if redistribute == "list":
            self._dealt_out.append(found)
        return found

    def forget_dealt_out(self) -> None:
        """The engine's, after on_end: what was yielded there must not be dealt to others."""
        for items in self._dealt_out:
            items.replace([])

    def count(self, metric: str, amount: int = 1) -> None:
        """Add to a counter that the job's status shows."""
        self._ctx.count(metric, amount)
