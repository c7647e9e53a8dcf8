"""What is forgotten after a TTL of event time, and what begins anew, against plain Python."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pyarrow as pa
from analytics_rows import SCHEMA, Row, as_batch, by_key, content, counted, net, tuples
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.operators.aggregates import Aggregation
from penstock.operators.ranking import RunningTopProcessor
from penstock.operators.row_order import RowOrder
from penstock.operators.updating_aggregate import UpdatingAggregateProcessor
from penstock.operators.windows.descriptors import GlobalWindow
from penstock.operators.windows.triggered import GlobalWindowProcessor
from penstock.testing.harness import Harness

KEYS = ["k", "s"]
NAMES = ("rows", "kinds", "most")
ITEMS = {"rows": "count(*)", "kinds": "count(DISTINCT v)", "most": "max(f)"}
rows = st.tuples(
    st.sampled_from([None, 0]),
    st.sampled_from(["", "x", None]),
    st.sampled_from([None, math.nan, 1.5, -math.inf]),
    st.sampled_from([None, 0, 1, 2**63 - 1]),
    st.integers(-20, 40),
)
runs = st.lists(
    st.tuples(st.lists(rows, max_size=6), st.sampled_from([None, 0, 2, 9]), st.booleans()),
    max_size=12,
)
ttls = st.sampled_from([1, 4, 7, 25])


class Remembered:
    """Rows by key; those of a key without a newer one are forgotten when the TTL has passed."""

    def __init__(self, ttl: int) -> None:
        self.ttl = ttl
        self.rows: dict[Row, list[Row]] = {}

    def add(self, some: list[Row]) -> None:
        for key, group in by_key(some).items():
            self.rows.setdefault(key, []).extend(group)

    def pass_by(self, watermark: int) -> dict[Row, list[Row]]:
        """What is forgotten at this watermark."""
        newest = {key: max(row[-1] for row in group) for key, group in self.rows.items()}
        gone = [key for key, time in newest.items() if time <= watermark - self.ttl]
        return {key: self.rows.pop(key) for key in gone}


def result_of(group: list[Row]) -> Row:
    """What ITEMS mean."""
    floats = [f for _, _, f, _, _ in group if f is not None]
    most = "NaN" if any(map(math.isnan, floats)) else max(floats, default=None)
    return len(group), len({v for _, _, _, v, _ in group if v is not None}), most


@settings(max_examples=40, deadline=None)
@given(steps=runs, ttl=ttls)
def test_groups_are_there_for_their_ttl(steps: list[Any], ttl: int) -> None:
    made = UpdatingAggregateProcessor(KEYS, Aggregation(ITEMS, SCHEMA), SCHEMA, ttl, 0)
    driven, model = Harness(made, [SCHEMA]), Remembered(ttl)
    watermark = -30
    pieces: list[pa.Table] = []
    for some, further, dies in steps:
        driven.send(as_batch(some))
        model.add(some)
        if dies:
            driven.restart()
        if further is not None:
            watermark += further
            driven.advance(watermark)
            model.pass_by(watermark)
        table = driven.taken()
        pieces += [table] if table.num_rows else []
        expected = {(*key, *result_of(group)) for key, group in model.rows.items()}
        found = net(pa.concat_tables(pieces), [*KEYS, *NAMES]) if pieces else Counter()
        assert found == Counter(expected)
    assert driven.rows_behind_watermark == 0
    assert driven.processor._groups.index.rows == len(model.rows)


@settings(max_examples=40, deadline=None)
@given(steps=runs, ttl=ttls, count=st.integers(1, 2))
def test_keys_are_there_for_their_ttl(steps: list[Any], ttl: int, count: int) -> None:
    made = RunningTopProcessor(KEYS, RowOrder("v", SCHEMA), count, SCHEMA, ttl_ns=ttl)
    driven, model = Harness(made, [SCHEMA]), Remembered(ttl)
    watermark, given_ = -30, Counter[Row]()

    def top(groups: dict[Row, list[Row]]) -> Counter[Row]:
        def order(row: Row) -> Any:
            return (row[3] is None, row[3] or 0, content(row))

        firsts = [sorted(group, key=order)[:count] for group in groups.values()]
        return counted(row[:4] for group in firsts for row in group)

    for some, further, dies in steps:
        driven.send(as_batch(some))
        model.add(some)
        if dies:
            driven.restart()
        if further is not None:
            watermark += further
            driven.advance(watermark)
            # What was given of a forgotten key stays, and it begins anew beside that.
            given_ += top(model.pass_by(watermark))
    found = driven.end().taken()
    assert net(found, SCHEMA.names[:4]) == given_ + top(model.rows)
    assert driven.rows_behind_watermark == 0


@settings(max_examples=40, deadline=None)
@given(steps=runs, ttl=ttls, every=st.integers(1, 3))
def test_keys_of_a_global_window_begin_anew_after_their_ttl(
    steps: list[Any], ttl: int, every: int
) -> None:
    window = GlobalWindow(every, None, ttl)
    made = GlobalWindowProcessor(window, KEYS, Aggregation(ITEMS, SCHEMA), SCHEMA)
    driven, model = Harness(made, [SCHEMA]), Remembered(ttl)
    watermark = -30
    expected: Counter[Row] = Counter()
    for some, further, dies in steps:
        driven.send(as_batch(some))
        for row in some:
            model.add([row])
            group = model.rows[row[:2]]
            if len(group) % every == 0:
                expected[(*row[:2], *result_of(group))] += 1
        if dies:
            driven.restart()
        if further is not None:
            watermark += further
            driven.advance(watermark)
            model.pass_by(watermark)
    found = driven.end().taken()
    assert Counter(tuples(found, [*KEYS, *NAMES])) == expected
