"""What a subtask tells about itself, once an interval: counters, and how its time was spent."""

from __future__ import annotations

from penstock.elements.clock import Clock

from .chain import Chain
from .control import ControlLink
from .messages import Statistics


class Meter:
    """Keeps the share of time asleep and blocked; sends Statistics when the interval is over."""

    def __init__(self, clock: Clock, link: ControlLink, interval_s: float) -> None:
        self._clock = clock
        self._link = link
        self._interval_ns = int(interval_s * 1e9)
        self._since_ns = clock.monotonic_ns()
        self._idle_ns = 0
        self._blocked_ns = 0

    def slept(self, elapsed_ns: int, blocked: bool) -> None:
        """The loop slept: for room in an output, or for want of input."""
        if blocked:
            self._blocked_ns += elapsed_ns
        else:
            self._idle_ns += elapsed_ns

    def report(self, watermark: int, chain: Chain) -> None:
        """Send if the interval is over."""
        span_ns = self._clock.monotonic_ns() - self._since_ns
        if span_ns < self._interval_ns:
            return
        self.send(watermark, chain)
        self._since_ns += span_ns
        self._idle_ns = self._blocked_ns = 0

    def send(self, watermark: int, chain: Chain) -> None:
        """Send now."""
        span_ns = max(1, self._clock.monotonic_ns() - self._since_ns)
        counters = chain.counters()
        head = chain.contexts[0].counters
        rows_out = sum(c.counters["rows_out"] for c in chain.contexts)
        self._link.send(
            Statistics(
                rows_in=head["rows_in"],
                rows_out=rows_out,
                watermark=watermark,
                busy=max(0.0, 1 - (self._idle_ns + self._blocked_ns) / span_ns),
                blocked=min(1.0, self._blocked_ns / span_ns),
                counters=counters,
            )
        )
