"""Join operators in one process, without channels: million input rows per CPU second, as JSON.

unbounded_*: 200,000 auctions and 2 million bids on them, nothing forgotten, ttl for ever. window:
persons and auctions by seller in 10 s (q8), 25,000 rows a second, a watermark after each batch.
asof: trades with quotes. `store` is the CPU time of a cut that writes all rows of unbounded_inner.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
from windows import Context

from penstock.operators.asof_join import AsOfJoinProcessor
from penstock.operators.event_times import time_array, with_time
from penstock.operators.incremental_join import FOREVER_NS, IncrementalJoinProcessor
from penstock.operators.joins import WindowJoinProcessor
from penstock.operators.windows import tumble

AUCTIONS = with_time(pa.schema([("id", pa.int64()), ("seller", pa.int64()), ("kind", pa.int64())]))
BIDS = with_time(pa.schema([("id", pa.int64()), ("price", pa.int64()), ("bidder", pa.int64())]))
PERSONS = with_time(pa.schema([("id", pa.int64()), ("name", pa.string())]))
SECOND_NS = 10**9
Feed = Iterator[tuple[pa.RecordBatch, int]]


def batch(schema: pa.Schema, ids: Any, times: Any, rng: Any) -> pa.RecordBatch:
    """Rows of these ids and times, the rest at random."""
    count = len(ids)
    columns = [pa.array(ids)]
    for field in schema.names[1:-1]:
        numbers = pa.array(rng.integers(0, 1000, count))
        columns.append(numbers.cast(pa.string()) if field == "name" else numbers)
    return pa.RecordBatch.from_arrays([*columns, time_array(times)], schema=schema)


def bids_on_auctions(size: int) -> Feed:
    """Auctions open as time goes on; bids are on the last 20,000 of them."""
    rng, steps, opened = np.random.default_rng(1), 2_000_000 // size, 0
    for step in range(steps):
        new = 200_000 // steps
        now = np.full(size, step * 10**6)
        yield batch(AUCTIONS, np.arange(opened, opened + new), now[:new], rng), 0
        opened += new
        yield batch(BIDS, np.maximum(0, opened - 1 - rng.integers(0, 20_000, size)), now, rng), 1


def persons_and_sellers(size: int) -> Feed:
    """One person to three auctions, of sellers that came of late."""
    rng, quarter = np.random.default_rng(1), size // 4
    for step in range(2_000_000 // size):
        first = step * quarter
        times = (np.arange(first, first + quarter) * 4) * (SECOND_NS // 25_000)
        yield batch(PERSONS, np.arange(first, first + quarter), times, rng), 0
        sellers = np.maximum(0, first + np.arange(3 * quarter) // 3 - rng.integers(0, 20_000))
        yield batch(AUCTIONS, sellers, np.repeat(times, 3), rng), 1


def trades_and_quotes(size: int) -> Feed:
    """As many quotes as trades, of 10,000 symbols."""
    rng = np.random.default_rng(1)
    for step in range(2_000_000 // size):
        times = np.sort(rng.integers(step * SECOND_NS, (step + 1) * SECOND_NS, size // 2))
        for port, schema in enumerate((AUCTIONS, BIDS)):
            yield batch(schema, rng.integers(0, 10_000, size // 2), times, rng), port


def run(processor: Any, feed: Feed, timed: bool) -> dict[str, Any]:
    """Drive one operator through all rows."""
    context: Any = Context()
    processor.open(context)
    fed, rows = list(feed), 0
    begun = time.process_time()
    for given, port in fed:
        processor.process(given, port)
        rows += given.num_rows
        if timed and port:
            last = given.column("_time")[-1].value
            context.watermark = last - 1
            processor.on_watermark(last - 1)
    took = time.process_time() - begun
    begun = time.process_time()
    processor.before_snapshot(1)
    stored = time.process_time() - begun
    found = {"mrows_per_s": round(rows / took / 1e6, 2), "rows_out": context.rows["main"]}
    return found if timed else {**found, "store_s": round(stored, 2)}


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    found: dict[str, Any] = {}
    for size in (1024, 8192):
        for how in ("inner", "left", "full", "semi"):
            made = IncrementalJoinProcessor(FOREVER_NS, ["id"], how, AUCTIONS, BIDS)
            found[f"unbounded_{how}_{size}"] = run(made, bids_on_auctions(size), False)
        for how in ("inner", "left"):
            joined = WindowJoinProcessor(tumble("10 s"), ["id"], how, PERSONS, AUCTIONS)
            found[f"window_{how}_{size}"] = run(joined, persons_and_sellers(size), True)
        asof = AsOfJoinProcessor(["id"], "left", AUCTIONS, BIDS)
        found[f"asof_{size}"] = run(asof, trades_and_quotes(size), True)
    print(json.dumps({"benchmark": "joins", "machine": platform.machine(), **found}, indent=1))


if __name__ == "__main__":
    main()
