"""Rows, sources, sinks and operators for the tests that run whole jobs in real processes."""

from __future__ import annotations

import ctypes
import glob
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

import penstock as ps
from penstock.dataflow.launcher import JobHandle, JobStatus

PATIENCE_S = 60
"""For a busy machine; nothing here takes a tenth of it."""
TICK_S = 0.001
START = datetime(2024, 1, 1, tzinfo=UTC)


@dataclass
class Row:
    k: str
    v: int


@dataclass
class Timed:
    k: str
    at: datetime


def ticks_to(last: int | None) -> Callable[[int | None], Iterator[tuple[Row, int]]]:
    def rows(position: int | None) -> Iterator[tuple[Row, int]]:
        n = position or 0
        while last is None or n < last:
            n += 1
            time.sleep(TICK_S)
            yield Row("abc"[n % 3], n), n

    return rows


@ps.source
def ticks(position: int | None) -> Iterator[tuple[Row, int]]:
    """One row per millisecond, for ever."""
    yield from ticks_to(None)(position)


@ps.source(bounded=True)
def some_ticks(position: int | None, last: int) -> Iterator[tuple[Row, int]]:
    """One row per millisecond up to `last`."""
    yield from ticks_to(last)(position)


@ps.source
def blocked(position: int | None) -> Iterator[tuple[Row, int]]:
    """One row, and then a call that never comes back."""
    if position is None:
        yield Row("only", 1), 1
    threading.Event().wait()


class BusyAndQuiet(ps.Source[Timed]):
    """One split speaks once and falls silent; the other goes on."""

    def splits(self) -> list[str]:
        return ["busy", "quiet"]

    def read(self, split: str, position: Any) -> Iterator[tuple[Timed, int]]:
        n = position or 0
        if split == "quiet":
            if not n:
                yield Timed("quiet", START), 1
            threading.Event().wait()
        while True:
            n += 1
            time.sleep(TICK_S)
            yield Timed("busy", START + timedelta(seconds=n)), n


@ps.source(bounded=True)
def out_of_order(position: int | None) -> Iterator[tuple[Timed, int]]:
    """The second row is an hour behind, and long enough after the first one's watermark."""
    if not position:
        yield Timed("good", START + timedelta(hours=1)), 1
        time.sleep(0.5)
    yield Timed("late", START), 2


@ps.source(bounded=True)
def flaky(position: int | None, folder: str, outages: int) -> Iterator[tuple[Row, int]]:
    """Two rows; after the first the feed is down as often as it was told to, wherever it runs."""
    if not position:
        yield Row("a", 1), 1
    down = len(glob.glob(f"{folder}/outage-*"))
    if down < outages:
        Path(folder, f"outage-{down}").touch()
        raise ConnectionError("the feed is down")
    yield Row("b", 2), 2


class Choke(ps.KeyedOperator[Row, Row]):
    def __init__(self, on: str) -> None:
        self.on = on

    def process(self, key: str, row: Row, ctx: ps.Context) -> Iterator[Row]:
        if key == self.on:
            raise ValueError(f"{key!r} sticks in the throat")
        yield row


class Count(ps.KeyedOperator[Row, Row]):
    n = ps.ValueState(int, default=0)

    def process(self, key: str, row: Row, ctx: ps.Context) -> Iterator[Row]:
        self.n.value += 1
        yield Row(key, self.n.value)


class PassOn(ps.KeyedOperator[Row, Row]):
    def process(self, key: str, row: Row, ctx: ps.Context) -> Iterator[Row]:
        yield row


class Hoard(ps.KeyedOperator[Row, Row]):
    """Every row makes its state grow."""

    kept = ps.ListState(str)

    def process(self, key: str, row: Row, ctx: ps.Context) -> Iterator[Row]:
        self.kept.append("z" * 100)
        yield row


@dataclass
class Text:
    k: str | None
    text: str | None


@dataclass
class Size:
    k: str | None
    size: int


class Measure(ps.KeyedOperator[Text, Size]):
    def process(self, key: str | None, row: Text, ctx: ps.Context) -> Iterator[Size]:
        yield Size(key, len(row.text or ""))


class Misbehaving(ps.Operator):
    """Does what it is told to the process it lives in."""

    returns = Row

    def __init__(self, how: str) -> None:
        self.how = how

    def open(self, ctx: ps.Context) -> None:
        if self.how == "open":
            raise RuntimeError("no model here")

    def process(self, batch: pl.DataFrame, ctx: ps.Context) -> Iterator[pl.DataFrame]:
        if self.how == "sys.exit":
            sys.exit(5)
        elif self.how == "os._exit":
            os._exit(7)
        elif self.how == "segfault":
            ctypes.string_at(0)
        elif self.how == "print":
            sys.stdout.write("a word from the operator\n")
        elif self.how == "thread":
            threading.Thread(target=threading.Event().wait).start()
        elif self.how == "fork":
            child = os.fork()
            if child == 0:
                os._exit(0)
            os.waitpid(child, 0)
        yield batch


class Shaky(ps.Sink):
    """Its commit fails as often as it was told to, in whichever process."""

    def __init__(self, folder: str, failures: int) -> None:
        self.folder = folder
        self.failures = failures

    def open(self, ctx: ps.Context) -> None:
        self._rows: list[Any] = []

    def write(self, batch: pa.RecordBatch, ctx: ps.Context) -> None:
        self._rows += batch.to_pylist()

    def prepare(self, txn: str) -> bytes:
        rows, self._rows = self._rows, []
        return json.dumps(rows).encode()

    def commit(self, txn: str, staged: bytes) -> None:
        failed = len(glob.glob(f"{self.folder}/failure-*"))
        if json.loads(staged) and failed < self.failures:
            Path(self.folder, f"failure-{failed}").touch()
            raise OSError("the database is away")
        Path(self.folder, txn.replace("/", "_") + ".jsonl").write_bytes(
            b"".join(json.dumps(row).encode() + b"\n" for row in json.loads(staged))
        )


def written(folder: Path) -> list[Any]:
    """Every row of every JSON lines file that is visible below `folder`."""
    names = glob.glob(f"{folder}/**/*.jsonl", recursive=True)
    return [json.loads(line) for name in names for line in Path(name).read_text().splitlines()]


def until(job: JobHandle, ready: Callable[[JobStatus], bool]) -> JobStatus:
    """Wait until the job's status is as wanted; AssertionError if it never is."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        status = job.status()
        if ready(status):
            return status
        time.sleep(0.02)
    raise AssertionError(f"it never came to that: {job.status()}")
