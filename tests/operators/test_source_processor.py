"""The source processor: positions, event time, watermarks, bad records, through restarts."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import UTC, date, datetime
from typing import Any

import pyarrow as pa
import pytest

from penstock.elements.clock import ManualClock
from penstock.elements.errors import ConnectorError, PlanError
from penstock.elements.signals import WATERMARK_MIN
from penstock.operators.error_policy import DeadLetter, Drop, ErrorPolicy, Fail
from penstock.operators.memory_source import MemorySource
from penstock.operators.processor import DEAD
from penstock.operators.source import (
    Chunk,
    EndOfSplit,
    Position,
    ReaderContext,
    SourceConnector,
    Split,
    SplitReader,
)
from penstock.operators.source_processor import OPEN_SPLITS_MAX, ConnectorSourceProcessor
from penstock.operators.watermarks import (
    QUIET_STEP_NS_MAX,
    BoundedDisorder,
    EventTime,
    ExpressionWatermark,
    event_time,
)
from penstock.testing.harness import Harness

SCHEMA = pa.schema([("id", pa.int64()), ("ts", pa.timestamp("ms"))])
IN_ORDER = EventTime("ts", BoundedDisorder(0))
NS = 10**6


class ListSource(SourceConnector[Any]):
    """Splits with rows known beforehand; a None in a split is a moment without rows."""

    def __init__(self, content: dict[str, list[Any]], bounded: bool = True) -> None:
        self.content = content
        self.bounded = bounded

    @property
    def schema(self) -> pa.Schema:
        return SCHEMA

    def splits(self) -> Sequence[Split]:
        return [Split(name) for name in self.content]

    def reader(self, split: Split, position: Position, ctx: ReaderContext) -> SplitReader:
        return ListReader(self.content[split.id], position or 0, ctx)


class ListReader(SplitReader):
    """Positions count items, pauses included."""

    def __init__(self, items: list[Any], at: int, ctx: ReaderContext) -> None:
        self._items, self._at, self._ctx = items, at, ctx

    def poll(self, limit_rows: int) -> Chunk | None:
        if self._at >= len(self._items):
            raise EndOfSplit
        rows = []
        while self._at < len(self._items) and len(rows) < limit_rows:
            item = self._items[self._at]
            self._at += 1
            if item is None:
                if rows:
                    self._at -= 1
                    break
                return None
            if isinstance(item, bytes):
                self._ctx.reject(item, "not a record", f"item {self._at - 1}")
            else:
                rows.append(item)
        columns = [[row[i] for row in rows] for i in range(2)]
        arrays = [pa.array(c, f.type) for c, f in zip(columns, SCHEMA)]
        batch = pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)
        return Chunk(batch, self._at, f"item {self._at - len(rows)}")


def started(
    connector: SourceConnector[Any], timed: EventTime | None = IN_ORDER, **options: Any
) -> Harness:
    policy: ErrorPolicy = options.pop("policy", Fail())
    interval = options.pop("interval", 0)
    made = ConnectorSourceProcessor(connector, timed, policy, interval)
    driven = Harness(made, out_schemas={"main": made.out_schema}, **options)
    driven.processor.assign(connector.splits())
    driven.processor.no_more_splits()
    return driven


def read_all(driven: Harness, limit: int = 3) -> list[int]:
    while not driven.processor.ended:
        driven.processor.poll(limit)
    return list(driven.taken().column("id").to_pylist())


def rows(count: int, first: int = 0, step: int = 1) -> list[tuple[int, int]]:
    return [(first + i, first + i * step) for i in range(count)]


def test_every_row_of_every_split_comes_once() -> None:
    content = {f"s{i}": rows(10, 100 * i) for i in range(5)}
    found = read_all(started(ListSource(content)))
    assert sorted(found) == [100 * i + j for i in range(5) for j in range(10)]


def test_the_split_that_is_furthest_behind_is_read_first() -> None:
    driven = started(ListSource({"early": rows(6, 0), "late": rows(6, 1000)}))
    found = read_all(driven)
    assert found[:3] == [0, 1, 2]
    assert found.index(5) < found.index(1003)


def test_a_restart_resumes_behind_the_collected_rows() -> None:
    rng = random.Random(3)
    content = {f"s{i}": rows(30, 100 * i) for i in range(4)}
    driven = started(ListSource(content))
    found: list[int] = []
    while not driven.processor.ended:
        driven.processor.poll(rng.randint(1, 4))
        found += driven.taken().column("id").to_pylist() if rng.random() < 0.5 else []
        if rng.random() < 0.3:
            driven.cut()
            driven.processor.poll(2)
            driven.crash()
            # What the coordinator assigns again is known already.
            driven.processor.assign([Split(name) for name in content])
            driven.processor.no_more_splits()
    found += driven.taken().column("id").to_pylist()
    assert sorted(found) == [100 * i + j for i in range(4) for j in range(30)]


def test_splits_are_dealt_out_anew_at_another_parallelism() -> None:
    content = {f"s{i}": rows(10, 100 * i) for i in range(5)}
    driven = started(ListSource(content))
    for _ in range(12):
        driven.processor.poll(4)
    found = driven.taken().column("id").to_pylist()
    sections = driven.cut()
    seen: list[str] = []
    for subtask in range(3):
        made = ConnectorSourceProcessor(ListSource(content), IN_ORDER)
        part = Harness(made, restored=sections, subtask=subtask, parallelism=3)
        part.processor.no_more_splits()
        seen += part.processor.seen_splits
        while not part.processor.ended:
            part.processor.poll(100)
        table = part.taken()
        found += table.column("id").to_pylist() if table.num_rows else []
    assert sorted(found) == [100 * i + j for i in range(5) for j in range(10)]
    assert sorted(seen) == sorted(content)


def test_watermarks_never_pass_rows_still_to_come() -> None:
    rng = random.Random(9)
    content = {
        f"s{i}": [(j, j + rng.randint(0, 5)) if rng.random() < 0.8 else None for j in range(60)]
        for i in range(4)
    }
    timed = EventTime("ts", BoundedDisorder(5 * NS))
    driven = started(ListSource(content), timed)
    previous = WATERMARK_MIN
    while not driven.processor.ended:
        driven.processor.poll(rng.randint(1, 5))
        assert driven.sent_watermark >= previous
        previous = driven.sent_watermark
        if rng.random() < 0.1:
            driven.restart()
            driven.processor.no_more_splits()
            if driven.processor.ended:
                break
            driven.processor.poll(1)
            assert driven.sent_watermark >= previous, "what was promised still holds"
    assert driven.rows_behind_watermark == 0
    assert previous > WATERMARK_MIN


def test_a_barrier_sends_the_latest_watermark() -> None:
    driven = started(ListSource({"a": rows(9)}), interval=10**12, clock=ManualClock(0))
    driven.processor.poll(2)
    driven.processor.poll(2)
    sent = driven.sent_watermark
    driven.processor.poll(2)
    assert driven.sent_watermark == sent, "not more often than the interval"
    driven.cut()
    assert driven.sent_watermark == 5 * NS - 1


def test_watermarks_wait_for_their_interval() -> None:
    clock = ManualClock(0)
    driven = started(ListSource({"a": rows(20)}), interval=50, clock=clock)
    for _ in range(3):
        driven.processor.poll(2)
    sent = driven.sent_watermark
    clock.advance_ns(50)
    driven.processor.poll(2)
    assert driven.sent_watermark > sent


def test_a_silent_source_says_so_once_and_wakes_up() -> None:
    clock = ManualClock(0)
    content = {"a": [(1, 1), *[None] * 20, (2, 2)]}
    timed = EventTime("ts", BoundedDisorder(0), idle_ns=5 * QUIET_STEP_NS_MAX)
    driven = started(ListSource(content, bounded=False), timed, clock=clock)
    for _ in range(15):
        driven.processor.poll(1)
        clock.advance_ns(QUIET_STEP_NS_MAX)
    assert driven.idles == 1
    assert driven.taken().column("id").to_pylist() == [1]
    while not driven.processor.ended:
        driven.processor.poll(1)
    assert driven.taken().column("id").to_pylist() == [2]


def test_a_silent_split_holds_time_back_only_until_it_is_idle() -> None:
    clock = ManualClock(0)
    content = {"quiet": [(1, 1), *[None] * 60], "busy": rows(60, 10)}
    timed = EventTime("ts", BoundedDisorder(0), idle_ns=5 * QUIET_STEP_NS_MAX)
    driven = started(ListSource(content, bounded=False), timed, clock=clock)
    for _ in range(4):
        driven.processor.poll(1)
        clock.advance_ns(QUIET_STEP_NS_MAX)
    assert driven.sent_watermark == 1 * NS - 1
    for _ in range(30):
        driven.processor.poll(1)
        clock.advance_ns(QUIET_STEP_NS_MAX)
    assert driven.sent_watermark > 10 * NS
    assert driven.idles == 0


def test_a_subtask_without_splits_is_idle_while_more_may_come() -> None:
    made = ConnectorSourceProcessor(ListSource({}), IN_ORDER)
    driven = Harness(made)
    driven.processor.poll(10)
    assert driven.idles == 1
    assert not driven.processor.ended
    driven.processor.no_more_splits()
    assert driven.processor.ended


def test_many_splits_are_opened_a_few_at_a_time() -> None:
    content = {f"s{i}": rows(2, 10 * i) for i in range(OPEN_SPLITS_MAX + 20)}
    driven = started(ListSource(content))
    driven.processor.poll(1)
    assert len(driven.processor._open) == OPEN_SPLITS_MAX
    driven.restart()
    driven.processor.no_more_splits()
    assert len(read_all(driven)) == 2 * len(content)
    assert driven.rows_behind_watermark == 0


def test_a_drained_source_has_ended_and_keeps_its_positions() -> None:
    driven = started(ListSource({"a": rows(10)}))
    driven.processor.poll(4)
    driven.processor.drain()
    assert driven.processor.ended
    assert not driven.processor.poll(4)
    driven.restart()
    driven.processor.no_more_splits()
    assert read_all(driven) == list(range(10))


def test_a_bad_record_ends_the_attempt_by_default() -> None:
    driven = started(ListSource({"a": [(1, 1), b"junk", (2, 2)]}))
    with pytest.raises(ConnectorError, match=r"item 1\n.*junk"):
        read_all(driven)


def test_bad_records_are_dropped_and_counted_on_request() -> None:
    driven = started(ListSource({"a": [(1, 1), b"junk", (2, None)]}), policy=Drop())
    assert read_all(driven) == [1]
    assert driven.counters["dropped"] == 2


def test_bad_records_go_to_dead_letters_with_their_place() -> None:
    content = {"a": [(1, 1), b"junk\xff", (2, None), (3, 3)]}
    driven = started(ListSource(content), policy=DeadLetter("bad"))
    assert read_all(driven, limit=100) == [1, 3]
    dead = driven.taken(DEAD).to_pylist()
    assert {letter["raw"] for letter in dead} == {"junk\\xff", '{"id": 2, "ts": null}'}
    assert "event time 'ts' is null" in "".join(letter["error"] for letter in dead)
    assert driven.counters["dead_lettered"] == 2


def test_a_source_without_event_time_has_no_time_column() -> None:
    driven = started(ListSource({"a": rows(3)}), None)
    assert read_all(driven) == [0, 1, 2]
    assert driven.sent_watermark == WATERMARK_MIN
    assert driven.processor.out_schema.names == ["id", "ts"]


@pytest.mark.parametrize(
    ("values", "kind", "wanted"),
    [
        ([datetime(1969, 12, 31, 23, 59, 59, tzinfo=UTC)], pa.timestamp("s"), -(10**9)),
        ([datetime(2020, 1, 1, tzinfo=UTC)], pa.timestamp("us", "UTC"), 1577836800 * 10**9),
        ([date(1970, 1, 2)], pa.date32(), 86400 * 10**9),
        ([date(1969, 12, 31)], pa.date64(), -86400 * 10**9),
    ],
)
def test_dates_and_timestamps_of_any_unit_become_event_time(
    values: list[Any], kind: pa.DataType, wanted: int
) -> None:
    table = pa.table({"at": pa.array(values, kind)})
    driven = started(MemorySource(table), EventTime("at", BoundedDisorder(0)))
    while not driven.processor.ended:
        driven.processor.poll(10)
    assert driven.taken().column("_time").cast(pa.int64()).to_pylist() == [wanted]


def test_times_outside_the_range_of_nanoseconds_are_bad_records() -> None:
    far = datetime(9999, 1, 1, tzinfo=UTC)
    table = pa.table(
        {"id": [1, 2], "ts": pa.array([far, datetime(2020, 1, 1, tzinfo=UTC)], pa.timestamp("s"))}
    )
    driven = started(MemorySource(table), EventTime("ts", BoundedDisorder(0)), policy=Drop())
    assert read_all(driven) == [2]


def test_event_time_and_watermark_may_be_expressions() -> None:
    table = pa.table(
        {"id": [1, 2, 3], "text": ["1970-01-01T00:00:01", "soon", "1970-01-01T00:00:03"]}
    )
    timed = EventTime(
        "CAST(text AS TIMESTAMP)",
        ExpressionWatermark("CAST(text AS TIMESTAMP) - INTERVAL '1 second'"),
    )
    driven = started(MemorySource(table), timed, policy=DeadLetter("bad"))
    assert read_all(driven) == [1, 3]
    assert driven.sent_watermark <= 2 * 10**9 - 1
    assert "soon" in driven.taken(DEAD).column("raw").to_pylist()[0]


def test_an_event_time_that_is_no_time_is_refused_when_planning() -> None:
    timed = event_time("id", monotone=True)
    with pytest.raises(PlanError, match=r"not a date or a timestamp(.|\n)*to_timestamp_millis"):
        ConnectorSourceProcessor(ListSource({}), timed)
    with pytest.raises(PlanError, match='no column "nope"'):
        ConnectorSourceProcessor(ListSource({}), event_time("nope", monotone=True))


def test_a_position_that_is_not_json_is_an_error_that_says_so() -> None:
    driven = started(ListSource({"a": rows(3)}))
    driven.processor.poll(1)
    driven.processor._open["a"].position = object()
    with pytest.raises(ConnectorError, match="A position is made of what JSON knows"):
        driven.cut()
