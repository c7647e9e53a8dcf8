"""Conditions that refer to rows matched before: against a search that keeps every choice apart."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from analytics_rows import (
    MODERATE,
    SCHEMA,
    Row,
    as_batch,
    ascending,
    batches,
    content,
    drive,
    known,
    tuples,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from match_search import search

from penstock.elements.errors import PlanError, StateError
from penstock.elements.hash import hash_columns
from penstock.elements.keygroup import subtask_of
from penstock.expressions.expression import expr
from penstock.operators import match_runs
from penstock.operators.event_times import with_time
from penstock.operators.match_pattern import parse_pattern
from penstock.operators.match_processor import MatchProcessor
from penstock.testing.harness import Harness, batch_of

SKIPS: list[Any] = ["past last row", "to next row"]
Meets = Callable[[Row, Row | None, Callable[[str], list[Row]]], Any]
"""(row, row of the key before it, rows matched as a step) -> truth or None."""


def made_of(
    pattern: str,
    define: dict[str, Any],
    measures: dict[str, str] | None = None,
    within: int = 10,
    skip: Any = "past last row",
) -> MatchProcessor:
    parsed = parse_pattern(pattern)
    return MatchProcessor(["k"], parsed, define, measures or {}, within, skip, SCHEMA)


# SQL's three values for the oracle ----------------------------------------------------------------


def less(a: Any, b: Any) -> bool | None:
    """a < b of numbers; NaN is greater than all."""
    if a is None or b is None:
        return None
    return bool(ascending(float(a) if math.isnan(a) else a) < ascending(b))


def last(rows: list[Row], at: int) -> Any:
    return rows[-1][at] if rows else None


def least(rows: list[Row], at: int) -> Any:
    values = [row[at] for row in rows if row[at] is not None]
    return min(values, key=ascending, default=None)


def most(rows: list[Row], at: int) -> Any:
    values = [row[at] for row in rows if row[at] is not None]
    return max(values, key=ascending, default=None)


def mean(rows: list[Row], at: int) -> float | None:
    values = [row[at] for row in rows if row[at] is not None]
    return float(sum(values)) / len(values) if values else None


def one_of(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


K, S, F, V = 0, 1, 2, 3
CASES: dict[str, tuple[str, dict[str, str], dict[str, Meets]]] = {
    "falls, then rises": (
        "a b+ c+",
        {
            "b": "v < coalesce(last(b.v), last(a.v))",
            "c": "v > coalesce(c.v, last(b.v))",
        },
        {
            "b": lambda r, p, m: less(
                r[V], last(m("b") if last(m("b"), V) is not None else m("a"), V)
            ),
            "c": lambda r, p, m: less(
                last(m("c") if last(m("c"), V) is not None else m("b"), V), r[V]
            ),
        },
    ),
    "any rows between": (
        "a ... b+ ... c?",
        {"a": "s = 'x'", "b": "v > first(a.v)", "c": "v = last(b.v) AND count(b) > 1"},
        {
            "a": lambda r, p, m: r[S] == "x",
            "b": lambda r, p, m: less(m("a")[0][V], r[V]),
            "c": lambda r, p, m: r[V] is not None and r[V] == last(m("b"), V) and len(m("b")) > 1,
        },
    ),
    "none that is as before": (
        "a !b c",
        {"b": "f >= max(a.f)", "c": "v <> first(a.v)"},
        {
            "b": lambda r, p, m: (
                r[F] is not None and most(m("a"), F) is not None and not less(r[F], most(m("a"), F))
            ),
            "c": lambda r, p, m: (
                r[V] is not None and m("a")[0][V] is not None and r[V] != m("a")[0][V]
            ),
        },
    ),
    "nothing follows": (
        "a b{1,3} !c",
        {"b": "s = '' AND count(b) < 2 AND v >= lag(v)", "c": "f > avg(b.f) OR v < min(b.v)"},
        {
            "b": lambda r, p, m: r[S] == "" and len(m("b")) < 2 and p and less(r[V], p[V]) is False,
            "c": lambda r, p, m: less(mean(m("b"), F), r[F]) or less(r[V], least(m("b"), V)),
        },
    ),
    "begins with what refers to itself": (
        "a+ b* a",
        {
            "a": "last(a.v) IS NULL OR (v >= last(a.v) AND count(b.s) < 2)",
            "b": "s IS DISTINCT FROM last(a.s) AND count(a.v) >= 0",
        },
        {
            "a": lambda r, p, m: (
                last(m("a"), V) is None
                or (
                    less(r[V], last(m("a"), V)) is False
                    and len([each for each in m("b") if each[S] is not None]) < 2
                )
            ),
            "b": lambda r, p, m: r[S] != last(m("a"), S),
        },
    ),
    "an expression over a step's rows": (
        "a+ b",
        {"a": "v IS NOT NULL", "b": "length(s) >= max(length(a.s)) AND v >= max(v)"},
        {
            "a": lambda r, p, m: r[V] is not None,
            "b": lambda r, p, m: False,  # Taken from the rows of the key below.
        },
    ),
}


def expected_of(name: str, rows: list[Row], skip: str) -> list[Row]:
    pattern, _, meets = CASES[name]
    parsed = parse_pattern(pattern)
    groups: dict[Any, list[Row]] = {}
    for row in sorted(rows, key=content):
        groups.setdefault(row[K], []).append(row)
    found = []
    for key, group in groups.items():

        def is_a(at: int, variable: str, used: Any, group: list[Row] = group) -> bool:
            def matched(wanted: str) -> list[Row]:
                return [group[each] for taken_as, each in used if taken_as == wanted]

            if name.startswith("an expression") and variable == "b":
                seen = [row[V] for row in group[: at + 1] if row[V] is not None]
                texts = [len(row[S]) for row in matched("a") if row[S] is not None]
                row = group[at]
                if row[S] is None or not texts or row[V] is None:
                    return False
                return len(row[S]) >= max(texts) and row[V] >= max(seen)
            if variable not in meets:
                return True
            return bool(meets[variable](group[at], group[at - 1] if at else None, matched))

        times = [(row[-1], row) for row in group]
        for match in search(parsed, times, 10, skip, is_a):
            mine = {
                step: [group[at] for taken_as, at in match if taken_as == step] for step in "abc"
            }
            bounds = (group[match[0][1]][-1], group[match[-1][1]][-1])
            counts = (len(mine["a"]), len(mine["b"]))
            found.append((key, *bounds, *counts, known(last(mine["a"], F)), last(mine["b"], V)))
    return found


NAMES = ["k", "match_start", "match_end", "as_", "bs", "f", "v"]
MEASURES = {"as_": "count(a)", "bs": "count(b)", "f": "a.f", "v": "b.v"}


@pytest.mark.parametrize("name", CASES)
@given(batches(), st.sampled_from(SKIPS), st.integers(0, 3))
@settings(MODERATE, max_examples=25)
def test_matches_are_those_of_a_search_that_remembers(
    name: str, rows: list[list[Row]], skip: Any, restarts: int
) -> None:
    pattern, define, _ = CASES[name]
    driven = drive(
        made_of(pattern, define, MEASURES, 10, skip), rows, lambda at: bool(restarts >> at % 2 & 1)
    )
    found = tuples(driven.taken(), NAMES)
    expected = expected_of(name, [row for batch in rows for row in batch], skip)
    assert sorted(found, key=repr) == sorted(expected, key=repr)
    assert driven.rows_behind_watermark == 0


@given(batches(), st.sampled_from(["any rows between", "nothing follows"]), st.integers(1, 5))
@settings(MODERATE, max_examples=15)
def test_runs_that_remember_move_with_their_keys_to_another_parallelism(
    rows: list[list[Row]], name: str, parts: int
) -> None:
    pattern, define, _ = CASES[name]
    half = len(rows) // 2
    driven = drive(made_of(pattern, define, MEASURES), rows[:half], end=False)
    sections, watermark = driven.cut(), driven.watermark
    found = tuples(driven.taken(), NAMES)
    runs = 0
    for subtask in range(parts):
        made = made_of(pattern, define, MEASURES)
        place = {"subtask": subtask, "parallelism": parts, "watermark": watermark}
        part = Harness(made, [SCHEMA], restored=sections, **place)
        runs += len(part.processor._runs)
        for batch in rows[half:]:
            mine = [row for row in batch if owner(row[K], parts) == subtask]
            part.send(as_batch(mine))
        found += tuples(part.end().taken(), NAMES)
    assert runs == len(driven.processor._runs)
    expected = expected_of(name, [row for batch in rows for row in batch], "past last row")
    assert sorted(found, key=repr) == sorted(expected, key=repr)


def owner(key: int | None, parts: int) -> int:
    """The subtask that the rows of a key go to."""
    hashes = hash_columns(as_batch([(key, None, None, None, 0)]), ["k"])
    return int(subtask_of(hashes, parts)[0])


PRICES = [30, 25, 21, 24, 28, 27, 27, 22, 23, 19, 26, 26, 31]


def test_prices_that_fall_and_then_rise_as_in_the_documentation_of_flink() -> None:
    made = made_of(
        "start down+ up",
        {
            "down": "last(down.v) IS NULL AND v < start.v OR v < last(down.v)",
            "up": "v > last(down.v)",
        },
        {"start": "start.v", "bottom": "last(down.v)", "end": "last(up.v)"},
        1000,
    )
    driven = Harness(made, [SCHEMA])
    for at, price in enumerate(PRICES):
        driven.send(as_batch([(1, "ACME", None, price, at)])).advance(at).restart()
    names = ["match_start", "match_end", "start", "bottom", "end", "_time"]
    assert tuples(driven.taken(), names) == [
        (0, 3, 30, 21, 24, 3),
        (6, 8, 27, 22, 23, 8),
    ]


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


@given(st.permutations(range(12)), st.integers(1, 12), st.sampled_from(SKIPS))
@settings(MODERATE, max_examples=10)
def test_rows_alone_and_all_together_give_the_same(order: Any, size: int, skip: Any) -> None:
    values = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8]
    rows = [(values[at] % 3, "", None, values[at], at) for at in range(12)]
    mixed = [rows[at] for at in order]
    define = {"b": "v >= last(b.v) OR v >= a.v AND count(b) = 0", "c": "v < first(a.v) + count(b)"}
    found = []
    for given_rows, step in ((mixed, size), (rows, 12)):
        driven = Harness(made_of("a ... b+ c", define, MEASURES, 12, skip), [SCHEMA])
        for at in range(0, 12, step):
            driven.send(as_batch(given_rows[at : at + step]))
        found.append(sorted(tuples(driven.end().taken(), NAMES), key=repr))
    assert found[0] == found[1]
    assert found[0]


def test_ways_that_conditions_tell_apart_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(match_runs, "WAYS_MAX", 30)
    rows = [(1, "", None, 2**at, at) for at in range(30)]
    define = {"c": "v < 0 AND sum(b.v) > 0"}
    driven = Harness(made_of("a ... b ... b c", define, within=100), [SCHEMA])
    with pytest.raises(StateError, match="more than 30 ways to match from one row"):
        driven.send(as_batch(rows)).end()
    # What no condition asks for does not tell ways apart.
    define = {"c": "v < count(b)"}
    driven = Harness(made_of("a ... b ... b c", define, within=100), [SCHEMA])
    assert driven.send(as_batch(rows)).end().taken().num_rows == 0


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
        ("k b", {"b": "count(k) > 1"}, '"k" is a step and a column'),
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
