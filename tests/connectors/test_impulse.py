"""The impulse source counts: bounded or not, in any number of pieces, from any row."""

from __future__ import annotations

from datetime import UTC, datetime

import pyarrow as pa
import pytest

from penstock.connectors.impulse import ImpulseSource
from penstock.elements.clock import ManualClock
from penstock.elements.errors import PlanError
from penstock.operators.source import EndOfSplit, ReaderContext

CTX = ReaderContext(0, None, None)


def read(source, split=0, position=None, limit=7, polls=10_000):
    reader = source.reader(source.splits()[split], position, CTX)
    chunks = []
    for _ in range(polls):
        try:
            chunk = reader.poll(limit)
        except EndOfSplit:
            break
        assert chunk.batch.schema == source.schema
        chunks.append(chunk)
    return chunks


def counters(chunks):
    return [n for chunk in chunks for n in chunk.batch.column("counter").to_pylist()]


def test_it_counts_to_its_end():
    assert counters(read(ImpulseSource(events=100))) == list(range(100))
    assert counters(read(ImpulseSource(events=0))) == []
    assert ImpulseSource(events=1).bounded
    assert not ImpulseSource().bounded


@pytest.mark.parametrize("splits", [1, 3, 8, 200])
def test_pieces_share_the_numbers_out(splits):
    source = ImpulseSource(events=100, splits=splits)
    together = [n for at in range(splits) for n in counters(read(source, at))]
    assert sorted(together) == list(range(100))
    assert len({split.id for split in source.splits()}) == splits


def test_it_resumes_at_any_position():
    source = ImpulseSource(events=50, splits=2)
    whole = read(source, 1)
    for at, chunk in enumerate(whole):
        rest = read(source, 1, chunk.position)
        assert counters(rest) == counters(whole[at + 1 :])


def test_timestamps_follow_from_the_number():
    start = datetime(1969, 12, 31, 23, 59, 59, tzinfo=UTC)
    source = ImpulseSource(events=4, interval="500 ms", start=start, splits=2)
    (chunk,) = read(source, 1)
    times = chunk.batch.column("timestamp").cast(pa.int64()).to_pylist()
    assert times == [-500_000_000, 500_000_000]


def test_now_is_the_first_row_and_is_kept_with_the_position():
    clock = ManualClock(5_000)
    source = ImpulseSource(events=10, start="now", interval="1 us", clock=clock)
    first = read(source, limit=3, polls=1)[0]
    clock.advance_ns(1_000_000)
    rest = read(source, position=first.position)
    times = [
        t for c in [first, *rest] for t in c.batch.column("timestamp").cast(pa.int64()).to_pylist()
    ]
    assert times == [5_000 + 1_000 * n for n in range(10)]


def test_a_rate_bounds_the_rows_by_the_clock():
    clock = ManualClock()
    source = ImpulseSource(rate=1000, splits=2, clock=clock)
    reader = source.reader(source.splits()[0], None, CTX)
    assert reader.poll(100) is None
    given = 0
    for _ in range(100):
        clock.advance_ns(10_000_000)
        chunk = reader.poll(100)
        given += chunk.batch.num_rows if chunk else 0
    assert 490 <= given <= 500


def test_only_columns_that_are_read_are_made():
    source = ImpulseSource(events=3)
    assert source.with_columns_read(["timestamp"]).schema.names == ["timestamp"]
    none = source.with_columns_read([])
    assert none.schema.names == ["counter"]
    assert counters(read(none)) == [0, 1, 2]
    assert source.schema.names == ["counter", "timestamp"]


@pytest.mark.parametrize(
    "options",
    [{"events": -1}, {"rate": 0}, {"splits": 0}, {"interval": "-1 s"}, {"start": "soon"}],
)
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(PlanError, match="ImpulseSource"):
        ImpulseSource(**options)
