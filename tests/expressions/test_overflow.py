"""Integers never wrap around (hazard 20): the six cases, and an oracle in Python's integers."""

from __future__ import annotations

import ast
import random

import pyarrow as pa
import pytest

from penstock.elements.errors import PlanError
from penstock.expressions.failures import ExpressionError
from penstock.expressions.projection import Projection

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
SCHEMA = pa.schema(
    [("a", pa.int64()), ("b", pa.int64()), ("i", pa.int32()), ("t", pa.int8()), ("u", pa.uint64())]
)


def evaluate(text, a=0, b=0, i=0, t=0, u=0):
    batch = pa.record_batch([[a], [b], [i], [t], [u]], schema=SCHEMA)
    return Projection([("x", text)], SCHEMA)(batch).column("x")[0].as_py()


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("a + 1", {"a": INT64_MAX}),
        ("i * i", {"i": 2**31 - 1}),
        ("a - b", {"a": INT64_MIN, "b": 1}),
        ("-a", {"a": INT64_MIN}),
        ("abs(a)", {"a": INT64_MIN}),
        ("a / b", {"a": 1, "b": 0}),
        ("a % b", {"a": 1, "b": 0}),
        ("a / b", {"a": INT64_MIN, "b": -1}),
        ("cast(a as int)", {"a": 2**31}),
        ("cast(a as smallint)", {"a": -(2**15) - 1}),
        ("u - cast(a as bigint unsigned)", {"u": 0, "a": 1}),
        ("t * t", {"t": 100}),
        ("-t", {"t": -128}),
        ("upper(cast(a * b as varchar))", {"a": 2**40, "b": 2**40}),
        ("case when a > 0 then a * a else 0 end", {"a": 2**40}),
        ("(a + 1) / 2", {"a": INT64_MAX}),
        ("a + b > 0", {"a": INT64_MAX, "b": 1}),
    ],
)
def test_what_does_not_fit_is_an_error(text, values):
    with pytest.raises(ExpressionError):
        evaluate(text, **values)


@pytest.mark.parametrize(
    ("text", "values", "expected"),
    [
        ("7 / 2", {}, 3),
        ("a / 2", {"a": -7}, -3),
        ("a % 3", {"a": -7}, -1),
        ("a % b", {"a": INT64_MIN, "b": -1}, 0),
        ("a + b", {"a": INT64_MAX, "b": INT64_MIN}, -1),
        ("-9223372036854775808 + a", {"a": 1}, INT64_MIN + 1),
        ("i + 1", {"i": 2**31 - 1}, 2**31),
        ("case when a < 100 then a * a else 0 end", {"a": 2**40}, 0),
        ("try_cast(a as int)", {"a": 2**31}, None),
        ("a * 0.5", {"a": 3}, 1.5),
        ("- (a)", {"a": 5}, -5),
    ],
)
def test_what_fits_is_exact(text, values, expected):
    assert evaluate(text, **values) == expected


def test_the_message_shows_the_arithmetic():
    with pytest.raises(ExpressionError, match=r"a \* b\) \+ 1 does not fit in int64"):
        evaluate("a * b + 1", a=INT64_MAX, b=1)


def test_nulls_pass_through_checked_arithmetic():
    batch = pa.record_batch([[None, 2], [1, None], [0, 0], [0, 0], [0, 0]], schema=SCHEMA)
    result = Projection([("x", "a * b + 1"), ("y", "-a")], SCHEMA)(batch)
    assert result.to_pylist() == [{"x": None, "y": None}, {"x": None, "y": -2}]


def test_arithmetic_that_cannot_leave_its_type_is_not_slowed_down():
    plain = Projection([("x", "i + 1"), ("y", "a % 10 * 3 - 1"), ("z", "a * 0.9")], SCHEMA)
    assert [program.text for program in plain._programs] == ["((a % 10) * 3) - 1"]
    assert Projection([("x", "i * 1000 + t")], SCHEMA)._programs == ()


def test_one_tree_of_arithmetic_is_one_call():
    (program,) = Projection([("x", "a * b + a - 1 + i")], SCHEMA)._programs
    assert program.arguments == (pa.int64(), pa.int64(), pa.int32())


def a_tree(generator: random.Random, depth: int) -> str:
    if depth == 0 or generator.random() < 0.2:
        return generator.choice(["a", "b", "i", str(generator.randrange(-5, 2**33))])
    sign = generator.choice("+-*")
    left, right = a_tree(generator, depth - 1), a_tree(generator, depth - 1)
    return f"({left} {sign} {right})" if generator.random() < 0.9 else f"(- {left})"


def by_hand(text: str, a: int, b: int, i: int) -> int | None:
    """The value in Python's integers; None when any step leaves int64."""

    def value(node: ast.expr) -> int:
        if isinstance(node, ast.Constant):
            assert isinstance(node.value, int)
            return node.value
        if isinstance(node, ast.Name):
            return {"a": a, "b": b, "i": i}[node.id]
        if isinstance(node, ast.UnaryOp):
            found = -value(node.operand)
        else:
            assert isinstance(node, ast.BinOp)
            left, right = value(node.left), value(node.right)
            sign = type(node.op).__name__
            found = {"Add": left + right, "Sub": left - right, "Mult": left * right}[sign]
        if not INT64_MIN <= found <= INT64_MAX:
            raise OverflowError
        return found

    try:
        return value(ast.parse(text, mode="eval").body)
    except OverflowError:
        return None


def test_random_arithmetic_agrees_with_pythons_integers():
    generator = random.Random(20)
    wide = pa.schema([("a", pa.int64()), ("b", pa.int64()), ("i", pa.int64())])
    outcomes = {"error": 0, "value": 0}
    for _ in range(150):
        text = a_tree(generator, 4)
        try:
            project = Projection([("x", text)], wide)
        except PlanError:
            assert by_hand(text, 0, 0, 0) is None, "constants that do not fit are known at once"
            continue
        for _ in range(3):
            bits = generator.choice([3, 20, 40, 63])
            a, b, i = (generator.randrange(-(2**bits), 2**bits) for _ in range(3))
            expected = by_hand(text, a, b, i)
            batch = pa.record_batch([[a], [b], [i]], schema=wide)
            if expected is None:
                outcomes["error"] += 1
                with pytest.raises(ExpressionError, match="does not fit"):
                    project(batch)
            else:
                outcomes["value"] += 1
                assert project(batch).column("x")[0].as_py() == expected, text
    assert min(outcomes.values()) > 50, outcomes


@pytest.mark.parametrize(
    "text",
    [
        "a > 9223372036854775807 + 1",
        "a + (9223372036854775807 + 1)",
        "- (-9223372036854775808)",
        "cast(1e30 as bigint)",
        "a + cast('x' as int)",
        "1 / 0",
    ],
)
def test_constants_that_cannot_be_are_found_when_planning_or_fail_every_row(text):
    with pytest.raises((PlanError, ExpressionError)):
        evaluate(text, a=1)
