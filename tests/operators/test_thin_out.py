"""Rows that are left out before an exchange: nobody who keeps the first n per key misses them."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
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
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.operators import thin_out
from penstock.operators.dedup import FirstRowProcessor
from penstock.operators.kernels import key_bars
from penstock.operators.kernels.key_bars import CELLS_BITS, LAST, CompiledBars, KeyBars, PlainBars
from penstock.operators.processor import Processor
from penstock.operators.ranking import NewestArrival, Order, RunningTopProcessor
from penstock.operators.row_order import RowOrder
from penstock.operators.thin_out import FirstBy, ThinOutProcessor, thins
from penstock.testing.harness import Harness

WORDS = [-(2**63), -1, 0, 1, 2, 3, int(LAST) - 1, int(LAST)]


@settings(max_examples=100, deadline=None)
@given(
    given_=st.lists(st.lists(st.tuples(st.integers(-3, 40), st.sampled_from(WORDS)), max_size=20)),
    count=st.integers(1, 4),
    forgets=st.booleans(),
)
def test_who_is_turned_away_has_n_better_rows_before_it(
    given_: list[list[tuple[int, int]]], count: int, forgets: bool
) -> None:
    made: list[KeyBars] = [CompiledBars(count), PlainBars(count)]
    few = CompiledBars(count)
    # Cells that several keys want.
    few._keys, few._bars = few._keys[:4].copy(), few._bars[: 4 * count].copy()
    for bars in [*made, few]:
        passed: list[tuple[int, int]] = []
        for batch in given_:
            keys, words = (np.array([row[at] for row in batch], np.int64) for at in (0, 1))
            keep = bars.let_through(keys, words)
            passed += [row for row, kept in zip(batch, keep, strict=True) if kept]
            for row, kept in zip(batch, keep, strict=True):
                better = [word for key, word in passed if key == row[0] and word < row[1]]
                assert kept or len(better) >= count
                if isinstance(bars, PlainBars):
                    counting = [word for word in better if word < LAST]
                    assert kept == (len(counting) < count)
            if forgets:
                bars.forget()
                passed = []


def test_the_compiled_form_lets_through_what_the_plain_one_does_as_long_as_cells_suffice() -> None:
    chance = np.random.default_rng(3)
    compiled, plain = CompiledBars(3), PlainBars(3)
    hashes = chance.permutation(10**6)[:200].astype(np.uint64)
    cells = (hashes * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(64 - CELLS_BITS)
    alone = hashes[np.unique(cells, return_index=True)[1]].astype(np.int64)
    for _ in range(20):
        keys = chance.choice(alone, 500)
        words = chance.integers(0, 1000, 500)
        assert (compiled.let_through(keys, words) == plain.let_through(keys, words)).all()


ORDERS: list[tuple[FirstBy, str | None]] = [
    (("v", True), "v desc"),
    (("f", False), "f, v"),
    (("f", True), "f desc"),
    (("_time", True), '"_time" desc'),
    ("last come", None),
]


def order_of(by: str | None) -> Order:
    return NewestArrival() if by is None else RowOrder(by, SCHEMA)


def thinned(made: Processor, given_: list[list[Row]], restarts: bool) -> list[list[Row]]:
    driven = Harness(made, [SCHEMA])
    found: list[list[Row]] = []
    for at, rows in enumerate(given_):
        driven.send(as_batch(rows))
        left = tuples(driven.taken(), NAMES)
        found.append(
            [(*row[:2], math.nan if row[2] == "NaN" else row[2], *row[3:]) for row in left]
        )
        if restarts and at % 3 == 1:
            driven.restart()
    return found


@given(
    batches(),
    st.sampled_from(ORDERS),
    st.integers(1, 3),
    st.sampled_from([["k", "s"], ["k"], []]),
    st.booleans(),
)
@MODERATE
def test_the_first_rows_are_the_same_without_those_left_out(
    rows: list[list[Row]],
    order: tuple[FirstBy, str | None],
    count: int,
    keys: list[str],
    restarts: bool,
) -> None:
    first, by = order
    left = thinned(ThinOutProcessor(keys, first, count, SCHEMA), rows, restarts)
    results = []
    for given_ in (rows, left):
        made = RunningTopProcessor(keys, order_of(by), count, SCHEMA)
        driven = drive(made, given_)
        results.append(net(driven.taken(), COLUMNS.names))
    assert results[0] == results[1]


@given(batches(), st.booleans(), st.sampled_from([["k", "s"], ["k"], ["f"]]), st.booleans())
@MODERATE
def test_first_rows_are_the_same_without_those_left_out(
    rows: list[list[Row]], by_event_time: bool, keys: list[str], restarts: bool
) -> None:
    first: FirstBy = ("_time", False) if by_event_time else "first come"
    left = thinned(ThinOutProcessor(keys, first, 1, SCHEMA), rows, restarts)
    results = []
    for given_ in (rows, left):
        driven = drive(FirstRowProcessor(keys, SCHEMA, by_event_time), given_)
        results.append(counted(tuples(driven.taken(), NAMES)))
    assert results[0] == results[1]


def keyed(keys: list[int], prices: list[int]) -> pa.RecordBatch:
    return pa.record_batch({"k": pa.array(keys, pa.int64()), "v": pa.array(prices, pa.int64())})


def test_repeats_are_left_out_across_batches() -> None:
    made = ThinOutProcessor(["k"], "first come", 1, keyed([], []).schema)
    driven = Harness(made, [made.in_schema])
    for _ in range(3):
        driven.send(keyed([1, 2, 1, 2], [1, 2, 3, 4]))
    assert driven.taken().to_pydict() == {"k": [1, 2], "v": [1, 2]}


def test_after_a_restart_it_passes_on_again_what_it_had_passed_on() -> None:
    made = ThinOutProcessor(["k"], "first come", 1, keyed([], []).schema)
    driven = Harness(made, [made.in_schema])
    driven.send(keyed([1, 1], [1, 2]))
    driven.restart()
    driven.send(keyed([1, 1], [3, 4]))
    assert driven.taken().to_pydict() == {"k": [1, 1], "v": [1, 3]}


def test_where_every_key_is_new_most_batches_are_not_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked = []

    class Counting(PlainBars):
        def let_through(self, keys: key_bars.Words, words: key_bars.Words) -> key_bars.Mask:
            looked.append(len(keys))
            return super().let_through(keys, words)

    monkeypatch.setattr(thin_out, "new_bars", Counting)
    made = ThinOutProcessor(["k"], "first come", 1, keyed([], []).schema)
    driven = Harness(made, [made.in_schema])
    for at in range(64):
        driven.send(keyed([2 * at, 2 * at + 1], [0, 0]))
    assert driven.taken().num_rows == 128
    assert len(looked) <= 6


def test_text_keys_are_forgotten_when_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thin_out, "KEYS_MAX", 4)
    schema = pa.schema([("s", pa.string())])
    made = ThinOutProcessor(["s"], "first come", 1, schema)
    driven = Harness(made, [schema])
    sent = [["a", "b", "a"], ["c", "d", "e", "e"], ["a", "b", "b"], ["a", "a"]]
    for texts in sent:
        driven.send(pa.record_batch({"s": texts}))
    assert driven.taken()["s"].to_pylist() == ["a", "b", "c", "d", "e", "a", "b"]


def test_the_plain_form_does_not_grow_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_bars, "CELLS", 10)
    plain = PlainBars(1)
    for start in range(0, 100, 5):
        keys = np.arange(start, start + 5)
        assert plain.let_through(keys, keys).all()
        assert len(plain._best) <= 15


def test_there_is_none_by_text_or_for_many_rows() -> None:
    assert thins(("v", True), 3, SCHEMA)
    assert not thins(("s", True), 3, SCHEMA)
    assert not thins(("v", True), 1000, SCHEMA)


def test_content_decides_among_equal_rows_as_before() -> None:
    rows = [(1, "b", 0.0, 5, 3), (1, "a", 0.0, 5, 3), (1, "c", 0.0, 5, 3)]
    left = thinned(ThinOutProcessor(["k"], ("v", True), 1, SCHEMA), [rows], False)
    assert by_key(left[0]) == by_key(rows)
    assert min(left[0], key=content)[1] == "a"
