"""What conditions of patterns may say of rows matched before, and what is refused."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from analytics_rows import SCHEMA, as_batch, known, tuples

from penstock.elements.errors import PlanError, StateError
from penstock.expressions.expression import expr
from penstock.operators.event_times import with_time
from penstock.operators.match_pattern import parse_pattern
from penstock.operators.match_processor import MatchProcessor
from penstock.testing.harness import Harness, batch_of


def made_of(pattern: str, define: dict[str, Any]) -> MatchProcessor:
    parsed = parse_pattern(pattern)
    return MatchProcessor(["k"], parsed, define, {}, 10, "past last row", SCHEMA)


def test_all_that_a_reference_may_say() -> None:
    texts = {
        "count(a) = 3": True,
        "count(a.v) = 2": True,
        "first(a.v) IS NULL": True,
        "last(a.v) = 7": True,
        "a.v = 7": True,
        "sum(a.v) = 9": True,
        "avg(a.v) = 4.5": True,
        "min(a.v) = 2 AND max(a.v) = 7": True,
        "max(a.s) = 'x' AND min(a.s) = ''": True,
        "first(a._time) = arrow_cast(1, 'Timestamp(Nanosecond, Some(\"UTC\"))')": True,
        "sum(a.v * 2) = 18": True,
        "max(length(a.s)) = 1": True,
        "count(c) = 0 AND sum(c.v) IS NULL AND c.v IS NULL": True,
        "last(c.v) > 0": False,
        "NOT last(c.v) > 0": False,
        "v - lag(v) = 93 AND count(a) = row_number() - 1": True,
        "max(v) = 100 AND max(a.v) = 7": True,
        'last(a."v") = 7': True,
        "last(a.V) = 7": True,
    }
    rows = [
        (1, "x", 1.5, None, 1),
        (1, None, None, 2, 2),
        (1, "", 2.0, 7, 3),
        (1, "b", 0.0, 100, 4),
    ]
    for text, holds in texts.items():
        define = {"a": "s IS DISTINCT FROM 'b'", "b": f"s = 'b' AND {text}", "c": "false"}
        driven = Harness(made_of("a{3} c? b", define), [SCHEMA]).send(as_batch(rows)).end()
        assert driven.taken().num_rows == holds, text


def test_a_column_stays_a_column_though_a_step_has_its_name() -> None:
    rows = [(1, "", None, 1, 1), (1, "", None, 2, 2), (1, "", None, 3, 3)]
    driven = Harness(made_of("v b", {"b": "count(v) = 2"}), [SCHEMA]).send(as_batch(rows)).end()
    assert tuples(driven.taken(), ["k"]) == [(1,)]


def test_values_enter_conditions_that_refer() -> None:
    define = {"b": expr("v > last(a.v) + $more AND s = $who", more=5, who="x")}
    rows = [(1, "", None, 1, 1), (1, "x", None, 7, 2), (2, "", None, 1, 1), (2, "x", None, 6, 2)]
    driven = Harness(made_of("a b", define), [SCHEMA]).send(as_batch(rows)).end()
    assert tuples(driven.taken(), ["k"]) == [(1,)]


def test_what_one_part_guards_another_never_sees() -> None:
    rows = [(1, "", None, 5, 1), (1, "", None, 0, 2), (2, "", None, 5, 1), (2, "", None, 5, 2)]
    for text in (
        "v <> 0 AND last(a.v) / v = 1",
        "count(a) = 1 AND v <> 0 AND last(a.v) / v = 1",
        "last(a.v) > v - 1 AND v <> 0 AND 5 / v = 1",
    ):
        driven = Harness(made_of("a b", {"b": text}), [SCHEMA]).send(as_batch(rows)).end()
        assert tuples(driven.taken(), ["k"]) == [(2,)], text


def test_a_total_that_does_not_fit_is_an_error_naming_it() -> None:
    rows = [(1, "", None, 2**62, at) for at in range(4)]
    driven = Harness(made_of("a+ b", {"b": "v > sum(a.v)"}), [SCHEMA])
    with pytest.raises(StateError, match=r"sum\(a.v\) does not fit in"):
        driven.send(as_batch(rows)).end()


@pytest.mark.parametrize(
    ("pattern", "define", "reason"),
    [
        ("a b", {"a": "v > last(b.v)"}, '"b" comes after "a": it has no row yet'),
        ("a b", {"a": "v > last(a.v)"}, '"a" is one row: while it is looked for'),
        ("a !c b", {"b": "v > c.v"}, 'no row is matched as "c"'),
        ("a !b b", {"b": "v > b.v"}, '"b" is one row'),
        ("a b", {"b": "v > last(a.w)"}, 'no column "w"'),
        ("a b", {"b": "v > last(z.v)"}, 'no step and no column is called "z"'),
        ("a b", {"b": "sum(a.s) > 1"}, "takes numbers, not text"),
        ("a b", {"b": "v > last(a.v, 1)"}, r"last\(x.c\) is LAST\(x.c, 1\) elsewhere"),
        ("a b", {"b": "v > max(a.v + v)"}, '"v" is of no step'),
        ("a+ b+ c", {"c": "v > max(a.v + b.v)"}, "over the rows of one step"),
        ("a b", {"b": "v > sum(a)"}, "names no column"),
        ("a b", {"b": "last(a.v)"}, "b is int64, not a condition"),
        ("a b", {"b": "lag(a.v) > 1"}, "goes by the rows of the key, not of a step"),
        ("a b", {"b": "lead(v) > a.v"}, "conditions look back"),
        ("k b", {"b": "k.v > 1"}, '"k" is a step and a column'),
        ("a b", {"b": "count(distinct a.v) > 1"}, "no DISTINCT or FILTER"),
        ("a b", {"b": "max(sum(a.v)) > 1"}, "inside another call"),
        ("a b", {"b": "w > last(a.v)"}, 'no column "w"'),
    ],
)
def test_references_that_mean_nothing_are_refused(
    pattern: str, define: dict[str, str], reason: str
) -> None:
    with pytest.raises(PlanError, match=reason):
        made_of(pattern, define)


MOMENTS = [datetime(1677, 10, 1, tzinfo=UTC), datetime(1970, 1, 1, tzinfo=UTC)]
VALUES: dict[pa.DataType, list[Any]] = {
    pa.int8(): [-128, 127],
    pa.int64(): [-(2**63), 2**63 - 1],
    pa.uint64(): [0, 2**64 - 1],
    pa.float32(): [-math.inf, 1.5],
    pa.float64(): [5e-324, math.nan],
    pa.bool_(): [False, True],
    pa.string(): ["", "\0é"],
    pa.binary(): [b"\0", b"\0\0"],
    pa.binary(2): [b"\0\0", b"\xff\xff"],
    pa.decimal128(38, 2): [Decimal("-1e35"), Decimal("99999999999999999999999999999999.01")],
    pa.date32(): [date(1, 1, 1), date(9999, 12, 31)],
    pa.timestamp("us", "UTC"): MOMENTS,
    pa.duration("ms"): [timedelta(days=-999_999), timedelta(0)],
}
"""Two of each type, the lesser first."""


@pytest.mark.parametrize("kind", VALUES, ids=str)
def test_values_of_every_type_are_found_again_as_they_were(kind: pa.DataType) -> None:
    columns = pa.schema([("k", pa.int64()), ("x", kind)])
    lesser, greater = VALUES[kind]
    define = {
        "low": "x IS NOT NULL",
        "again": "x = low.x AND x = first(low.x)",
        "none": "x IS NULL AND low.x = again.x",
        "more": "x > low.x AND none.x IS NULL AND count(none.x) = 0 AND count(none) = 1",
        "end": "x = last(more.x) AND x = max(more.x) AND low.x = min(again.x)",
    }
    pattern = parse_pattern("low again none more end")
    schema = with_time(columns)
    made = MatchProcessor(["k"], pattern, define, {"x": "end.x"}, 10, "past last row", schema)
    driven = Harness(made, [schema])
    for at, value in enumerate([lesser, lesser, None, greater, greater]):
        driven.send(batch_of(columns, [(1, value)], [at])).advance(at).restart()
    assert [known(row["x"]) for row in driven.rows()] == [known(greater)]


def test_decimals_add_up_without_rounding() -> None:
    kind = pa.decimal128(30, 2)
    columns = pa.schema([("k", pa.int64()), ("x", kind)])
    schema = with_time(columns)
    great, small = Decimal("9999999999999999999999999999.00"), Decimal("0.01")
    made = MatchProcessor(
        ["k"],
        parse_pattern("a{2} b"),
        {"b": "sum(a.x) = x"},
        {"total": "sum(a.x)"},
        10,
        "past last row",
        schema,
    )
    rows = [(1, great), (1, small), (1, Decimal("9999999999999999999999999999.01"))]
    driven = Harness(made, [schema]).send(batch_of(columns, rows, [1, 2, 3])).end()
    assert [row["total"] for row in driven.rows()] == [rows[-1][1]]
