"""The ledger: a job in which every row is numbered, and a checker that proves each arrived once.

Source splits count 0, 1, 2, …; each row has a key and passes a shuffle, a stateful operator that
numbers the rows of its key, another that keeps them in a log (ledger_book.py), a second channel,
and an exactly-once file sink. A lost, doubled or torn row, or a state update applied twice or not
at all, breaks one of the countings.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from penstock.connectors.file_readers import Throttle
from penstock.connectors.file_sink import FileSink
from penstock.dataflow.pipeline import Pipeline
from penstock.operators.context import Context
from penstock.operators.declared import ValueState
from penstock.operators.keyed_operator import KeyedOperator
from penstock.operators.source import (
    Chunk,
    EndOfSplit,
    Position,
    ReaderContext,
    SourceConnector,
    Split,
    SplitReader,
)

from .ledger_book import BookLogic

SCHEMA = pa.schema(
    [
        pa.field("split", pa.int64(), nullable=False),
        pa.field("number", pa.int64(), nullable=False),
        pa.field("key", pa.int64(), nullable=False),
    ]
)
KEYS = 97


@dataclass
class Numbered:
    """A row of the source."""

    split: int
    number: int
    key: int


@dataclass
class Counted:
    """A row of the sink: `nth` is its place among the rows of its key."""

    split: int
    number: int
    key: int
    nth: int


class LedgerSource(SourceConnector[Any]):
    """`splits` splits of `rows` rows each; `rate` rows a second and split."""

    name = "ledger"

    def __init__(self, splits: int, rows: int, rate: float | None) -> None:
        self._splits = splits
        self._rows = rows
        self._rate = rate

    @property
    def schema(self) -> pa.Schema:
        """split, number, key."""
        return SCHEMA

    def splits(self) -> Sequence[Split]:
        """Numbered splits."""
        return [Split(f"ledger-{i}", self._rows, {"index": i}) for i in range(self._splits)]

    def reader(self, split: Split, position: Position, ctx: ReaderContext) -> SplitReader:
        """Counts on from `position`."""
        return _LedgerReader(split.detail["index"], position or 0, self._rows, Throttle(self._rate))


class _LedgerReader(SplitReader):
    def __init__(self, index: int, at: int, rows: int, throttle: Throttle) -> None:
        self._index = index
        self._at = at
        self._rows = rows
        self._throttle = throttle

    def poll(self, limit_rows: int) -> Chunk | None:
        """The next numbers."""
        if self._at >= self._rows:
            raise EndOfSplit
        count = min(self._throttle.allowed(limit_rows), self._rows - self._at)
        if count == 0:
            return None
        numbers = np.arange(self._at, self._at + count, dtype=np.int64)
        keys = (numbers * 31 + self._index * 7) % KEYS
        split = np.full(count, self._index, np.int64)
        batch = pa.RecordBatch.from_arrays([pa.array(a) for a in (split, numbers, keys)],
                                           schema=SCHEMA)  # fmt: skip
        first = f"split {self._index} number {self._at}"
        self._at += count
        self._throttle.gave(count)
        return Chunk(batch, self._at, first)


class CountPerKey(KeyedOperator[Numbered, Counted]):
    """Numbers the rows of each key, in state."""

    seen = ValueState(int, default=0)

    def process(self, key: int, row: Numbered, ctx: Context) -> Iterator[Counted]:
        """One row out per row in."""
        self.seen.value += 1
        yield Counted(row.split, row.number, row.key, self.seen.value)


def ledger(folder: str | os.PathLike[str], splits: int, rows: int, rate: float | None) -> Pipeline:
    """The job; its rows appear below `folder`."""
    pipeline = Pipeline("ledger")
    counted = pipeline.source(LedgerSource(splits, rows, rate)).key_by("key").process(CountPerKey())
    booked = counted._then(BookLogic(KEYS), "the ledger")
    booked.filter("nth > 0").chain_break().sink(FileSink(folder, roll_interval="0 s"))
    return pipeline


@dataclass
class LedgerReport:
    """What the checker found; `problems` is empty when every row arrived exactly once."""

    rows: int = 0
    lost: int = 0
    duplicated: int = 0
    miscounted: int = 0
    problems: list[str] = field(default_factory=list)


def check_ledger(folder: str | os.PathLike[str], splits: int, rows: int) -> LedgerReport:
    """Compare the committed files with what the source gave."""
    files = sorted(Path(folder).glob("part-*.parquet"))
    report = LedgerReport()
    if not files:
        report.lost = splits * rows
        report.problems.append("no file was committed")
        return report
    table = pa.concat_tables([pq.read_table(file) for file in files])
    number = table["split"].to_numpy() * rows + table["number"].to_numpy()
    counts = np.bincount(number, minlength=splits * rows)
    report.rows = table.num_rows
    report.lost = int((counts == 0).sum())
    report.duplicated = int((counts > 1).sum())
    key, nth = table["key"].to_numpy(), table["nth"].to_numpy()
    for value in np.unique(key).tolist():
        of_key = np.sort(nth[key == value])
        report.miscounted += int((of_key != np.arange(1, len(of_key) + 1)).sum())
    for name in ("lost", "duplicated", "miscounted"):
        count = getattr(report, name)
        if count:
            report.problems.append(f"{count} rows {name}")
    return report
