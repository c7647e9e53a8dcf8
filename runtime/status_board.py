"""What a job reports: statistics of its subtasks gathered into JobStatus and Summary.

Counters begin anew with each attempt; what the attempts before had reported is added. Written by
the controller's thread, read from any: one lock.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Mapping
from typing import Literal

from penstock.dataflow.launcher import JobStatus, OperatorStatus, Summary
from penstock.dataflow.plan import Plan, Vertex
from penstock.elements.signals import WATERMARK_MIN

from .messages import Statistics, SubtaskKey

Totals = dict[str, int]
"""rows_in, rows_out, late, dropped."""


class StatusBoard:
    """One job's numbers."""

    def __init__(self, plan: Plan, started_ns: int) -> None:
        self._plan = plan
        self._started_ns = started_ns
        self._lock = threading.Lock()
        self._latest: dict[SubtaskKey, Statistics] = {}
        self._before: Totals = defaultdict(int)
        self._pids: dict[str, int] = {}
        self._stuck: dict[SubtaskKey, str] = {}
        self._state = "starting"
        self._attempt = 0
        self._restarts = 0
        self._epoch = 0
        self._checkpoints = 0
        self._last_checkpoint_ns: int | None = None
        operators = [op for vertex in plan.vertices for op in vertex.operators]
        self._sources = {op.id for op in operators if op.is_source}
        self._sinks = {op.id for op in operators if op.is_sink}

    # Written by the controller -------------------------------------------------------------------

    def job(self, state: str, attempt: int, restarts: int, epoch: int, checkpoints: int) -> None:
        """The state machine has moved."""
        with self._lock:
            self._state, self._attempt, self._restarts = state, attempt, restarts
            self._epoch, self._checkpoints = epoch, checkpoints

    def checkpoint_completed(self, now_ns: int) -> None:
        """A checkpoint counts since now."""
        with self._lock:
            self._last_checkpoint_ns = now_ns

    def statistics(self, key: SubtaskKey, statistics: Statistics) -> None:
        """A subtask reports."""
        with self._lock:
            self._latest[key] = statistics

    def process(self, title: str, pid: int | None) -> None:
        """A process has come, or has gone (None)."""
        with self._lock:
            if pid is None:
                self._pids.pop(title, None)
            else:
                self._pids[title] = pid

    def not_responding(self, key: SubtaskKey, state: str, seconds: float) -> None:
        """A subtask's loop stands still; with 0 seconds it moves again (hazard 40)."""
        with self._lock:
            if seconds:
                self._stuck[key] = f"{key} not responding for {seconds:.0f} s in {state}"
            else:
                self._stuck.pop(key, None)

    def attempt_over(self) -> None:
        """Its processes are gone; its numbers stay."""
        with self._lock:
            for name, amount in self._totals(self._latest).items():
                self._before[name] += amount
            self._latest.clear()
            self._stuck.clear()
            for title in [title for title in self._pids if title.endswith("]")]:
                del self._pids[title]

    # Read from any thread ------------------------------------------------------------------------

    def status(self, now_ns: int) -> JobStatus:
        """Everything as of now."""
        with self._lock:
            totals = self._sum()
            watermarks = [
                latest.watermark
                for key, latest in self._latest.items()
                if self._plan.inputs(key.vertex)
            ]
            last_ns = self._last_checkpoint_ns
            stuck = next(iter(self._stuck.values()), None)
            return JobStatus(
                job=self._plan.name,
                state=self._state if stuck is None else f"{self._state}, {stuck}",
                attempt=self._attempt,
                restarts=self._restarts,
                epoch=self._epoch,
                rows_in=totals["rows_in"],
                rows_out=totals["rows_out"],
                late=totals["late"],
                dropped=totals["dropped"],
                watermark=min(watermarks, default=None),
                last_checkpoint_s=None if last_ns is None else (now_ns - last_ns) / 1e9,
                operators=tuple(self._operator(vertex) for vertex in self._plan.vertices),
                pids=dict(self._pids),
            )

    def summary(self, outcome: Literal["finished", "stopped"], now_ns: int) -> Summary:
        """The whole run."""
        with self._lock:
            totals = self._sum()
            return Summary(
                job=self._plan.name,
                outcome=outcome,
                rows_in=totals["rows_in"],
                rows_out=totals["rows_out"],
                late=totals["late"],
                dropped=totals["dropped"],
                restarts=self._restarts,
                checkpoints=self._checkpoints,
                epoch=self._epoch,
                seconds=(now_ns - self._started_ns) / 1e9,
            )

    def _sum(self) -> Totals:
        totals = defaultdict(int, self._before)
        for name, amount in self._totals(self._latest).items():
            totals[name] += amount
        return totals

    def _totals(self, latest: Mapping[SubtaskKey, Statistics]) -> Totals:
        totals: Totals = defaultdict(int)
        for statistics in latest.values():
            for operator_id, counters in statistics.counters.items():
                totals["late"] += counters.get("late", 0)
                totals["dropped"] += counters.get("dropped", 0)
                if operator_id in self._sources:
                    totals["rows_in"] += counters.get("rows_out", 0)
                if operator_id in self._sinks:
                    totals["rows_out"] += counters.get("rows_in", 0)
        return totals

    def _operator(self, vertex: Vertex) -> OperatorStatus:
        latest = [found for key, found in self._latest.items() if key.vertex == vertex.id]
        counters: dict[str, int] = defaultdict(int)
        for statistics in latest:
            for one in statistics.counters.values():
                for name, amount in one.items():
                    counters[name] += amount
        count = max(1, len(latest))
        return OperatorStatus(
            name=vertex.name,
            parallelism=vertex.parallelism,
            rows_in=sum(statistics.rows_in for statistics in latest),
            rows_out=sum(statistics.rows_out for statistics in latest),
            busy=sum(statistics.busy for statistics in latest) / count,
            blocked=sum(statistics.blocked for statistics in latest) / count,
            watermark=min((statistics.watermark for statistics in latest), default=WATERMARK_MIN),
            counters=dict(counters),
        )
