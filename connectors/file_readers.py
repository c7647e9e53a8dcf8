"""Readers of one split of a file: Parquet row groups, Arrow batches, or a range of lines.

Positions: rows since the start of the file for Parquet and Arrow, bytes of the decompressed file
for lines. Each says where to resume after the rows handed out.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from penstock.elements.clock import Clock, SystemClock
from penstock.elements.errors import ConnectorError
from penstock.operators.source import Chunk, EndOfSplit, Position, SplitReader

from .files import READ_ERRORS, Compression, open_stream
from .row_group_pruning import Comparison, useful_groups
from .text_decode import Decode, decode_lines

DECODED_ROWS = 64 * 1024
"""Rows per batch asked of the Parquet reader; polls hand out slices."""
READ_BYTES = 1 << 20
BURST_S = 0.1
LINE_BYTES_MAX = 64 << 20
"""A longer line is taken for a broken file."""

Cast = Callable[[pa.RecordBatch], pa.RecordBatch]
RejectRecord = Callable[[bytes, str, str], None]
"""(raw record, error, position as text), to the source's error policy."""


class Throttle:
    """At most so many rows a second over all readers that share it; for demonstrations and tests.

    What was not used within BURST_S is forfeited, so a pause is not followed by a flood.
    """

    def __init__(self, rows_per_second: float | None, clock: Clock | None = None) -> None:
        self._rate = rows_per_second
        self._clock = clock or SystemClock()
        self._last_ns = self._clock.monotonic_ns()
        self._tokens = 0.0

    def allowed(self, limit: int) -> int:
        """How many of `limit` rows may be given now."""
        if self._rate is None:
            return limit
        now_ns = self._clock.monotonic_ns()
        earned = (now_ns - self._last_ns) / 1e9 * self._rate
        self._last_ns = now_ns
        self._tokens = min(self._tokens + earned, max(1.0, self._rate * BURST_S))
        return min(limit, int(self._tokens))

    def gave(self, rows: int) -> None:
        """Count rows handed out."""
        self._tokens -= rows


class BatchReader(SplitReader):
    """Rows [first, stop) of a columnar file, resumable at any row."""

    def __init__(
        self,
        path: str,
        batches: Iterator[tuple[int, pa.RecordBatch]],
        row: int,
        throttle: Throttle,
    ) -> None:
        """`batches` gives each batch with its first row's place in the file, from `row` on."""
        self._path = path
        self._batches = batches
        self._row = row
        self._throttle = throttle
        self._left: pa.RecordBatch | None = None

    def poll(self, limit_rows: int) -> Chunk | None:
        """Up to `limit_rows` rows; None only while the throttle holds."""
        limit = self._throttle.allowed(limit_rows)
        if limit == 0:
            return None
        if self._left is None or self._left.num_rows == 0:
            self._row, self._left = self._next()
        batch = self._left.slice(0, limit)
        self._left = self._left.slice(batch.num_rows)
        first = f"{self._path} row {self._row}"
        self._row += batch.num_rows
        self._throttle.gave(batch.num_rows)
        return Chunk(batch, self._row, first)

    def _next(self) -> tuple[int, pa.RecordBatch]:
        try:
            for row, batch in self._batches:
                if batch.num_rows:
                    return row, batch
        except READ_ERRORS as error:
            raise ConnectorError(f"{self._path} near row {self._row}: {error}") from error
        raise EndOfSplit


def open_parquet(
    path: str, columns: Sequence[str], groups: Sequence[int], position: Position, cast: Cast,
    throttle: Throttle, comparisons: Sequence[Comparison] = (),
) -> BatchReader:  # fmt: skip
    """These row groups of a Parquet file, ascending, from row `position` of the file on.

    Row groups that cannot pass `comparisons` are not read.
    """
    try:
        file = pq.ParquetFile(path, memory_map=False)
    except READ_ERRORS as error:
        raise ConnectorError(f"cannot read {path}: {error}") from error
    sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    starts = [0, *itertools.accumulate(sizes)]
    row = max(position or 0, starts[groups[0]] if groups else 0)
    left = [group for group in groups if starts[group + 1] > row]
    useful = set(useful_groups(file.metadata, left, comparisons))
    wanted = [group for group in left if group in useful]

    def batches() -> Iterator[tuple[int, pa.RecordBatch]]:
        # One row group at a time: each batch then knows the row that it begins with.
        for group in wanted:
            at = starts[group]
            for batch in file.iter_batches(
                DECODED_ROWS, row_groups=[group], columns=list(columns), use_threads=False
            ):
                skip = min(max(0, row - at), batch.num_rows)
                yield at + skip, cast(batch.slice(skip))
                at += batch.num_rows

    return BatchReader(path, batches(), row, throttle)


