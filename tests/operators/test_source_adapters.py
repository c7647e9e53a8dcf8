"""User-written sources: generators, classes, rows; positions, restarts, errors, back-pressure."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import cloudpickle
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from penstock.elements.errors import ConnectorError, PlanError, UserCodeError
from penstock.operators.reader_thread import QUEUE_BATCHES_MAX, QUEUE_ITEMS_MAX, GeneratorReader
from penstock.operators.source import Chunk, EndOfSplit, ReaderContext, SourceConnector, SplitReader
from penstock.operators.source_adapters import Source, as_connector, source
from penstock.operators.source_processor import ConnectorSourceProcessor
from penstock.testing.harness import Harness


@dataclass
class Trade:
    symbol: str
    price: float


class Tick(NamedTuple):
    at: int
    value: int


def surroundings(wake: Any = lambda: None) -> ReaderContext:
    return ReaderContext(0, wake, lambda *_: None)


def reader_of(connector: SourceConnector[Any], position: Any = None, split: int = 0) -> SplitReader:
    travelled = cloudpickle.loads(cloudpickle.dumps(connector))
    return travelled.reader(travelled.splits()[split], position, surroundings())


def chunks(reader: SplitReader, limit: int = 100) -> Iterator[Chunk]:
    """All chunks to the end; waits for the reader's thread, with a bound."""
    pause = threading.Event()
    for _ in range(20_000):
        try:
            chunk = reader.poll(limit)
        except EndOfSplit:
            return
        if chunk is None:
            pause.wait(0.001)
        else:
            yield chunk
    raise AssertionError("the source never ended")


def column(reader: SplitReader, name: str = "price") -> list[Any]:
    return [value for chunk in chunks(reader) for value in chunk.batch.column(name).to_pylist()]


@source
def counted(position: int | None, until: int) -> Iterator[tuple[Trade, int]]:
    for number in range(0 if position is None else position + 1, until):
        yield Trade("A", float(number)), number


@source
async def feed(position: int | None, until: int) -> AsyncIterator[tuple[Trade, int]]:
    for number in range(0 if position is None else position + 1, until):
        await asyncio.sleep(0)
        yield Trade("A", float(number)), number


@source(bounded=True)
def bare(until: int) -> Iterator[Tick]:
    for number in range(until):
        yield Tick(number, number * number)


@source(returns=pa.schema([("price", pa.int64())]))
def frames(position: int | None) -> Iterator[Any]:
    yield pl.DataFrame({"price": [1, 2]})
    yield pa.record_batch({"price": pa.array([3], pa.int32())})
    yield pa.table({"price": [4, 5]})


@source(replay=False)
def live(position: int | None, until: int) -> Iterator[tuple[Trade, int]]:
    assert position is None
    for number in range(until):
        yield Trade("A", float(number)), number


@pytest.mark.parametrize("made", [counted, feed])
def test_a_generator_yields_rows_with_positions(made: Any) -> None:
    connector = made(until=250)
    assert connector.schema.names == ["symbol", "price"]
    reader = reader_of(connector)
    found = list(chunks(reader, limit=7))
    assert [v for c in found for v in c.batch.column("price").to_pylist()] == list(
        map(float, range(250))
    )
    assert all(chunk.position == chunk.batch.column("price")[-1].as_py() for chunk in found)
    reader.close()
    assert column(reader_of(connector, position=247)) == [248.0, 249.0]


def test_rows_without_positions_are_counted_and_skipped_on_a_restart() -> None:
    connector = bare(until=10)
    assert connector.bounded
    found = list(chunks(reader_of(connector), limit=4))
    assert found[-1].position == 10
    assert column(reader_of(connector, position=7), "at") == [7, 8, 9]


def test_a_generator_may_yield_batches_of_any_library() -> None:
    connector = frames()
    found = list(chunks(reader_of(connector)))
    assert [c.batch.column("price").to_pylist() for c in found] == [[1, 2], [3], [4, 5]]
    assert [c.position for c in found] == [2, 3, 5]
    assert all(chunk.batch.schema == connector.schema for chunk in found)


def test_a_feed_that_cannot_seek_starts_anew() -> None:
    connector = live(until=3)
    assert not connector.replay
    assert column(reader_of(connector, position=1)) == [0.0, 1.0, 2.0]


