"""What the end-to-end benchmarks share: a clocked source, a sink that measures, a report line."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from penstock.operators.sink import Sink
from penstock.operators.source import Chunk, EndOfSplit, SourceConnector, Split, SplitReader

SCHEMA = pa.schema(
    [
        pa.field("key", pa.int64(), nullable=False),
        pa.field("made_ns", pa.int64(), nullable=False),
    ]
)


def report(name: str, **figures: Any) -> None:
    """One JSON line: what, where, at which commit."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    machine = {"machine": platform.machine(), "cores": os.cpu_count(), "commit": commit}
    print(json.dumps({"benchmark": name, **figures, **machine}), flush=True)


class ClockedSource(SourceConnector[Any]):
    """`rate` rows a second and split in ticks of `tick_ms`, each row stamped when it is made.

    `rate=None`: as fast as it is asked. Ends after `seconds`. With `scheduled`, a
    poll gives all ticks that are over, stamped with the time at which each was due: a source that
    is late adds its lateness to the latency.
    """

    name = "clocked"

    def __init__(
        self,
        splits: int,
        rate: int | None,
        seconds: float,
        tick_ms: float = 1.0,
        scheduled: bool = False,
    ) -> None:
        self._splits = splits
        self._scheduled = scheduled
        self._rate = rate
        self._seconds = seconds
        self._tick_ms = tick_ms

    @property
    def schema(self) -> pa.Schema:
        """key, made_ns (monotonic)."""
        return SCHEMA

    def splits(self) -> Sequence[Split]:
        """Numbered splits."""
        return [Split(f"clocked-{i}") for i in range(self._splits)]

    def reader(self, split: Split, position: Any, ctx: Any) -> SplitReader:
        """A reader whose clock begins now."""
        clock = (self._rate, self._seconds, self._tick_ms, self._scheduled)
        return _ClockedReader(*clock, position or 0)


class _ClockedReader(SplitReader):
    def __init__(
        self, rate: int | None, seconds: float, tick_ms: float, scheduled: bool, given: int
    ) -> None:
        self._rate = rate
        self._scheduled = scheduled
        self._start_ns = time.monotonic_ns()
        self._end_ns = self._start_ns + int(seconds * 1e9)
        self._tick_ns = int(tick_ms * 1e6)
        self._next_ns = self._start_ns
        self._given = given

    def poll(self, limit_rows: int) -> Chunk | None:
        """The rows of the ticks that are over."""
        now_ns = time.monotonic_ns()
        if now_ns >= self._end_ns:
            raise EndOfSplit
        if self._rate is None:
            count = limit_rows
        elif now_ns < self._next_ns:
            # Waiting here would hold up the rows of the tick before: poll never blocks.
            return None
        else:
            count = max(1, self._rate * self._tick_ns // 10**9)
            if self._scheduled:
                return self._all_due(now_ns, count, limit_rows)
            self._next_ns += self._tick_ns
        return self._chunk(np.full(count, time.monotonic_ns(), np.int64))

    def _all_due(self, now_ns: int, per_tick: int, limit_rows: int) -> Chunk:
        """The rows of all ticks that are over, each with the time at which it was due."""
        over = (now_ns - self._next_ns) // self._tick_ns + 1
        ticks = max(1, min(over, limit_rows // per_tick))
        due = self._next_ns + np.arange(ticks, dtype=np.int64) * self._tick_ns
        self._next_ns += ticks * self._tick_ns
        return self._chunk(np.repeat(due, per_tick))

    def _chunk(self, made: Any) -> Chunk:
        count = len(made)
        keys = np.arange(self._given, self._given + count, dtype=np.int64)
        self._given += count
        batch = pa.RecordBatch.from_arrays([pa.array(keys % 10_000), pa.array(made)], schema=SCHEMA)
        return Chunk(batch, self._given)


class LatencySink(Sink):
    """Keeps, per row, the time since it was made; writes them to `folder` when the data ends.

    With `trace`, each write's time and rows go to a file at once, to see gaps after a kill.
    """

    def __init__(self, folder: str, trace: bool = False) -> None:
        self.folder = folder
        self.trace = trace

    def open(self, ctx: Any) -> None:
        """Open the trace."""
        self._latencies: list[Any] = []
        name = f"{ctx.subtask}-{os.getpid()}"
        self._path = Path(self.folder) / name
        self._trace = (
            open(f"{self._path}.trace", "a", buffering=1)  # noqa: SIM115
            if self.trace
            else None
        )

    def write(self, batch: pa.RecordBatch, ctx: Any) -> None:
        """Measure."""
        now_ns = time.monotonic_ns()
        if self._trace is not None:
            self._trace.write(f"{now_ns} {batch.num_rows}\n")
        else:
            self._latencies.append(now_ns - batch.column("made_ns").to_numpy())

    def finish(self) -> None:
        """Write what was measured."""
        if self._latencies:
            np.save(f"{self._path}.npy", np.concatenate(self._latencies))


def latencies_us(folder: str, skip: float = 0.2) -> Any:
    """The latency of each row in all sinks, without the first fifth of each."""
    parts = []
    for path in sorted(Path(folder).glob("*.npy")):
        values = np.load(path)
        parts.append(values[int(len(values) * skip) :])
    return np.concatenate(parts) / 1000


def percentiles_us(folder: str, skip: float = 0.2) -> dict[str, float]:
    """p50, p99 and p99.9 of all sinks, without the first fifth (warming up)."""
    values = latencies_us(folder, skip)
    return {
        f"p{str(q).rstrip('0').rstrip('.')}_us": round(float(np.percentile(values, q)), 1)
        for q in (50.0, 99.0, 99.9)
    }
