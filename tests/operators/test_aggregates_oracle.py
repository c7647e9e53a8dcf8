"""Aggregates of several values against DuckDB: in windows, in two phases, without a window."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pyarrow as pa
import pytest
from aggregate_rows import (
    COLUMNS,
    SCHEMA,
    Row,
    batches,
    by_key,
    database,
    folded_without_a_window,
    in_a_window,
    in_two_phases,
    left_of,
    row,
    updating,
    without_a_window,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.elements.changelog import with_change
from penstock.elements.errors import PlanError
from penstock.expressions.expression import expr
from penstock.operators.aggregates import Aggregation
from penstock.testing.harness import batch_of

SIMPLE = {
    **{
        text: text
        for text in (
            "count(*)", "count(f)", "count(*) FILTER (WHERE b > 0)", "sum(d)", "sum(h)", "sum(f)",
            "avg(b)", "avg(h) FILTER (WHERE n > 0)", "avg(f)", "min(n)", "max(n)", "min(f)",
            "max(f)", "min(s)", "max(s) FILTER (WHERE s < 'b')", "min(d)", "max(b)", "min(_time)",
            "max(h > 0)", "var_samp(h)", "var_pop(b)", "stddev_samp(b)", "stddev_pop(h)",
            "bool_and(n > 0)", "bool_or(n > 0) FILTER (WHERE b > 0)",
        )
    },
    "sum(b)": "CAST(sum(b) AS BIGINT)",
    "sum(n % 1000) FILTER (WHERE b <> 1)": """
        CAST(sum(n % 1000) FILTER (WHERE b <> 1) AS BIGINT)""",
    "first(f)": "(array_agg(f ORDER BY _time, f))[1]",
    "last(n)": "(array_agg(n ORDER BY _time DESC, n DESC NULLS FIRST))[1]",
}  # fmt: skip
"""What every stream program asks for: of extremes, NaN, infinities and nulls."""
EXACT = {
    "count(DISTINCT n)": "count(DISTINCT n)",
    "median(b)": "median(b)",
    "quantile(h, 0.9)": "quantile_cont(h, 0.9)",
    "quantile(b, 0.25) FILTER (WHERE n > 0)": "quantile_cont(b, 0.25) FILTER (WHERE n > 0)",
    "median(h) FILTER (WHERE n IS NULL)": "median(h) FILTER (WHERE n IS NULL)",
    "max(f) + quantile(h, 0)": "max(f) + quantile_cont(h, 0)",
}
"""They need every value."""
NOT_NULL = "FILTER (WHERE s IS NOT NULL AND f IS NOT NULL)"
MERGEABLE = {
    # Lists are in the order of event time, then of values.
    "array_agg(n)": "array_agg(n ORDER BY _time, n)",
    "array_agg(f) FILTER (WHERE n > 0)": "array_agg(f ORDER BY _time, f) FILTER (WHERE n > 0)",
    "string_agg(s, '-')": "string_agg(s, '-' ORDER BY _time, s)",
    "string_agg(s) FILTER (WHERE b > 0)": """
        string_agg(s, ',' ORDER BY _time, s) FILTER (WHERE b > 0)""",
    "first(n) FILTER (WHERE b > 0)": """
        (array_agg(n ORDER BY _time, n) FILTER (WHERE b > 0))[1]""",
    "last(s) FILTER (WHERE n IS NOT NULL)": """
        (array_agg(s ORDER BY _time DESC, s DESC NULLS FIRST) FILTER (WHERE n IS NOT NULL))[1]""",
    # Of equal keys the least, or the greatest, value.
    "min_by(s, f)": f"(array_agg(s ORDER BY f, s) {NOT_NULL})[1]",
    "max_by(f, s)": f"(array_agg(f ORDER BY s DESC, f DESC) {NOT_NULL})[1]",
    "arg_min(f, d) FILTER (WHERE b <> 0)": """(array_agg(f ORDER BY d, f)
        FILTER (WHERE f IS NOT NULL AND d IS NOT NULL AND b <> 0))[1]""",
    "max_by(d, f)": """(array_agg(d ORDER BY f DESC, d DESC)
        FILTER (WHERE f IS NOT NULL AND d IS NOT NULL))[1]""",
    "bit_and(n)": "bit_and(n)",
    "bit_or(b)": "bit_or(b)",
    "bit_xor(n) FILTER (WHERE b > 0)": "bit_xor(n) FILTER (WHERE b > 0)",
    # No line without spread: NULL as in the standard, where DuckDB has NaN.
    "corr(h, b)": "CASE WHEN NOT isnan(corr(h, b)) THEN corr(h, b) END",
    "regr_slope(h, b)": "CASE WHEN NOT isnan(regr_slope(h, b)) THEN regr_slope(h, b) END",
    **{
        text: text
        for text in (
            "covar_pop(h, b)", "covar_samp(h, b)", "regr_intercept(h, b)", "regr_r2(h, b)",
            "regr_count(h, b)", "regr_avgx(h, b)", "regr_avgy(h, f)", "regr_sxx(h, b)",
            "regr_syy(h, b) FILTER (WHERE b <> 1)", "regr_sxy(h, d)",
        )
    },
}  # fmt: skip
DISTINCT = {
    "sum(DISTINCT b)": "CAST(sum(DISTINCT b) AS BIGINT)",
    "avg(DISTINCT h)": "avg(DISTINCT h)",
    "var_pop(DISTINCT b)": "var_pop(DISTINCT b)",
    "array_agg(DISTINCT s)": "array_agg(DISTINCT s ORDER BY s)",
    "string_agg(DISTINCT s, '+')": "string_agg(DISTINCT s, '+' ORDER BY s)",
    "sum(DISTINCT d) FILTER (WHERE b > 0)": "sum(DISTINCT d) FILTER (WHERE b > 0)",
    "count(DISTINCT f)": "count(DISTINCT f)",
    "max(DISTINCT s)": "max(DISTINCT s)",
    "bit_xor(DISTINCT b)": "bit_xor(DISTINCT b)",
    "regr_count(DISTINCT h, b)": """CAST(count(DISTINCT (h, b))
        FILTER (WHERE h IS NOT NULL AND b IS NOT NULL) AS BIGINT)""",
}


WAYS = [in_a_window, in_two_phases, without_a_window, folded_without_a_window]


def named(texts: Any) -> dict[str, str]:
    return {f"x{at}": text for at, text in enumerate(texts)}


def flat(steps: list[list[Row]]) -> list[Row]:
    return list(itertools.chain(*steps))


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=15, deadline=None)
@given(steps=batches, restart=st.booleans())
def test_sums_and_extremes_are_what_a_database_says(
    way: Any, steps: list[list[Row]], restart: bool
) -> None:
    found = way(named(SIMPLE), steps, restart)
    assert found == database(named(SIMPLE.values()), flat(steps))


@pytest.mark.parametrize("way", WAYS)
@settings(max_examples=15, deadline=None)
@given(steps=batches, restart=st.booleans())
def test_what_merges_as_columns_is_what_a_database_says(
    way: Any, steps: list[list[Row]], restart: bool
) -> None:
    found = way(named(MERGEABLE), steps, restart)
    assert found == database(named(MERGEABLE.values()), flat(steps))


@pytest.mark.parametrize("way", [in_a_window, without_a_window])
@settings(max_examples=15, deadline=None)
@given(steps=batches, restart=st.booleans())
def test_distinct_values_count_once(way: Any, steps: list[list[Row]], restart: bool) -> None:
    items = DISTINCT | EXACT
    found = way(named(items), steps, restart)
    assert found == database(named(items.values()), flat(steps))


BY_VALUE = {
    text: theirs.replace("ORDER BY _time, ", "ORDER BY ")
    for text, theirs in (SIMPLE | EXACT | MERGEABLE | DISTINCT).items()
    if not text.startswith(("first", "last", "min(_time)"))
}


@settings(max_examples=25, deadline=None)
@given(data=st.data(), rows=st.lists(row, min_size=1, max_size=20))
def test_rows_that_are_taken_back_leave_no_trace(data: st.DataObject, rows: list[Row]) -> None:
    """In any order, also before they came; lists are in the order of values then."""
    schema = with_change(COLUMNS)
    gone = data.draw(st.lists(st.integers(0, len(rows) - 1), unique=True))
    changes = data.draw(
        st.permutations([(at, 1) for at in range(len(rows))] + [(at, -1) for at in gone])
    )
    run = updating(Aggregation(named(BY_VALUE), schema), schema)
    size = data.draw(st.integers(1, 9))
    for start in range(0, len(changes), size):
        some = [(*rows[at][:-1], sign) for at, sign in changes[start : start + size]]
        run.send(batch_of(schema, some).cast(schema)).tick(1)
        if data.draw(st.integers(0, 3)) == 0:
            run.cut()
            run.crash()
    run.end()
    left = [each for at, each in enumerate(rows) if at not in gone]
    wanted = database(named(BY_VALUE.values()), left) if left else {}
    assert by_key(left_of(run.rows())) == wanted


def test_specials_among_pairs_make_nan_and_leave_counts_alone() -> None:
    for special in (math.nan, math.inf, -math.inf):
        rows = [(0, 1, 1, special, 1.0, None, None, 0), (0, 2, 2, 3.0, 2.0, None, None, 1)]
        texts = ("covar_pop(f, h)", "regr_slope(f, h)", "regr_syy(f, h)", "regr_avgx(f, h)")
        found = in_two_phases(named([*texts, "regr_count(f, h)"]), [[each] for each in rows], True)
        assert found == {0: ("nan", "nan", "nan", 1.5, 2)}


@pytest.mark.parametrize("kind", [pa.int8(), pa.int32(), pa.uint8(), pa.uint32(), pa.uint64()])
def test_bits_keep_the_width_and_sign_of_their_argument(kind: pa.DataType) -> None:
    signed = pa.types.is_signed_integer(kind)
    high = 2 ** (kind.bit_width - 1) - 1 if signed else 2**kind.bit_width - 1
    values = [high, None, 6, -1 if signed else high]
    schema = pa.schema([("k", pa.int64()), ("x", kind)])
    items = {"a": "bit_and(x)", "o": "bit_or(x)", "x": "bit_xor(x)"}
    run = updating(Aggregation(items, schema), schema)
    run.send(batch_of(schema, [(0, value) for value in values])).end()
    last = -1 if signed else high
    wanted = (high & 6 & last, high | 6 | last, high ^ 6 ^ last)
    assert by_key(left_of(run.rows())) == {0: wanted}


@pytest.mark.parametrize("text", ["first(n)", "last(n) FILTER (WHERE b > 0)"])
def test_what_depends_on_rows_that_are_gone_is_refused_over_changes(text: str) -> None:
    schema = with_change(SCHEMA)
    with pytest.raises(PlanError, match="over an updating stream: rows of it are taken back"):
        updating(Aggregation({"x": text}, schema), schema)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("min_by(n)", r"write min_by\(x, y\)"),
        ("corr(h)", r"write corr\(y, x\)"),
        ("corr(h, s)", "takes numbers, not"),
        ("bit_and(h)", "takes integers, not"),
        ("string_agg(n, ',')", "takes text"),
        ("string_agg(s, n)", "the second argument is a text"),
        ("approx_quantile(h)", r"write approx_quantile\(x, 0.99\)"),
        ("approx_quantile(h, 2)", "a number from 0 to 1"),
        ("approx_quantile(DISTINCT h, 0.5)", r"approx_quantile\(DISTINCT …\) is not there"),
        ("array_agg(max(n))", "an aggregate inside an aggregate"),
    ],
)
def test_calls_that_mean_nothing_are_refused_when_planning(text: str, reason: str) -> None:
    with pytest.raises(PlanError, match=reason) as caught:
        Aggregation({"x": text}, SCHEMA, who="aggregate", location="flow.py:7")
    assert "flow.py:7" in str(caught.value)


def test_separators_and_fractions_may_be_parameters() -> None:
    rows = [(0, 1, 1, 1.0, 1.0, None, text, at) for at, text in enumerate(["it's", "b"])]
    items: dict[str, Any] = {
        "given": expr("string_agg(s, $between)", between=" & "),
        "quoted": "string_agg(s, '''')",
        "low": expr("approx_quantile(h, $q)", q=0.25),
    }
    assert in_a_window(items, [rows], False) == {
        0: ("it's & b", "it's'b", pytest.approx(1.0, rel=0.01))
    }
