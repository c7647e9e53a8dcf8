"""Late rows change nothing in joins without windows: each with them and without them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.operators.asof_join import AsOfJoinProcessor
from penstock.operators.event_times import with_time
from penstock.operators.incremental_join import IncrementalJoinProcessor
from penstock.operators.join_sides import LATE_RIGHT, LEFT, RIGHT
from penstock.operators.processor import LATE
from penstock.testing.harness import Harness, batch_of

COLUMNS = (
    pa.schema([("k", pa.float64()), ("l", pa.int64())]),
    pa.schema([("k", pa.float64()), ("r", pa.int64())]),
)
SCHEMAS = (with_time(COLUMNS[LEFT]), with_time(COLUMNS[RIGHT]))
CASES: dict[str, Callable[[], Any]] = {
    f"as of, {how}, {tolerance}": lambda how=how, tolerance=tolerance: AsOfJoinProcessor(
        ["k"], how, *SCHEMAS, tolerance
    )
    for how, tolerance in (("left", None), ("inner", 6))
} | {
    how: lambda how=how: IncrementalJoinProcessor(7, ["k"], how, *SCHEMAS)
    for how in ("inner", "full", "semi", "anti")
}
rows = st.tuples(
    st.sampled_from([0.0, -0.0, math.nan, None]),
    st.sampled_from([0, 1, 2**63 - 1, None]),
    st.integers(-20, 30),
)
runs = st.lists(
    st.tuples(
        st.sampled_from([LEFT, RIGHT]),
        st.lists(rows, max_size=7),
        st.sampled_from([None, 0, 4, 12]),
        st.booleans(),
    ),
    max_size=10,
)


def drive(made: Any, steps: list[Any]) -> Harness:
    driven = Harness(made, SCHEMAS, out_schemas=made.outputs)
    for port, some, watermark, dies in steps:
        table = batch_of(COLUMNS[port], [row[:2] for row in some], [row[2] for row in some])
        driven.send(table, port)
        if watermark is not None:
            driven.advance(watermark)
        if dies:
            driven.restart()
    driven.end()
    assert driven.rows_behind_watermark == 0
    return driven


def shown(value: Any) -> Any:
    return repr(value + 0.0) if isinstance(value, float) else value


def results(driven: Harness, output: str = "main") -> Counter[Any]:
    table = driven.taken(output)
    at = table.column_names.index("_time")
    table = table.set_column(at, "_time", table["_time"].cast(pa.int64()))
    return Counter(tuple(map(shown, row.values())) for row in table.to_pylist())


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=30, deadline=None)
@given(steps=runs)
def test_late_rows_join_nothing_and_are_not_lost(case: str, steps: list[Any]) -> None:
    watermark = -30
    late: tuple[list[Any], list[Any]] = ([], [])
    with_them: list[Any] = []
    without: list[Any] = []
    for port, some, further, dies in steps:
        late[port].extend(row for row in some if row[2] <= watermark)
        in_time = [row for row in some if row[2] > watermark]
        if further is not None:
            watermark = max(watermark, -25) + further
        at = None if further is None else watermark
        with_them.append((port, some, at, dies))
        without.append((port, in_time, at, False))
    driven, alone = drive(CASES[case](), with_them), drive(CASES[case](), without)
    assert results(driven) == results(alone)
    for port, output in ((LEFT, LATE), (RIGHT, LATE_RIGHT)):
        assert results(driven, output) == Counter((shown(k), n, t) for k, n, t in late[port])
    assert driven.counters["late"] == len(late[LEFT]) + len(late[RIGHT])
    assert alone.counters["late"] == 0
