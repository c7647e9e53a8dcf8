"""Rows a second of the Nexmark generator on one core, per table, with all columns and with few.

python benchmarks/nexmark_generator.py [--seconds 2]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

import pyarrow as pa
from probe import report

from penstock.connectors.nexmark import NexmarkSource, Table
from penstock.operators.source import ReaderContext

BATCH_ROWS = 8192
CASES: list[tuple[str, Table, Sequence[str] | None]] = [
    ("bids_all_columns", "bid", None),
    ("bids_auction_price", "bid", ["auction", "price"]),
    ("auctions_all_columns", "auction", None),
    ("persons_all_columns", "person", None),
    ("mixed", "all", None),
]


def rows_per_second(table: Table, columns: Sequence[str] | None, seconds: float) -> dict[str, int]:
    """Read one split for a while."""
    source = NexmarkSource(table)
    if columns is not None:
        source = source.with_columns_read(columns)
    reader = source.reader(source.splits()[0], None, ReaderContext(0, None, None))
    reader.poll(BATCH_ROWS)
    rows = size = 0
    began = time.perf_counter()
    while (passed := time.perf_counter() - began) < seconds:
        chunk = reader.poll(BATCH_ROWS)
        assert chunk is not None
        rows += chunk.batch.num_rows
        size += chunk.batch.get_total_buffer_size()
    return {"rows_per_s": round(rows / passed), "bytes_per_s": round(size / passed)}


def main() -> None:
    """Measure every case and print one line."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--seconds", type=float, default=2.0)
    options = arguments.parse_args()
    pa.set_cpu_count(1)
    results = {
        name: rows_per_second(table, columns, options.seconds) for name, table, columns in CASES
    }
    report("nexmark_generator", **results)


if __name__ == "__main__":
    main()
