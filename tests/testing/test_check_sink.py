"""check_sink accepts the sink of the documentation and finds each way of getting it wrong."""

from __future__ import annotations

import pickle
import sqlite3
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from penstock.elements.errors import ConnectorError
from penstock.operators import sink as sink_module
from penstock.operators.sink import Sink
from penstock.operators.sink_processor import SinkProcessor
from penstock.testing.harness import Harness
from penstock.testing.sink import check_sink

COLUMNS = pa.schema([("carrier", pa.utf8()), ("worst", pa.float64())])


class SqliteSink(Sink):
    """The example of the documentation."""

    def __init__(self, path: str) -> None:
        self.path = path

    def open(self, ctx: Any) -> None:
        self._rows: list[tuple[Any, ...]] = []
        self._db = sqlite3.connect(self.path)
        self._db.execute("CREATE TABLE IF NOT EXISTS done (txn PRIMARY KEY)")
        self._db.execute("CREATE TABLE IF NOT EXISTS late (carrier, worst)")

    def write(self, batch: pa.RecordBatch, ctx: Any) -> None:
        self._rows += zip(*(c.to_pylist() for c in batch.columns))

    def prepare(self, txn: str) -> bytes:
        rows, self._rows = self._rows, []
        return pickle.dumps(rows)

    def commit(self, txn: str, staged: bytes) -> None:
        with self._db:
            if self._db.execute("INSERT OR IGNORE INTO done VALUES (?)", [txn]).rowcount:
                self._db.executemany("INSERT INTO late VALUES (?, ?)", pickle.loads(staged))


class CommitsTwice(SqliteSink):
    def commit(self, txn: str, staged: bytes) -> None:
        with self._db:
            self._db.executemany("INSERT INTO late VALUES (?, ?)", pickle.loads(staged))


class ShowsEarly(SqliteSink):
    def write(self, batch: pa.RecordBatch, ctx: Any) -> None:
        with self._db:
            self._db.executemany(
                "INSERT INTO late VALUES (?, ?)", zip(*(c.to_pylist() for c in batch.columns))
            )

    def prepare(self, txn: str) -> bytes:
        return b""

    def commit(self, txn: str, staged: bytes) -> None:
        return None


class ForgetsTheRun(SqliteSink):
    """Knows a transaction by checkpoint and subtask only, so a fresh run is taken for a repeat."""

    def commit(self, txn: str, staged: bytes) -> None:
        super().commit("/".join(txn.split("/")[-2:]), staged)


class KeepsRowsAtHome(SqliteSink):
    """Commits from memory instead of from the staged bytes, which another process does not have."""

    def prepare(self, txn: str) -> bytes:
        self._staged = getattr(self, "_staged", {})
        self._staged[txn], self._rows = self._rows, []
        return b""

    def commit(self, txn: str, staged: bytes) -> None:
        rows = getattr(self, "_staged", {}).get(txn, [])
        super().commit(txn, pickle.dumps(rows))


class AtLeastOnce(SqliteSink):
    prepare = Sink.prepare

    def write(self, batch: pa.RecordBatch, ctx: Any) -> None:
        super().write(batch, ctx)

    def flush(self) -> None:
        with self._db:
            self._db.executemany("INSERT INTO late VALUES (?, ?)", self._rows)
        self._rows = []


class NeverFlushes(AtLeastOnce):
    def flush(self) -> None:
        return None


def rows_of(path: Path) -> list[tuple[Any, ...]]:
    db = sqlite3.connect(path)
    try:
        return list(db.execute("SELECT carrier, worst FROM late"))
    except sqlite3.OperationalError:
        return []
    finally:
        db.close()


def test_the_sink_of_the_documentation_holds_at_every_step(tmp_path: Path) -> None:
    path = tmp_path / "late.db"
    held = check_sink(SqliteSink(str(path)), lambda: rows_of(path))
    assert len(held) == 12
    assert any("rescaled" in step for step in held)


