"""The public Sink: rows go in by `write`, get staged at each barrier, and appear at `commit`.

`txn` is opaque, unique for ever, and the same on every repeat of one commit, also when another
subtask repeats it after a rescale (hazard 44a).
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

STAGED_BYTES_MAX = 64 * 1024 * 1024
"""One transaction's staged bytes; more is an error that names the sink (hazard 44b)."""


class Sink:
    """Subclass and implement `write`; add `prepare` and `commit` for exactly once.

    A sink without `prepare` is at-least-once, and the start-up line says so.
    """

    updating: bool = False
    """Whether it takes updating streams. Its batches then end with `_change`, int8: +1 adds the
    row, -1 takes an equal one back; without it such streams are refused when planning."""

    def check(self, schema: pa.Schema) -> None:
        """Raise PlanError for columns that it cannot write. Called where the pipeline is built."""

    def open(self, ctx: Any) -> None:
        """Connect. Runs in the sink's process, before the first commit or row."""

    def write(self, batch: pa.RecordBatch, ctx: Any) -> None:
        """Take rows; nothing may become visible before commit if `prepare` is implemented."""
        raise TypeError(f"{type(self).__name__} does not implement write(batch, ctx)")

    def prepare(self, txn: str) -> bytes:
        """Stage all rows since the last prepare under `txn`; the bytes go into the checkpoint."""
        raise TypeError(f"{type(self).__name__} does not implement prepare(txn)")

    def commit(self, txn: str, staged: bytes) -> None:
        """Make the staged rows visible. May repeat, also in another process: be idempotent."""

    def flush(self) -> None:
        """For sinks without `prepare`: what was written is out when this returns (at barriers)."""

    def abort(self, txn: str, staged: bytes) -> None:
        """The cut was given up: rows come again after a restart. Clean up if you can."""

    def finish(self) -> None:
        """No further rows will come: what was held back for later belongs to the next prepare."""

    def job_finished(self, run_id: str) -> None:
        """Every commit of the job is done: tidy up. Runs once, in the coordinator, unopened."""

    def close(self) -> None:
        """Disconnect."""

    @property
    def identity(self) -> str:
        """What tells it from others of its class, across edits of the program: where it writes.

        State is found by it; two exactly-once sinks that are alike must be named.
        """
        return ""

    @property
    def transactional(self) -> bool:
        """Whether this sink stages: it overrides `prepare`."""
        return type(self).prepare is not Sink.prepare
