"""Rows that an operator's own expressions cannot take: named, and not tried again for ever."""

from __future__ import annotations

import pyarrow as pa
import pytest

from penstock.elements.errors import StateError
from penstock.expressions.failures import ExpressionError
from penstock.expressions.functions import NONE, udf
from penstock.operators.aggregates import Aggregation
from penstock.operators.event_times import with_time
from penstock.operators.over_items import OverItems
from penstock.operators.row_order import RowOrder

SCHEMA = with_time(pa.schema([("s", pa.string()), ("n", pa.int64())]))


def rows(texts: list[str], numbers: list[int]) -> pa.RecordBatch:
    times = pa.array(range(len(texts)), pa.int64()).view(pa.timestamp("ns", "UTC"))
    return pa.RecordBatch.from_arrays([pa.array(texts), pa.array(numbers), times], schema=SCHEMA)


@pytest.mark.parametrize("bad_at", range(5))
def test_the_row_and_the_line_are_named(bad_at: int) -> None:
    texts = [str(at) for at in range(5)]
    texts[bad_at] = f"x{bad_at}"
    aggregation = Aggregation(
        {"total": "sum(CAST(s AS INT))"}, SCHEMA, who="aggregate", location="flow.py:7"
    )
    with pytest.raises(StateError) as failed:
        aggregation.argument_columns(rows(texts, [1] * 5))
    first, *_ = text = str(failed.value).splitlines()
    assert first.startswith(f"aggregate: Cannot cast string 'x{bad_at}'")
    assert first.endswith("(flow.py:7)")
    assert f"  row    {{'s': 'x{bad_at}'}}" in text
    assert 'on_error(ps.DeadLetter("bad/"))' in text[-1]


def test_orders_and_rows_before_and_behind_name_theirs_too() -> None:
    batch = rows(["1", "2"], [2, 2**62])
    with pytest.raises(StateError, match=r"top: .*does not fit(.|\n)*row    \{'n': 4611686018"):
        RowOrder("n * 4", SCHEMA, who="top").values(batch)
    items = OverItems({"x": "sum(n * 4)"}, SCHEMA, who="over")
    with pytest.raises(StateError, match=r"over: .*does not fit(.|\n)*row    \{'n': 4611686018"):
        items.argument_columns(batch)


def test_what_a_users_function_raises_may_pass_and_is_tried_again() -> None:
    @udf
    def ask(n: int) -> int:
        raise ConnectionError("the service is down")

    functions = NONE.with_function(ask)
    aggregation = Aggregation({"total": "sum(ask(n))"}, SCHEMA, functions)
    with pytest.raises(ExpressionError, match="service is down") as failed:
        aggregation.argument_columns(rows(["1"], [1]))
    assert isinstance(failed.value.__cause__, ConnectionError)
