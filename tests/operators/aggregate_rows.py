"""Rows for tests of aggregates, what a database says of them, and the ways they are driven."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import strategies as st

from penstock.operators.aggregates import Aggregation
from penstock.operators.event_times import with_time
from penstock.operators.two_phase import GlobalAggregateProcessor, LocalAggregateProcessor
from penstock.operators.updating_aggregate import UpdatingAggregateProcessor
from penstock.operators.updating_fold import UpdatingFoldProcessor
from penstock.operators.windows.aggregate import WindowAggregateProcessor
from penstock.operators.windows.descriptors import Tumble
from penstock.testing.harness import Harness, batch_of

COLUMNS = pa.schema(
    [
        ("k", pa.float64()),
        ("n", pa.int64()),
        ("b", pa.int8()),
        ("f", pa.float64()),
        ("h", pa.float64()),
        ("d", pa.decimal128(12, 2)),
        ("s", pa.string()),
    ]
)
SCHEMA = with_time(COLUMNS)
Row = tuple[Any, ...]
"""(k, n, b, f, h, d, s, time); h is finite."""
WIDE = Tumble(1000)
"""One window holds all rows."""

row = st.tuples(
    st.sampled_from([0.0, -0.0, math.nan, 1.0, None]),
    st.sampled_from([None, 0, 1, 2, -7, 2**40, 2**63 - 1, -(2**63)]),
    st.sampled_from([None, 0, 1, -1, 127, -128, 6]),
    st.sampled_from([None, math.nan, 0.0, 1.5, -2.5, math.inf, -math.inf]),
    st.sampled_from([None, 0.0, 1.0, 2.0, 2.5, -40.0]),
    st.sampled_from([None, Decimal("0.01"), Decimal("-99.99"), Decimal("1234567.89")]),
    st.sampled_from([None, "", "a", "ab", "é"]),
    st.integers(0, 5),
)
batches = st.lists(st.lists(row, max_size=10), min_size=1, max_size=6)


def batch(rows: list[Row]) -> pa.RecordBatch:
    """A batch with event times."""
    return batch_of(COLUMNS, [each[:-1] for each in rows], [each[-1] for each in rows])


def database(items: dict[str, str], rows: list[Row]) -> dict[Any, Row]:
    """What DuckDB answers per key, with NULLs last."""
    listed = ", ".join(f"{text} AS {name}" for name, text in items.items())
    table = pa.Table.from_batches([batch(rows)])
    with duckdb.connect() as connection:
        connection.execute("SET default_null_order = 'NULLS LAST'")
        connection.register("rows", table)
        found = connection.sql(f"SELECT k, {listed} FROM rows GROUP BY k").to_arrow_table()
    return by_key(found.to_pylist())


def by_key(rows: list[dict[str, Any]]) -> dict[Any, Row]:
    """Results per key, comparable."""
    hidden = ("k", "window_start", "window_end", "_time", "_change")
    found = {}
    for each in rows:
        key = known(each["k"])
        assert key not in found
        values = [value for name, value in each.items() if name not in hidden]
        found[key] = tuple(canonical(value) for value in values)
    return found


def known(key: float | None) -> Any:
    """A key that equals itself: NaN by name; -0.0 is 0.0 anyway."""
    return "nan" if key is not None and math.isnan(key) else key


def canonical(value: Any) -> Any:
    """NaN and zero as one; whole numbers are exact, others as near as sums of floats are."""
    if isinstance(value, list):
        return tuple(canonical(each) for each in value)
    if not isinstance(value, float) or math.isinf(value):
        return value
    if math.isnan(value):
        return "nan"
    return pytest.approx(value, rel=1e-9, abs=1e-9)


def in_a_window(items: dict[str, Any], steps: list[list[Row]], restart: bool) -> dict[Any, Row]:
    """One phase; the operator dies in the middle."""
    made = WindowAggregateProcessor(WIDE, ["k"], Aggregation(items, SCHEMA), SCHEMA)
    run = Harness(made, [SCHEMA], out_schemas={"main": made.out_schema})
    for step, rows in enumerate(steps):
        run.send(batch(rows))
        if restart and step == len(steps) // 2:
            run.restart()
    run.end()
    return by_key(run.rows())


def in_two_phases(items: dict[str, Any], steps: list[list[Row]], restart: bool) -> dict[Any, Row]:
    """Two first phases before one second."""
    common = (WIDE, ["k"], Aggregation(items, SCHEMA), SCHEMA)
    first = [Harness(LocalAggregateProcessor(*common), [SCHEMA]) for _ in range(2)]
    made = GlobalAggregateProcessor(*common)
    second = Harness(made, [made.in_schema], out_schemas={"main": made.out_schema})
    for step, rows in enumerate(steps):
        first[step % 2].send(batch(rows))
        if restart and step == len(steps) // 2:
            for each in first:
                each.cut()
                if (partials := each.taken()).num_rows:
                    second.send(partials)
                each.crash()
            second.restart()
    for each in first:
        each.end()
        if (partials := each.taken()).num_rows:
            second.send(partials)
    second.end()
    return by_key(second.rows())


def without_a_window(
    items: dict[str, Any], steps: list[list[Row]], restart: bool
) -> dict[Any, Row]:
    """An updating aggregate; only what is left of its rows."""
    aggregation = Aggregation(items, SCHEMA)
    run = updating(aggregation, SCHEMA)
    for step, rows in enumerate(steps):
        run.send(batch(rows))
        run.tick(1)
        if restart and step == len(steps) // 2:
            run.cut()
            run.crash()
    run.end()
    return by_key(left_of(run.rows()))


def folded_without_a_window(
    items: dict[str, Any], steps: list[list[Row]], restart: bool
) -> dict[Any, Row]:
    """The same behind a fold per batch."""
    aggregation = Aggregation(items, SCHEMA)
    fold = Harness(UpdatingFoldProcessor(["k"], aggregation, SCHEMA), [SCHEMA])
    run = updating(aggregation, SCHEMA, partial_input=True)
    for step, rows in enumerate(steps):
        fold.send(batch(rows))
        if (partials := fold.taken()).num_rows:
            run.send(partials)
        if restart and step == len(steps) // 2:
            run.cut()
            run.crash()
    run.end()
    return by_key(left_of(run.rows()))


def updating(aggregation: Aggregation, schema: pa.Schema, **options: Any) -> Harness:
    """The harness of an updating aggregate."""
    made = UpdatingAggregateProcessor(["k"], aggregation, schema, None, 1, **options)
    return Harness(made, [made.in_schema], out_schemas={"main": made.out_schema})


def left_of(changes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of a result table; what is taken back must be what was given."""
    table: dict[Any, dict[str, Any]] = {}
    for each in changes:
        key = known(each["k"])
        if each.pop("_change") > 0:
            assert key not in table
            table[key] = each
        else:
            before, now = by_key([table.pop(key)]), by_key([each])
            assert before == now
    return list(table.values())
