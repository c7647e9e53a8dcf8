"""Inner joins of rows that are never taken back: what is kept, given, logged and dropped."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pyarrow as pa
import pytest

from penstock.operators import join_paired_rows, join_side_rows
from penstock.operators.event_times import with_time
from penstock.operators.incremental_join import FOREVER_NS, IncrementalJoinProcessor
from penstock.operators.join_condition import JoinCondition
from penstock.operators.join_sides import LEFT, RIGHT
from penstock.operators.kernels import join_cells
from penstock.operators.window_join import WindowJoinProcessor
from penstock.operators.windows.descriptors import Tumble
from penstock.testing.harness import Harness

TEXT, TAGS = pa.field("text", pa.string()), pa.field("tags", pa.list_(pa.int32()))
LEFT_COLUMNS = pa.schema([("k", pa.int64()), ("l", pa.int64()), TEXT])
RIGHT_COLUMNS = pa.schema([("r", pa.int64()), ("k", pa.int64()), TAGS])
Row = dict[str, Any]


def batch(schema: pa.Schema, rows: list[Row]) -> pa.RecordBatch:
    arrays = [pa.array([row[field.name] for row in rows], field.type) for field in schema]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def made_rows(rng: random.Random, port: int, number: int, now: int, keys: int) -> list[Row]:
    rows = []
    for _ in range(rng.choice([0, 1, 3, 40])):
        row: Row = {"k": rng.choice([None, *range(keys)]), "_time": now - rng.randint(0, 5)}
        if port == LEFT:
            row |= {"l": rng.choice([None, number]), "text": rng.choice([None, "", "word" * 5])}
        else:
            row |= {"r": rng.choice([None, number]), "tags": rng.choice([None, [], [1, number]])}
        rows.append(row)
    return rows


def drive(
    driven: Harness, ins: list[pa.Schema], rng: random.Random, timed: bool, keys: int
) -> tuple[list[Row], list[Row]]:
    sent: tuple[list[Row], list[Row]] = ([], [])
    for number in range(60):
        port = rng.choice([LEFT, RIGHT])
        rows = made_rows(rng, port, number, 10 * number, keys)
        sent[port].extend(rows)
        driven.send(batch(ins[port], rows), port)
        if timed and rng.random() < 0.5:
            driven.advance(10 * number - 6)
        if rng.random() < 0.2:
            driven.restart()
    return sent


def expected(left: list[Row], right: list[Row], match: Any, timed: bool) -> Counter[str]:
    found: Counter[str] = Counter()
    for a in left:
        for b in right:
            if a["k"] is not None and a["k"] == b["k"] and match(a, b):
                time = max(a["_time"], b["_time"]) if timed else None
                found[shown({**a, **b, "_time": time})] += 1
    return found


def shown(row: Row) -> str:
    names = ["k", "l", "text", "r", "tags", "_time"]
    return str([row.get(name) for name in names])


def given(driven: Harness, timed: bool) -> Counter[str]:
    table = driven.taken()
    if timed and table.num_rows:
        table = table.set_column(
            table.num_columns - 1, "_time", table.column("_time").cast(pa.int64())
        )
    return Counter(map(shown, table.to_pylist()))


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("kind", ["forever", "ttl", "window", "untimed", "where"])
@pytest.mark.parametrize("seed", range(3))
def test_pairs_are_those_of_nested_loops(
    monkeypatch: pytest.MonkeyPatch, kind: str, seed: int, small: bool
) -> None:
    if small:
        monkeypatch.setattr(join_side_rows, "BLOCK_ROWS", 4)
        monkeypatch.setattr(join_paired_rows, "DROPPED_ROWS_MIN", 8)
        monkeypatch.setattr(join_side_rows, "LOG_ROWS", 11)
        monkeypatch.setattr(join_side_rows, "LOG_TEXT_ROWS", 7)
        monkeypatch.setattr(join_cells, "PAIRS_MAX", 3)
    timed = kind != "untimed"
    ins = [with_time(s) if timed else s for s in (LEFT_COLUMNS, RIGHT_COLUMNS)]
    where = JoinCondition("l <= r", *ins, ["k"]) if kind == "where" else None
    join: Any
    if kind == "window":
        join = WindowJoinProcessor(Tumble(100), ["k"], "inner", *ins)
    else:
        ttl = 30 if kind == "ttl" else FOREVER_NS
        join = IncrementalJoinProcessor(ttl, ["k"], "inner", *ins, where)
    driven = Harness(join, ins, out_schemas=join.outputs)
    rng = random.Random(seed)
    left, right = drive(driven, ins, rng, timed, keys=rng.choice([2, 50]))
    matches = {
        "ttl": lambda a, b: abs(a["_time"] - b["_time"]) <= 30,
        "window": lambda a, b: a["_time"] // 100 == b["_time"] // 100,
        "where": lambda a, b: None not in (a["l"], b["r"]) and a["l"] <= b["r"],
    }
    match = matches.get(kind, lambda a, b: True)
    assert given(driven, timed) == expected(left, right, match, timed)
    kept = sum(row["k"] is not None for row in (*left, *right))
    if kind in ("ttl", "window"):
        assert sum(driven.processor.rows) < kept // 2
        driven.end()
        assert driven.processor.rows == [0, 0]
        assert [side.count for side in driven.processor._paired.sides] == [0, 0]
    else:
        assert sum(driven.processor.rows) == kept


def test_dropped_rows_give_their_memory_back() -> None:
    ins = [with_time(pa.schema([("k", pa.int64()), (name, pa.int64())])) for name in ("l", "r")]
    join = WindowJoinProcessor(Tumble(100_000), ["k"], "inner", *ins)
    driven = Harness(join, ins, out_schemas=join.outputs)
    most = 0
    for turn in range(40):
        times = range(turn * 50_000, (turn + 1) * 50_000)
        columns = [pa.array(times), pa.array(times), pa.array(times, pa.int64())]
        columns[2] = columns[2].cast(ins[0].field("_time").type)
        driven.send(pa.RecordBatch.from_arrays(columns, schema=ins[LEFT]), LEFT)
        driven.advance(turn * 50_000)
        side = driven.processor._paired.sides[LEFT]
        most = max(most, side.count)
    assert most < 400_000
    assert len(side._times.values) <= 1 << 19


def test_rows_live_by_the_clock_also_when_it_is_set_back() -> None:
    left, right = pa.schema([("k", pa.int64())]), pa.schema([("k", pa.int64()), ("r", pa.int64())])
    join = IncrementalJoinProcessor(1000, ["k"], "inner", left, right)
    driven = Harness(join, [left, right], out_schemas=join.outputs)
    driven.send(batch(left, [{"k": 1}]), LEFT)
    driven.tick(2500)
    assert driven.processor.rows == [0, 0]
    driven.tick(-2000)
    driven.send(batch(right, [{"k": 1, "r": 7}, {"k": 2, "r": 8}]), RIGHT).restart()
    assert driven.rows() == []
    driven.send(batch(left, [{"k": 2}]), LEFT)
    assert driven.rows() == [{"k": 2, "r": 8}]
    for _ in range(4):
        driven.tick(1500)
    assert driven.processor.rows == [0, 0]
    assert driven.processor.next_wakeup_ns() is None


def test_a_side_may_have_no_columns_but_its_key() -> None:
    left, right = pa.schema([("k", pa.int64())]), pa.schema([("k", pa.int64()), ("r", pa.int64())])
    join = IncrementalJoinProcessor(FOREVER_NS, ["k"], "inner", left, right)
    driven = Harness(join, [left, right], out_schemas=join.outputs)
    driven.send(batch(left, [{"k": 1}, {"k": 1}, {"k": 2}]), LEFT).restart()
    driven.send(batch(right, [{"k": 1, "r": 7}]), RIGHT).restart()
    assert driven.rows() == [{"k": 1, "r": 7}] * 2
    assert driven.processor.rows == [3, 1]
