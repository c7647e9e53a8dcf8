"""Every source resumes where it stopped; bad rows are set aside exactly once."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from law_data import START, as_table, events

import penstock as ps
from penstock.testing.same_rows import assert_same_rows

EVENTS = events(400)
TABLE = as_table(EVENTS)


@dataclass
class Number:
    n: int


@dataclass
class Place:
    split: str
    n: int


def test_rows_and_tables() -> None:
    def rows() -> ps.Stream[Any]:
        return ps.Pipeline("law").source([Number(n) for n in range(300)])

    def table() -> ps.Stream[Any]:
        return ps.Pipeline("law").source(TABLE).select("id", "v")

    assert_same_rows(rows, [(n,) for n in range(300)])
    assert_same_rows(table, [(e.id, e.v) for e in EVENTS])


@ps.source(bounded=True)
def counting(position: int | None, stop: int) -> Iterator[tuple[Number, int]]:
    for n in range(position or 0, stop):
        yield Number(n), n + 1


@ps.source(bounded=True)
def anew(stop: int) -> Iterator[Number]:
    """It cannot seek: it begins anew, and rows that were read before are left out."""
    for n in range(stop):
        yield Number(n)


@ps.source(bounded=True)
async def awaited(position: int | None, stop: int) -> AsyncIterator[tuple[Number, int]]:
    for n in range(position or 0, stop):
        await asyncio.sleep(0)
        yield Number(n), n + 1


@pytest.mark.parametrize("made", [counting, anew, awaited])
def test_generators(made: Any) -> None:
    def build() -> ps.Stream[Any]:
        return ps.Pipeline("law").source(made(stop=300))

    assert_same_rows(build, [(n,) for n in range(300)])


class Places(ps.Source[Place]):
    """Five splits of different lengths."""

    bounded = True

    def splits(self) -> list[str]:
        return list("abcde")

    def read(self, split: str, position: Any) -> Iterator[tuple[Place, int]]:
        for n in range(position or 0, 20 * "abcde".index(split) + 30):
            yield Place(split, n), n + 1


def test_a_source_of_several_splits() -> None:
    expected = [(s, n) for i, s in enumerate("abcde") for n in range(20 * i + 30)]
    assert_same_rows(lambda: ps.Pipeline("law").source(Places()), expected)


def write(folder: Path, kind: str) -> str:
    """TABLE in two files of a kind; the pattern that finds them."""
    for number, piece in enumerate((TABLE.slice(0, 150), TABLE.slice(150))):
        path = folder / f"{number}.{kind}"
        if kind == "parquet":
            pq.write_table(piece, path, row_group_size=60)
        elif kind == "arrow":
            with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, piece.schema) as out:
                out.write_table(piece, max_chunksize=50)
        elif kind.startswith("csv"):
            with gzip.open(path, "wb") if kind.endswith("gz") else open(path, "wb") as file:
                pyarrow.csv.write_csv(piece.drop_columns(["ts"]), file)
        else:
            lines = piece.drop_columns(["ts"]).to_pylist()
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder / f"*.{kind}")


@pytest.mark.parametrize("kind", ["parquet", "arrow", "csv", "csv.gz", "jsonl"])
def test_files(kind: str, tmp_path: Path) -> None:
    pattern = write(tmp_path, kind)
    schema = TABLE.schema if kind in ("parquet", "arrow") else TABLE.drop_columns(["ts"]).schema

    def build() -> ps.Stream[Any]:
        source = ps.FileSource(pattern, schema=schema, split_bytes=1000)
        return ps.Pipeline("law").source(source).select("id", "k", "v")

    assert_same_rows(build, [(e.id, e.k, e.v) for e in EVENTS])


def test_nexmark() -> None:
    made = lambda: ps.Pipeline("law").source(  # noqa: E731
        ps.NexmarkSource("bid", events=500, splits=4), event_time="datetime", out_of_order="1 s"
    )
    counts = made().collect()
    grouped = counts.group_by("auction").aggregate([([], "count_all"), ("price", "max")])

    def build() -> ps.Stream[Any]:
        by_auction = made().key_by("auction").window(ps.tumble("1 hour"))
        return by_auction.aggregate(n="count(*)", top="max(price)").select("auction", "n", "top")

    assert counts.num_rows == 460
    assert_same_rows(build, list(zip(*(c.to_pylist() for c in grouped.columns), strict=True)))


def test_impulse() -> None:
    def build() -> ps.Stream[Any]:
        source = ps.ImpulseSource(events=300, splits=4, start=START)
        return ps.Pipeline("law").source(source).select("counter")

    assert_same_rows(build, [(n,) for n in range(300)])


def refuse_some(row: Number) -> Number:
    if row.n % 10 == 3:
        raise ValueError(f"not {row.n}")
    return row


@pytest.mark.parametrize("where", ["map", "value stage", "source"])
def test_dead_letters_are_written_exactly_once(where: str, tmp_path: Path) -> None:
    bad = [n for n in range(300) if n % 10 == 3]
    lines = [f'{{"n": {n}}}' if n not in bad else f'{{"n": "no {n}"}}' for n in range(300)]
    (tmp_path / "in.jsonl").write_text("\n".join(lines) + "\n")
    letters = ps.DeadLetter(str(tmp_path / "dead"))

    def build() -> ps.Stream[Any]:
        p = ps.Pipeline("law")
        if where == "source":
            source = ps.FileSource(tmp_path / "in.jsonl", schema=Number, split_bytes=1000)
            return p.source(source).on_error(letters)
        numbers = p.source([Number(n) for n in range(300)])
        if where == "map":
            return numbers.map(refuse_some).on_error(letters)
        return numbers.select(n="n / (n % 10 - 3) * 0 + n").on_error(letters)

    runs = assert_same_rows(build, [(n,) for n in range(300) if n not in bad])
    found = [
        json.loads(line)["raw"]
        for path in (tmp_path / "dead").glob("*.jsonl")
        for line in path.read_text().splitlines()
    ]
    numbers = sorted(int("".join(c for c in raw if c.isdigit())) for raw in found)
    assert numbers == sorted(bad * runs)


def test_expected_rows_of_the_files_are_not_trivial() -> None:
    assert pc.count_distinct(TABLE["v"]).as_py() > 50
