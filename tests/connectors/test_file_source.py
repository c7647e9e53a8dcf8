"""FileSource: every format and compression, resumable at any row, bad records set aside."""

from __future__ import annotations

import datetime as dt
import gzip
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from penstock.connectors.file_encode import write_file
from penstock.connectors.file_source import FileSource
from penstock.connectors.files import FileKind
from penstock.elements.errors import ConnectorError, PlanError
from penstock.operators.source import EndOfSplit, ReaderContext

TABLE = pa.table(
    {
        "n": pa.array(range(100), pa.int64()),
        "t": pa.array(
            [dt.datetime(2020, 1, 1, tzinfo=dt.UTC) + dt.timedelta(seconds=i) for i in range(100)],
            pa.timestamp("us", "UTC"),
        ),
        "s": pa.array([None if i % 7 == 0 else f"text {i}" for i in range(100)]),
    }
)
KINDS = [
    ("parquet", "none"),
    ("arrow", "none"),
    ("csv", "none"),
    ("csv", "gzip"),
    ("jsonl", "none"),
    ("jsonl", "gzip"),
    ("jsonl", "zstd"),
]


class Rejected:
    """Collects rejected records."""

    def __init__(self) -> None:
        self.records: list[tuple[bytes, str, str]] = []

    def __call__(self, raw: bytes, error: str, position: str) -> None:
        self.records.append((raw, error, position))


def context(reject: Any = None) -> ReaderContext:
    return ReaderContext(subtask=0, wake=lambda: None, reject=reject or Rejected())


def read(source: FileSource, limit: int, position: Any = None, split: int = 0) -> list[Any]:
    """(rows, position) per poll until the split ends."""
    reader = source.reader(source.splits()[split], position, context())
    found = []
    while True:
        try:
            chunk = reader.poll(limit)
        except EndOfSplit:
            reader.close()
            return found
        assert chunk is not None
        found.append((chunk.batch.to_pylist(), chunk.position))


def written(folder: Path, form: str, compression: str) -> Path:
    suffix = {"none": "", "gzip": ".gz", "zstd": ".zst"}[compression]
    path = folder / f"data.{form}{suffix}"
    kind = FileKind(form, compression)  # type: ignore[arg-type]
    write_file(str(path), kind, TABLE.schema, TABLE.to_batches(max_chunksize=30))
    return path


@pytest.mark.parametrize(("form", "compression"), KINDS)
def test_every_format_is_read_and_resumed_after_any_poll(
    tmp_path: Path, form: str, compression: str
) -> None:
    source = FileSource(written(tmp_path, form, compression), schema=TABLE.schema)
    polls = read(source, 17)
    assert [row for rows, _ in polls for row in rows] == TABLE.to_pylist()
    done = 0
    for polled, position in polls:
        done += len(polled)
        rest = [row for rows, _ in read(source, 23, position) for row in rows]
        assert rest == TABLE.to_pylist()[done:]


@pytest.mark.parametrize("form", ["parquet", "csv", "jsonl", "arrow"])
def test_the_schema_is_inferred(tmp_path: Path, form: str) -> None:
    source = FileSource(written(tmp_path, form, "none"))
    assert source.schema.names == ["n", "t", "s"]
    assert source.schema.field("n").type == pa.int64()


def test_only_the_wanted_columns_are_read(tmp_path: Path) -> None:
    source = FileSource(written(tmp_path, "parquet", "none")).with_columns_read(["s", "n"])
    assert read(source, 1)[5][0] == [{"n": 5, "s": "text 5"}]


@pytest.mark.parametrize("form", ["jsonl", "csv"])
@pytest.mark.parametrize("size", [64, 333, 1000])
def test_byte_ranges_hold_every_line_once(tmp_path: Path, form: str, size: int) -> None:
    source = FileSource(written(tmp_path, form, "none"), schema=TABLE.schema, split_bytes=size)
    splits = source.splits()
    assert len(splits) > 1
    rows = [
        row
        for index in range(len(splits))
        for polled, _ in read(source, 8, split=index)
        for row in polled
    ]
    assert rows == TABLE.to_pylist()


def test_row_groups_become_splits(tmp_path: Path) -> None:
    path = tmp_path / "groups.parquet"
    pq.write_table(TABLE, path, row_group_size=10)
    source = FileSource(path, split_bytes=1)
    assert len(source.splits()) == 10
    assert [r["n"] for rows, _ in read(source, 4, split=3) for r in rows] == list(range(30, 40))


