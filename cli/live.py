"""What a person sees while a job runs: a live panel on a terminal, plain lines otherwise."""

from __future__ import annotations

import logging
import sys
from collections import deque

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from penstock.dataflow.launcher import JobHandle, JobStatus, Summary
from penstock.elements.clock import Clock, SystemClock
from penstock.elements.signals import WATERMARK_MAX, WATERMARK_MIN

log = logging.getLogger("penstock.cli")

REFRESH_S = 0.5
PLAIN_INTERVAL_S = 10.0
"""Between two lines where there is no terminal."""
RATE_WINDOW_S = 5.0


class Rates:
    """Rows per second over the last RATE_WINDOW_S; None before any row was counted that way.

    Statistics come in steps, one per subtask and second, so two looks in a row say nothing; and
    those of a sink may come before those of its source, whose rate is then not known yet, not 0.

    >>> from penstock.dataflow.launcher import JobStatus
    >>> rates = Rates()
    >>> for second, rows in enumerate([0, 0, 300, 300, 600]):
    ...     status = JobStatus("j", "running", 1, 0, 3, rows, rows, 0, 0, None, 1.0)
    ...     rates.look(status, second * 10**9)
    ...     print(rates.in_per_s)
    None
    None
    150.0
    100.0
    150.0
    """

    def __init__(self) -> None:
        self._looks: deque[tuple[int, int, int]] = deque()
        self.in_per_s: float | None = None
        self.out_per_s: float | None = None

    def look(self, status: JobStatus, now_ns: int) -> None:
        """Take the counters down. They go back when an attempt starts anew: so do the rates."""
        looks = self._looks
        if not (status.rows_in or status.rows_out) and status.state != "running":
            # Starting is no part of the rate.
            self._forget()
        if looks and (status.rows_in < looks[-1][1] or status.rows_out < looks[-1][2]):
            self._forget()
        looks.append((now_ns, status.rows_in, status.rows_out))
        while len(looks) > 2 and now_ns - looks[1][0] >= RATE_WINDOW_S * 1e9:
            looks.popleft()
        at_ns, rows_in, rows_out = looks[0]
        span_s = (now_ns - at_ns) / 1e9
        if span_s > 0 and status.rows_in:
            self.in_per_s = (status.rows_in - rows_in) / span_s
        if span_s > 0 and status.rows_out:
            self.out_per_s = (status.rows_out - rows_out) / span_s

    def _forget(self) -> None:
        self._looks.clear()
        self.in_per_s = self.out_per_s = None


def _per_second(rate: float | None) -> str:
    return "-" if rate is None else f"{rate:,.0f}/s"


def watermark_lag(status: JobStatus, wall_ns: int) -> str:
    """How far event time is behind the clock; "-" before the first watermark, "end" after all.

    >>> from penstock.dataflow.launcher import JobStatus
    >>> status = JobStatus("j", "RUNNING", 1, 0, 3, 10, 5, 0, 0, 10**9, 1.0)
    >>> watermark_lag(status, 3 * 10**9)
    '2.0 s'
    """
    watermark = status.watermark
    if watermark is None or watermark <= WATERMARK_MIN:
        return "-"
    if watermark >= WATERMARK_MAX:
        return "end"
    lag_s = (wall_ns - watermark) / 1e9
    return f"{lag_s:.1f} s" if lag_s < 86400 else f"{lag_s / 86400:.0f} d"


def one_line(status: JobStatus, rates: Rates, wall_ns: int) -> str:
    """The whole state of a job in one line."""
    checkpoint = "none" if not status.epoch else f"{status.epoch}"
    if status.epoch and status.last_checkpoint_s is not None:
        checkpoint += f" ({status.last_checkpoint_s:.1f} s ago)"
    line = (
        f"{status.job} {status.state}  in {_per_second(rates.in_per_s)} ({status.rows_in:,})  "
        f"out {_per_second(rates.out_per_s)} ({status.rows_out:,})  "
        f"watermark lag {watermark_lag(status, wall_ns)}  checkpoint {checkpoint}  "
        f"restarts {status.restarts}"
    )
    if status.late or status.dropped:
        line += f"  late {status.late:,}  dropped {status.dropped:,}"
    return line


def panel(status: JobStatus, rates: Rates, wall_ns: int) -> Group:
    """The line, and each chain with its load and back-pressure."""
    table = Table(box=None, pad_edge=False)
    for heading in ("operators", "x", "rows in", "rows out", "busy", "blocked"):
        table.add_column(heading, justify="left" if heading == "operators" else "right")
    for operator in status.operators:
        table.add_row(
            operator.name,
            str(operator.parallelism),
            f"{operator.rows_in:,}",
            f"{operator.rows_out:,}",
            f"{operator.busy:.0%}",
            f"{operator.blocked:.0%}",
        )
    return Group(Text(one_line(status, rates, wall_ns)), table)


def watch(job: JobHandle) -> Summary:
    """Show the job until it ends. KeyboardInterrupt passes through to the caller."""
    if sys.stderr.isatty():
        return _watch_terminal(job)
    return _watch_plain(job)


def _first_look(job: JobHandle, clock: Clock) -> Rates:
    """Without it the first rates would have no beginning to count from."""
    rates = Rates()
    rates.look(job.status(), clock.monotonic_ns())
    return rates


def _watch_terminal(job: JobHandle) -> Summary:
    clock = SystemClock()
    rates = _first_look(job, clock)
    console = Console(stderr=True)
    with Live(console=console, refresh_per_second=4, transient=True) as live:
        while True:
            try:
                return job.wait(REFRESH_S)
            except TimeoutError:
                status = job.status()
                rates.look(status, clock.monotonic_ns())
                live.update(panel(status, rates, clock.wall_ns()))


def _watch_plain(job: JobHandle) -> Summary:
    clock = SystemClock()
    rates = _first_look(job, clock)
    while True:
        try:
            return job.wait(PLAIN_INTERVAL_S)
        except TimeoutError:
            status = job.status()
            rates.look(status, clock.monotonic_ns())
            log.info("%s", one_line(status, rates, clock.wall_ns()))
