"""FileSink: exactly-once rolling files that appear whole, at commit.

Rows go to a segment file in `.staging`; at each cut the segment is closed and remembered as sink
state (hazard 58). When size or age asks for it, or the data ends, the segments become staged final
files, listed in the transaction. Commit links exactly the listed files to names that follow from
the transaction, so it may repeat, in any process, and a zombie can only repeat it (hazard 13).
Publication is atomic per file.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import urllib.parse
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from penstock.elements.clock import SystemClock
from penstock.elements.durations import Duration, duration_ns
from penstock.elements.errors import ConnectorError, PlanError
from penstock.operators.sink import Sink

from .file_encode import fsync_file, write_file
from .files import SUFFIX_OF_COMPRESSION, FileKind, kind_of

ROLL_BYTES = 128 * 1024 * 1024
STAGING = ".staging"
SEGMENTS_KEPT_CUTS = 3
"""Segments stay this many cuts after their rows are in a file: an older checkpoint names them."""
NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True)
class Segment:
    """Rows between two cuts that are not in a final file yet."""

    path: str
    rows: int
    bytes: int
    opened_ns: int


@dataclass(frozen=True)
class StagedFile:
    """A complete file and where commit puts it; both relative to the sink's folder."""

    staged: str
    final: str


class FileSink(Sink):
    """Write rows to files below `path`.

    A file is finished at the first checkpoint after `roll_bytes` or `roll_interval`, and when the
    data ends; `roll_interval="0 s"` makes a file per checkpoint. `partition_by` columns become
    hive folders (`carrier=AA/`) and leave the files. Files of earlier runs in the folder stay.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        format: str = "parquet",
        compression: str = "none",
        partition_by: Sequence[str] = (),
        roll_bytes: int = ROLL_BYTES,
        roll_interval: Duration = "60 seconds",
    ) -> None:
        self.path = os.path.abspath(os.fspath(path))
        if compression not in SUFFIX_OF_COMPRESSION:
            raise PlanError(
                f"FileSink: compression {compression!r} is unknown; there are none, gzip, zstd"
            )
        declared = kind_of(f"x.{format}", format, "FileSink").format
        self.kind = FileKind(declared, compression)
        self.partition_by = (
            (partition_by,) if isinstance(partition_by, str) else tuple(partition_by)
        )
        self.roll_bytes = roll_bytes
        self.roll_ns = duration_ns(roll_interval, "FileSink(roll_interval=)")

    @property
    def identity(self) -> str:
        """Its folder."""
        return self.path

    def check(self, schema: pa.Schema) -> None:
        """Refuse folders of columns that are not there, and values that the format cannot hold."""
        for column in self.partition_by:
            if column not in schema.names:
                raise PlanError(
                    f"FileSink(partition_by=): no column {column!r}\n"
                    f"  columns: {', '.join(schema.names)}"
                )
        nested = [field for field in schema if pa.types.is_nested(field.type)]
        if self.kind.format == "csv" and nested:
            raise PlanError(
                f'FileSink: column "{nested[0].name}" is {nested[0].type}, which CSV cannot hold\n'
                '  Write format="jsonl" or "parquet", or leave the column out:'
                f'  .drop("{nested[0].name}")'
            )

    def open(self, ctx: Any) -> None:
        """Make a private staging folder, and take over segments of the restored checkpoint."""
        self._clock = getattr(ctx, "clock", None) or SystemClock()
        run = ctx.run_id
        self._staging = os.path.join(STAGING, run, f"{ctx.subtask}-{uuid.uuid4().hex}")
        try:
            os.makedirs(os.path.join(self.path, self._staging), exist_ok=True)
        except OSError as error:
            raise ConnectorError(
                f"FileSink: {self.path} cannot be written to: {error.strerror}\n"
                "  It needs a folder in which it may make files; one that is missing is made."
            ) from error
        self._state = ctx.operator_state("segments", "list")
        self._segments = [Segment(**json.loads(item)) for item in self._state.items()]
        self._schema: pa.Schema | None = None
        self._file: Any = None
        self._writer: Any = None
        self._writing: str = ""
        self._rows = 0
        self._opened_ns = 0
        self._number = 0
        self._finished = False
        self._obsolete: list[tuple[int, str]] = []

    def write(self, batch: pa.RecordBatch, ctx: Any) -> None:
        """Append rows to the open segment."""
        if batch.num_rows == 0:
            return
        if self._writer is None:
            self._number += 1
            self._writing = os.path.join(self._staging, f"segment-{self._number}.arrow")
            self._file = pa.OSFile(os.path.join(self.path, self._writing), "wb")
            self._schema = batch.schema
            self._writer = pa.ipc.new_stream(self._file, batch.schema)
            self._opened_ns = self._clock.wall_ns()
        self._writer.write_batch(batch)
        self._rows += batch.num_rows

    def finish(self) -> None:
        """The data has ended: the next cut finishes the files."""
        self._finished = True

    def prepare(self, txn: str) -> bytes:
        """Close the segment; stage final files if it is time."""
        self._close_segment()
        staged: list[StagedFile] = []
        if self._segments and (self._finished or self._is_time()):
            staged = self._roll(txn)
            self._obsolete += [(_checkpoint_of(txn), segment.path) for segment in self._segments]
            self._segments = []
        self._state.replace([json.dumps(asdict(s)).encode() for s in self._segments])
        return json.dumps([asdict(file) for file in staged]).encode()

    def _close_segment(self) -> None:
        if self._writer is None:
            return
        self._writer.close()
        self._file.close()
        path = os.path.join(self.path, self._writing)
        fsync_file(path)
        size = os.path.getsize(path)
        self._segments.append(Segment(self._writing, self._rows, size, self._opened_ns))
        self._writer, self._rows = None, 0

    def _is_time(self) -> bool:
        age_ns = self._clock.wall_ns() - min(s.opened_ns for s in self._segments)
        return age_ns >= self.roll_ns or sum(s.bytes for s in self._segments) >= self.roll_bytes

    def _roll(self, txn: str) -> list[StagedFile]:
        run, _, checkpoint, subtask = txn.split("/")[-4:]
        operator = uuid.uuid5(uuid.NAMESPACE_URL, txn.rsplit("/", 2)[0]).hex[:6]
        name = f"part-{run[:8]}-{operator}-{int(checkpoint):08d}-{int(subtask):04d}"
        suffix = f".{self.kind.format}{self._suffix()}"
        staged = []
        for number, (folder, schema, batches) in enumerate(self._partitions()):
            file = StagedFile(
                os.path.join(self._staging, f"{checkpoint}-{number}-{uuid.uuid4().hex}{suffix}"),
                os.path.join(folder, f"{name}-{number}{suffix}"),
            )
            write_file(os.path.join(self.path, file.staged), self.kind, schema, batches)
            staged.append(file)
        return staged

    def _suffix(self) -> str:
        text = self.kind.format in ("csv", "jsonl")
        return SUFFIX_OF_COMPRESSION[self.kind.compression] if text else ""

    def _read(self) -> Iterator[pa.RecordBatch]:
        for segment in self._segments:
            path = os.path.join(self.path, segment.path)
            try:
                with pa.memory_map(path) as file:
                    yield from pa.ipc.open_stream(file)
            except (OSError, pa.ArrowException) as error:
                raise ConnectorError(
                    f"FileSink {self.path}: rows of the last checkpoint are gone: {path}: {error}"
                ) from error

    def _partitions(self) -> list[tuple[str, pa.Schema, Iterator[pa.RecordBatch]]]:
        if not self.partition_by:
            batches = self._read()
            first = next(batches)
            return [("", first.schema, _chain(first, batches))]
        table = pa.Table.from_batches(list(self._read()))
        left = [c for c in table.schema.names if c not in self.partition_by]
        groups = table.group_by(list(self.partition_by), use_threads=False).aggregate([])
        made = []
        for row in groups.to_pylist():
            mask = None
            for column in self.partition_by:
                value = row[column]
                scalar = pa.scalar(value, table.schema.field(column).type)
                equal = (
                    pc.is_null(table[column]) if value is None else pc.equal(table[column], scalar)
                )
                equal = pc.fill_null(equal, False)
                mask = equal if mask is None else pc.and_(mask, equal)
            rows = table.filter(mask).select(left)
            folder = os.path.join(*(f"{c}={_folder_text(row[c])}" for c in self.partition_by))
            made.append((folder, rows.schema, iter(rows.to_batches())))
        return made

    def commit(self, txn: str, staged: bytes) -> None:
        """Link the listed files to their final names; those that are there already stay."""
        for entry in json.loads(staged):
            self._publish(StagedFile(**entry))
        self._forget_segments(_checkpoint_of(txn) - SEGMENTS_KEPT_CUTS)

    def _forget_segments(self, checkpoint: int) -> None:
        """Remove segments that only checkpoints before `checkpoint` still name."""
        for _, path in [o for o in self._obsolete if o[0] <= checkpoint]:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(self.path, path))
        self._obsolete = [o for o in self._obsolete if o[0] > checkpoint]

    def _publish(self, file: StagedFile) -> None:
        source, target = (os.path.join(self.path, p) for p in (file.staged, file.final))
        if not os.path.exists(target):
            os.makedirs(os.path.dirname(target), exist_ok=True)
            try:
                os.link(source, target)
            except FileExistsError:
                pass
            except FileNotFoundError as error:
                raise ConnectorError(
                    f"FileSink: a prepared file is gone before it was committed: {source}\n"
                    f"  It holds rows of a complete checkpoint; put it back, or lose {target}."
                ) from error
            fsync_file(target)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(source)

    def abort(self, txn: str, staged: bytes) -> None:
        """Remove what will be staged again."""
        for entry in json.loads(staged):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(self.path, StagedFile(**entry).staged))

    def job_finished(self, run_id: str) -> None:
        """Remove segments and whatever killed attempts left in staging."""
        shutil.rmtree(os.path.join(self.path, STAGING, run_id), ignore_errors=True)
        with contextlib.suppress(OSError):
            os.rmdir(os.path.join(self.path, STAGING))


def _checkpoint_of(txn: str) -> int:
    return int(txn.split("/")[-2])


def _chain(first: pa.RecordBatch, rest: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    yield first
    yield from rest


def _folder_text(value: object) -> str:
    return NULL_PARTITION if value is None else urllib.parse.quote(str(value), safe=" ")
