"""What the file source and the file sink agree on: formats, compressions, names of files."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Literal, cast

import pyarrow as pa
import zstandard

from penstock.elements.errors import ConnectorError, PlanError

FileFormat = Literal["parquet", "arrow", "csv", "jsonl"]
Compression = Literal["none", "gzip", "zstd"]

_FORMAT_OF_SUFFIX: dict[str, FileFormat] = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".ipc": "arrow",
    ".feather": "arrow",
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
}
_COMPRESSION_OF_SUFFIX: dict[str, Compression] = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd"}
READ_ERRORS = (OSError, pa.ArrowException, zstandard.ZstdError)
"""What reading a missing, cut or damaged file raises."""
SUFFIX_OF_COMPRESSION: dict[Compression, str] = {"none": "", "gzip": ".gz", "zstd": ".zst"}


@dataclass(frozen=True)
class FileKind:
    """Format and compression of one file."""

    format: FileFormat
    compression: Compression = "none"


def kind_of(path: str, declared: str | None, where: str) -> FileKind:
    """The kind a file's name or `format=` says; PlanError that lists what there is.

    >>> kind_of("a/b.jsonl.zst", None, "source")
    FileKind(format='jsonl', compression='zstd')
    """
    stem, suffix = os.path.splitext(path)
    compression = _COMPRESSION_OF_SUFFIX.get(suffix.lower(), "none")
    if compression != "none":
        suffix = os.path.splitext(stem)[1]
    if declared is not None:
        if declared not in ("parquet", "arrow", "csv", "jsonl"):
            raise PlanError(
                f"{where}: format {declared!r} is unknown; there are parquet, arrow, csv, jsonl"
            )
        return FileKind(cast(FileFormat, declared), compression)
    found = _FORMAT_OF_SUFFIX.get(suffix.lower())
    if found is None:
        raise PlanError(
            f"{where}: cannot tell the format of {path!r} from its name\n"
            '  Say it:  format="parquet" (or "arrow", "csv", "jsonl")'
        )
    return FileKind(found, compression)


def list_files(patterns: Sequence[str]) -> list[str]:
    """Files that the patterns name, sorted: paths, globs (`**` too), or whole directories.

    Names that begin with a dot or an underscore are not data: they are staging and markers.
    """
    found: set[str] = set()
    for pattern in patterns:
        if os.path.isdir(pattern):
            for folder, folders, names in os.walk(pattern):
                folders[:] = [f for f in folders if not f.startswith((".", "_"))]
                found.update(os.path.join(folder, name) for name in names)
        elif glob.has_magic(pattern):
            found.update(p for p in glob.glob(pattern, recursive=True) if os.path.isfile(p))
        elif os.path.exists(pattern):
            found.add(pattern)
    return sorted(p for p in found if not os.path.basename(p).startswith((".", "_")))


def open_stream(path: str, compression: Compression) -> IO[bytes]:
    """The decompressed bytes of a file; ConnectorError names the file that cannot be opened."""
    try:
        if compression == "none":
            return open(path, "rb")
        if compression == "zstd":
            # Logs that were appended to are several frames behind each other.
            plain = open(path, "rb")  # noqa: SIM115 - the reader closes it
            return zstandard.ZstdDecompressor().stream_reader(plain, read_across_frames=True)
        return cast(IO[bytes], pa.input_stream(path, compression="gzip"))
    except OSError as error:
        raise ConnectorError(f"cannot read {path}: {error}") from error
