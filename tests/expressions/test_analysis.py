"""What is known of expressions without running them; when unsure, the safe answer."""

from __future__ import annotations

import pyarrow as pa
import pytest

from penstock.expressions.analysis import (
    all_of,
    conjuncts,
    is_costly,
    is_simple,
    is_volatile,
    may_fail,
    pushable,
    substitute,
)
from penstock.expressions.check import Checker, check_condition
from penstock.expressions.expression import expr
from penstock.expressions.functions import NONE, udf
from penstock.expressions.syntax import render
from penstock.expressions.types import type_from_text, type_text

SCHEMA = pa.schema(
    [
        ("a", pa.int64()),
        ("i", pa.int32()),
        ("f", pa.float64()),
        ("s", pa.string()),
        ("t", pa.timestamp("us")),
        ("yes", pa.bool_()),
    ]
)
CHECKER = Checker(SCHEMA)


def tree(text):
    return CHECKER.check(text).tree


def test_a_condition_splits_at_its_ands_only():
    parts = conjuncts(tree("a > 1 and (f < 2 and yes) and (a = 1 or f = 2)"))
    assert [render(part) for part in parts] == [
        '("a" > 1)',
        '("f" < 2)',
        '"yes"',
        '(("a" = 1) OR ("f" = 2))',
    ]
    assert conjuncts(all_of(parts)) == parts


@pytest.mark.parametrize(
    "text",
    [
        "a > 1",
        "1 <= a",
        "s = 'x'",
        "a between 1 and 2",
        "a in (1, 2)",
        "s is not null",
        "t > timestamp '2020-01-01'",
        "(a) = (-5)",
    ],
)
def test_comparing_one_column_with_constants_is_simple(text):
    assert is_simple(tree(text))


@pytest.mark.parametrize("text", ["a > i", "a + 1 > 2", "not yes", "a > 1 or a < 0", "s like 'x'"])
def test_everything_else_is_not(text):
    assert not is_simple(tree(text))


def test_parameters_are_constants():
    assert is_simple(CHECKER.check(expr("f > $x", x=0.5)).tree)


def test_only_the_simple_parts_are_pushed_to_a_source():
    condition = check_condition("a > 1 and a % 2 = 0 and s = 'x'", SCHEMA)
    assert pushable(condition) == '(("a" > 1) AND ("s" = \'x\'))'
    assert pushable(check_condition("a > 1 or yes", SCHEMA)) is None


@pytest.mark.parametrize(
    "text",
    [
        "a > 1 and f < 2.5",
        "f * 2 + 1",
        "f / 0",
        "a % 10",
        "a / 2",
        "s = 'x' or s is null",
        "-f",
        "case when yes then a else 0 end",
        "coalesce(upper(s), 'x')",
        "try_cast(s as int)",
        "a between 1 and 2",
        "s in ('a', 'b')",
        "t > '2020-01-01'",
        "s || 'x'",
        "a > f",
        "a = -5",
    ],
)
def test_what_no_value_can_make_raise(text):
    assert not may_fail(tree(text), CHECKER)


@pytest.mark.parametrize(
    "text",
    [
        "a + 1",
        "-a",
        "a * i",
        "1 / a",
        "a % i",
        "a / 0",
        "cast(s as int)",
        "a::int",
        "abs(a)",
        "yes and 1 / a > 0",
        "case when yes then a + 1 else 0 end",
        "s = a",
        "a in (1, 1 / a)",
        "to_timestamp(s)",
        "date_trunc(s, t)",
        "coalesce(a * a, 0)",
    ],
)
def test_what_some_value_may_make_raise(text):
    assert may_fail(tree(text), CHECKER)


def test_functions_of_the_user_may_always_fail_even_under_a_known_name():
    @udf
    def upper(s: str) -> str:
        return s

    functions = NONE.with_function(upper)
    checker = Checker(SCHEMA, functions)
    assert may_fail(checker.check("upper(s)").tree, checker)
    assert not may_fail(tree("upper(s)"), CHECKER)


def test_volatile_functions_are_known():
    @udf(volatile=True)
    def dice(n: int) -> int:
        return n

    functions = NONE.with_function(dice)
    assert is_volatile(Checker(SCHEMA, functions).check("dice(a) + 1").tree, functions)
    assert is_volatile(tree("random() > 0.5"), NONE)
    assert not is_volatile(tree("upper(s)"), NONE)


def test_arithmetic_is_cheap_and_calls_are_not():
    assert not is_costly(tree("a * 2 > 3 and f < 1"))
    assert is_costly(tree("upper(s)"))
    assert is_costly(tree("s like '%x%'"))
    assert not is_costly(CHECKER.check(expr("f > $x", x=0.5)).tree)


def test_substitution_gives_what_nesting_would():
    inner = tree("a + i")
    outer = tree("f * 2 > f")
    assert render(substitute(outer, {"f": inner})) == '((("a" + "i") * 2) > ("a" + "i"))'


@pytest.mark.parametrize(
    "kind",
    [
        pa.int8(),
        pa.uint64(),
        pa.float32(),
        pa.string(),
        pa.large_binary(),
        pa.binary(16),
        pa.bool_(),
        pa.date32(),
        pa.timestamp("ns", "Europe/Berlin"),
        pa.timestamp("s"),
        pa.time32("ms"),
        pa.time64("ns"),
        pa.duration("us"),
        pa.decimal128(10, 2),
        pa.decimal256(70, 0),
        pa.month_day_nano_interval(),
        pa.list_(pa.struct([("a", pa.int64()), ("b", pa.list_(pa.decimal128(4, 1)))])),
        pa.map_(pa.string(), pa.timestamp("us", "UTC")),
        pa.null(),
    ],
)
def test_type_text_leads_back_to_the_type(kind):
    assert type_from_text(type_text(kind)) == kind


@pytest.mark.parametrize("text", ["", "integer", "list<>", "time[us, UTC]", "list<int64"])
def test_text_that_names_no_type_is_an_error(text):
    with pytest.raises(ValueError, match="is not the name of a type"):
        type_from_text(text)