def test_a_blocked_generator_does_not_block_the_poll() -> None:
    gate = threading.Event()
    rung = threading.Event()

    def reading() -> Iterator[Any]:
        yield Trade("A", 1.0), 1
        assert gate.wait(30)
        yield Trade("A", 2.0), 2

    connector = source(returns=Trade)(reading)()
    reader = connector.reader(connector.splits()[0], None, surroundings(rung.set))
    first = next(chunks(reader))
    assert first.position == 1
    assert reader.poll(10) is None, "it does not wait for the generator"
    rung.clear()
    gate.set()
    assert rung.wait(30), "the mailbox rings when there is something again"
    assert next(chunks(reader)).position == 2
    reader.close()


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("batches", [False, True])
def test_a_generator_is_never_far_ahead(asynchronous: bool, batches: bool) -> None:
    made = []

    def item() -> Any:
        made.append(1)
        return pa.table({"price": [1.0], "symbol": ["A"]}) if batches else Trade("A", 1.0)

    def endless() -> Iterator[Any]:
        while True:
            yield item()

    async def endless_too() -> AsyncIterator[Any]:
        while True:
            yield item()

    schema = pa.schema([("symbol", pa.string()), ("price", pa.float64())])
    returns: Any = schema if batches else Trade
    connector = source(returns=returns)(endless_too if asynchronous else endless)()
    reader = connector.reader(connector.splits()[0], None, surroundings())
    assert isinstance(reader, GeneratorReader)
    limit = QUEUE_BATCHES_MAX if batches else QUEUE_ITEMS_MAX
    next(chunks(reader, limit=1))
    pause = threading.Event()
    for _ in range(20_000):
        if len(reader._items) >= limit:
            break
        pause.wait(0.001)
    pause.wait(0.02)
    assert limit <= len(reader._items) <= limit + 1
    assert len(made) <= limit + 3
    reader.close()
    assert not reader._thread.is_alive()


def test_closing_an_async_feed_cancels_it() -> None:
    cancelled = threading.Event()

    async def waiting() -> AsyncIterator[Any]:
        try:
            yield Trade("A", 1.0)
            await asyncio.sleep(3600)
        finally:
            cancelled.set()

    connector = source(returns=Trade)(waiting)()
    reader = connector.reader(connector.splits()[0], None, surroundings())
    next(chunks(reader))
    reader.close()
    assert cancelled.wait(30)


def test_an_exception_shows_the_users_line_and_the_position() -> None:
    def breaking() -> Iterator[tuple[Trade, int]]:
        yield Trade("A", 1.0), 41
        raise ValueError("the feed spoke nonsense")

    reader = reader_of(source(breaking)())
    with pytest.raises(UserCodeError) as caught:
        column(reader)
    report = str(caught.value)
    assert "breaking[0] failed in read()" in report
    assert "after position 41" in report
    assert 'raise ValueError("the feed spoke nonsense")' in report
    assert "reader_thread" not in report


def test_rows_before_an_exception_are_handed_out_first() -> None:
    def breaking() -> Iterator[tuple[Trade, int]]:
        for number in range(50):
            yield Trade("A", float(number)), number
        raise ValueError

    reader = reader_of(source(breaking)())
    found: list[float] = []

    def read() -> None:
        for chunk in chunks(reader, limit=7):
            found.extend(chunk.batch.column("price").to_pylist())

    with pytest.raises(UserCodeError):
        read()
    assert len(found) == 50


def test_a_row_where_a_pair_was_announced_is_refused() -> None:
    def wrong() -> Iterator[tuple[Trade, int]]:
        yield Trade("A", 1.0)  # type: ignore[misc]

    with pytest.raises(UserCodeError, match=r"not \(row, position\)"):
        column(reader_of(source(wrong)()))


def test_a_generator_without_row_class_is_refused_with_the_way_out() -> None:
    def unknown(position: int | None):  # type: ignore[no-untyped-def]
        yield 1

    with pytest.raises(PlanError, match="what are its columns"):
        source(unknown)
    with pytest.raises(PlanError, match="what are its columns"):
        source(returns=pl.DataFrame)(unknown)


def test_a_batch_of_other_columns_is_refused() -> None:
    def wrong() -> Iterator[Any]:
        yield pa.table({"other": [1]})

    connector = source(returns=pa.schema([("price", pa.int64())]))(wrong)()
    with pytest.raises(ConnectorError, match="price"):
        column(reader_of(connector))


