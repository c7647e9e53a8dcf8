"""When to start again after a failure, and when to give up: pure.

The delay doubles with each failure in a row up to a cap; a healthy time resets the count.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from penstock.elements.errors import AttemptFailure

FAILURES_MAX = 100
"""Causes kept for the final report; older ones are dropped."""


@dataclass(frozen=True)
class RestartPolicy:
    """`attempts` restarts in a row at most; running for `healthy_ns` forgives all before."""

    attempts: int
    delay_ns: int
    delay_ns_max: int
    healthy_ns: int


class Restarts:
    """The count, the causes and the time of the next start."""

    def __init__(self, policy: RestartPolicy) -> None:
        self._policy = policy
        self._in_a_row = 0
        self._running_since_ns: int | None = None
        self._failures: deque[AttemptFailure] = deque(maxlen=FAILURES_MAX)
        self.wake_ns = 0

    @property
    def failures(self) -> tuple[AttemptFailure, ...]:
        """Why each attempt since the last healthy time ended."""
        return tuple(self._failures)

    @property
    def exhausted(self) -> bool:
        """No further start is allowed."""
        return self._in_a_row > self._policy.attempts

    @property
    def verdict(self) -> str:
        """Why there is no further start."""
        return f"the job failed {self._in_a_row} times in a row ({self._policy.attempts} restarts)"

    @property
    def next(self) -> str:
        """Which one in a row the restart to come is."""
        return f"restart {self._in_a_row} of {self._policy.attempts}"

    def on_running(self, now_ns: int) -> None:
        """An attempt has started."""
        self._running_since_ns = now_ns

    def on_failure(self, attempt: int, cause: str, now_ns: int) -> None:
        """An attempt has ended; sets when the next may start."""
        since_ns, self._running_since_ns = self._running_since_ns, None
        if since_ns is not None and now_ns - since_ns >= self._policy.healthy_ns:
            self._in_a_row = 0
            self._failures.clear()
        self._failures.append(AttemptFailure(attempt, cause))
        self._in_a_row += 1
        # The exponent is bounded, so that the shift is.
        delay_ns = self._policy.delay_ns << min(self._in_a_row - 1, 40)
        self.wake_ns = now_ns + min(self._policy.delay_ns_max, delay_ns)
