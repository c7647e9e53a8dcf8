"""The law of every pipeline: the same rows, however it is run.

Straight through; with checkpoints at parallelism 2; with subtasks killed; stopped and resumed at
parallelism 3. The terms are those of hazard 21: rows compare as multisets, floats within a
relative tolerance, and the data may hold no row later than its bound.
"""

from __future__ import annotations

import os
import random
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from penstock.connectors.file_readers import Throttle
from penstock.connectors.memory import MemorySink
from penstock.dataflow.launcher import (
    JobHandle,
    JobStatus,
    Launcher,
    current_launcher,
    use_launcher,
)
from penstock.dataflow.plan import Plan
from penstock.dataflow.settings import JobSettings
from penstock.dataflow.stream import Stream
from penstock.operators.net_changes import net_rows
from penstock.operators.source import (
    Chunk,
    Position,
    ReaderContext,
    SourceConnector,
    Split,
    SplitReader,
)

from .rows import FLOAT_TOLERANCE, differences

RUN_S = 1.5
"""A slowed run takes about this long, so that checkpoints, kills and stops fall into it."""
KILLS = 2
KILL_TRIES = 20
OVER = ("finished", "failed", "stopped")
"""States of a job that will complete no further checkpoint."""
FORM_VARIABLE = "PENSTOCK_SAME_ROWS"
"""In the environment: "brief" holds a pipeline to the law in two runs instead of four."""
SLOWER = 4.0
"""How much a run is slowed further when the job had ended before what was to happen to it."""
TRIES = 3
WAIT_S = 60.0
POLL_S = 0.01


def assert_same_rows(
    build: Callable[[], Stream[Any]],
    expected: Any,
    *,
    float_tolerance: float = FLOAT_TOLERANCE,
    seed: int = 1,
) -> int:
    """Run the pipeline of the stream that `build` returns in four ways; each gives `expected`.

    PENSTOCK_SAME_ROWS=brief in the environment makes it two: straight, and killed and resumed.

    `build` makes a new pipeline at each call. `expected` is a table, dicts, row objects or
    tuples. AssertionError says which way of running differs, and in which rows.

    Returns how often the pipeline ran from its first row to its last, so that what it wrote
    besides can be counted too: once more for each run that this machine was too busy to disturb.
    """
    straight = _Run(build)
    straight.start(parallelism=1, checkpoint_interval="1 hour").wait(WAIT_S)
    _compare("straight through", straight.table(), expected, float_tolerance)
    rate = max(1.0, straight.rows_in() / RUN_S)
    whole = 1
    for name, way in _BRIEF if os.environ.get(FORM_VARIABLE) == "brief" else _FULL:
        run, tries = _in_time(build, rate, way, seed)
        whole += tries
        _compare(name, run.table(), expected, float_tolerance)
    return whole


class _TooQuick(AssertionError):
    """The job had ended before what was to happen to it."""


def _in_time(
    build: Callable[[], Stream[Any]],
    rate: float,
    way: Callable[[_Run, str, random.Random], None],
    seed: int,
) -> tuple[_Run, int]:
    """Run one way, again and slower if this machine was too busy to interfere in time.

    Returns the run that was disturbed, and how many it took.
    """
    for tries in range(1, TRIES + 1):
        with tempfile.TemporaryDirectory(prefix="penstock-same-rows-") as state_dir:
            run = _Run(build, rate)
            try:
                way(run, state_dir, random.Random(seed))
            except _TooQuick:
                run.table()
                if tries == TRIES:
                    raise
                rate /= SLOWER
            else:
                return run, tries
    raise AssertionError("unreachable")


class _Run:
    """One pipeline with its results."""

    def __init__(self, build: Callable[[], Stream[Any]], rate: float | None = None) -> None:
        self._build = build
        self._rate = rate
        self._sink = MemorySink()
        self._schema: pa.Schema | None = None
        self._handle: JobHandle | None = None

    def start(self, **settings: Any) -> JobHandle:
        """Build anew and start; results of all starts gather in one place."""
        stream = self._build()
        self._schema = stream.schema
        stream.sink(self._sink, name="results")
        before = current_launcher()
        replaced = use_launcher(_Slowing(before, self._rate) if self._rate else before)
        try:
            self._handle = stream._pipeline.start(durability="process", **settings)
        finally:
            use_launcher(replaced)
        return self._handle

    def rows_in(self) -> int:
        """Rows read by the sources."""
        assert self._handle is not None
        return self._handle.status().rows_in

    def table(self) -> pa.Table:
        """What was committed, net of what was taken back; the folder is gone afterwards."""
        table = net_rows(self._sink.table(self._schema))
        self._sink.discard()
        return table


def _with_checkpoints(run: _Run, state_dir: str, chance: random.Random) -> None:
    run.start(parallelism=2, state_dir=state_dir, checkpoint_interval="200 ms").wait(WAIT_S)


def _killed(run: _Run, state_dir: str, chance: random.Random) -> None:
    job = run.start(
        parallelism=2, state_dir=state_dir, checkpoint_interval="100 ms", restart_attempts=50
    )
    for kill in range(KILLS):
        # Not before a checkpoint of the present attempt: each kill interrupts something new.
        epoch = _wait_for_epoch(job, job.status().epoch + 1)
        if not _kill_one(job, chance):
            if not kill:
                raise _TooQuick(
                    f"nothing to kill at epoch {epoch}: the job ended before its first kill"
                )
            break
    summary = job.wait(WAIT_S)
    if not summary.restarts:
        raise _TooQuick("no kill made the job restart: it has too little data for that")


