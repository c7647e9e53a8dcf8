"""map_async: order, watermarks, what a snapshot keeps, retries, timeouts, policies."""

from __future__ import annotations

import asyncio
import random
import threading
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.elements.errors import PlanError, UserCodeError
from penstock.elements.signals import WATERMARK_MAX
from penstock.operators.async_calls import CallSettings
from penstock.operators.async_order import AsyncOrder
from penstock.operators.async_processor import MapAsyncProcessor
from penstock.operators.error_policy import DeadLetter, Drop
from penstock.operators.event_times import with_time
from penstock.operators.processor import DEAD
from penstock.testing.harness import Harness, batch_of

COLUMNS = pa.schema([("n", pa.int64())])
SCHEMA = with_time(COLUMNS)


# The pure core ------------------------------------------------------------------------------------


@given(
    st.lists(st.sampled_from(["call", "call", "watermark", "done", "done"]), max_size=60),
    st.integers(1, 4),
    st.booleans(),
    st.randoms(use_true_random=False),
)
@settings(max_examples=200, deadline=None)
def test_nothing_overtakes_a_watermark_and_nothing_is_lost(
    events: list[str], concurrency: int, ordered: bool, chance: random.Random
) -> None:
    order: AsyncOrder[int, int] = AsyncOrder(concurrency, ordered)
    given_: list[tuple[str, int]] = []
    out: list[tuple[str, int]] = []
    running: list[tuple[int, int]] = []

    def step() -> None:
        for item in order.ready():
            if isinstance(item, int):
                out.append(("watermark", item))
            else:
                assert item[1] == -item[0]
                out.append(("row", item[0]))
        running.extend(order.start())
        assert len(running) <= concurrency
        kept = set(order.unfinished())
        gone = {value for kind, value in out if kind == "row"}
        assert kept | gone == {value for kind, value in given_ if kind == "row"}
        assert not kept & gone

    for at, event in enumerate(events):
        if event == "call":
            order.call(at)
            given_.append(("row", at))
        elif event == "watermark":
            order.watermark(at)
            given_.append(("watermark", at))
        elif running:
            number, value = running.pop(chance.randrange(len(running)))
            order.done(number, -value)
        step()
    while running:
        number, value = running.pop(chance.randrange(len(running)))
        order.done(number, -value)
        step()
    assert not order.busy
    rows = [value for kind, value in out if kind == "row"]
    assert sorted(rows) == [value for kind, value in given_ if kind == "row"]
    if ordered:
        assert rows == sorted(rows)
    seen: set[int] = set()
    for kind, value in out:
        if kind == "row":
            seen.add(value)
        else:
            assert seen == {row for row in rows if row < value}, "a watermark stands in its place"
    last = [value for kind, value in given_ if kind == "watermark"][-1:]
    assert [value for kind, value in out if kind == "watermark"][-1:] == last


# The operator -------------------------------------------------------------------------------------

GATES: dict[int, threading.Event] = {}
"""Calls of these numbers wait until a test lets them go."""
CALLS: list[int] = []


@pytest.fixture(autouse=True)
def _no_gates() -> Any:
    GATES.clear()
    CALLS.clear()
    yield
    for gate in GATES.values():
        gate.set()


@dataclass
class Number:
    n: int


@dataclass
class Answer:
    n: int
    text: str


def answer(row: Number) -> Answer:
    CALLS.append(row.n)
    gate = GATES.get(row.n)
    if gate is not None:
        gate.wait(30)
    if row.n < 0:
        raise ValueError(f"no answer to {row.n}")
    return Answer(row.n, f"<{row.n}>")


async def answer_async(row: Number) -> Answer:
    await asyncio.sleep(row.n % 3 / 1000)
    return Answer(row.n, f"<{row.n}>")


def rows_of(*numbers: int) -> pa.RecordBatch:
    return batch_of(COLUMNS, [(n,) for n in numbers], [abs(n) for n in numbers])


def driven_by(function: Any = answer, **said: Any) -> Harness:
    calls = CallSettings(
        said.pop("concurrency", 8), said.pop("timeout_s", None), said.pop("retries", 0)
    )
    made = MapAsyncProcessor(function, SCHEMA, settings=calls, **said)
    return Harness(made, [SCHEMA], out_schemas=made.outputs)


def finish(driven: Harness) -> list[int]:
    driven.end()
    driven.processor.close()
    assert driven.rows_behind_watermark == 0
    return [row["n"] for row in driven.rows()]


@pytest.mark.parametrize("function", [answer, answer_async])
def test_every_row_is_answered_in_order(function: Any) -> None:
    driven = driven_by(function)
    for start in range(0, 300, 50):
        driven.send(rows_of(*range(start, start + 50))).advance(start + 49)
    assert finish(driven) == list(range(300))


def test_a_slow_row_holds_back_those_behind_it_and_the_watermark() -> None:
    GATES[1] = threading.Event()
    driven = driven_by()
    driven.send(rows_of(1, 2)).advance(2).send(rows_of(3))
    assert driven.sent_watermark < 0
    assert driven.processor.busy()
    GATES[1].set()
    driven.settle()
    assert driven.sent_watermark == 2
    assert finish(driven) == [1, 2, 3]


def wait_for(driven: Harness, rows: int) -> list[int]:
    found: list[int] = []
    while len(found) < rows:
        assert driven.bell.wait(30)
        driven.bell.clear()
        driven.tick()
        found += [row["n"] for row in driven.rows()]
    return found


