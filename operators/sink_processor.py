"""SinkProcessor: runs a public Sink: write rows, prepare at barriers, commit when they are durable.

Prepared transactions are sink state until they are committed, so that a lost commit or a death
between manifest and commit is made good by whoever restores them (hazard 12). Commits are
cumulative, in the order of checkpoints, and repeated on restore before the first row. A cut that
was given up is committed with its successor: its rows are in no other transaction.
"""

from __future__ import annotations

import msgspec
import pyarrow as pa

from penstock.elements.errors import ConnectorError, PenstockError
from penstock.elements.signals import TIME_COLUMN

from .context import Context
from .error_policy import cause_of, user_frames
from .processor import Processor, ProcessorContext
from .sink import STAGED_BYTES_MAX, Sink

PENDING = "pending commits"
"""The name of the operator list; sinks may have lists of their own beside it."""


class Pending(msgspec.Struct, frozen=True, array_like=True):
    """A prepared transaction that has not been committed as far as this subtask knows."""

    checkpoint_id: int
    txn: str
    staged: bytes


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Pending).decode


class SinkProcessor(Processor):
    """Writes without `_time`. `sink` stays reachable for the coordinator's `job_finished`."""

    def __init__(self, sink: Sink) -> None:
        self.sink = sink

    def open(self, ctx: ProcessorContext) -> None:
        """Open the sink; restored transactions wait for on_commit."""
        self._ctx = ctx
        self._context = Context(ctx)
        self._pending: list[Pending] = []
        self._exactly_once = self.sink.transactional
        if self._exactly_once:
            self._kept = ctx.state.operator_list(PENDING, "list")
            self._pending = sorted(map(_decode, self._kept.items()), key=_order)
        try:
            self.sink.open(self._context)
        except Exception as error:
            raise self._failed("open", error) from error

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """Hand rows to the sink."""
        if batch.num_rows == 0:
            return
        if TIME_COLUMN in batch.schema.names:
            batch = batch.drop_columns([TIME_COLUMN])
        try:
            self.sink.write(batch, self._context)
        except Exception as error:
            raise self._failed("write", error) from error

    def on_end(self) -> None:
        """Nothing is held back any longer: the next prepare takes all."""
        try:
            self.sink.finish()
        except Exception as error:
            raise self._failed("finish", error) from error

    def before_snapshot(self, checkpoint_id: int) -> None:
        """Stage what was written since the last barrier; it is state until it is committed."""
        if not self._exactly_once:
            try:
                self.sink.flush()
            except Exception as error:
                raise self._failed("flush", error) from error
            return
        txn = self._txn(checkpoint_id)
        try:
            staged = self.sink.prepare(txn)
        except Exception as error:
            raise self._failed(f"prepare({txn!r})", error) from error
        self._check(txn, staged)
        self._pending.append(Pending(checkpoint_id, txn, bytes(staged)))
        self._keep()

    def on_commit(self, checkpoint_id: int) -> None:
        """Make every transaction up to `checkpoint_id` visible, oldest first."""
        due = [p for p in self._pending if p.checkpoint_id <= checkpoint_id]
        for pending in due:
            try:
                self.sink.commit(pending.txn, pending.staged)
            except Exception as error:
                raise self._failed(f"commit({pending.txn!r})", error) from error
            self._pending.remove(pending)
        if due:
            self._keep()

    def pending_commits(self) -> list[int]:
        """The checkpoints whose commit is owed."""
        return sorted({pending.checkpoint_id for pending in self._pending})

    def close(self) -> None:
        """Disconnect."""
        self.sink.close()

    def _txn(self, checkpoint_id: int) -> str:
        """Unique for ever, the same on every repeat, whoever repeats it (hazard 44a)."""
        ctx = self._ctx
        return f"{ctx.run_id}/{ctx.operator_id}/{checkpoint_id}/{ctx.subtask}"

    def _keep(self) -> None:
        self._kept.replace([_encode(pending) for pending in self._pending])

    def _check(self, txn: str, staged: object) -> None:
        name = type(self.sink).__name__
        if not isinstance(staged, bytes | bytearray | memoryview):
            raise ConnectorError(
                f"{self._where()}: {name}.prepare returned {type(staged).__name__}, not bytes\n"
                "  Return what commit needs to make the rows visible; pickle.dumps(rows) will do."
            )
        size = len(bytes(staged))
        if size > STAGED_BYTES_MAX:
            self.sink.abort(txn, bytes(staged))
            raise ConnectorError(
                f"{self._where()}: {name}.prepare staged {size:,} bytes; a transaction holds "
                f"{STAGED_BYTES_MAX:,} at most\n"
                "  They travel in the checkpoint. Write rows to a file or a staging table in\n"
                "  write(), and let prepare return its name; or take checkpoints more often."
            )

    def _failed(self, method: str, error: Exception) -> PenstockError:
        if isinstance(error, PenstockError):
            return error
        name = type(self.sink).__name__
        frames = "".join(f"\n  {line}" for line in user_frames(error).splitlines())
        return ConnectorError(
            f"{self._where()}: {name}.{method} failed at epoch {self._ctx.checkpoint_id}"
            f"{frames}\n  {cause_of(error)}"
        )

    def _where(self) -> str:
        return f"{self._ctx.operator_name}[{self._ctx.subtask}]"


def _order(pending: Pending) -> tuple[int, str]:
    return pending.checkpoint_id, pending.txn
