"""Exactly once into a database: totals per account go to SQLite, each change once.

A sink stages rows at each checkpoint (`prepare`, whose bytes are kept in the checkpoint) and makes
them visible when the checkpoint is complete (`commit`). A commit may be repeated after a crash:
the table of transactions already seen makes that harmless.
"""

import pickle
import sqlite3
from typing import Any

import pyarrow as pa

import penstock as ps


class SqliteSink(ps.Sink):
    def __init__(self, path: str) -> None:
        self.path = path

    def open(self, ctx: ps.Context) -> None:
        self._rows: list[tuple[Any, ...]] = []
        self._db = sqlite3.connect(self.path, timeout=30)
        self._db.execute("CREATE TABLE IF NOT EXISTS done (txn PRIMARY KEY)")
        self._db.execute("CREATE TABLE IF NOT EXISTS totals (account, window_start, total)")

    def write(self, batch: pa.RecordBatch, ctx: ps.Context) -> None:
        columns = [batch[name] for name in ("account", "window_start", "total")]
        columns[1] = columns[1].cast(pa.int64())  # nanoseconds: SQLite knows no timestamps
        self._rows += zip(*(column.to_pylist() for column in columns), strict=True)

    def prepare(self, txn: str) -> bytes:
        rows, self._rows = self._rows, []
        return pickle.dumps(rows)

    def commit(self, txn: str, staged: bytes) -> None:
        with self._db:
            if self._db.execute("INSERT OR IGNORE INTO done VALUES (?)", [txn]).rowcount:
                self._db.executemany("INSERT INTO totals VALUES (?, ?, ?)", pickle.loads(staged))


def totals(payments: ps.Stream) -> ps.Stream:
    hourly = payments.key_by("account").window(ps.tumble("1 hour"))
    return hourly.aggregate(total="sum(cents)")


if __name__ == "__main__":
    pipeline = ps.Pipeline("payments")
    impulse = pipeline.source(
        ps.ImpulseSource(events=100_000, interval="1 second"), event_time="timestamp", monotone=True
    )
    payments = impulse.select(account="counter % 7", cents="counter % 1000")
    totals(payments).sink(SqliteSink("totals.db"))
    print(pipeline.run(state_dir="payments-state", checkpoint_interval="1 second"))
