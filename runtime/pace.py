"""How fast a chain works, and what follows for slices and for rows in flight (hazard 8).

Pure: durations enter as numbers. Nothing but the pace of the chain itself is measured, so a slow
reader downstream does not make this one look slow.
"""

from __future__ import annotations

SLICE_NS = 20_000_000
"""A batch is handed over in slices of about this much work, so that commands are heard."""
FIRST_ROWS = 256
"""Rows of the first slice and in flight, before anything has been measured."""
ROWS_MAX = 64 * 1024
"""No slice and no limit needs to be larger."""
_WEIGHT = 0.3
_REPORT_CHANGE = 1.3
"""A new limit is published when it differs by this factor."""


class Pace:
    """An exponential average of nanoseconds per row."""

    def __init__(self, inflight_ns: int) -> None:
        self._inflight_ns = inflight_ns
        self._ns_per_row: float | None = None
        self._published = 0

    def measured(self, rows: int, elapsed_ns: int) -> None:
        """`rows` took `elapsed_ns` of the chain's own work."""
        cost = max(1, elapsed_ns) / max(1, rows)
        if self._ns_per_row is None:
            self._ns_per_row = cost
        else:
            self._ns_per_row += _WEIGHT * (cost - self._ns_per_row)

    def _rows_in(self, span_ns: int) -> int:
        if self._ns_per_row is None:
            return FIRST_ROWS
        return max(1, min(ROWS_MAX, int(span_ns / self._ns_per_row)))

    @property
    def slice_rows(self) -> int:
        """Rows to hand over before commands are served again."""
        return self._rows_in(SLICE_NS)

    def new_limit(self) -> int | None:
        """Rows that may wait unread, when it has changed enough to be worth publishing."""
        limit = self._rows_in(self._inflight_ns)
        low, high = self._published / _REPORT_CHANGE, self._published * _REPORT_CHANGE
        if self._published and low < limit < high:
            return None
        self._published = limit
        return limit
