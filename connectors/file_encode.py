"""Batches to one whole file: Parquet, Arrow, CSV or JSON lines, optionally compressed."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable

import arro3.io
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from .files import FileKind

ROW_GROUP_ROWS = 128 * 1024


def fsync_file(path: str) -> None:
    """Make a file and its name durable."""
    for target in (path, os.path.dirname(path)):
        descriptor = os.open(target, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_file(
    path: str, kind: FileKind, schema: pa.Schema, batches: Iterable[pa.RecordBatch]
) -> None:
    """Write all batches; the file is complete and durable when this returns.

    JSON lines leave null fields out. Parquet and Arrow compress inside (zstd) unless
    compression is "none"; text is compressed as a whole.
    """
    if kind.format == "parquet":
        codec = "snappy" if kind.compression == "none" else kind.compression
        with pq.ParquetWriter(path, schema, compression=codec) as writer:
            for batch in batches:
                writer.write_batch(batch, row_group_size=ROW_GROUP_ROWS)
    elif kind.format == "arrow":
        inner = "zstd" if kind.compression == "zstd" else None
        options = pa.ipc.IpcWriteOptions(compression=inner)
        with pa.OSFile(path, "wb") as file, pa.ipc.new_file(file, schema, options=options) as out:
            for batch in batches:
                out.write_batch(batch)
    else:
        _write_text(path, kind, schema, batches)
    fsync_file(path)


def _write_text(
    path: str, kind: FileKind, schema: pa.Schema, batches: Iterable[pa.RecordBatch]
) -> None:
    codec = None if kind.compression == "none" else kind.compression
    with pa.output_stream(path, compression=codec) as stream:
        if kind.format == "csv":
            with pacsv.CSVWriter(stream, schema) as writer:
                for batch in batches:
                    writer.write_batch(batch)
            return
        for batch in batches:
            if batch.num_columns == 0:
                stream.write(b"{}\n" * batch.num_rows)
            elif batch.num_rows:
                lines = io.BytesIO()
                arro3.io.write_ndjson(batch, lines)
                stream.write(lines.getvalue())
