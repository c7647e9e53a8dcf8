"""Deduplication, rate limits and samples: against plain Python over the rows in order."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from analytics_rows import (
    COLUMNS,
    MODERATE,
    NAMES,
    SCHEMA,
    Row,
    as_batch,
    batches,
    by_key,
    content,
    counted,
    drive,
    net,
    tuples,
)
from hypothesis import given
from hypothesis import strategies as st

import penstock.operators.dedup as dedup
from penstock.operators.dedup import FirstRowProcessor
from penstock.operators.processor import LATE, Processor
from penstock.operators.ranking import RunningTopProcessor
from penstock.operators.rate_limit import EXCESS, KeySampleProcessor, RateLimitProcessor
from penstock.operators.row_order import RowOrder
from penstock.testing.harness import Harness

KEYS = ["k", "s"]


def first_of(rows: list[Row], ttl_ns: int | None) -> list[Row]:
    """The first rows of one key, in the order given."""
    given_: list[Row] = []
    for row in rows:
        if not given_ or (ttl_ns is not None and row[-1] >= given_[-1][-1] + ttl_ns):
            given_.append(row)
    return given_


@given(batches(), st.sampled_from([None, 1, 5, 30]), st.booleans())
@MODERATE
def test_the_first_row_by_event_time(
    rows: list[list[Row]], ttl_ns: int | None, restarts: bool
) -> None:
    made = FirstRowProcessor(KEYS, SCHEMA, True, ttl_ns)
    driven = drive(made, rows, lambda at: restarts and at % 3 == 1)
    groups = by_key(sorted((row for batch in rows for row in batch), key=content))
    expected = [row for group in groups.values() for row in first_of(group, ttl_ns)]
    assert counted(tuples(driven.taken(), NAMES)) == counted(expected)
    assert driven.rows_behind_watermark == 0


@given(batches(), st.sampled_from([None, 2, 30]), st.booleans())
@MODERATE
def test_the_first_row_by_arrival(
    rows: list[list[Row]], ttl_ns: int | None, restarts: bool
) -> None:
    made = FirstRowProcessor(KEYS, SCHEMA, False, ttl_ns)
    driven = drive(made, rows, lambda at: restarts and at % 3 == 1)
    groups = by_key(row for batch in rows for row in batch)
    expected = [row for group in groups.values() for row in first_of(group, ttl_ns)]
    assert counted(tuples(driven.taken(), NAMES)) == counted(expected)


@given(batches(), st.booleans())
@MODERATE
def test_the_last_row_so_far(rows: list[list[Row]], restarts: bool) -> None:
    order = RowOrder('"_time" desc', SCHEMA)
    made = RunningTopProcessor(KEYS, order, 1, SCHEMA)
    driven = drive(made, rows, lambda at: restarts and at % 3 == 1)
    groups = by_key(row for batch in rows for row in batch)
    expected = [
        min(group, key=lambda row: (-row[-1], content(row)))[:4] for group in groups.values()
    ]
    assert net(driven.taken(), COLUMNS.names) == counted(expected)


def test_a_late_row_of_a_new_key_is_given_and_that_of_a_known_one_is_not() -> None:
    driven = Harness(FirstRowProcessor(["k"], SCHEMA, True), [SCHEMA])
    driven.send(as_batch([(1, "", None, 1, 50)])).advance(60)
    driven.send(as_batch([(1, "", None, 2, 40), (2, "", None, 3, 41), (2, "", None, 4, 70)]))
    driven.restart().end()
    assert [row[3] for row in tuples(driven.taken(), NAMES)] == [1, 3]


late_steps = st.lists(
    st.tuples(
        st.lists(
            st.tuples(
                st.sampled_from([None, 0, 1]),
                st.sampled_from(["", "x"]),
                st.just(None),
                st.sampled_from([0, 1, None]),
                st.integers(-20, 30),
            ),
            max_size=7,
        ),
        st.sampled_from([None, 0, 4, 12]),
        st.booleans(),
    ),
    max_size=8,
)


@given(late_steps)
@MODERATE
def test_late_rows_are_first_rows_if_nothing_was_given_of_their_key(steps: list[Any]) -> None:
    driven = Harness(FirstRowProcessor(KEYS, SCHEMA, True), [SCHEMA])
    watermark, waiting = -30, list[Row]()
    expected: dict[Row, Row] = {}
    for rows, further, dies in steps:
        driven.send(as_batch(rows))
        late = [row for row in rows if row[-1] <= watermark]
        waiting += [row for row in rows if row[-1] > watermark]
        if further is not None:
            watermark = max(watermark, -25) + further
            driven.advance(watermark)
        if dies:
            driven.restart()
        certain = [row for row in waiting if row[-1] <= watermark]
        waiting = [row for row in waiting if row[-1] > watermark]
        for row in [*sorted(late, key=content), *sorted(certain, key=content)]:
            expected.setdefault(row[:2], row)
    for row in sorted(waiting, key=content):
        expected.setdefault(row[:2], row)
    assert counted(tuples(driven.end().taken(), NAMES)) == counted(expected.values())


def test_many_rows_of_a_key_that_is_not_certain_yet_are_not_all_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dedup, "THIN_ROWS_MIN", 4)
    driven = Harness(FirstRowProcessor(["k"], SCHEMA, True), [SCHEMA])
    for at in range(50):
        driven.send(as_batch([(1, "", None, at, 100 - at)]))
    waiting = driven.processor._waiting
    assert waiting is not None
    assert waiting.rows < 10
    assert [row[3] for row in tuples(driven.end().taken(), NAMES)] == [49]


@pytest.mark.parametrize("by_event_time", [True, False])
def test_keys_are_forgotten_after_the_ttl(by_event_time: bool) -> None:
    driven = Harness(FirstRowProcessor(["k"], SCHEMA, by_event_time, 100), [SCHEMA])
    driven.send(as_batch([(key, "", None, 0, 10) for key in range(50)])).advance(50)
    assert driven.processor._slots.count == 50
    driven.cut()
    driven.advance(500)
    assert driven.processor._slots.count == 0
    driven.restart()
    driven.send(as_batch([(3, "", None, 7, 501)])).end()
    assert [row[3] for row in tuples(driven.taken(), NAMES)] == [0] * 50 + [7]


def test_what_was_given_is_known_at_another_parallelism() -> None:
    rows = [(key, "", None, 0, key) for key in range(300)]
    one = Harness(FirstRowProcessor(["k"], SCHEMA, True), [SCHEMA])
    sections = one.send(as_batch(rows)).advance(150).cut()
    given_ = 0
    for subtask in range(3):
        part = Harness(
            FirstRowProcessor(["k"], SCHEMA, True),
            [SCHEMA],
            restored=sections,
            subtask=subtask,
            parallelism=3,
            watermark=150,
        )
        given_ += part.end().taken().num_rows
    assert one.taken().num_rows == 151
    assert given_ == 149


# Rates --------------------------------------------------------------------------------------------


@given(batches(), st.integers(1, 3), st.sampled_from([1, 4, 10]), st.booleans())
@MODERATE
def test_a_rate_limit_gives_the_earliest_rows_of_each_span(
    rows: list[list[Row]], count: int, span_ns: int, restarts: bool
) -> None:
    made = RateLimitProcessor(KEYS, count, span_ns, SCHEMA)
    driven = drive(made, rows, lambda at: restarts and at % 3 == 1)
    within, beyond = [], []
    taken: Counter[Row] = Counter()
    for row in sorted((row for batch in rows for row in batch), key=content):
        span = (*row[:2], row[-1] // span_ns)
        (within if taken[span] < count else beyond).append(row)
        taken[span] += 1
    assert counted(tuples(driven.taken(), NAMES)) == counted(within)
    assert counted(tuples(driven.taken(EXCESS), NAMES)) == counted(beyond)
    assert driven.rows_behind_watermark == 0


def test_late_rows_take_no_part_in_a_rate() -> None:
    driven = Harness(RateLimitProcessor(["k"], 1, 10, SCHEMA), [SCHEMA])
    driven.send(as_batch([(1, "", None, 0, 5)])).advance(7)
    driven.send(as_batch([(1, "", None, 1, 7), (1, "", None, 2, 8), (1, "", None, 3, 10)])).end()
    assert [row[3] for row in tuples(driven.taken(), NAMES)] == [0, 3]
    assert [row[3] for row in tuples(driven.taken(EXCESS), NAMES)] == [2]
    assert [row[3] for row in tuples(driven.taken(LATE), NAMES)] == [1]


def test_spans_that_are_over_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.operators.rate_limit.FORGET_SLOTS_MIN", 1)
    driven = Harness(RateLimitProcessor(["k"], 1, 10, SCHEMA), [SCHEMA])
    for at in range(20):
        driven.send(as_batch([(key, "", None, at, 10 * at) for key in (at, at + 1)]))
        driven.advance(10 * at + 9)
        if at % 5 == 2:
            driven.restart()
    assert driven.processor._slots.count <= 2
    assert driven.taken().num_rows == 40


def test_a_sample_of_keys_takes_them_whole_and_about_as_many_as_asked() -> None:
    rows = [(key, str(nth), None, 0, 0) for key in range(4000) for nth in range(2)]

    def keys_of(made: Processor) -> Counter[int]:
        taken = Harness(made, [SCHEMA]).send(as_batch(rows)).taken()
        return Counter(taken.column("k").to_pylist() if taken.num_rows else [])

    tenth = keys_of(KeySampleProcessor(["k"], 0.1, 0, SCHEMA))
    assert 300 < len(tenth) < 500
    assert set(tenth.values()) == {2}
    assert keys_of(KeySampleProcessor(["k"], 0.1, 0, SCHEMA)) == tenth
    assert tenth.keys() <= keys_of(KeySampleProcessor(["k"], 0.5, 0, SCHEMA)).keys()
    assert keys_of(KeySampleProcessor(["k"], 0.1, 1, SCHEMA)).keys() != tenth.keys()
    assert not keys_of(KeySampleProcessor(["k"], 0.0, 0, SCHEMA))
    assert len(keys_of(KeySampleProcessor(["k"], 1.0, 0, SCHEMA))) == 4000


@pytest.mark.parametrize("by_event_time", [True, False])
def test_a_ttl_that_ends_behind_the_end_of_time_never_ends(by_event_time: bool) -> None:
    driven = Harness(FirstRowProcessor(["k"], SCHEMA, by_event_time, 2**63 - 10), [SCHEMA])
    for at in (50, 60, 70):
        driven.send(as_batch([(1, "", None, at, at)])).advance(at)
    driven.end()
    assert [row[3] for row in tuples(driven.taken(), NAMES)] == [50]
