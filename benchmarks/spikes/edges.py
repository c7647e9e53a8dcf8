"""R4: do the edges cost most? Reading bids from Parquet, then routing them, beside DuckDB.

    python benchmarks/spikes/edges.py [--rows 4000000]

One process, one thread. Each step includes the ones before it: decode, hash of one key, stable
order by subtask of 4, take and slices.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from penstock.elements.hash import hash_columns
from penstock.elements.keygroup import subtask_of

BATCH_ROWS = 8192
PARALLELISM = 4
ROW_GROUP_ROWS = 131_072
TWO = ["auction", "price"]
SEVEN = ["auction", "bidder", "price", "channel", "url", "datetime", "extra"]


def write_bids(path: Path, rows: int) -> None:
    """Nexmark-like bids: three numbers, a time, three texts of 9, 75 and 60 bytes."""
    rng = np.random.default_rng(1)
    channels = pa.array([f"channel-{i}" for i in range(10_000)])
    urls = pa.array(
        [f"https://www.nexmark.com/{i:08d}/{'item/' * 8}view.htm" for i in range(10_000)]
    )
    extras = pa.array([rng.bytes(30).hex() for _ in range(10_000)])
    writer = None
    for first in range(0, rows, ROW_GROUP_ROWS):
        count = min(ROW_GROUP_ROWS, rows - first)
        hot = np.where(
            rng.random(count) < 0.5, rng.integers(0, 4, count), rng.integers(0, 10**4, count)
        )
        times = (np.arange(first, first + count) * 100_000).astype("datetime64[ns]")
        table = pa.table(
            {
                "auction": rng.integers(0, 10_000, count),
                "bidder": rng.integers(0, 20_000, count),
                "price": rng.integers(1, 10**8, count),
                "channel": channels.take(pa.array(hot)),
                "url": urls.take(pa.array(rng.integers(0, 10**4, count))),
                "datetime": times,
                "extra": extras.take(pa.array(rng.integers(0, 10**4, count))),
            }
        )
        writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
        writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
    assert writer is not None
    writer.close()


def read(path: Path, columns: list[str], key: str | None, batch_rows: int) -> int:
    """Rows read; with a key also hashed, ordered by subtask and taken."""
    total = 0
    source = pq.ParquetFile(path, memory_map=True)
    for batch in source.iter_batches(batch_rows, columns=columns, use_threads=False):
        total += batch.num_rows
        if key is not None:
            route(batch, key)
    return total


def route(batch: pa.RecordBatch, key: str) -> list[pa.RecordBatch]:
    """What an exchange does to a batch."""
    targets = subtask_of(hash_columns(batch, [key]), PARALLELISM)
    ordered = batch.take(pa.array(np.argsort(targets, kind="stable")))
    at, parts = 0, []
    for count in np.bincount(targets, minlength=PARALLELISM).tolist():
        parts.append(ordered.slice(at, count))
        at += count
    return parts


def duck(path: Path, columns: list[str], as_arrow: bool) -> int:
    """DuckDB's scan of the same columns: hashed inside (or statistics answer), or out as Arrow."""
    connection = duckdb.connect(config={"threads": 1})
    if as_arrow:
        relation = connection.sql(f"select {', '.join(columns)} from '{path}'")
        reader = relation.to_arrow_reader(BATCH_ROWS)
        return sum(batch.num_rows for batch in reader)
    folded = ", ".join(f"bit_xor(hash({column}))" for column in columns)
    ((count, *_),) = connection.sql(f"select count(*), {folded} from '{path}'").fetchall()
    return int(count)


def rate(work: Callable[[], int]) -> float:
    """Million rows per second, best of two."""
    best = 0.0
    for _ in range(2):
        began = time.perf_counter()
        rows = work()
        best = max(best, rows / (time.perf_counter() - began) / 1e6)
    return round(best, 2)


def main() -> None:
    """One JSON line per set of columns."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--rows", type=int, default=4_000_000)
    rows = arguments.parse_args().rows
    pa.set_cpu_count(1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bids.parquet"
        write_bids(path, rows)
        for columns in (TWO, SEVEN):
            print(
                json.dumps(
                    {
                        "spike": "edges",
                        "columns": len(columns),
                        "rows": rows,
                        "bytes_per_row": round(path.stat().st_size / rows, 1),
                        "decode": rate(lambda c=columns: read(path, c, None, BATCH_ROWS)),
                        "decode_64k": rate(lambda c=columns: read(path, c, None, 65_536)),
                        "decode_route": rate(
                            lambda c=columns: read(path, c, "auction", BATCH_ROWS)
                        ),
                        "duckdb_scan": rate(lambda c=columns: duck(path, c, False)),
                        "duckdb_to_arrow": rate(lambda c=columns: duck(path, c, True)),
                        "unit": "million rows/s, one thread",
                        "machine": platform.machine(),
                        "cores": os.cpu_count(),
                    }
                ),
                flush=True,
            )


if __name__ == "__main__":
    main()