def open_arrow(
    path: str, compression: Compression, columns: Sequence[str], position: Position, cast: Cast,
    throttle: Throttle,
) -> BatchReader:  # fmt: skip
    """An Arrow IPC file or stream from row `position` on."""

    def batches() -> Iterator[tuple[int, pa.RecordBatch]]:
        left, row = position or 0, position or 0
        with open_stream(path, compression) as stream:
            reader = (
                pa.ipc.open_file(pa.BufferReader(stream.read()))
                if _is_ipc_file(path, compression)
                else pa.ipc.open_stream(stream)
            )
            count = getattr(reader, "num_record_batches", None)
            found = (
                (reader.get_batch(i) for i in range(count)) if count is not None else iter(reader)
            )
            for batch in found:
                if left >= batch.num_rows:
                    left -= batch.num_rows
                    continue
                rest, left = batch.slice(left), 0
                yield row, cast(rest.select(list(columns)))
                row += rest.num_rows

    return BatchReader(path, batches(), position or 0, throttle)


def _is_ipc_file(path: str, compression: Compression) -> bool:
    with open_stream(path, compression) as stream:
        return stream.read(6) == b"ARROW1"


class LineReader(SplitReader):
    """The lines that begin in bytes [start, stop) of a text file, decompressed."""

    def __init__(
        self, path: str, compression: Compression, span: tuple[int, int | None],
        position: Position, header_lines: int, decode: Decode, schema: pa.Schema,
        reject: RejectRecord, throttle: Throttle,
    ) -> None:  # fmt: skip
        self._path = path
        self._decode = decode
        self._schema = schema
        self._reject = reject
        self._throttle = throttle
        self._stream: IO[bytes] = open_stream(path, compression)
        self._stop = span[1]
        self._buffer: list[bytes] = []
        self._tail = b""
        self._end_of_file = False
        if position is None and span[0] == 0:
            self._at = 0
            for _ in range(header_lines):
                self._at += len(self._read_one_line())
        elif position is None:
            # The line in which the range begins belongs to the range before it.
            self._at = span[0] - 1
            self._seek(self._at)
            self._at += len(self._read_one_line())
        else:
            self._at = int(position)
            self._seek(self._at)

    def _seek(self, offset: int) -> None:
        if self._stream.seekable():
            self._stream.seek(offset)
            return
        left = offset
        while left:
            block = self._stream.read(min(left, READ_BYTES))
            if not block and left == 1:
                return  # The last line had no newline; the position counts one.
            if not block:
                raise ConnectorError(
                    f"{self._path} is shorter than the position {offset} to resume at: "
                    "it was replaced or cut since the checkpoint"
                )
            left -= len(block)

    def _read_one_line(self) -> bytes:
        while b"\n" not in self._tail and not self._end_of_file:
            self._fill()
        line, newline, self._tail = self._tail.partition(b"\n")
        return line + newline

    def _fill(self) -> None:
        try:
            block = self._stream.read(READ_BYTES)
        except READ_ERRORS as error:
            raise ConnectorError(f"{self._path} near byte {self._at}: {error}") from error
        if not block:
            self._end_of_file = True
        if len(self._tail) > LINE_BYTES_MAX:
            raise ConnectorError(
                f"{self._path} at byte {self._at}: a line of more than {LINE_BYTES_MAX} bytes; "
                "is this a text file with one record per line?"
            )
        self._tail += block

    def _lines(self) -> list[bytes]:
        if not self._buffer:
            while b"\n" not in self._tail and not self._end_of_file:
                self._fill()
            whole, newline, rest = self._tail.rpartition(b"\n")
            if self._end_of_file and rest:
                self._buffer, self._tail = [*whole.split(b"\n"), rest], b""
                if not newline:
                    self._buffer = [rest]
            elif newline:
                self._buffer, self._tail = whole.split(b"\n"), rest
        return self._buffer

    def poll(self, limit_rows: int) -> Chunk | None:
        """Up to `limit_rows` lines' records; rejected ones go to the error policy."""
        limit = self._throttle.allowed(limit_rows)
        if limit == 0:
            return None
        if self._stop is not None and self._at >= self._stop:
            raise EndOfSplit
        available = self._lines()
        if not available:
            raise EndOfSplit
        lines, starts, at = available[:limit], [], self._at
        for index, line in enumerate(lines):
            if self._stop is not None and at >= self._stop:
                lines = lines[:index]
                break
            starts.append(at)
            at += len(line) + 1
        self._buffer = available[len(lines) :]
        first, self._at = f"{self._path} byte {self._at}", at
        kept = [(line, start) for line, start in zip(lines, starts, strict=True) if line.strip()]
        batch = decode_lines(
            [line for line, _ in kept],
            self._decode,
            self._schema,
            lambda raw, error, i: self._reject(raw, error, f"{self._path} byte {kept[i][1]}"),
        )
        self._throttle.gave(len(lines))
        return Chunk(batch, self._at, first)

    def close(self) -> None:
        """Close the file."""
        self._stream.close()
