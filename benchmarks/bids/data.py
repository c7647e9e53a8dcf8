"""The files of the bids benchmark, made once by the Nexmark generator: in event-time order.

bids.parquet and auctions.parquet are of the same events; persons8.parquet and auctions8.parquet, a
million of them to each ten seconds, are for the join of the two.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from penstock.connectors.nexmark import NexmarkSource, Table
from penstock.operators.source import EndOfSplit, ReaderContext

GROUP_ROWS = 122_880
"""DuckDB's own row group, so that it reads what it likes best."""
EVENTS_PER_S = 10_000
EVENTS_PER_S_OF_JOIN = 100_000
BIDS_OF_50 = 46


def write(path: Path, table: Table, events: int, events_per_second: int) -> None:
    """One file of one table."""
    source = NexmarkSource(table, events=events, events_per_second=events_per_second, splits=1)
    reader = source.reader(source.splits()[0], None, ReaderContext(0, None, None))
    partial = path.with_suffix(".partial")
    with pq.ParquetWriter(partial, source.schema) as writer:
        while True:
            try:
                chunk = reader.poll(GROUP_ROWS)
            except EndOfSplit:
                break
            assert chunk is not None
            writer.write_table(pa.Table.from_batches([chunk.batch]), row_group_size=GROUP_ROWS)
    partial.rename(path)


def make(directory: Path, bids: int) -> None:
    """All files, unless they are there."""
    directory.mkdir(parents=True, exist_ok=True)
    events = bids * 50 // BIDS_OF_50
    joined = bids * 10
    wanted: list[tuple[str, Table, int, int]] = [
        ("bids", "bid", events, EVENTS_PER_S),
        ("auctions", "auction", events, EVENTS_PER_S),
        ("persons8", "person", joined, EVENTS_PER_S_OF_JOIN),
        ("auctions8", "auction", joined, EVENTS_PER_S_OF_JOIN),
    ]
    for name, table, count, density in wanted:
        path = directory / f"{name}.parquet"
        if not path.exists():
            write(path, table, count, density)