def test_unordered_rows_pass_a_slow_one_but_no_watermark() -> None:
    GATES[1] = threading.Event()
    driven = driven_by(ordered=False)
    driven.send(rows_of(1, 2, 3)).advance(3).send(rows_of(4))
    assert sorted(wait_for(driven, 2)) == [2, 3]
    assert driven.sent_watermark < 0
    GATES[1].set()
    assert finish(driven) == [1, 4]


@pytest.mark.parametrize("ordered", [True, False])
def test_rows_in_flight_are_called_for_again_after_a_restart(ordered: bool) -> None:
    for number in range(10):
        GATES[number] = threading.Event()
    GATES[4].set()
    driven = driven_by(ordered=ordered, concurrency=4)
    first = driven.processor
    driven.send(rows_of(*range(6))).advance(5).send(rows_of(*range(6, 10)))
    driven.cut()
    for gate in GATES.values():
        gate.set()
    driven.crash()
    first.close()
    assert sorted(finish(driven)) == list(range(10))
    assert driven.sent_watermark == WATERMARK_MAX


def test_what_went_on_before_a_cut_is_not_called_for_again() -> None:
    driven = driven_by()
    first = driven.send(rows_of(1, 2)).advance(2).settle().processor
    driven.cut()
    CALLS.clear()
    driven.crash()
    first.close()
    driven.settle()
    assert driven.sent_watermark == 2
    assert finish(driven) == [1, 2]
    assert CALLS == []


def test_rows_in_flight_are_dealt_out_at_another_parallelism() -> None:
    gate = GATES[0] = threading.Event()
    driven = driven_by(concurrency=1)
    driven.send(rows_of(*([0] * 600)))
    sections = driven.cut()
    driven.processor.close()
    gate.set()
    found = 0
    for subtask in range(2):
        made = MapAsyncProcessor(answer, SCHEMA)
        part = Harness(made, [SCHEMA], restored=sections, subtask=subtask, parallelism=2)
        rows = len(finish(part))
        assert rows
        found += rows
    assert found == 600


def test_it_wants_no_more_rows_while_many_wait() -> None:
    gate = GATES[0] = threading.Event()
    driven = driven_by(concurrency=2)
    driven.send(rows_of(*([0] * 1000)))
    assert not driven.processor.saturated()
    driven.send(rows_of(*([0] * 1000)))
    assert driven.processor.saturated()
    gate.set()
    driven.settle()
    assert not driven.processor.saturated()
    assert len(finish(driven)) == 2000


def test_a_row_that_fails_ends_the_attempt_and_names_itself() -> None:
    driven = driven_by()
    driven.send(rows_of(1, -7))
    with pytest.raises(UserCodeError, match=r"(?s)Number\(n=-7\).*no answer to -7"):
        driven.settle()
    driven.processor.close()


def test_a_row_that_fails_follows_the_policy() -> None:
    driven = driven_by(policy=Drop())
    assert finish(driven.send(rows_of(1, -7, 2))) == [1, 2]
    assert driven.counters["dropped"] == 1
    driven = driven_by(policy=DeadLetter("bad/"))
    assert finish(driven.send(rows_of(1, -7, 2))) == [1, 2]
    assert "no answer to -7" in driven.rows(DEAD)[0]["error"]


TRIES: dict[int, int] = {}


def flaky(row: Number) -> Answer:
    TRIES[row.n] = TRIES.get(row.n, 0) + 1
    if TRIES[row.n] <= row.n:
        raise ConnectionError("not now")
    return Answer(row.n, "at last")


def test_failed_calls_are_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.operators.async_calls.RETRY_S", 0.001)
    TRIES.clear()
    driven = driven_by(flaky, retries=2, policy=Drop())
    assert finish(driven.send(rows_of(0, 1, 2, 3))) == [0, 1, 2]
    assert TRIES == {0: 1, 1: 2, 2: 3, 3: 3}
    assert driven.counters["dropped"] == 1


async def never(row: Number) -> Answer:
    await asyncio.sleep(3600)
    return Answer(row.n, "")


@pytest.mark.parametrize("function", [never, answer])
def test_a_call_that_gives_no_answer_in_time_has_failed(function: Any) -> None:
    GATES[5] = threading.Event()
    driven = driven_by(function, timeout_s=0.05)
    driven.send(rows_of(5))
    with pytest.raises(UserCodeError, match=r"no answer within 0\.05 s"):
        driven.settle()
    driven.processor.close()


def doubled(batch: pa.RecordBatch) -> pa.RecordBatch:
    assert batch.schema.names == ["n"]
    CALLS.append(batch.num_rows)
    return pa.record_batch({"n": pa.array([2 * n for n in batch["n"].to_pylist()], pa.int64())})


def short(batch: pa.RecordBatch) -> pa.RecordBatch:
    return batch.slice(1)


def test_batches_have_at_most_so_many_rows() -> None:
    driven = driven_by(doubled, batch_rows=4)
    driven.send(rows_of(*range(10))).restart()
    assert finish(driven) == [2 * n for n in range(10)]
    assert set(CALLS) == {4, 2}


def test_a_batch_must_come_back_with_all_its_rows() -> None:
    driven = driven_by(short, batch_rows=4)
    with pytest.raises(UserCodeError, match="4 rows went in, 3 came out"):
        finish(driven.send(rows_of(*range(4))))
    driven.processor.close()


def test_what_cannot_be_is_said_when_planning() -> None:
    def text(row: str) -> Answer:
        return Answer(0, row)

    def number(row: Number) -> int:
        return row.n

    with pytest.raises(PlanError, match="it takes str, which is no row class"):
        MapAsyncProcessor(text, SCHEMA)
    with pytest.raises(PlanError, match="it returns int, which is no row class"):
        MapAsyncProcessor(number, SCHEMA)
