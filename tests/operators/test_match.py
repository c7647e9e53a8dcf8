"""Patterns over the rows of a key: against a backtracking search over all rows at once."""

from __future__ import annotations

import re
from typing import Any

import pyarrow as pa
import pytest
from analytics_rows import DISORDER_NS, MODERATE, SCHEMA, Row, as_batch, by_key, content, tuples
from hypothesis import given, settings
from hypothesis import strategies as st
from match_search import search

from penstock.elements.errors import PlanError
from penstock.operators.match_pattern import parse_pattern
from penstock.operators.match_processor import MatchProcessor
from penstock.operators.match_runs import KeyRuns, Matcher
from penstock.operators.processor import LATE
from penstock.testing.harness import Harness

PATTERNS = [
    "a b",
    "a b+ c",
    "a b* c?",
    "a+ b?",
    "a? b c*",
    "a{2,3} b",
    "a ... b",
    "a ... b? c",
    "a+ ... b+ c?",
    "a !b c",
    "a+ !b !c a",
    "a b* !c",
    "a !b",
    "a ... b !c",
    "a* b ... c*",
]
SKIPS: list[Any] = ["past last row", "to next row"]
LETTERS = ("a", "b", "c")


_rows = st.lists(
    st.tuples(st.integers(0, 2), st.sets(st.sampled_from(LETTERS)).map(sorted).map("".join)),
    max_size=14,
)


@given(_rows, st.sampled_from(PATTERNS), st.integers(0, 12), st.sampled_from(SKIPS))
@settings(max_examples=400, deadline=None)
def test_the_automaton_finds_what_a_search_finds(
    steps: list[tuple[int, str]], text: str, within: int, skip: Any
) -> None:
    pattern = parse_pattern(text)
    rows, now = [], 0
    for step, letters in steps:
        now += step
        rows.append((now, letters))
    matcher, state = Matcher(pattern, within, skip), KeyRuns()
    found = []
    for at, (time, letters) in enumerate(rows):
        before = state.number
        found += list(matcher.row(state, time, at, letters.__contains__))
        assert state.number == before + 1
    found += list(matcher.time(state, now + within))
    assert not state.runs
    expected = search(pattern, rows, within, skip)
    assert sorted(match.rows for match in found) == sorted(expected)
    assert [match.time_ns for match in found] == sorted(match.time_ns for match in found)
    for match in found:
        assert rows[match.rows[-1][1]][0] <= match.time_ns
        assert match.time_ns <= max(now, rows[match.rows[0][1]][0] + within)


REGULAR = {
    "a b": "ab",
    "a b+ c?": "ab+c?",
    "a{2,3} b": "a{2,3}b",
    "a{2,} b{2}": "a{2,}b{2}",
    "a? b c*": "a?bc*",
    "a+ a b": "a+ab",
    "a ... b": "a.*?b",
    "a !b c": "a[^b]*?c",
    "a+ !b !c a": "a+[^bc]*?a",
    "a ... b+ ... c": "a.*?b+.*?c",
    "a ... b? c": "a.*?b?c",
    "a* b ... c*": "a*b(?:.*?c+)?",
    "a b* !c": "ab*(?!.*c)",
}
"""Patterns and what they are as regular expressions, where a row is one letter."""


@given(st.text("abcz", max_size=16), st.sampled_from(sorted(REGULAR)), st.sampled_from(SKIPS))
@settings(max_examples=200, deadline=None)
def test_patterns_mean_what_regular_expressions_mean(text: str, pattern: str, skip: Any) -> None:
    matcher, state = Matcher(parse_pattern(pattern), 1000, skip), KeyRuns()
    found = []
    for at, letter in enumerate(text):
        found += list(matcher.row(state, at, at, letter.__eq__))
    found += list(matcher.time(state, 2000))
    regular = re.compile(REGULAR[pattern])
    if skip == "past last row":
        spans = [match.span() for match in regular.finditer(text)]
    else:
        matches = (regular.match(text, at) for at in range(len(text)))
        spans = [match.span() for match in matches if match]
    assert sorted((m.rows[0][1], m.rows[-1][1] + 1) for m in found) == spans
    for match in found:
        assert all(text[at] == variable for variable, at in match.rows)


# The operator -------------------------------------------------------------------------------------

CONDITIONS = {"a": "v = 0", "b": "v > lag(v)", "c": "s = 'x'"}
MEASURES = {
    "starts": "first(a.v)",
    "bs": "count(b)",
    "total": "sum(b.v)",
    "mean": "avg(b.v)",
    "most": "max(b.v)",
    "ends": "b.v",
}


def matching(pattern: str, within: int = 10, skip: Any = "past last row", **said: Any) -> Any:
    parsed = parse_pattern(pattern)
    named = {name: text for name, text in CONDITIONS.items() if name in parsed.variables}
    return MatchProcessor(
        ["k"],
        parsed,
        said.get("conditions", named),
        said.get("measures", MEASURES),
        within,
        skip,
        SCHEMA,
    )


@st.composite
def batches(draw: st.DrawFn) -> list[list[Row]]:
    now, found = 0, []
    for _ in range(draw(st.integers(0, 8))):
        rows = []
        for _ in range(draw(st.integers(0, 5))):
            now += draw(st.integers(0, 3))
            behind = draw(st.integers(0, DISORDER_NS))
            key, text = draw(st.sampled_from([0, 1, None])), draw(st.sampled_from(["", "x", None]))
            rows.append((key, text, None, draw(st.integers(0, 3)), now - behind))
        found.append(rows)
    return found


