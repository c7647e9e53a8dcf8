"""FileSink: whole files at commit, exactly once, whatever dies in between."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from penstock.connectors.file_sink import FileSink
from penstock.connectors.memory import MemorySink
from penstock.elements.clock import ManualClock
from penstock.elements.errors import ConnectorError

RUN = "0123456789abcdef"


class Items:
    """An OperatorList that outlives its sink."""

    def __init__(self) -> None:
        self.held: list[bytes] = []

    def items(self) -> list[bytes]:
        return self.held

    def replace(self, items: Any) -> None:
        self.held = list(items)


class Surroundings:
    """What a sink asks of its context."""

    def __init__(self, state: Items, clock: ManualClock | None = None) -> None:
        self.run_id, self.subtask, self.clock = RUN, 0, clock or ManualClock()
        self._state = state

    def operator_state(self, name: str, redistribute: str) -> Items:
        return self._state


def rows(*numbers: int) -> pa.RecordBatch:
    return pa.record_batch({"n": list(numbers), "c": [f"c{n % 2}" for n in numbers]})


def opened(
    sink: FileSink, state: Items | None = None, clock: ManualClock | None = None
) -> FileSink:
    sink.open(Surroundings(state or Items(), clock))
    return sink


def txn(checkpoint: int) -> str:
    return f"{RUN}/sink/{checkpoint}/0"


def visible(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*") if p.is_file() and ".staging" not in p.parts)


def test_nothing_is_visible_before_commit_and_all_after(tmp_path: Path) -> None:
    sink = opened(FileSink(tmp_path, roll_interval="0 s"))
    sink.write(rows(1, 2, 3), None)
    staged = sink.prepare(txn(1))
    assert visible(tmp_path) == []
    sink.commit(txn(1), staged)
    assert pq.read_table(tmp_path / visible(tmp_path)[0])["n"].to_pylist() == [1, 2, 3]


def test_a_repeated_commit_in_another_process_changes_nothing(tmp_path: Path) -> None:
    sink = opened(FileSink(tmp_path, roll_interval="0 s"))
    sink.write(rows(1), None)
    staged = sink.prepare(txn(1))
    sink.commit(txn(1), staged)
    opened(FileSink(tmp_path, roll_interval="0 s")).commit(txn(1), staged)
    assert len(visible(tmp_path)) == 1


def test_rows_that_have_not_rolled_survive_in_state(tmp_path: Path) -> None:
    state = Items()
    first = opened(FileSink(tmp_path), state)
    first.write(rows(1, 2), None)
    assert first.prepare(txn(1)) == b"[]"
    first.write(rows(99), None)  # not part of any cut: comes again after the restart
    second = opened(FileSink(tmp_path), state)
    second.write(rows(3), None)
    second.finish()
    second.commit(txn(2), second.prepare(txn(2)))
    assert pq.read_table(tmp_path / visible(tmp_path)[0])["n"].to_pylist() == [1, 2, 3]
    assert state.held == []


def test_a_file_rolls_by_age_at_the_next_cut(tmp_path: Path) -> None:
    clock = ManualClock()
    sink = opened(FileSink(tmp_path, roll_interval="10 s"), clock=clock)
    sink.write(rows(1), None)
    assert sink.prepare(txn(1)) == b"[]"
    clock.advance_ns(10 * 10**9)
    assert sink.prepare(txn(2)) != b"[]"


def test_a_file_rolls_by_size_at_the_next_cut(tmp_path: Path) -> None:
    sink = opened(FileSink(tmp_path, roll_bytes=10))
    sink.write(rows(1), None)
    assert sink.prepare(txn(1)) != b"[]"


def test_a_prepared_file_that_vanished_is_an_error_not_a_loss(tmp_path: Path) -> None:
    sink = opened(FileSink(tmp_path, roll_interval="0 s"))
    sink.write(rows(1), None)
    staged = sink.prepare(txn(1))
    for path in tmp_path.rglob("1-0-*"):
        os.unlink(path)
    with pytest.raises(ConnectorError, match="gone before it was committed"):
        sink.commit(txn(1), staged)


def test_partitions_become_hive_folders(tmp_path: Path) -> None:
    sink = opened(FileSink(tmp_path, partition_by=["c"], roll_interval="0 s"))
    sink.write(rows(1, 2, 3), None)
    sink.commit(txn(1), sink.prepare(txn(1)))
    table = pads.dataset(str(tmp_path), partitioning="hive", exclude_invalid_files=True).to_table()
    assert sorted(zip(table["n"].to_pylist(), table["c"].to_pylist(), strict=True)) == [
        (1, "c1"),
        (2, "c0"),
        (3, "c1"),
    ]


def test_the_finished_job_leaves_no_staging(tmp_path: Path) -> None:
    sink = opened(FileSink(tmp_path, roll_interval="0 s"))
    sink.write(rows(1), None)
    sink.commit(txn(1), sink.prepare(txn(1)))
    FileSink(tmp_path).job_finished(RUN)
    assert not (tmp_path / ".staging").exists()


def test_memory_sink_gives_back_what_was_committed(tmp_path: Path) -> None:
    sink = opened(MemorySink(str(tmp_path)))
    assert isinstance(sink, MemorySink)
    sink.write(rows(1, 2), None)
    assert sink.table(rows(1).schema).num_rows == 0
    sink.commit(txn(1), sink.prepare(txn(1)))
    assert sink.table()["n"].to_pylist() == [1, 2]


def test_segments_go_once_no_retained_checkpoint_names_them(tmp_path: Path) -> None:
    sink = opened(FileSink(tmp_path, roll_interval="0 s"))
    counts = []
    for checkpoint in range(1, 8):
        sink.write(rows(checkpoint), None)
        sink.commit(txn(checkpoint), sink.prepare(txn(checkpoint)))
        counts.append(len(list(tmp_path.rglob("segment-*"))))
    assert counts == [1, 2, 3, 3, 3, 3, 3]