@pytest.mark.parametrize(
    ("predicate", "groups"),
    [
        ("n >= 70", {7, 8, 9}),
        ("n < 25 and 5 <= n", {0, 1, 2}),
        ("n = 44", {4}),
        ("s > 'text 89'", {8, 9}),
        ("n + 1 > 1000", set(range(10))),
        ("n = 'x'", set(range(10))),
    ],
)
def test_row_groups_that_cannot_pass_the_predicate_are_not_read(
    tmp_path: Path, predicate: str, groups: set[int]
) -> None:
    path = tmp_path / "groups.parquet"
    pq.write_table(TABLE, path, row_group_size=10)
    polls = read(FileSource(path).with_predicate(predicate), 7)
    rows = [row["n"] for polled, _ in polls for row in polled]
    expected = [n for n in range(100) if n // 10 in groups]
    if predicate.startswith("s >"):
        assert set(range(90, 100)) <= set(rows) < set(range(100))
        return
    assert rows == expected
    for done, position in ((len(polls[0][0]), polls[0][1]), (len(rows), polls[-1][1])):
        again = read(FileSource(path).with_predicate(predicate), 50, position)
        assert [row["n"] for polled, _ in again for row in polled] == expected[done:]


def test_bad_records_are_rejected_with_their_position_and_the_rest_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    lines = [b'{"n": 1}', b'{"n": "x"}', b"nonsense", b'{"n": 1.5}', b"", b'{"n": 2}', b"null"]
    path.write_bytes(b"\n".join(lines) + b"\n")
    rejected = Rejected()
    source = FileSource(path, schema=pa.schema([("n", pa.int64())]))
    reader = source.reader(source.splits()[0], None, context(rejected))
    chunk = reader.poll(100)
    reader.close()
    assert chunk is not None
    assert chunk.batch["n"].to_pylist() == [1, 2]
    assert [raw for raw, _, _ in rejected.records] == [lines[1], lines[2], lines[3], lines[6]]
    assert rejected.records[1][2] == f"{path} byte 20"


def test_a_bad_csv_record_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    path.write_text("n,s\n1,a\nx,b\n3\n4,d\n")
    rejected = Rejected()
    source = FileSource(path, schema=pa.schema([("n", pa.int64()), ("s", pa.string())]))
    reader = source.reader(source.splits()[0], None, context(rejected))
    chunk = reader.poll(100)
    reader.close()
    assert chunk is not None
    assert chunk.batch["n"].to_pylist() == [1, 4]
    assert [raw for raw, _, _ in rejected.records] == [b"x,b", b"3"]


def test_a_watched_directory_finds_new_files_and_keeps_split_names(tmp_path: Path) -> None:
    source = FileSource(tmp_path, format="jsonl", schema=TABLE.schema, watch="1 s")
    assert list(source.splits()) == []
    (tmp_path / "a.jsonl").write_text('{"n": 1}\n')
    first = [split.id for split in source.splits()]
    (tmp_path / "b.jsonl").write_text('{"n": 2}\n')
    (tmp_path / ".hidden.jsonl").write_text("x")
    assert [split.id for split in source.splits()][:1] == first
    assert len(source.splits()) == 2
    assert not source.bounded


def test_no_file_and_unknown_names_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="no file matches"):
        _ = FileSource(tmp_path / "*.parquet").schema
    (tmp_path / "x.dat").write_text("?")
    with pytest.raises(PlanError, match="cannot tell the format"):
        _ = FileSource(tmp_path / "x.dat").schema


def test_a_last_line_without_newline_resumes_in_a_compressed_file(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"n": 1}\n{"n": 2}'))
    source = FileSource(path, schema=pa.schema([("n", pa.int64())]))
    polls = read(source, 1)
    assert [rows for rows, _ in polls] == [[{"n": 1}], [{"n": 2}]]
    assert read(source, 1, polls[-1][1]) == []


STRICT = pa.schema([pa.field("n", pa.int64(), nullable=False), pa.field("s", pa.utf8())])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("in.jsonl", '{"n": 1, "s": "a"}\n{"s": "b"}\n{"n": null}\n{"n": 4}\n'),
        ("in.csv", "n,s\n1,a\n,b\n,\n4,\n"),
    ],
)
def test_records_without_a_value_that_must_be_there_are_rejected(
    name: str, text: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text)
    rejected = Rejected()
    source = FileSource(tmp_path / name, schema=STRICT)
    reader = source.reader(source.splits()[0], None, context(rejected))
    chunk = reader.poll(100)
    reader.close()
    assert chunk is not None
    assert chunk.batch.schema.equals(STRICT)
    assert chunk.batch["n"].to_pylist() == [1, 4]
    assert len(rejected.records) == 2
    assert all("'n' is missing or null" in error for _, error, _ in rejected.records)


def test_nulls_in_a_column_declared_without_them_are_an_error(tmp_path: Path) -> None:
    table = pa.table({"n": [1, None], "s": ["a", "b"]})
    pq.write_table(table, tmp_path / "in.parquet")
    source = FileSource(tmp_path / "in.parquet", schema=STRICT)
    reader = source.reader(source.splits()[0], None, context())
    with pytest.raises(ConnectorError, match="'n' holds nulls, but is declared without"):
        reader.poll(10)
    reader.close()


def test_compressed_frames_behind_each_other_are_one_file(tmp_path: Path) -> None:
    path = tmp_path / "appended.jsonl.zst"
    compress = zstandard.ZstdCompressor().compress
    path.write_bytes(compress(b'{"n": 1}\n{"n"') + compress(b': 2}\n{"n": 3}\n'))
    source = FileSource(path, schema=pa.schema([("n", pa.int64())]))
    polls = read(source, 2)
    assert [row["n"] for rows, _ in polls for row in rows] == [1, 2, 3]
    assert [row["n"] for rows, _ in read(source, 9, polls[0][1]) for row in rows] == [3]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cut.jsonl.zst"
    path.write_bytes(b"this is not zstandard")
    source = FileSource(path, schema=pa.schema([("n", pa.int64())]))
    reader = source.reader(source.splits()[0], None, context())
    with pytest.raises(ConnectorError, match=r"cut\.jsonl\.zst near byte 0"):
        reader.poll(1)
    reader.close()
