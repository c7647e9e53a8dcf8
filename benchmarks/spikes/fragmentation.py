"""R2: how small do messages become behind a 4-way hash exchange, and what does that cost?

python benchmarks/spikes/fragmentation.py [--seconds 2]

Four sources of 142-byte bids, a watermark each 50 ms, hash by key, four keyed counts, over the
runtime's own router, output buffers, channels and gate; at 50,000 rows/s and as fast as it goes,
with the linger (a batch of 8k or of 4k is enough to go) and, for comparison, with no linger and
nothing gathered at the reader.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from channel import bids
from probe import report

from penstock.elements.signals import Kind
from penstock.runtime.channel import Message
from penstock.runtime.doorbell import Doorbell, doorbell_name
from penstock.runtime.gate import Gate
from penstock.runtime.output import NEVER_NS, Output, OutputChannel, Outputs
from penstock.runtime.partition import HashRouter
from penstock.runtime.segment import Segment
from penstock.runtime.slab import RegionSize
from penstock.runtime.slab_receiver import SlabReceiver
from penstock.runtime.slab_sender import SlabSender

P = 4
KEYS = 100_000
BATCH_ROWS = 8192
LINGER_NS = 5_000_000
WATERMARK_NS = 50_000_000
TICK_NS = 1_000_000
SLOTS, SLOT_BYTES = 8, 1 << 20
BUCKETS = (1, 8, 64, 512, 2048, 4096, 8192)


@dataclass(frozen=True)
class Gathering:
    """Rows that are a full batch, how long fewer may wait, whether the reader joins messages."""

    rows: int
    linger_ns: int
    at_reader: bool


VARIANTS = {
    "gathered to 8k": Gathering(BATCH_ROWS, LINGER_NS, True),
    "gathered to 4k": Gathering(BATCH_ROWS // 2, LINGER_NS, True),
    "gathered to 4k, not at the reader": Gathering(BATCH_ROWS // 2, LINGER_NS, False),
    "as it comes": Gathering(1, 0, False),
}


class Stopwatch:
    """CPU seconds of this process and calls, per stage."""

    def __init__(self) -> None:
        self.spent: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    def run(self, stage: str, call: Callable[..., Any], *given: Any) -> Any:
        """Call, and add what it took of this process's CPU time."""
        begin = time.thread_time_ns()
        result = call(*given)
        self.spent[stage] += time.thread_time_ns() - begin
        self.calls[stage] += 1
        return result


class Counted:
    """A receiver that notes how many rows its messages have."""

    def __init__(self, receiver: SlabReceiver, sizes: Counter[int], watch: Stopwatch) -> None:
        self._receiver, self._sizes, self._watch = receiver, sizes, watch

    def poll(self) -> Message | None:
        """The receiver's next message; only those that carry rows are timed."""
        begin = time.thread_time_ns()
        message = self._receiver.poll()
        if message is not None and message.batch is not None:
            self._watch.spent["poll"] += time.thread_time_ns() - begin
            self._watch.calls["poll"] += 1
            self._sizes[max(b for b in BUCKETS if b <= max(1, message.batch.num_rows))] += 1
        return message

    def limit_rows(self, rows: int) -> None:
        """Not used here."""

    def statistics(self) -> Any:
        """The receiver's own."""
        return self._receiver.statistics()


def source(
    senders: list[SlabSender], index: int, rate: int | None, how: Gathering, seconds: float
) -> dict[str, Any]:
    """Bids at a rate in ticks of 1 ms, or P full batches at a time."""
    channels = [OutputChannel(sender, how.rows, how.linger_ns) for sender in senders]
    outputs, watch = Outputs(channels), Stopwatch()
    output = Output(HashRouter(("bidder",), P), channels)
    pool = bids(BATCH_ROWS * P)
    keys = np.random.default_rng(index).integers(0, KEYS, pool.num_rows)
    pool = pool.set_column(pool.schema.get_field_index("bidder"), "bidder", pa.array(keys))
    bell = senders[0].bell
    begin = now = time.monotonic_ns()
    given, at, next_watermark = 0, 0, begin
    while now < begin + seconds * 1e9:
        due = pool.num_rows if rate is None else int((now - begin) / 1e9 * rate) - given
        if due > 0:
            at = 0 if at + due > pool.num_rows else at
            rows = pool.slice(at, due)
            given, at = given + rows.num_rows, at + rows.num_rows
            watch.run("route", output.send, rows, now)
        if now >= next_watermark:
            outputs.watermark(now, now)
            next_watermark = now + WATERMARK_NS
        outputs.release_due(now)
        if how.linger_ns == 0 or (rate is not None and due <= 0):
            outputs.release_idle()
        while not watch.run("publish", outputs.flush):
            bell.drain()
            if outputs.flush():
                break
            bell.wait(0.1)
        if rate is not None:
            until = min(outputs.next_deadline_ns(), time.monotonic_ns() + TICK_NS)
            bell.wait(max(0, until - time.monotonic_ns()) / 1e9 if until != NEVER_NS else 0.001)
        now = time.monotonic_ns()
    outputs.signal(Kind.END)
    while not outputs.flush():
        bell.wait(0.1)
    messages = sum(s.statistics().messages for s in senders)
    return {"given": given, "messages": messages, "spent": watch.spent, "calls": watch.calls}


