"""Python functions in expressions: types from hints, nulls, columns, travel."""

from __future__ import annotations

from datetime import datetime

import cloudpickle
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from penstock.elements.errors import PlanError
from penstock.expressions.failures import ExpressionError
from penstock.expressions.functions import NONE, describe, udf
from penstock.expressions.projection import Projection

BATCH = pa.record_batch(
    {"x": pa.array([1.0, None, 3.0]), "n": [1, 2, 3], "s": pa.array(["a", "b", None])}
)


def evaluate(text, *functions):
    known = NONE
    for function in functions:
        known = known.with_function(function)
    return Projection([("y", text)], BATCH.schema, known)(BATCH).column("y").to_pylist()


def test_rows_with_a_null_argument_give_null_without_a_call():
    @udf
    def double(x: float) -> float:
        return x * 2

    assert evaluate("double(x)", double) == [2.0, None, 6.0]


def test_optional_arguments_see_none():
    @udf
    def shown(s: str | None, n: int) -> str:
        return f"{s}{n}"

    assert evaluate("shown(s, n)", shown) == ["a1", "b2", "None3"]


def test_functions_over_columns_get_columns():
    @udf(arguments=[pa.float64(), pa.int64()], returns=pa.float64())
    def scaled(x: pa.Array, n: pa.Array) -> pa.Array:
        return pc.add(pc.fill_null(x, 0.0), pc.cast(n, pa.float64()))

    assert evaluate("scaled(x, n)", scaled) == [2.0, 2.0, 6.0]


def test_a_column_function_must_give_one_value_per_row():
    @udf(arguments=[pa.int64()], returns=pa.int64())
    def short(n: pa.Array) -> pa.Array:
        return n.slice(1)

    with pytest.raises(ExpressionError, match="gave 2 values for 3 rows"):
        evaluate("short(n)", short)


def test_constants_are_arguments_too():
    @udf
    def power(n: int, exponent: int) -> int:
        return n**exponent

    assert evaluate("power(n, 2) + 1", power) == [2, 5, 10]


def test_a_result_of_another_type_than_declared_is_an_error():
    @udf
    def wrong(n: int) -> int:
        return "x"  # type: ignore[return-value]

    with pytest.raises(ExpressionError):
        evaluate("wrong(n)", wrong)


def test_a_function_stays_a_python_function():
    @udf
    def grade(delay: float) -> str:
        return "bad" if delay > 60 else "ok"

    assert grade(61.0) == "bad"
    assert describe(grade) == "grade(float64) -> text"


def test_types_are_checked_when_planning():
    @udf
    def grade(delay: float) -> str:
        return "ok"

    with pytest.raises(PlanError, match="grade"):
        evaluate("grade(s, n)", grade)
    assert evaluate("grade(n)", grade) == ["ok"] * 3


def test_functions_travel_by_value():
    offset = 10

    @udf(name="moved")
    def inner(n: int) -> int:
        return n + offset

    travelled = cloudpickle.loads(cloudpickle.dumps(inner))
    assert evaluate("moved(n)", travelled) == [11, 12, 13]


def test_hints_resolve_from_classes_made_in_a_function():
    Moment = datetime

    @udf
    def hour(t: Moment) -> int:
        return t.hour

    assert hour.arguments == (pa.timestamp("us", "UTC"),)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: udf(lambda n: n), "cannot be a function's name"),
        (lambda: udf(name="f")(lambda n: n), "'n' has no annotation"),
        (lambda: udf(starred), "no place in SQL"),
        (lambda: udf(untyped_result), "its result has no annotation"),
        (lambda: udf(odd), "no Arrow type"),
        (lambda: udf(columns), "do not say the type"),
        (lambda: udf(arguments=[], returns=pa.int64())(columns), "0 argument types for 1"),
    ],
)
def test_functions_that_cannot_be_typed_are_refused(make, reason):
    with pytest.raises(PlanError, match=reason):
        make()


def starred(*n: int) -> int:
    return 0


def untyped_result(n: int):  # type: ignore[no-untyped-def]
    return 0


def odd(n: object) -> int:
    return 0


def columns(n: pa.Array) -> pa.Array:
    return n


def test_one_name_is_one_function():
    @udf(name="f")
    def one(n: int) -> int:
        return n

    @udf(name="f")
    def two(n: int) -> int:
        return n

    functions = NONE.with_function(one)
    assert functions.with_function(one) is not functions
    with pytest.raises(PlanError, match="registered already"):
        functions.with_function(two)
    assert list(NONE) == []
