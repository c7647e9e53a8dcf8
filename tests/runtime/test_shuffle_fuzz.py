"""Random batches of every Arrow type pass a hash shuffle between processes and come out equal.

The pipeline is real: four splits read by three subtasks, rows dealt out by key to three others,
which write them to files. Batches are slices of random length, some of them empty.
"""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import penstock as ps
from penstock.dataflow.launcher import JobHandle, current_launcher, use_launcher
from penstock.dataflow.plan import Plan
from penstock.dataflow.settings import JobSettings
from penstock.elements.hash import hash_columns
from penstock.elements.keygroup import subtask_of
from penstock.operators.memory_source import plain_table
from penstock.operators.source import (
    Chunk,
    EndOfSplit,
    Position,
    ReaderContext,
    SourceConnector,
    Split,
    SplitReader,
)
from penstock.testing.batches import NESTED, SIMPLE, random_array

SPLITS, PARALLELISM = 4, 3
ROWS = 700
KEYS = (pa.int64(), pa.utf8(), pa.binary(), pa.timestamp("ns", "UTC"), pa.float64(), pa.bool_())
KINDS: list[str | pa.DataType] = [*SIMPLE, *NESTED]


class Slices(SourceConnector[Any]):
    """A table in SPLITS parts, read in slices of random length."""

    name = "slices"

    def __init__(self, table: pa.Table, seed: int) -> None:
        self._table = table
        self._seed = seed

    @property
    def schema(self) -> pa.Schema:
        """The table's."""
        return self._table.schema

    def splits(self) -> list[Split]:
        """Numbered."""
        return [Split(str(number), 1, number) for number in range(SPLITS)]

    def reader(self, split: Split, position: Position, ctx: ReaderContext) -> SplitReader:
        """This job is not stopped: always from the start."""
        rows = -(-self._table.num_rows // SPLITS)
        piece = self._table.slice(split.detail * rows, rows).combine_chunks().to_batches()[0]
        return _Slices(piece, random.Random(self._seed + split.detail))


class _Slices(SplitReader):
    def __init__(self, rows: pa.RecordBatch, chance: random.Random) -> None:
        self._rows = rows
        self._chance = chance
        self._at = 0

    def poll(self, limit_rows: int) -> Chunk:
        """Some of the next rows, perhaps none."""
        if self._at >= self._rows.num_rows:
            raise EndOfSplit
        batch = self._rows.slice(self._at, min(limit_rows, self._chance.choice((0, 1, 7, 60))))
        self._at += batch.num_rows
        return Chunk(batch, self._at)


class Shuffling:
    """A launcher that lets the edge into the sink shuffle by key."""

    def __init__(self) -> None:
        self._engine = current_launcher()

    def start(self, plan: Plan, settings: JobSettings) -> JobHandle:
        """Every edge of the plan becomes a hash edge."""
        edges = [dataclasses.replace(e, partition="hash", keys=("key",)) for e in plan.edges]
        assert len(edges) == 1
        return self._engine.start(dataclasses.replace(plan, edges=tuple(edges)), settings)


def same(batch: pa.RecordBatch) -> pa.RecordBatch:
    """What stands behind the shuffle."""
    return batch


def shuffled(table: pa.Table, seed: int) -> dict[int, pa.Table]:
    """What each subtask behind the shuffle got."""
    sink = ps.MemorySink()
    rows = ps.Pipeline("shuffle").source(Slices(table, seed))
    rows.map_batches(same).chain_break().sink(sink, name="out")
    launcher = use_launcher(Shuffling())
    try:
        handle = rows._pipeline.start(
            parallelism=PARALLELISM,
            restart_attempts=0,
            durability="process",
            batch_rows=64,
            shuffle_memory_bytes=4 << 20,
        )
    finally:
        use_launcher(launcher)
    handle.wait(60)
    found: dict[int, list[pa.Table]] = {}
    for path in Path(sink.directory).glob("*.arrow"):
        subtask = int(path.stem.split("-")[-2])
        with pa.OSFile(str(path), "rb") as file:
            piece = pa.ipc.open_file(pa.BufferReader(file.read())).read_all()
        found.setdefault(subtask, []).append(piece)
    sink.discard()
    return {subtask: pa.concat_tables(pieces) for subtask, pieces in found.items()}


def in_order(table: pa.Table) -> list[str]:
    """Rows as text in order of their number: not-a-number equals itself, -0.0 is not 0.0."""
    columns = [repr_of(table.column(name)) for name in table.column_names]
    rows = list(zip(table.column("number").to_pylist(), *columns, strict=True))
    return [repr(row) for row in sorted(rows, key=lambda row: row[0])]


def repr_of(column: pa.ChunkedArray) -> list[str]:
    """Each value as text; nanoseconds have no form in plain Python."""
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.int64())
    return [repr(value) for value in column.to_pylist()]


@pytest.mark.parametrize("seed", range(len(KEYS)))
def test_rows_come_out_of_a_shuffle_as_they_went_in(seed: int) -> None:
    chance = random.Random(seed)
    # Every kind is in some seed's table, the nested ones with random children in all of them.
    kinds = [kind for at, kind in enumerate(KINDS) if at % 3 == seed % 3 or kind in NESTED]
    arrays = {f"c{at}": random_array(ROWS, chance, kind) for at, kind in enumerate(kinds)}
    key = random_array(ROWS, chance, KEYS[seed])
    table = plain_table(pa.table({"number": pa.array(range(ROWS)), "key": key, **arrays}))
    parts = shuffled(table, seed)
    for subtask, part in parts.items():
        assert part.schema.equals(table.schema)
        for batch in part.to_batches():
            assert set(subtask_of(hash_columns(batch, ["key"]), PARALLELISM)) == {subtask}
    assert len(parts) > 1
    assert in_order(pa.concat_tables(parts.values())) == in_order(table)