def _kill_one(job: JobHandle, chance: random.Random) -> bool:
    """SIGKILL to one subtask; False when there is none, since the job is over."""
    for _ in range(KILL_TRIES):
        pids = [pid for title, pid in sorted(job.status().pids.items()) if title.endswith("]")]
        if not pids:
            time.sleep(POLL_S)
            continue
        try:
            os.kill(chance.choice(pids), signal.SIGKILL)
        except ProcessLookupError:
            continue
        return True
    return False


def _resumed(run: _Run, state_dir: str, chance: random.Random) -> None:
    job = run.start(parallelism=2, state_dir=state_dir, checkpoint_interval="100 ms")
    _wait_for_epoch(job, 1)
    outcome = job.stop("checkpoint").outcome
    if outcome != "stopped":
        raise _TooQuick(f"the job was {outcome} before it could be stopped and resumed")
    run.start(parallelism=3, state_dir=state_dir, checkpoint_interval="100 ms").wait(WAIT_S)


def _killed_and_resumed(run: _Run, state_dir: str, chance: random.Random) -> None:
    """All in one run: for whoever has many laws to hold and little time."""
    job = run.start(
        parallelism=2, state_dir=state_dir, checkpoint_interval="100 ms", restart_attempts=50
    )
    epoch = _wait_for_epoch(job, 1)
    if not _kill_one(job, chance):
        raise _TooQuick(f"nothing to kill at epoch {epoch}: the job ended before its kill")
    # A checkpoint that was under way may still complete: wait for one of the next attempt.
    _wait_until(job, "restart", lambda status: status.restarts > 0)
    _wait_for_epoch(job, job.status().epoch + 1)
    summary = job.stop("checkpoint")
    if summary.outcome != "stopped" or not summary.restarts:
        raise _TooQuick(f"the job was {summary.outcome} before it could be killed and resumed")
    run.start(parallelism=3, state_dir=state_dir, checkpoint_interval="100 ms").wait(WAIT_S)


_FULL = (
    ("with checkpoints at parallelism 2", _with_checkpoints),
    ("with subtasks killed", _killed),
    ("stopped and resumed at parallelism 3", _resumed),
)
_BRIEF = (("killed at parallelism 2 and resumed at parallelism 3", _killed_and_resumed),)


def _wait_for_epoch(job: JobHandle, epoch: int) -> int:
    _wait_until(job, f"checkpoint {epoch}", lambda status: status.epoch >= epoch)
    return job.status().epoch


def _wait_until(job: JobHandle, what: str, holds: Callable[[JobStatus], bool]) -> None:
    """Until it holds, or the job is over."""
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        status = job.status()
        if holds(status) or status.state in OVER:
            return
        time.sleep(POLL_S)
    raise TimeoutError(f"no {what} within {WAIT_S:.0f} s: {job.status()}")


def _compare(way: str, table: pa.Table, expected: Any, float_tolerance: float) -> None:
    lines = differences(table, expected, float_tolerance)
    assert not lines, f"{way}:\n  " + "\n  ".join(lines)


class _Slowing:
    """A launcher that makes a plan's sources slow."""

    def __init__(self, launcher: Launcher, rate: float) -> None:
        self._launcher = launcher
        self._rate = rate

    def start(self, plan: Plan, settings: JobSettings) -> JobHandle:
        """Wrap every connector, then start."""
        for vertex in plan.vertices:
            for operator in vertex.operators:
                connector = getattr(operator.processor, "connector", None)
                if operator.is_source and connector is not None:
                    slowed = _Slowed(connector, self._rate / vertex.parallelism)
                    setattr(operator.processor, "connector", slowed)  # noqa: B010
        return self._launcher.start(plan, settings)


class _Slowed(SourceConnector[Any]):
    """A connector at `rate` rows a second per subtask."""

    def __init__(self, connector: SourceConnector[Any], rate: float) -> None:
        self._connector = connector
        self._rate = rate
        self._throttle: Throttle | None = None
        self.name = connector.name
        self.bounded = connector.bounded
        self.replay = connector.replay
        self.discovery_interval_ns = connector.discovery_interval_ns

    @property
    def schema(self) -> pa.Schema:
        """As it was."""
        return self._connector.schema

    def splits(self) -> Sequence[Split]:
        """As they were."""
        return self._connector.splits()

    def reader(self, split: Split, position: Position, ctx: ReaderContext) -> SplitReader:
        """The reader, held back."""
        self._throttle = self._throttle or Throttle(self._rate)
        return _SlowReader(self._connector.reader(split, position, ctx), self._throttle)


class _SlowReader(SplitReader):
    def __init__(self, reader: SplitReader, throttle: Throttle) -> None:
        self._reader = reader
        self._throttle = throttle

    def poll(self, limit_rows: int) -> Chunk | None:
        """At most what the throttle allows."""
        limit = self._throttle.allowed(limit_rows)
        if limit == 0:
            return None
        chunk = self._reader.poll(limit)
        self._throttle.gave(0 if chunk is None else chunk.batch.num_rows)
        return chunk

    def close(self) -> None:
        """Close what is read."""
        self._reader.close()