def keyed_count(receivers: list[SlabReceiver], gathering: bool) -> dict[str, Any]:
    """Count per key until all inputs have ended."""
    sizes: Counter[int] = Counter()
    watch = Stopwatch()
    gate = Gate([Counted(receiver, sizes, watch) for receiver in receivers], [0] * P)
    if not gathering:
        gate.limit_rows(1)
    counts, ended, rows, bell = np.zeros(KEYS, np.int64), 0, 0, receivers[0].bell
    begin = 0.0

    def count(batch: pa.RecordBatch) -> None:
        np.add.at(counts, batch.column("bidder").to_numpy(), 1)

    while ended < P:
        taken = gate.take()
        if taken is None:
            bell.drain()
            taken = gate.take()
            if taken is None:
                bell.wait(0.1)
                continue
        message = taken[1]
        if message.kind is Kind.END:
            ended += 1
        elif message.batch is not None:
            begin = begin or time.perf_counter()
            rows += message.batch.num_rows
            watch.run("count", count, message.batch)
        del taken, message
    assert int(counts.sum()) == rows
    seconds = time.perf_counter() - begin
    copies = sum(receiver.statistics().copies for receiver in receivers)
    return {
        "rows": rows, "seconds": seconds, "copies": copies, "sizes": sizes,
        "spent": watch.spent, "calls": watch.calls,
    }  # fmt: skip


def fork(program: Callable[[], dict[str, Any]]) -> int:
    """Run in a child; the pipe gives its figures as JSON."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        try:
            os.write(writing, json.dumps(program()).encode())
        finally:
            os._exit(0)
    os.close(writing)
    return reading


def run(rate: int | None, how: Gathering, seconds: float) -> dict[str, Any]:
    """One topology of 2 P processes."""
    segments = [Segment.create([RegionSize(SLOTS, SLOT_BYTES)] * P) for _ in range(P)]
    bells = [Doorbell.create(doorbell_name(0, i)) for i in range(2 * P)]
    for bell in bells:
        bell.unlink()
    schema = bids(1).schema

    def reads(i: int) -> dict[str, Any]:
        ends = [SlabReceiver(segments[i], j, schema, bells[i], bells[P + j]) for j in range(P)]
        return keyed_count(ends, how.at_reader)

    def writes(j: int) -> dict[str, Any]:
        ends = [SlabSender(segments[i], j, schema, bells[i], bells[P + j]) for i in range(P)]
        return source(ends, j, rate and rate // P, how, seconds)

    pipes = [fork(lambda i=i: reads(i)) for i in range(P)]  # type: ignore[misc]
    pipes += [fork(lambda j=j: writes(j)) for j in range(P)]  # type: ignore[misc]
    told = [json.loads(_all(pipe)) for pipe in pipes]
    for _ in pipes:
        os.wait()
    return summary(told[:P], told[P:])


def _all(pipe: int) -> bytes:
    with os.fdopen(pipe, "rb") as file:
        return file.read()


def summary(counts: list[dict[str, Any]], sources: list[dict[str, Any]]) -> dict[str, Any]:
    """Histogram of rows per message, CPU µs per message of each stage."""
    rows = sum(each["rows"] for each in counts)
    assert rows == sum(each["given"] for each in sources)
    sizes: Counter[int] = Counter()
    spent: Counter[str] = Counter()
    for each in counts:
        sizes.update({int(size): n for size, n in each["sizes"].items()})
    for each in [*counts, *sources]:
        spent.update(each["spent"])
    messages = sum(sizes.values())
    return {
        "mrows_s": round(rows / max(each["seconds"] for each in counts) / 1e6, 3),
        "rows_per_message": round(rows / messages, 1),
        "messages_by_rows_from": {str(b): sizes[b] for b in BUCKETS if sizes[b]},
        "cpu_us_per_message": {k: round(n / messages / 1e3, 1) for k, n in sorted(spent.items())},
        "batches_counted": sum(each["calls"]["count"] for each in counts),
        "copied_share": round(sum(each["copies"] for each in counts) / messages, 3),
    }


def main() -> None:
    """A line per variant and rate."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--seconds", type=float, default=2)
    seconds = arguments.parse_args().seconds
    for rate in (50_000, None):
        for what, how in VARIANTS.items():
            speed = "saturated" if rate is None else f"{rate:,} rows/s"
            report(f"fragmentation P=4, {speed}, {what}", **run(rate, how, seconds))


if __name__ == "__main__":
    main()
