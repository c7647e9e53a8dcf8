"""What an expression costs per batch: ours, plain DataFusion, and pyarrow closures by hand.

    python benchmarks/expressions.py [--rows 8192] [--seconds 1.0]

"plain" is the same running stream over the same SELECT list without checked arithmetic, schema
check and pass-through. The ratio `checked_over_plain` is what hazard 20 costs per case.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc
from probe import report

from penstock.connectors.nexmark import NexmarkSource
from penstock.expressions.functions import NONE
from penstock.expressions.projection import Projection
from penstock.expressions.session import Session
from penstock.operators.source import ReaderContext
from penstock.operators.value_stage import Step, ValueStage

MEASURED_MIN = 200
LABELS = "case when price > 100000 then 'high' when price > 1000 then 'mid' else 'low' end"
CASES = {
    "pass": ([("auction", "auction"), ("price", "price")], {"a": '"auction"', "p": '"price"'}),
    "q1": (
        [("auction", "auction"), ("bidder", "bidder"), ("p", "price * 0.908"), ("t", "datetime")],
        {"a": '"auction"', "b": '"bidder"', "p": '"price" * 0.908', "t": '"datetime"'},
    ),
    "int_times_constant": ([("x", "price * 100")], {"x": '"price" * 100'}),
    "int_tree": (
        [("x", "price * 2 + auction - bidder + 1")],
        {"x": '"price" * 2 + "auction" - "bidder" + 1'},
    ),
    "case_upper_length": (
        [
            ("c", LABELS),
            ("u", "upper(channel)"),
            ("l", "length(url)"),
        ],
        {
            "c": LABELS.replace("price", '"price"'),
            "u": 'upper("channel")',
            "l": 'length("url")',
        },
    ),
}  # fmt: skip


def microseconds(call: Callable[[], object], seconds: float) -> float:
    """The median of many calls."""
    for _ in range(20):
        call()
    samples: list[float] = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(samples) < MEASURED_MIN:
        began = time.perf_counter()
        call()
        samples.append(time.perf_counter() - began)
    return round(statistics.median(samples) * 1e6, 1)


def by_hand(batch: pa.RecordBatch) -> dict[str, Callable[[], object]]:
    """The same with pyarrow.compute, unchecked, constants made beforehand."""
    rate, hundred, two, one = pa.scalar(0.908), pa.scalar(100), pa.scalar(2), pa.scalar(1)
    high, middle = pa.scalar(100_000), pa.scalar(1_000)
    labels = pa.scalar("high"), pa.scalar("mid"), pa.scalar("low")
    column = batch.column

    def make(*columns: pa.Array) -> pa.RecordBatch:
        return pa.RecordBatch.from_arrays(list(columns), [str(i) for i in range(len(columns))])

    def q1() -> pa.RecordBatch:
        price = pc.multiply(column("price").cast(pa.float64()), rate)
        return make(column("auction"), column("bidder"), price, column("datetime"))

    def tree() -> pa.RecordBatch:
        total = pc.add(pc.multiply(column("price"), two), column("auction"))
        return make(pc.add(pc.subtract(total, column("bidder")), one))

    def texts() -> pa.RecordBatch:
        price = column("price")
        tests = pa.StructArray.from_arrays(
            [pc.greater(price, high), pc.greater(price, middle)], ["h", "m"]
        )
        return make(
            pc.case_when(tests, *labels),
            pc.utf8_upper(column("channel")),
            pc.utf8_length(column("url")),
        )

    return {
        "pass": lambda: make(column("auction"), column("price")),
        "q1": q1,
        "int_times_constant": lambda: make(pc.multiply(column("price"), hundred)),
        "int_tree": tree,
        "case_upper_length": texts,
    }


def plain_stream(items: dict[str, str], batch: pa.RecordBatch) -> Callable[[], object]:
    """The running stream alone."""
    session = Session(batch.schema, NONE)
    stream = session.stream(items)

    def call() -> object:
        session.feed.batch = batch
        return next(stream).to_pyarrow()

    return call


class Sunk:
    """A context that forgets what it is given."""

    operator_name, subtask, checkpoint_id = "bench", 0, 0

    def collect(self, batch: pa.RecordBatch, output: str = "main") -> None:
        """Forget."""


def stage(steps: list[Step], batch: pa.RecordBatch) -> Callable[[], object]:
    """A value stage as the runtime drives it."""
    made = ValueStage(steps, batch.schema)
    made.open(Sunk())  # type: ignore[arg-type]
    return lambda: made.process(batch, 0)


def main() -> None:
    """Measure every case and print one line."""
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--rows", type=int, default=8192)
    arguments.add_argument("--seconds", type=float, default=1.0)
    options = arguments.parse_args()
    source = NexmarkSource("bid", splits=1)
    chunk = source.reader(source.splits()[0], 10_000_000, ReaderContext(0, None, None)).poll(
        options.rows
    )
    assert chunk is not None
    batch = chunk.batch
    hand = by_hand(batch)
    results: dict[str, object] = {"rows": options.rows}
    for name, (ours, plain) in CASES.items():
        project = Projection(ours, batch.schema)
        measured = {
            "ours_us": microseconds(lambda p=project: p(batch), options.seconds),  # type: ignore[misc]
            "plain_datafusion_us": microseconds(plain_stream(plain, batch), options.seconds),
            "pyarrow_us": microseconds(hand[name], options.seconds),
        }
        ratio = measured["ours_us"] / measured["plain_datafusion_us"]
        results[name] = {**measured, "checked_over_plain": round(ratio, 2)}
    q1 = [Step.with_columns([("price", "price * 0.908")])]
    q2 = [
        Step.filter("auction % 123 = 0"),
        Step.select([("auction", "auction"), ("price", "price")]),
    ]
    results["stage_q1_us"] = microseconds(stage(q1, batch), options.seconds)
    results["stage_q2_us"] = microseconds(stage(q2, batch), options.seconds)
    report("expressions", **results)


if __name__ == "__main__":
    main()
