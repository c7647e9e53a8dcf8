"""Late rows change nothing but the late output: each analytic with them and without them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from analytics_rows import NAMES, SCHEMA, Row, as_batch, counted, tuples
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.operators.match_pattern import parse_pattern
from penstock.operators.match_processor import MatchProcessor
from penstock.operators.over import OverProcessor
from penstock.operators.over_items import OverItems
from penstock.operators.processor import LATE
from penstock.operators.ranking_windows import WindowRankProcessor
from penstock.operators.rate_limit import EXCESS, RateLimitProcessor
from penstock.operators.row_order import RowOrder
from penstock.operators.windows.descriptors import Cumulate, Hop, Tumble
from penstock.testing.harness import Harness

KEYS = ["k", "s"]


def rank(window: Any, count: int | None) -> Any:
    return WindowRankProcessor(
        window, KEYS, RowOrder("f desc, v", SCHEMA), SCHEMA, count, {"n": "row_number"}
    )


def over(preceding: int | None, **items: str) -> Any:
    return OverProcessor(KEYS, OverItems(items, SCHEMA), preceding, SCHEMA)


def match(pattern: str) -> Any:
    parsed = parse_pattern(pattern)
    conditions = {"a": "v = 0", "b": "v > lag(v)"}
    measures = {"n": "count(b)", "last": "b.v"}
    return MatchProcessor(KEYS, parsed, conditions, measures, 12, "to next row", SCHEMA)


LAST_INSTANTS: dict[Any, Callable[[int], int]] = {
    Tumble(10): lambda time: time // 10 * 10 + 9,
    Hop(10, 5): lambda time: time // 5 * 5 + 9,
    Cumulate(9, 3): lambda time: time // 9 * 9 + 8,
}
"""When the last window of a time is complete."""
CASES: dict[str, tuple[Callable[[], Any], Callable[[int], int]]] = {
    "running values": (lambda: over(2, t="count(v)", m="max(f)", p="lag(v)"), lambda time: time),
    "values behind": (lambda: over(None, n="lead(v, 2)", m="min(v)"), lambda time: time),
    "rates": (lambda: RateLimitProcessor(KEYS, 1, 10, SCHEMA), lambda time: time),
    "matches": (lambda: match("a ... b+"), lambda time: time),
    "nothing follows": (lambda: match("a !b"), lambda time: time),
}
for window, last in LAST_INSTANTS.items():
    CASES[f"top of {window}"] = (lambda w=window: rank(w, 1), last)
    CASES[f"ranks in {window}"] = (lambda w=window: rank(w, None), last)

rows = st.tuples(
    st.sampled_from([None, 0]),
    st.sampled_from(["", None]),
    st.sampled_from([None, float("nan"), 1.5, float("-inf")]),
    st.sampled_from([None, 0, 1, 2**63 - 1, -(2**63)]),
    st.integers(-20, 40),
)
runs = st.lists(
    st.tuples(st.lists(rows, max_size=9), st.sampled_from([None, 0, 4, 15]), st.booleans()),
    max_size=8,
)


def drive(made: Any, steps: list[Any]) -> Harness:
    driven = Harness(made, [SCHEMA])
    for some, watermark, dies in steps:
        driven.send(as_batch(some))
        if watermark is not None:
            driven.advance(watermark)
        if dies:
            driven.restart()
    driven.end()
    assert driven.rows_behind_watermark == 0
    return driven


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=25, deadline=None)
@given(steps=runs)
def test_late_rows_change_nothing_and_are_not_lost(case: str, steps: list[Any]) -> None:
    make, certain_at = CASES[case]
    watermark, late = -30, []
    with_them: list[Any] = []
    without: list[Any] = []
    for some, further, dies in steps:
        behind = [row for row in some if certain_at(row[-1]) <= watermark]
        in_time: list[Row] = [row for row in some if certain_at(row[-1]) > watermark]
        late += behind
        if further is not None:
            watermark = max(watermark, -25) + further
        at = None if further is None else watermark
        with_them.append((some, at, dies))
        without.append((in_time, at, False))
    driven, alone = drive(make(), with_them), drive(make(), without)
    for output in ("main", EXCESS):
        found, wanted = driven.taken(output), alone.taken(output)
        names = [name for name in wanted.column_names if name != "_time"]
        assert counted(tuples(found, names)) == counted(tuples(wanted, names))
    assert counted(tuples(driven.taken(LATE), NAMES)) == counted(late)
    assert driven.counters["late"] == len(late)
    assert alone.counters["late"] == 0
