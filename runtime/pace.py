"""How fast a chain works, and what follows for slices and for rows in flight (hazard 8).

Pure: durations enter as numbers. Nothing but the pace of the chain itself is measured, so a slow
reader downstream does not make this one look slow.

A slice costs something however few its rows are: calls, state, on a busy machine the wait for a
core. Taken for a cost of rows, it would make slices smaller, rows dearer, slices smaller still,
down to one row each. So a line is fitted through recent slices: its slope is what a row costs.
"""

from __future__ import annotations

SLICE_NS = 20_000_000
"""A batch is handed over in slices of about this much work, so that commands are heard."""
FIRST_ROWS = 256
"""Rows of the first slice and in flight, before anything has been measured."""
ROWS_MAX = 64 * 1024
"""No slice and no limit needs to be larger."""
_WEIGHT = 0.3
"""Of the newest slice, among all that went before."""
_SPREAD_MIN = 0.05
"""Slices of nearly one size (standard deviation over mean) say nothing about a fixed cost."""
_TRIAL = 1.25
"""By so much they are then made longer, to find out."""
_ROW_SHARE_MIN = 1 / 8
"""At least this part of a slice is ascribed to its rows, whatever the line says."""
_GROWTH = 2
"""A slice may be so many times the longest of late: a line misleads far from its points."""
_REPORT_CHANGE = 1.3
"""A new limit is published when it differs by this factor."""


class Pace:
    """Exponential averages over slices: of ns per row against 1 per row, and how they vary.

    In these terms what a row costs is the height of the line, and the rest of a slice its slope;
    short and long slices count alike.
    """

    def __init__(self, inflight_ns: int) -> None:
        self._inflight_ns = inflight_ns
        self._cost = 0.0  # ns per row; 0: nothing has been measured
        self._part = 0.0  # of a slice, per row
        self._variance = 0.0
        self._covariance = 0.0
        self._longest = 0.0
        self._published = 0

    def measured(self, rows: int, elapsed_ns: int) -> None:
        """`rows` took `elapsed_ns` of the chain's own work."""
        rows = max(1, rows)
        cost, part = max(1, elapsed_ns) / rows, 1 / rows
        self._longest = max(rows, self._longest - _WEIGHT * (self._longest - rows))
        if not self._cost:
            self._cost, self._part = cost, part
            return
        off_cost, off_part = cost - self._cost, part - self._part
        self._cost += _WEIGHT * off_cost
        self._part += _WEIGHT * off_part
        kept = 1 - _WEIGHT
        self._variance = kept * (self._variance + _WEIGHT * off_part**2)
        self._covariance = kept * (self._covariance + _WEIGHT * off_part * off_cost)

    @property
    def slice_rows(self) -> int:
        """Rows to hand over before commands are served again."""
        if not self._cost:
            return FIRST_ROWS
        # If a row costs no more than its part of a whole slice, this many are safe in any case.
        rows = SLICE_NS / self._cost
        if self._varied:
            row, fixed = self._line()
            # Rows shall be worth their slice: at least half of its time is theirs.
            fair = max(SLICE_NS - fixed, fixed) / row
            rows = max(rows, min(fair, self._longest * _GROWTH))
        else:
            longer = self._longest * _TRIAL + 1
            if longer * self._cost < self._inflight_ns:
                rows = max(rows, longer)
        return max(1, min(ROWS_MAX, int(rows)))

    @property
    def _varied(self) -> bool:
        return self._variance > (_SPREAD_MIN * self._part) ** 2

    def _line(self) -> tuple[float, float]:
        """Nanoseconds of a row, and of a slice beside its rows."""
        fixed = max(0.0, self._covariance / self._variance) if self._varied else 0.0
        row = max(self._cost * _ROW_SHARE_MIN, self._cost - fixed * self._part)
        return row, fixed

    def new_limit(self) -> int | None:
        """Rows that may wait unread, when it has changed enough to be worth publishing."""
        limit = self._limit()
        low, high = self._published / _REPORT_CHANGE, self._published * _REPORT_CHANGE
        if self._published and low < limit < high:
            return None
        self._published = limit
        return limit

    def _limit(self) -> int:
        if not self._cost:
            return FIRST_ROWS
        row, fixed = self._line()
        a_slice = self.slice_rows
        # What waits is worked off in slices; less than one of them would keep slices small.
        rows = max(a_slice, self._inflight_ns / (row + fixed / a_slice))
        return max(1, min(ROWS_MAX, int(rows)))
