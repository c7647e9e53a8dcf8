"""Top N, ranks, deduplication, rates, lag and patterns in one process, without channels.

Rows per second of processor time (which other processes do not change), one JSON line per operator:
bids of random auctions and bidders, a watermark behind every batch.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from typing import Any

import numpy as np
import pyarrow as pa
from windows import Context

from penstock.elements.changelog import with_change
from penstock.elements.signals import WATERMARK_MAX
from penstock.operators.dedup import FirstRowProcessor
from penstock.operators.event_times import time_array, times_of, with_time
from penstock.operators.match_pattern import parse_pattern
from penstock.operators.match_processor import MatchProcessor
from penstock.operators.over import OverProcessor
from penstock.operators.over_items import OverItems
from penstock.operators.processor import Processor
from penstock.operators.ranking import RunningTopProcessor
from penstock.operators.ranking_changes import UpdatingTopProcessor
from penstock.operators.ranking_windows import WindowRankProcessor
from penstock.operators.rate_limit import RateLimitProcessor
from penstock.operators.row_order import RowOrder
from penstock.operators.windows import tumble

EVENTS_PER_S = 50_000
SCHEMA = with_time(
    pa.schema(
        [
            ("auction", pa.int64()),
            ("bidder", pa.int64()),
            ("price", pa.int64()),
            ("channel", pa.string()),
        ]
    )
)
COUNTS = pa.schema([("key", pa.int64()), ("auction", pa.int64()), ("n", pa.int64())])
CHANGES = with_time(with_change(COUNTS))
CHANNELS = np.array(["Google", "Facebook", "Baidu", "Apple"])


def bids(rows: int, batch_rows: int, keys: int) -> list[pa.RecordBatch]:
    """Random bids, in order of time."""
    rng = np.random.default_rng(1)
    times = np.arange(rows) * (10**9 // EVENTS_PER_S)
    columns = [
        pa.array(rng.integers(0, keys, rows)),
        pa.array(rng.integers(0, keys, rows)),
        pa.array(rng.integers(1, 10**7, rows)),
        pa.array(CHANNELS[rng.integers(0, 4, rows)]),
        time_array(times),
    ]
    whole = pa.RecordBatch.from_arrays(columns, schema=SCHEMA)
    return [whole.slice(at, batch_rows) for at in range(0, rows, batch_rows)]


def counts(rows: int, batch_rows: int, auctions: int, keys: int) -> list[pa.RecordBatch]:
    """Bids per auction, which belongs to one of so many keys: first all, then random updates."""
    rng = np.random.default_rng(1)
    n = rng.integers(1, 1000, auctions)
    batches, every = [], np.arange(auctions)
    signs = [np.ones(auctions)]
    changed, values = [every], [n.copy()]
    for _ in range(rows // batch_rows):
        some = rng.choice(auctions, batch_rows // 2, replace=False)
        changed.append(np.repeat(some, 2))
        # Taken back with what it was, added with one more.
        values.append(n[changed[-1]] + np.tile([0, 1], len(some)))
        signs.append(np.tile([-1, 1], len(some)))
        n[some] += 1
    for at, (auction, value, sign) in enumerate(zip(changed, values, signs, strict=True)):
        columns = [
            pa.array(each) for each in (auction % keys, auction, value, sign.astype(np.int8))
        ]
        columns.append(time_array(np.full(len(auction), at * 10**9)))
        batches.append(pa.RecordBatch.from_arrays(columns, schema=CHANGES))
    return batches


def run(name: str, made: Any, batches: list[pa.RecordBatch]) -> None:
    """Drive one operator and print what it took."""
    processor: Processor = made
    context = Context()
    processor.open(context)  # type: ignore[arg-type]
    started = time.process_time()
    for batch in batches:
        processor.process(batch, 0)
        context.watermark = int(times_of(batch)[-1]) - 1
        processor.on_watermark(context.watermark)
    took = time.process_time() - started
    processor.on_watermark(WATERMARK_MAX)
    rows = sum(batch.num_rows for batch in batches)
    line = {"operator": name, "million_rows_per_s": round(rows / took / 1e6, 2)}
    print(json.dumps({**line, "rows": rows, "rows_out": sum(context.rows.values())}))


def main() -> None:
    """Every operator, once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1 << 20)
    parser.add_argument("--batch", type=int, default=8192)
    parser.add_argument("--keys", type=int, default=10_000)
    given = parser.parse_args()
    batches = bids(given.rows, given.batch, given.keys)
    print(json.dumps({"machine": platform.machine(), "batch": given.batch, "keys": given.keys}))
    by_auction, price = ["auction"], RowOrder("price desc", SCHEMA)
    # Kernels are loaded by whoever is first, which is nobody's cost here.
    first = FirstRowProcessor(by_auction, SCHEMA, False)
    first.open(Context())  # type: ignore[arg-type]
    first.process(batches[0], 0)
    newest = RowOrder('"_time" desc', SCHEMA)
    second = tumble("1 second")
    run("top 3, running", RunningTopProcessor(by_auction, price, 3, SCHEMA), batches)
    ranked = RunningTopProcessor(by_auction, price, 3, SCHEMA, rank="n")
    run("top 3, running, with ranks", ranked, batches)
    for auctions, keys in ((10_000, 10), (100_000, 1), (100_000, 10_000)):
        most = RowOrder("n desc, auction", COUNTS)
        made = UpdatingTopProcessor(["key"], most, 10, CHANGES, rank="place")
        given_changes = counts(given.rows // 4, given.batch, auctions, keys)
        run(f"top 10 of changes, {auctions} rows of {keys} keys", made, given_changes)
    run("top 3 per second", WindowRankProcessor(second, by_auction, price, SCHEMA, 3), batches)
    run("first by event time", FirstRowProcessor(["bidder"], SCHEMA, True), batches)
    run("first by arrival", FirstRowProcessor(["bidder"], SCHEMA, False), batches)
    run("last by event time", RunningTopProcessor(["bidder"], newest, 1, SCHEMA), batches)
    run("rate limit", RateLimitProcessor(by_auction, 3, 10**9, SCHEMA), batches)
    for items, preceding in (
        ({"x": "price - lag(price)"}, None),
        ({"x": "sum(price)", "n": "count(*)"}, None),
        ({"x": "max(price)"}, None),
        ({"x": "avg(price)"}, 9),
        ({"x": "lead(price)"}, None),
    ):
        over = OverProcessor(by_auction, OverItems(items, SCHEMA), preceding, SCHEMA)
        run(f"over {', '.join(items.values())}, {preceding} preceding", over, batches)
    conditions = {"low": "price < 1000000", "up": "price > lag(price)"}
    measures = {"n": "count(up)", "last": "up.price"}
    pattern, skip = parse_pattern("low up+"), "past last row"
    run(
        "match low up+",
        MatchProcessor(by_auction, pattern, conditions, measures, 10**9, skip, SCHEMA),
        batches[: len(batches) // 4],
    )


if __name__ == "__main__":
    main()
