"""Processor: the one interface that the runtime drives, and the context it gives back.

Public operators (Operator, KeyedOperator, windows, joins, sources, sinks) are all run as
processors. A processor is configured when planning, pickled by cloudpickle, opened once in its
subtask, and called from one thread only. What outlives a call is owned memory in `ctx.state`;
everything else is lost when the process dies.

Order of calls: open, then any of {process, on_watermark, on_processing_time, before_snapshot,
on_commit}, then on_end once when all inputs have ended (after on_watermark(WATERMARK_MAX)), close.

Requires: whatever is collected after on_watermark(W) has `_time` > W, except rows that were late
on arrival.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

import pyarrow as pa

from penstock.elements.clock import Clock
from penstock.elements.keygroup import KeyGroupRange
from penstock.state.backend import StateBackend

MAIN = "main"
"""The name of an operator's first output; side outputs have their own names."""
LATE = "late"
"""The side output for rows later than the allowed lateness."""
DEAD = "dead"
"""The side output for rows that an error policy set aside."""


class ProcessorContext(Protocol):
    """What a processor may ask of its surroundings. Implemented by runtime and by testing."""

    operator_id: str
    operator_name: str
    subtask: int
    parallelism: int
    key_groups: KeyGroupRange
    state: StateBackend
    clock: Clock
    watermark: int
    """The combined watermark of this operator's inputs; set before on_watermark is called."""
    checkpoint_id: int
    """The last completed cut: what users see as the epoch."""
    run_id: str
    """Made once per fresh start of the job and kept in its log (hazard 44a)."""
    scratch_dir: str
    """A directory on local disk for this attempt of this subtask; removed with the attempt."""

    @property
    def origin(self) -> str | None:
        """Where the rows at hand were read, if a source of this very subtask is giving them."""
        ...

    def collect(self, batch: pa.RecordBatch, output: str = MAIN) -> None:
        """Hand rows to whatever follows `output`. Empty batches and unlinked outputs are fine."""
        ...

    def emit_watermark(self, watermark: int) -> None:
        """Only for sources and watermark assigners: promise that later rows are later."""
        ...

    def forward_watermark(self, watermark: int) -> None:
        """Only with `holds_watermarks`: pass on one that on_watermark was given, in their order."""
        ...

    def emit_idle(self) -> None:
        """Only for sources: nothing is expected for now (hazard 5)."""
        ...

    def wake(self) -> None:
        """Ring this subtask's mailbox; safe from any thread."""
        ...

    def count(self, metric: str, amount: int) -> None:
        """Add to a counter of this operator: late, dropped, dead_lettered, rows_in, rows_out."""
        ...


class Processor(ABC):
    """One operator's logic in one subtask."""

    holds_watermarks: bool = False
    """True: rows may be in flight when on_watermark returns, so it passes watermarks on by itself,
    by `ctx.forward_watermark`, behind the rows before them; all but WATERMARK_MAX."""

    keeps_by_key_only: bool = False
    """True: before_snapshot does nothing but write tables and logs, which nobody reads any more
    once the whole job has ended: then it is not called."""

    def open(self, ctx: ProcessorContext) -> None:  # noqa: B027
        """Declare state, connect, load. State is already restored in `ctx.state`."""

    @abstractmethod
    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """Take rows of input `port`. The batch may lie in shared memory: copy what is kept."""

    def on_watermark(self, watermark: int) -> None:  # noqa: B027
        """Event time has passed `watermark`: fire timers and windows, in order."""

    def next_wakeup_ns(self) -> int | None:
        """The wall time at which on_processing_time wants to be called next."""
        return None

    def on_processing_time(self, now_ns: int) -> None:  # noqa: B027
        """A wake-up that was asked for, or a `ctx.wake()`, has come."""

    def busy(self) -> bool:
        """Whether rows are in flight: the end, and idleness, are passed on when none are."""
        return False

    def saturated(self) -> bool:
        """Whether it wants no rows for now: inputs are left unread until a wake-up changes it."""
        return False

    def on_end(self) -> None:  # noqa: B027
        """No further input: flush. The runtime forwards END afterwards."""

    def before_snapshot(self, checkpoint_id: int) -> None:  # noqa: B027
        """A barrier stands here: bring everything that must survive into `ctx.state`."""

    def on_commit(self, checkpoint_id: int) -> None:  # noqa: B027
        """Every cut up to `checkpoint_id` is durable. Cumulative, may repeat (hazard 12)."""

    def pending_commits(self) -> list[int]:
        """Checkpoint ids whose commit this operator still owes; non-empty keeps manifests."""
        return []

    def close(self) -> None:  # noqa: B027
        """Release what open() took. Not called when the process is killed."""
