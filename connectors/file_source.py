"""FileSource: Parquet, Arrow, CSV and JSON lines, by path, glob or directory.

Bounded, unless a directory is watched. A split is a file, a range of row groups, or a range of
bytes of an uncompressed text file; its id is stable, so a restart finds it again.
Requires: files appear whole (written elsewhere and renamed) and do not change afterwards.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.json as pajson
import pyarrow.parquet as pq

from penstock.elements.conform import plain_type
from penstock.elements.durations import Duration, duration_ns
from penstock.elements.errors import ConnectorError, PlanError
from penstock.elements.row_schema import row_schema
from penstock.operators.source import Position, ReaderContext, SourceConnector, Split, SplitReader

from .file_readers import LineReader, Throttle, open_arrow, open_parquet
from .files import READ_ERRORS, FileKind, kind_of, list_files, open_stream
from .row_group_pruning import comparisons_of
from .text_decode import csv_decoder, json_decoder

SPLIT_BYTES = 8 * 1024 * 1024
"""Larger Parquet files are cut into splits of about this size, but no more than SPLITS_MAX."""
SPLITS_MAX = 32
"""Each split of a Parquet file that is being read holds some decoded rows."""
TEXT_SPLIT_BYTES = 64 * 1024 * 1024
"""Larger text files are cut into splits of about this size."""
INFERENCE_BYTES = 1 << 20
"""How much of the first text file is read to infer a schema."""


def _read_as(kind: pa.DataType) -> pa.DataType:
    # A column that held only nulls where it was looked at may hold text further on.
    return pa.string() if pa.types.is_null(kind) else plain_type(kind)


@dataclass(frozen=True)
class _Options:
    patterns: tuple[str, ...]
    format: str | None
    declared: pa.Schema | None
    delimiter: str
    quoted_newlines: bool
    split_bytes: int | None
    rows_per_second: float | None
    columns: tuple[str, ...] | None = None
    predicate: str | None = None


class FileSource(SourceConnector[Any]):
    """Read files.

    `schema` (a row class or pa.Schema) is inferred from the first file when not given; give it
    for text files that matter. `watch="10 seconds"` looks for new files for ever (unbounded).
    `rows_per_second` bounds the pace of each subtask that reads. CSV files begin with a header
    line; set `quoted_newlines` if quoted fields may hold line breaks, which keeps a file in one
    split.
    """

    name = "files"

    def __init__(
        self,
        path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        *,
        format: str | None = None,
        schema: type | pa.Schema | None = None,
        watch: Duration | None = None,
        delimiter: str = ",",
        quoted_newlines: bool = False,
        split_bytes: int | None = None,
        rows_per_second: float | None = None,
    ) -> None:
        paths = [path] if isinstance(path, (str, os.PathLike)) else list(path)
        if schema is not None and not isinstance(schema, pa.Schema):
            schema = row_schema(schema)
        self._options = _Options(
            tuple(os.path.abspath(os.fspath(p)) for p in paths),
            format,
            schema,
            delimiter,
            quoted_newlines,
            split_bytes,
            rows_per_second,
        )
        if watch is not None:
            self.bounded = False
            self.discovery_interval_ns = duration_ns(watch, "FileSource(watch=)")

    @cached_property
    def _kind(self) -> FileKind:
        files = list_files(self._options.patterns)
        pattern = self._options.patterns[0] if self._options.patterns else ""
        path = files[0] if files else pattern
        return kind_of(path, self._options.format, "FileSource")

    @cached_property
    def _whole_schema(self) -> pa.Schema:
        if self._options.declared is not None:
            return self._options.declared
        files = list_files(self._options.patterns)
        if not files:
            raise PlanError(
                f"FileSource: no file matches {', '.join(self._options.patterns)}\n"
                "  To start before there are files, say what they will hold:  schema=MyRow"
            )
        inferred = _infer_schema(files[0], self._kind, self._options)
        return pa.schema([pa.field(f.name, _read_as(f.type), nullable=True) for f in inferred])

    @property
    def identity(self) -> str:  # type: ignore[override]
        """What it was asked to read."""
        return " ".join(self._options.patterns)

    @property
    def schema(self) -> pa.Schema:
        """The columns that are read."""
        whole = self._whole_schema
        if self._options.columns is None:
            return whole
        return pa.schema([whole.field(name) for name in self._options.columns])

    def with_columns_read(self, columns: Sequence[str]) -> FileSource:
        """Read only these columns, in the schema's order."""
        wanted = tuple(name for name in self._whole_schema.names if name in set(columns))
        return self._with(replace(self._options, columns=wanted))

    def with_predicate(self, predicate: str) -> FileSource:
        """Skip Parquet row groups whose statistics rule the predicate out."""
        return self._with(replace(self._options, predicate=predicate))

    def _with(self, options: _Options) -> FileSource:
        changed = FileSource.__new__(FileSource)
        changed.__dict__.update(self.__dict__)
        changed._options = options
        return changed

    def splits(self) -> Sequence[Split]:
        """All files there are now, cut where they are large."""
        return [split for path in list_files(self._options.patterns) for split in self._cut(path)]

    def _cut(self, path: str) -> list[Split]:
        kind = kind_of(path, self._options.format, "FileSource")
        size = os.path.getsize(path)
        if kind.format == "parquet":
            return self._cut_parquet(path)
        whole = kind.compression != "none" or kind.format == "arrow"
        whole = whole or (kind.format == "csv" and self._options.quoted_newlines)
        each = self._options.split_bytes or TEXT_SPLIT_BYTES
        if whole or size <= each:
            return [Split(path, max(1, size), {"path": path, "start": 0, "stop": None})]
        return [
            Split(f"{path}@{start}", each, {"path": path, "start": start, "stop": start + each})
            for start in range(0, size, each)
        ]

    def _cut_parquet(self, path: str) -> list[Split]:
        try:
            metadata = pq.read_metadata(path)
        except READ_ERRORS as error:
            raise ConnectorError(f"cannot read {path}: {error}") from error
        groups: int = metadata.num_row_groups
        sizes = [metadata.row_group(group).total_byte_size for group in range(groups)]
        each = self._options.split_bytes or SPLIT_BYTES
        count = max(1, min(groups, SPLITS_MAX, sum(sizes) // each))
        # Row groups are dealt out in turn: a file in the order of its event times is then read by
        # all subtasks at about the same place, and they finish together.
        return [
            Split(
                path if count == 1 else f"{path}@{first}/{count}",
                max(1, sum(sizes[first::count])),
                {"path": path, "start": first, "stop": groups, "step": count},
            )
            for first in range(count)
        ]

    def reader(self, split: Split, position: Position, ctx: ReaderContext) -> SplitReader:
        """Open a split where a checkpoint left it."""
        path, start, stop = (split.detail[name] for name in ("path", "start", "stop"))
        kind = kind_of(path, self._options.format, "FileSource")
        throttle = self._throttle
        names = self.schema.names
        if kind.format == "parquet":
            wanted = comparisons_of(self._options.predicate) if self._options.predicate else []
            groups = range(start, stop, split.detail.get("step", 1))
            return open_parquet(path, names, groups, position, self._cast(path), throttle, wanted)
        if kind.format == "arrow":
            cast = self._cast(path)
            return open_arrow(path, kind.compression, names, position, cast, throttle)
        if kind.format == "csv":
            header = _csv_header(path, kind, self._options.delimiter)
            decode = csv_decoder(self.schema, header, self._options.delimiter)
        else:
            decode = json_decoder(self.schema)
        headers = 1 if kind.format == "csv" else 0
        return LineReader(
            path, kind.compression, (start, stop), position, headers, decode, self.schema,
            ctx.reject, throttle,
        )  # fmt: skip

    @cached_property
    def _throttle(self) -> Throttle:
        return Throttle(self._options.rows_per_second)

    def _cast(self, path: str) -> Callable[[pa.RecordBatch], pa.RecordBatch]:
        schema = self.schema

        def cast(batch: pa.RecordBatch) -> pa.RecordBatch:
            if batch.schema.equals(schema, check_metadata=False):
                return pa.RecordBatch.from_arrays(batch.columns, schema=schema)
            columns = []
            for field in schema:
                column = batch.column(field.name)
                if column.null_count and not field.nullable:
                    raise ConnectorError(
                        f"{path}: column {field.name!r} holds nulls, but is declared without\n"
                        "  Declare it as  | None  (a dataclass) or nullable (a pa.Schema)."
                    )
                try:
                    columns.append(column.cast(field.type))
                except pa.ArrowException as error:
                    raise ConnectorError(
                        f"{path}: column {field.name!r} is {column.type}, "
                        f"and does not fit the declared {field.type}: {error}"
                    ) from error
            return pa.RecordBatch.from_arrays(columns, schema=schema)

        return cast


def _infer_schema(path: str, kind: FileKind, options: _Options) -> pa.Schema:
    try:
        if kind.format == "parquet":
            return pq.read_schema(path)
        if kind.format == "arrow":
            with open_stream(path, kind.compression) as stream:
                body = stream.read()
            opened = pa.ipc.open_file if body[:6] == b"ARROW1" else pa.ipc.open_stream
            return opened(pa.BufferReader(body)).schema
        with open_stream(path, kind.compression) as stream:
            sample = stream.read(INFERENCE_BYTES)
        cut = sample.rfind(b"\n") + 1
        sample = sample[:cut] if cut else sample
        if kind.format == "csv":
            parse = pacsv.ParseOptions(
                delimiter=options.delimiter, newlines_in_values=options.quoted_newlines
            )
            convert = pacsv.ConvertOptions(null_values=["", "NA", "null", "NULL"],
                                           strings_can_be_null=True)  # fmt: skip
            return pacsv.read_csv(
                io.BytesIO(sample), parse_options=parse, convert_options=convert
            ).schema
        # A guard line keeps the reader from its crash on a file of nulls.
        return pajson.read_json(io.BytesIO(b"{}\n" + sample)).schema
    except READ_ERRORS as error:
        raise PlanError(
            f"FileSource: cannot infer the columns of {path}: {error}\n"
            "  Say what the files hold:  schema=MyRow  (a dataclass or a pa.Schema)"
        ) from error


def _csv_header(path: str, kind: FileKind, delimiter: str) -> list[str]:
    with open_stream(path, kind.compression) as stream:
        line = re.split(rb"\r?\n", stream.read(INFERENCE_BYTES), maxsplit=1)[0]
    parse = pacsv.ParseOptions(delimiter=delimiter)
    return list(pacsv.read_csv(io.BytesIO(line + b"\n"), parse_options=parse).schema.names)
