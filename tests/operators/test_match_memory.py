"""Conditions that refer to rows matched before: against a search that keeps every choice apart."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

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

from penstock.elements.errors import StateError
from penstock.elements.hash import hash_columns
from penstock.elements.keygroup import subtask_of
from penstock.operators import match_runs
from penstock.operators.match_pattern import parse_pattern
from penstock.operators.match_processor import MatchProcessor
from penstock.testing.harness import Harness

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


def test_ways_are_kept_apart_by_what_conditions_still_ask_for() -> None:
    rows = [(1, "", None, v, at) for at, v in enumerate([1, 3, 5, 4, 10])]
    for text, found in (("v = 2 * last(b.v)", (5, 10)), ("v > last(b.v) * 3", (3, 10))):
        made = made_of("a ... b ... c", {"c": text}, {"b": "b.v", "c": "c.v"})
        driven = Harness(made, [SCHEMA]).send(as_batch(rows)).end()
        assert tuples(driven.taken(), ["b", "c"]) == [found]
