"""What a person sees while a job runs: a live panel on a terminal, plain lines otherwise."""

from __future__ import annotations

import logging
import sys
from dataclasses import dataclass

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


@dataclass
class Rates:
    """Rows per second between two looks."""

    at_ns: int = 0
    rows_in: int = 0
    rows_out: int = 0
    in_per_s: float = 0.0
    out_per_s: float = 0.0

    def look(self, status: JobStatus, now_ns: int) -> None:
        """Counters go back when an attempt starts anew; a rate is never negative."""
        span_s = (now_ns - self.at_ns) / 1e9
        if self.at_ns and span_s > 0:
            self.in_per_s = max(0, status.rows_in - self.rows_in) / span_s
            self.out_per_s = max(0, status.rows_out - self.rows_out) / span_s
        self.at_ns, self.rows_in, self.rows_out = now_ns, status.rows_in, status.rows_out


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
        f"{status.job} {status.state}  in {rates.in_per_s:,.0f}/s ({status.rows_in:,})  "
        f"out {rates.out_per_s:,.0f}/s ({status.rows_out:,})  "
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
