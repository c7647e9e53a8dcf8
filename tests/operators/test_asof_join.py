"""As-of joins against a loop over all versions: disorder, ties, tolerance, restarts, rescaling."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.elements.errors import PlanError
from penstock.elements.hash import hash_columns
from penstock.elements.keygroup import subtask_of
from penstock.operators.asof_join import AsOfJoinProcessor
from penstock.operators.event_times import with_time
from penstock.operators.join_condition import JoinCondition
from penstock.operators.join_sides import LATE_RIGHT, LEFT, RIGHT
from penstock.operators.processor import LATE
from penstock.testing.harness import Harness, batch_of

L_COLUMNS = pa.schema([("l", pa.int64()), ("k", pa.string()), ("d", pa.float64())])
R_COLUMNS = pa.schema([("k", pa.string()), ("d", pa.float64()), ("r", pa.string())])
L_ROWS, R_ROWS = with_time(L_COLUMNS), with_time(R_COLUMNS)
KEYS = ["k", "d"]
Row = tuple[Any, ...]  # (k, d, payload, time)


def batch(rows: list[Row], port: int) -> pa.RecordBatch:
    if port == LEFT:
        return batch_of(L_COLUMNS, [(row[2], row[0], row[1]) for row in rows], [r[3] for r in rows])
    return batch_of(R_COLUMNS, [row[:3] for row in rows], [row[3] for row in rows])


def harness_of(
    how: str, tolerance: int | None = None, where: str | None = None, **more: Any
) -> Harness:
    condition = None if where is None else JoinCondition(where, L_ROWS, R_ROWS, KEYS)
    made = AsOfJoinProcessor(KEYS, how, L_ROWS, R_ROWS, tolerance, condition=condition)
    return Harness(made, [L_ROWS, R_ROWS], out_schemas=made.outputs, **more)


def shown(value: Any) -> Any:
    return repr(value + 0.0) if isinstance(value, float) else value


def taken(driven: Harness) -> Counter[Any]:
    """(k, d, l, r, time)."""
    table = driven.taken()
    names = ["k", "d", "l", "r"]
    columns = [[shown(v) for v in table.column(name).to_pylist()] for name in names]
    times = table.column("_time").cast(pa.int64()).to_pylist()
    return Counter(zip(*columns, times, strict=True))


def allowed(
    how: str, left: list[Row], right: list[Row], tolerance: int | None
) -> list[tuple[Row, set[Any]]]:
    """What each left row may be joined with: the versions of the newest instant that counts."""
    found = []
    for row in left:
        key = tuple(map(shown, row[:2]))
        versions = [
            r
            for r in right
            if None not in key and tuple(map(shown, r[:2])) == key and r[3] <= row[3]
        ]
        newest = max((r[3] for r in versions), default=None)
        if newest is None or (tolerance is not None and row[3] - newest > tolerance):
            found.append((row, set()))
        else:
            found.append((row, {r[2] for r in versions if r[3] == newest}))
    return found


strings = st.sampled_from(["", "x", None])
floats = st.sampled_from([0.0, -0.0, float("nan"), None])


@st.composite
def runs(draw: Any) -> list[Any]:
    made: list[Any] = []
    now = 0
    for _ in range(draw(st.integers(0, 14))):
        what = draw(st.sampled_from(["rows", "rows", "rows", "watermark", "restart"]))
        if what != "rows":
            made.append((what, now - 6))
            continue
        rows = []
        for _ in range(draw(st.sampled_from([0, 1, 1, 3, 9]))):
            now += draw(st.sampled_from([0, 0, 1, 5]))
            time = now - draw(st.integers(0, 5))
            rows.append((draw(strings), draw(floats), draw(st.integers(0, 2)), time))
        made.append((draw(st.sampled_from([LEFT, RIGHT])), rows))
    return made


def rows_of(made: list[Any], port: int) -> list[Row]:
    rows = [row for step in made if step[0] == port for row in step[1]]
    return [(*r[:2], str(r[2]) if port == RIGHT else r[2], r[3]) for r in rows]


def drive(driven: Harness, made: list[Any]) -> Harness:
    for step in made:
        if step[0] == "restart":
            driven.restart()
        elif step[0] == "watermark":
            driven.advance(max(driven.watermark, step[1]))
        else:
            driven.send(batch(rows_of([step], step[0]), step[0]), step[0])
    return driven.end()


@settings(max_examples=120, deadline=None)
@given(runs(), st.sampled_from(["inner", "left"]), st.sampled_from([None, 0, 3]))
def test_each_row_gets_the_version_of_its_time(
    made: list[Any], how: str, tolerance: int | None
) -> None:
    driven = drive(harness_of(how, tolerance), made)
    found = taken(driven)
    for row, payloads in allowed(how, rows_of(made, LEFT), rows_of(made, RIGHT), tolerance):
        key = (shown(row[0]), shown(row[1]), row[2])
        if not payloads and how == "inner":
            continue
        options = [(*key, payload, row[3]) for payload in payloads or {None}]
        # Of several versions of one instant it is the same one for all rows; which is not said.
        chosen = [option for option in options if found[option]]
        assert len(set(chosen)) == 1, options
        found[chosen[0]] -= 1
    assert not +found
    assert driven.rows_behind_watermark == 0
    assert [waiting.rows for waiting in driven.processor._waiting] == [0, 0]


@settings(max_examples=60, deadline=None)
@given(runs(), st.sampled_from(["inner", "left"]), st.sampled_from([None, 3]))
def test_a_version_that_fails_the_condition_leaves_the_row_without_one(
    made: list[Any], how: str, tolerance: int | None
) -> None:
    left, right = rows_of(made, LEFT), rows_of(made, RIGHT)
    driven = drive(harness_of(how, tolerance, "l % 3 <> length(r) AND l % 2 = 0"), made)
    found = taken(driven)
    for row, payloads in allowed(how, left, right, tolerance):
        key = (shown(row[0]), shown(row[1]), row[2])
        kept = {r if row[2] % 3 != len(r) and row[2] % 2 == 0 else None for r in payloads}
        options = [(*key, payload, row[3]) for payload in kept or {None}]
        if how == "inner" and None in {option[3] for option in options}:
            options = [option for option in options if option[3] is not None and found[option]]
            if not options:
                continue
        chosen = [option for option in options if found[option]]
        assert len(set(chosen)) == 1, options
        found[chosen[0]] -= 1
    assert not +found


@pytest.mark.parametrize("where", ["l > 1", "length(r) = 1", "TRUE", "k = 'x'"])
def test_a_condition_may_read_one_side_or_none(where: str) -> None:
    driven = harness_of("left", None, where)
    driven.send(batch([("x", 1.0, "a", 1)], RIGHT), RIGHT)
    driven.send(batch([("x", 1.0, 1, 2), ("x", 1.0, 2, 3)], LEFT), LEFT).end()
    expected = ["a" if where != "l > 1" else None, "a"]
    assert driven.taken()["r"].to_pylist() == expected


def test_the_choice_among_versions_of_one_instant_does_not_depend_on_arrival() -> None:
    given_first = []
    for order in (["a", "b", "c"], ["c", "a", "b"], ["b", "c", "a"]):
        driven = harness_of("inner")
        for payload in order:
            driven.send(batch([("x", 1.0, payload, 5)], RIGHT), RIGHT)
        driven.send(batch([("x", 1.0, 1, 7)], LEFT), LEFT).end()
        given_first.append(driven.rows()[0]["r"])
    assert len(set(given_first)) == 1


def test_a_version_counts_from_its_own_instant_and_for_later_batches() -> None:
    driven = harness_of("left")
    driven.send(batch([("x", 1.0, "first", 10)], RIGHT), RIGHT)
    driven.send(batch([("x", 1.0, 1, 9), ("x", 1.0, 2, 10)], LEFT), LEFT).advance(15).restart()
    driven.send(batch([("x", 1.0, "second", 20)], RIGHT), RIGHT)
    driven.send(batch([("x", 1.0, 3, 19), ("x", 1.0, 4, 20)], LEFT), LEFT).advance(30)
    assert [row["r"] for row in driven.rows()] == [None, "first", "first", "second"]


def test_versions_beyond_the_tolerance_are_forgotten_also_in_state() -> None:
    driven = harness_of("inner", 10)
    driven.send(batch([("x", 1.0, "v", 0), ("y", 1.0, "v", 0)], RIGHT), RIGHT).advance(5)
    driven.restart()
    assert driven.processor._versions.rows == 2
    driven.send(batch([("y", 1.0, "w", 8)], RIGHT), RIGHT).advance(12).restart()
    assert driven.processor._versions.rows == 1
    driven.advance(100).restart()
    assert driven.processor._versions.rows == 0


def test_late_rows_go_to_the_output_of_their_side() -> None:
    driven = harness_of("inner").advance(10)
    driven.send(batch([("x", 1.0, "v", 10)], RIGHT), RIGHT)
    driven.send(batch([("x", 1.0, 1, 9), ("x", 1.0, 2, 11)], LEFT), LEFT).end()
    assert driven.rows() == []
    assert [row["l"] for row in driven.rows(LATE)] == [1]
    assert [row["r"] for row in driven.rows(LATE_RIGHT)] == ["v"]
    assert driven.counters["late"] == 2


def test_waiting_rows_and_versions_move_to_another_parallelism() -> None:
    keys = [("x" * n, float(n)) for n in range(30)]
    single = harness_of("left")
    single.send(batch([(*key, "old", 1) for key in keys], RIGHT), RIGHT).advance(5)
    single.send(batch([(*key, "new", 10) for key in keys[::2]], RIGHT), RIGHT)
    single.send(batch([(*key, 7, 12) for key in keys], LEFT), LEFT)
    sections = single.cut()
    found: Counter[Any] = Counter()
    for subtask in range(3):
        part = harness_of("left", restored=sections, subtask=subtask, parallelism=3)
        found += taken(part.end())
    expected = [(*map(shown, k), 7, "old" if n % 2 else "new", 12) for n, k in enumerate(keys)]
    assert found == Counter(expected)
    owners = subtask_of(hash_columns(batch([(*key, 7, 1) for key in keys], LEFT), KEYS), 3)
    assert len(set(owners.tolist())) == 3


def test_what_cannot_be_joined_is_refused() -> None:
    with pytest.raises(PlanError, match="how='full'; there are inner and left"):
        AsOfJoinProcessor(KEYS, "full", L_ROWS, R_ROWS)
    with pytest.raises(PlanError, match="the right side has no event time"):
        AsOfJoinProcessor(KEYS, "left", L_ROWS, R_COLUMNS)
