"""Checking when planning: what is accepted, and the text of every refusal."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest

from penstock.elements.errors import PlanError
from penstock.expressions.check import check, check_condition
from penstock.expressions.expression import Expr, expr
from penstock.expressions.functions import NONE, udf
from penstock.expressions.projection import Projection

FLIGHTS = pa.schema(
    [
        ("carrier", pa.string()),
        ("tail", pa.string()),
        ("dep_time", pa.timestamp("us", "UTC")),
        ("dep_delay", pa.float64()),
        ("_time", pa.timestamp("ns", "UTC")),
    ]
)
ODD = pa.schema(
    [
        ("Upper", pa.int64()),
        ("end", pa.int64()),
        ("two words", pa.int64()),
        ('quo"te', pa.int64()),
        ("größe", pa.int64()),
        ("s", pa.struct([("x", pa.int64()), ("Y", pa.string())])),
        ("l", pa.list_(pa.int64())),
        ("value", pa.int64()),
        ("VALUE", pa.int64()),
        ("date", pa.int64()),
    ]
)


def refusal(text, schema=FLIGHTS, **options):
    with pytest.raises(PlanError) as caught:
        check(text, schema, who="filter", location="delays.py:7", **options)
    return str(caught.value)


def test_text_in_double_quotes_gets_the_documented_error():
    assert refusal('carrier = "AA"') == (
        'filter: no column "AA"  (delays.py:7)\n'
        '    carrier = "AA"\n'
        "              ^^^^ double quotes name columns; for text write 'AA'\n"
        "  columns: carrier, tail, dep_time, dep_delay"
    )


def test_a_misspelt_column_gets_the_near_name():
    assert "did you mean dep_delay?" in refusal("dep_dely > 1")
    assert "did you mean dep_delay?" in refusal('"Dep_Delya" > 1')


def test_the_caret_stands_under_the_fault_in_its_line():
    lines = refusal("dep_delay > 1 AND\n  nothing > 2").splitlines()
    assert lines[1] == "      nothing > 2"
    assert lines[2] == "      ^^^^^^^"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "an expression is missing"),
        ("dep_delay >", "ends too early"),
        ("dep_delay 5", "should have ended before this"),
        ("(dep_delay", ") is missing here"),
        ("carrier = 'AA", "a closing ' is missing"),
        ("dep_delay; drop table x", "leave out the ;"),
        ("dep_delay, tail", "one expression, not a list"),
        ("dep_delay as d", "names go before the expression"),
        ("1 from x", "use p.sql"),
        ("(select 1)", "use p.sql"),
        ("tail in (select 1)", "use p.sql"),
        ("row_number() over ()", "use p.sql"),
        ("max(dep_delay)", "aggregate"),
        ("count(*)", "aggregate"),
        ("sum(dep_delay) + 1", "aggregate"),
        ("unnest([1])", "several rows"),
        ("now() > dep_time", "replayed"),
        ("current_date", "replayed"),
        ("carrier + 1", "Cannot coerce"),
        ("round('x', 'y')", "round"),
        ("nofn(dep_delay)", "no function nofn()"),
        ("null", "has no type"),
        ("`tail` = 'x'", 'names are quoted with "'),
        ("dep_delay ? 1", "means nothing here"),
        ("carrier = $c", "no value for $c"),
        ("case when 1 then 2", "END is missing"),
        ("cast(tail int)", "AS is missing"),
        ("[]", "empty array"),
        ("*", "only inside count"),
        ("(" * 150 + "1" + ")" * 150, "nested more than"),
        ("x" * 70_000, "longer than"),
    ],
)
def test_what_cannot_be_is_refused_with_its_reason(text, reason):
    message = refusal(text)
    assert message.startswith("filter: ")
    assert reason in message
    assert "(delays.py:7)" in message


def test_type_errors_point_at_the_smallest_part_and_name_types():
    lines = refusal("dep_delay > 1 AND tail - carrier > 0").splitlines()
    assert lines[2].strip() == "^" * len("tail - carrier")
    assert "types: carrier text, tail text" in lines[3]


def test_names_match_exactly_else_by_one_match_ignoring_case():
    assert check("upper", ODD).column == "Upper"
    assert check("UPPER + 1", ODD).columns_read == ("Upper",)
    assert check("value + 1", ODD).columns_read == ("value",)
    with pytest.raises(PlanError, match="could be any of value, VALUE"):
        check("Value + 1", ODD)


def test_any_name_can_be_quoted():
    for name in ["two words", 'quo"te', "end", "größe", "date", "Upper"]:
        text = '"' + name.replace('"', '""') + '" + 1'
        checked = check(text, ODD)
        assert checked.columns_read == (name,)
        batch = pa.record_batch([pa.array([4])], names=[name])
        project = Projection([("x", text)], batch.schema)
        assert project(batch).column("x").to_pylist() == [5]


def test_words_that_sql_does_not_need_are_plain_names():
    assert check("date + 1", ODD).columns_read == ("date",)
    assert check("größe * 2", ODD).columns_read == ("größe",)


def test_fields_of_structs_and_items_of_lists_can_be_read():
    row = dict.fromkeys(ODD.names, 1) | {"s": {"x": 7, "Y": "y"}, "l": [5, 6]}
    batch = pa.RecordBatch.from_pylist([row], schema=ODD)
    items = [("a", "s.x"), ("b", "s.\"Y\" || '!'"), ("c", "l[2]"), ("d", "s['x'] + l[1]")]
    assert Projection(items, ODD)(batch).to_pylist() == [{"a": 7, "b": "y!", "c": 6, "d": 12}]


def test_event_time_is_a_function_and_needs_event_time():
    assert check("event_time()", FLIGHTS).column == "_time"
    message = refusal("event_time()", ODD)
    assert "the stream has no event time" in message
    assert 'p.source(..., event_time="ts"' in message


def test_canonical_text_means_the_same_when_checked_again():
    texts = [
        "carrier = 'A''A' AND NOT dep_delay BETWEEN 1 AND 2 OR tail IS NULL",
        "case carrier when 'x' then 1 else -2 end",
        "extract(hour from dep_time) + 1",
        "substring(tail from 2 for 3) || trim(both 'x' from carrier)",
        "dep_time + interval '5 minutes' > timestamp '2020-01-01'",
        "position('a' in tail) % 2 = 0",
        "cast(dep_delay as decimal(10, 2))::varchar like '1%'",
        "carrier in ('a', 'b') and tail not in ('c')",
        "date_trunc('hour', dep_time) is distinct from dep_time",
        "coalesce(dep_delay, 0.5) - -1",
        "tail ~ '^N[0-9]+' or tail ilike 'n%' escape '!'",
        "(dep_delay > 1) is not true",
    ]
    for text in texts:
        once = check(text, FLIGHTS)
        twice = check(once.sql, FLIGHTS)
        assert (twice.sql, twice.type, twice.nullable) == (once.sql, once.type, once.nullable)


def test_conditions_must_be_true_or_false():
    assert pa.types.is_boolean(check_condition("dep_delay > 1", FLIGHTS).type)
    with pytest.raises(PlanError, match="a condition is needed, but this is text"):
        check_condition("carrier", FLIGHTS)


def test_functions_of_the_user_are_known_by_name_without_regard_to_case():
    @udf
    def Grade(delay: float) -> str:
        return "bad"

    functions = NONE.with_function(Grade)
    assert check("grade(dep_delay)", FLIGHTS, functions).sql == '"Grade"("dep_delay")'
    assert "did you mean Grade()?" in refusal("grada(dep_delay)", functions=functions)
    assert "p.register(…) first" in refusal("grade(dep_delay)")


NAIVE = datetime(1960, 1, 1, 5, 0, 0, 7, tzinfo=UTC).replace(tzinfo=None)
VALUES = [
    ('it\'s -- "x" /* ; $y', "varchar"),
    ("back\\slash", "varchar"),
    (True, "boolean"),
    (0, "bigint"),
    (-(2**63), "bigint"),
    (2**63 - 1, "bigint"),
    (-0.1, "double"),
    (1e300, "double"),
    (float("inf"), "double"),
    (b"\x00\xff", "bytea"),
    (Decimal("-1.50"), "decimal(3, 2)"),
    (Decimal("1E+3"), "decimal(4, 0)"),
    (date(2020, 2, 29), "date"),
    (time(1, 2, 3, 4), "time"),
    (datetime(2020, 1, 1, 5, tzinfo=UTC), "timestamp"),
    (NAIVE, "timestamp"),
]


@pytest.mark.parametrize(("value", "kind"), VALUES)
def test_a_parameter_is_its_value_whatever_it_holds(value, kind):
    batch = pa.record_batch([pa.array([1])], names=["n"])
    project = Projection([("x", expr("$value", value=value))], batch.schema)
    result = project(batch).column("x")[0].as_py()
    assert result == value, kind
    assert type(result) is type(value)


def test_nan_null_and_numpy_numbers_are_parameters_too():
    batch = pa.record_batch([pa.array([1.0, 2.0])], names=["n"])
    items = [
        ("a", expr("isnan($v)", v=float("nan"))),
        ("b", expr("n > $v", v=np.float64(1.5))),
        ("c", expr("coalesce($v, n)", v=None)),
        ("d", expr("n in $v", v={2.0})),
    ]
    assert Projection(items, batch.schema)(batch).to_pylist() == [
        {"a": True, "b": False, "c": 1.0, "d": False},
        {"a": True, "b": True, "c": 2.0, "d": True},
    ]


def test_a_timedelta_moves_times():
    batch = pa.record_batch([pa.array([NAIVE])], names=["t"])
    project = Projection([("x", expr("t - $gap", gap=timedelta(days=1, seconds=1)))], batch.schema)
    assert project(batch).column("x")[0].as_py() == NAIVE - timedelta(days=1, seconds=1)


def test_a_name_in_a_text_is_not_a_parameter():
    assert check(expr("carrier = '$rate'"), FLIGHTS).sql == "(\"carrier\" = '$rate')"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (object(), "a object cannot be a value"),
        ({"a": 1}, "a dict cannot be a value"),
        (2**64, "does not fit in 64 bits"),
        (Decimal("NaN"), "not a number"),
        (Decimal(10) ** 40, "more than 38 digits"),
        ("nul\0", "NUL"),
    ],
)
def test_values_without_a_form_in_sql_are_refused_at_once(value, reason):
    with pytest.raises(PlanError, match=reason):
        expr("$v", v=value)


def test_lists_may_only_follow_in():
    with pytest.raises(PlanError, match="may only follow IN"):
        check(expr("carrier = $some", some=["a"]), FLIGHTS)
    with pytest.raises(PlanError, match="empty list"):
        check(expr("carrier in $some", some=[]), FLIGHTS)


def test_expressions_are_frozen_and_equal_by_value():
    one, two = expr("a > $n", n=[1, 2]), expr("a > $n", n=(1, 2))
    assert one == two
    assert hash(one) == hash(two)
    assert isinstance(one, Expr)
    with pytest.raises(AttributeError):
        one.text = "b"  # type: ignore[misc]


def test_python_objects_are_not_expressions():
    with pytest.raises(PlanError, match="expressions are strings"):
        check(5, FLIGHTS)  # type: ignore[arg-type]
