"""Files that appear while the job runs, and files that hold rows of several checkpoints."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from law_data import Dealt, as_table, events

import penstock as ps
from penstock.dataflow.launcher import JobHandle, current_launcher, use_launcher
from penstock.testing.same_rows import _kill_one, _Slowing, _wait_for_epoch

EVENTS = events(500)
TABLE = as_table(EVENTS)


def found(folder: Path) -> Counter[tuple[int, str]]:
    """(id, k) of every row that was published; hive folders are read as columns."""
    partitioning = ds.partitioning(pa.schema([("k", pa.string())]), flavor="hive")
    dataset = ds.dataset(folder, format="parquet", partitioning=partitioning)
    table = dataset.to_table(columns=["id", "k"])
    return Counter(zip(table["id"].to_pylist(), table["k"].to_pylist(), strict=True))


@pytest.mark.parametrize("roll", ["0 s", "1 hour"])
@pytest.mark.parametrize("partition_by", [(), ("k",)])
def test_rows_reach_files_once_through_kills_and_another_parallelism(
    roll: str, partition_by: tuple[str, ...], tmp_path: Path
) -> None:
    """With an hour to roll, rows wait in the sink's state until the data ends."""

    def start(parallelism: int) -> JobHandle:
        pipeline = ps.Pipeline("files")
        sink = ps.FileSink(tmp_path / "out", roll_interval=roll, partition_by=partition_by)
        pipeline.source(Dealt(TABLE)).chain_break().sink(sink)
        before = current_launcher()
        use_launcher(_Slowing(before, 400.0))
        try:
            return pipeline.start(
                state_dir=str(tmp_path / "state"),
                parallelism=parallelism,
                checkpoint_interval="80 ms",
                durability="process",
            )
        finally:
            use_launcher(before)

    job = start(2)
    _wait_for_epoch(job, 2)
    assert _kill_one(job, random.Random(1))
    _wait_for_epoch(job, job.status().epoch + 1)
    assert job.stop("checkpoint").outcome == "stopped"
    assert start(3).wait(60).outcome == "finished"
    assert found(tmp_path / "out") == Counter((e.id, e.k) for e in EVENTS)
    assert not (tmp_path / "out" / ".staging").exists()


def test_files_that_appear_while_the_job_runs_are_read_once(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    written = 0

    def write() -> None:
        nonlocal written
        piece = TABLE.slice(written * 50, 50)
        # Written aside and renamed, as whoever feeds a watched folder must.
        pq.write_table(piece, tmp_path / "aside.parquet", row_group_size=20)
        (tmp_path / "aside.parquet").rename(tmp_path / "in" / f"{written}.parquet")
        written += 1

    def start(parallelism: int) -> JobHandle:
        pipeline = ps.Pipeline("watching")
        source = ps.FileSource(tmp_path / "in" / "*.parquet", schema=TABLE.schema, watch="50 ms")
        rows: ps.Stream[Any] = pipeline.source(source, event_time="ts", out_of_order="5 s")
        rows.chain_break().sink(ps.FileSink(tmp_path / "out", roll_interval="0 s"))
        return pipeline.start(
            state_dir=str(tmp_path / "state"),
            parallelism=parallelism,
            checkpoint_interval="80 ms",
            durability="process",
        )

    chance = random.Random(1)
    for parallelism in (2, 3, 1):
        job = start(parallelism)
        for kill in range(2):
            write()
            _wait_for_epoch(job, job.status().epoch + 1)
            if kill:
                assert _kill_one(job, chance)
            write()
            _wait_for_epoch(job, job.status().epoch + 2)
        if parallelism != 1:
            assert job.stop("checkpoint").outcome == "stopped"
    rows = written * 50
    while sum(found(tmp_path / "out").values()) < min(rows, 500):
        _wait_for_epoch(job, job.status().epoch + 1)
    assert job.stop("drain").outcome == "finished"
    assert found(tmp_path / "out") == Counter((e.id, e.k) for e in EVENTS[:rows])