@pytest.mark.parametrize(
    ("sink", "complaint"),
    [
        (CommitsTwice, "too many"),
        (ShowsEarly, "before commit"),
        (ForgetsTheRun, "lost"),
        (KeepsRowsAtHome, "lost"),
    ],
)
def test_a_wrong_sink_is_found(tmp_path: Path, sink: type[SqliteSink], complaint: str) -> None:
    path = tmp_path / "late.db"
    with pytest.raises(AssertionError, match=complaint):
        check_sink(sink(str(path)), lambda: rows_of(path))


def test_a_sink_without_prepare_shows_rows_at_least_once(tmp_path: Path) -> None:
    path = tmp_path / "late.db"
    assert check_sink(AtLeastOnce(str(path)), lambda: rows_of(path))
    other = tmp_path / "other.db"
    with pytest.raises(AssertionError, match="rows are out at the checkpoint"):
        check_sink(NeverFlushes(str(other)), lambda: rows_of(other))


class Grumbling(Sink):
    def __init__(self, where: str) -> None:
        self.where = where

    def write(self, batch: pa.RecordBatch, ctx: Any) -> None:
        if self.where == "write":
            raise OSError("disk on fire")

    def prepare(self, txn: str) -> Any:
        return {"type": "text", "size": b"x" * 200}.get(self.where, b"")

    def commit(self, txn: str, staged: bytes) -> None:
        if self.where == "commit":
            raise OSError("peer gone")


def test_failures_name_the_sink_the_step_and_the_users_line() -> None:
    one = pa.record_batch({"carrier": ["A"], "worst": [1.0]})
    with pytest.raises(ConnectorError, match=r"late\[0\]: Grumbling.write failed") as caught:
        Harness(SinkProcessor(Grumbling("write")), operator_name="late").send(one)
    assert "test_check_sink.py" in str(caught.value)
    assert "OSError: disk on fire" in str(caught.value)
    assert "sink_processor.py" not in str(caught.value)
    harness = Harness(SinkProcessor(Grumbling("commit")))
    harness.cut()
    with pytest.raises(ConnectorError, match="peer gone"):
        harness.commit()
    assert harness.processor.pending_commits() == [1], "a failed commit is still owed"


def test_staged_bytes_must_be_bytes_and_within_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConnectorError, match="not bytes"):
        Harness(SinkProcessor(Grumbling("type"))).cut()
    monkeypatch.setattr("penstock.operators.sink_processor.STAGED_BYTES_MAX", 100)
    with pytest.raises(ConnectorError, match=r"Grumbling.prepare staged 200 bytes.*100 at most"):
        Harness(SinkProcessor(Grumbling("size"))).cut()
    assert sink_module.STAGED_BYTES_MAX == 64 * 1024 * 1024


def test_commits_are_owed_until_they_are_done_and_come_in_order(tmp_path: Path) -> None:
    path = tmp_path / "late.db"
    harness = Harness(SinkProcessor(SqliteSink(str(path))))
    for number in range(3):
        harness.send(pa.record_batch({"carrier": [str(number)], "worst": [1.0]}))
        harness.cut()
    assert harness.processor.pending_commits() == [1, 2, 3]
    harness.processor.on_commit(2)
    assert harness.processor.pending_commits() == [3]
    assert [row[0] for row in rows_of(path)] == ["0", "1"]
    harness.crash()
    assert harness.processor.pending_commits() == []
    assert [row[0] for row in rows_of(path)] == ["0", "1", "2"]


def test_the_event_time_column_does_not_reach_sinks(tmp_path: Path) -> None:
    path = tmp_path / "late.db"
    harness = Harness(SinkProcessor(SqliteSink(str(path))))
    timed = pa.record_batch(
        {"carrier": ["A"], "worst": [1.0], "_time": pa.array([5], pa.timestamp("ns", "UTC"))}
    )
    harness.send(timed)
    harness.cut()
    harness.commit()
    assert rows_of(path) == [("A", 1.0)]