@given(
    batches(),
    st.sampled_from(["a b+", "a ... b c?", "a b* !c", "b+ !a c", "x b+"]),
    st.sampled_from(SKIPS),
    st.booleans(),
)
@MODERATE
def test_matches_do_not_depend_on_arrival_batches_or_restarts(
    rows: list[list[Row]], text: str, skip: Any, restarts: bool
) -> None:
    made = matching(text, 10, skip, measures={"bs": "count(b)", "last": "b.v"})
    driven = Harness(made, [SCHEMA], out_schemas=made.outputs)
    newest = None
    for at, batch in enumerate(rows):
        driven.send(as_batch(batch))
        newest = max([*(r[-1] for r in batch), *([] if newest is None else [newest])], default=None)
        if newest is not None:
            driven.advance(max(driven.watermark, newest - DISORDER_NS - 1))
        if restarts and at % 2:
            driven.restart()
    driven.end()
    expected = []
    groups: dict[Any, list[Row]] = {}
    for group in by_key(sorted((r for b in rows for r in b), key=content)).values():
        for row in group:
            groups.setdefault(row[0], []).append(row)
    for key, group in groups.items():
        group.sort(key=content)
        lettered = []
        for at, row in enumerate(group):
            letters = "a" if row[3] == 0 else ""
            letters += "b" if at and row[3] > group[at - 1][3] else ""
            letters += "c" if row[1] == "x" else ""
            lettered.append((row[-1], [*letters, "x"]))
        for match in search(parse_pattern(text), lettered, 10, skip):  # type: ignore[arg-type]
            bs = [group[at][3] for name, at in match if name == "b"]
            bounds = (group[match[0][1]][-1], group[match[-1][1]][-1])
            expected.append((key, *bounds, len(bs), bs[-1] if bs else None))
    found = tuples(driven.taken(), ["k", "match_start", "match_end", "bs", "last"])
    assert sorted(found, key=repr) == sorted(expected, key=repr)
    assert driven.rows_behind_watermark == 0
    assert not driven.processor._runs


def test_measures_and_times_of_a_match() -> None:
    driven = Harness(matching("a b+"), [SCHEMA])
    values = [0, 2, 5, 1]
    driven.send(as_batch([(7, "", None, v, 10 * at) for at, v in enumerate(values)]))
    driven.advance(9)
    assert driven.taken().num_rows == 0
    driven = Harness(matching("a b+", 100), [SCHEMA])
    driven.send(as_batch([(7, "", None, v, 10 * at) for at, v in enumerate(values)]))
    driven.restart().advance(30)
    names = ["k", "match_start", "match_end", *MEASURES, "_time"]
    assert tuples(driven.taken(), names) == [(7, 0, 20, 0, 2, 7, 3.5, 5, 5, 30)]


def test_a_match_that_could_go_on_is_given_when_its_time_is_over() -> None:
    driven = Harness(matching("a b+", 10), [SCHEMA])
    driven.send(as_batch([(7, "", None, 0, 100), (7, "", None, 1, 105)])).advance(109)
    assert driven.taken().num_rows == 0
    driven.restart().advance(110)
    assert tuples(driven.taken(), ["match_end", "_time"]) == [(105, 110)]


def test_late_rows_take_no_part() -> None:
    driven = Harness(matching("a b"), [SCHEMA])
    driven.send(as_batch([(7, "", None, 0, 10)])).advance(10)
    driven.send(as_batch([(7, "", None, 0, 9), (7, "", None, 1, 11)])).end()
    assert driven.taken().num_rows == 1
    assert driven.taken(LATE).num_rows == 1


def test_runs_move_with_their_keys_to_another_parallelism() -> None:
    rows = [(key, "", None, 0, key) for key in range(100)]
    sections = Harness(matching("a b", 500), [SCHEMA]).send(as_batch(rows)).advance(200).cut()
    parts = [
        Harness(
            matching("a b", 500),
            [SCHEMA],
            restored=sections,
            subtask=subtask,
            parallelism=3,
            watermark=200,
        )
        for subtask in range(3)
    ]
    counts = [len(part.processor._runs) for part in parts]
    assert sum(counts) == 100
    assert all(counts)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a &", "cannot read '&'"),
        ("", "match no row at all"),
        ("a* b?", "match no row at all"),
        ("!a b", "nothing lies before its beginning"),
        ("a ...", "at its end means nothing"),
        ("a{3,2}", "no number of rows"),
    ],
)
def test_patterns_that_mean_nothing_are_refused(text: str, reason: str) -> None:
    with pytest.raises(PlanError, match=reason):
        parse_pattern(text)


def test_conditions_and_measures_are_checked_when_planning() -> None:
    for said, reason in (
        ({"conditions": {"z": "true"}}, 'the pattern has no "z"'),
        ({"conditions": {"a": "v"}}, "a is int64, not a condition"),
        ({"conditions": {"a": "lead(v) > 0"}}, "conditions look back"),
        ({"measures": {"m": "v"}}, "cannot read the measure"),
        ({"measures": {"m": "z.v"}}, "the pattern has a, b"),
        ({"measures": {"m": "first(a)"}}, "names no column"),
        ({"measures": {"m": "sum(a.s)"}}, "takes numbers"),
        ({"measures": {"k": "first(a.v)"}}, 'two result columns are called "k"'),
    ):
        with pytest.raises(PlanError, match=reason):
            matching("a b", **said)


def test_times_are_measured_to_the_nanosecond() -> None:
    made = matching("a", measures={"at": "a._time"}, conditions={})
    driven = Harness(made, [SCHEMA]).send(as_batch([(1, "", None, 0, 1_234_567_891)])).end()
    table = driven.taken()
    assert table.schema.field("at").type == pa.timestamp("ns", "UTC")
    assert tuples(table, ["at"]) == [(1_234_567_891,)]