class Rooms(Source[Trade]):
    """Two splits with stable names."""

    bounded = True

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def splits(self) -> list[str]:
        return self.names

    def read(self, split: str, position: int | None) -> Iterator[tuple[Trade, int]]:
        for number in range((position or 0), 3):
            yield Trade(split, float(number)), number + 1


def test_a_source_class_has_several_splits() -> None:
    connector = as_connector(Rooms(["x", "y"]))
    assert connector.bounded
    assert [split.id for split in connector.splits()] == ["x", "y"]
    assert column(reader_of(connector, split=1), "symbol") == ["y"] * 3
    assert column(reader_of(connector, position=2)) == [2.0]


def test_a_source_class_may_be_asynchronous_and_discover_splits() -> None:
    class Later(Source[Trade]):
        discover_every = "5 seconds"

        async def read(self, split: str, position: Any) -> AsyncIterator[Trade]:
            yield Trade(split, 1.0)

    connector = as_connector(Later())
    assert connector.discovery_interval_ns == 5 * 10**9
    assert not connector.bounded
    assert column(reader_of(connector), "symbol") == ["all"]


def test_a_source_class_runs_in_a_source_processor_through_restarts() -> None:
    made = ConnectorSourceProcessor(as_connector(Rooms(["x", "y", "z"])))
    driven = Harness(made, out_schemas={"main": made.out_schema})
    driven.processor.assign(made.connector.splits())
    driven.processor.no_more_splits()
    found: list[Any] = []
    pause = threading.Event()
    for turn in range(20_000):
        if driven.processor.ended:
            break
        if not driven.processor.poll(1):
            pause.wait(0.001)
        if turn % 3 == 2:
            driven.restart()
            driven.processor.no_more_splits()
    table = driven.taken()
    found = sorted(zip(table.column("symbol").to_pylist(), table.column("price").to_pylist()))
    assert found == [(room, float(n)) for room in "xyz" for n in range(3)]


ROWS = [Trade("A", 1.0), Trade("B", 2.0), Trade("A", 3.0)]
DATA = {"symbol": ["A", "B", "A"], "price": [1.0, 2.0, 3.0]}


@pytest.mark.parametrize(
    "given",
    [
        ROWS,
        tuple(ROWS),
        pa.table(DATA),
        pa.record_batch(DATA),
        pl.DataFrame(DATA),
        pd.DataFrame(DATA),
        [dict(zip(DATA, row)) for row in zip(*DATA.values())],
        pa.table({"symbol": pa.array(DATA["symbol"]).dictionary_encode(), "price": DATA["price"]}),
    ],
)
def test_rows_and_tables_in_memory_are_bounded_and_resumable(given: Any) -> None:
    connector = as_connector(given)
    assert connector.bounded
    assert connector.replay
    assert connector.schema.field("symbol").type == pa.string()
    found = list(chunks(reader_of(connector), limit=2))
    assert [c.batch.column("price").to_pylist() for c in found] == [[1.0, 2.0], [3.0]]
    assert column(reader_of(connector, position=found[0].position)) == [3.0]


def test_a_table_in_memory_has_splits_and_reads_only_what_is_asked(monkeypatch: Any) -> None:
    monkeypatch.setattr("penstock.operators.memory_source.SPLIT_ROWS", 4)
    connector = as_connector(pa.table({"a": range(10), "b": range(10)}))
    assert [split.size for split in connector.splits()] == [4, 4, 2]
    narrow = connector.with_columns_read(["b"])
    assert narrow.schema.names == ["b"]
    nothing = connector.with_columns_read([])
    counted_rows = 0
    for split in nothing.splits():
        counted_rows += sum(
            chunk.batch.num_rows for chunk in chunks(nothing.reader(split, None, surroundings()))
        )
    assert counted_rows == 10


def test_empty_tables_are_fine_and_empty_lists_are_not() -> None:
    assert list(chunks(reader_of(as_connector(pa.schema([("a", pa.int64())]).empty_table())))) == []
    with pytest.raises(PlanError, match="an empty list"):
        as_connector([])


def test_what_is_no_source_is_refused() -> None:
    with pytest.raises(PlanError, match="rows of several kinds: Tick, Trade"):
        as_connector([Trade("A", 1.0), Tick(1, 2)])
    with pytest.raises(PlanError, match="int is not a source"):
        as_connector(3)
