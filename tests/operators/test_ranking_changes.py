"""Top N of an updating stream: against sorted lists of Python, whatever is taken back and when."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from analytics_rows import COLUMNS, Descending, Row, ascending, counted, known, net, tuples
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.elements.changelog import with_change
from penstock.elements.errors import PlanError
from penstock.elements.hash import hash_columns
from penstock.elements.keygroup import owned_groups
from penstock.operators.event_times import with_time
from penstock.operators.found_again import UNMATCHED
from penstock.operators.kernels.compile import MODE_VARIABLE
from penstock.operators.ranking_changes import UpdatingTopProcessor
from penstock.operators.ranking_held import FRONT
from penstock.operators.ranking_moves import rank_moves
from penstock.operators.row_order import RowOrder
from penstock.testing.harness import Harness, batch_of

KEYS = ["k"]
CHANGED = with_change(COLUMNS)
SCHEMA = with_time(CHANGED)
MODERATE = settings(max_examples=40, deadline=None)
FEW = settings(max_examples=20, deadline=None)


def content(row: Row) -> Any:
    return tuple(ascending(value) for value in row)


ORDERS = {
    "v desc": lambda row: (Descending(row[3]), content(row)),
    "f desc, v": lambda row: (Descending(row[2]), ascending(row[3]), content(row)),
    "f": lambda row: (ascending(row[2]), content(row)),
    "s desc": lambda row: (row[1] is None, -len(row[1] or ""), content(row)),
}

COLUMN_VALUES: list[list[Any]] = [
    [0, 0, 0, None],
    [None, "", "x"],
    [None, math.nan, 0.0, -0.0, 1.5, math.inf, -math.inf],
    [None, 0, 1, 2, 3, 2**63 - 1, -(2**63)],
]
rows = st.tuples(*(st.sampled_from(values) for values in COLUMN_VALUES))


@st.composite
def changes(draw: st.DrawFn) -> list[list[Row]]:
    """Batches of (*row, change, time): rows come, go, come again, or go before they came."""
    # Drawn by chance of their own, since many rows of one key are wanted in most examples.
    chance = random.Random(draw(st.integers(0, 2**32)))
    going = draw(st.sampled_from([0.2, 0.7]))
    steps: list[Row] = []
    for _ in range(draw(st.sampled_from([1, 5, 20, 60]))):
        row = tuple(chance.choice(values) for values in COLUMN_VALUES)
        steps += [(*row, 1)] * chance.choice([1, 1, 1, 2])
        steps += [(*row, -1)] * sum(chance.random() < going for _ in range(2))
    if draw(st.booleans()):
        chance.shuffle(steps)
    else:
        # Most of what came goes in the end, the first before the others.
        leaving = [row for row in steps if row[4] > 0]
        leaving.sort(key=lambda row: ascending(row[3]), reverse=draw(st.booleans()))
        steps += [(*row[:4], -1) for row in leaving[: len(leaving) * 3 // 4]]
    given_ = [(*row, nth + chance.randint(-9, 9)) for nth, row in enumerate(steps)]
    largest = draw(st.sampled_from([1, 4, 9, len(given_)]))
    found: list[list[Row]] = []
    while given_:
        size = chance.randint(1 if largest > 9 else 0, largest) if largest > 1 else 1
        found.append(given_[:size])
        given_ = given_[size:]
    return found


def as_batch(some: Iterable[Row]) -> pa.RecordBatch:
    listed = list(some)
    made = batch_of(CHANGED, [row[:-1] for row in listed], [row[-1] for row in listed])
    return made.cast(SCHEMA)


def top(by: str, count: int, rank: str | None = None, keys: Any = KEYS, **options: Any) -> Any:
    return UpdatingTopProcessor(keys, RowOrder(by, COLUMNS), count, SCHEMA, rank, **options)


def harness_of(made: Any, **options: Any) -> Harness:
    return Harness(made, [SCHEMA], out_schemas={"main": made.out_schema}, **options)


class Model:
    """How often each row is there."""

    def __init__(self, by: str, count: int, ranked: bool, keys: int = 1) -> None:
        self.by, self.count, self.ranked, self.keys = by, count, ranked, keys
        self.rows: Counter[Row] = Counter()

    def take(self, some: list[Row]) -> None:
        for row in some:
            self.rows[tuple(known(value) for value in row[:4])] += row[4]

    def expected(self) -> Counter[Row]:
        groups: dict[Row, list[Row]] = {}
        for row, times in self.rows.items():
            real = tuple(math.nan if value == "NaN" else value for value in row)
            groups.setdefault(row[: self.keys], []).extend([real] * times)
        found = []
        for group in groups.values():
            for nth, row in enumerate(sorted(group, key=ORDERS[self.by])[: self.count], 1):
                found.append((*row, nth) if self.ranked else row)
        return counted(found)


@pytest.mark.parametrize("kernels", ["", "reference"])
@given(
    changes(),
    st.sampled_from(sorted(ORDERS)),
    st.integers(1, 4),
    st.booleans(),
    st.sampled_from([None, 0, 1, 3]),
    st.sampled_from([0, 1, 3]),
)
@MODERATE
def test_after_every_batch_of_changes_they_sum_up_to_the_top_of_what_is_there(
    kernels: str,
    steps: list[list[Row]],
    by: str,
    count: int,
    ranked: bool,
    spare: int | None,
    dies: int,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(MODE_VARIABLE, kernels)
        if spare is not None:
            patch.setattr(UpdatingTopProcessor, "_spare", lambda _, keys: np.full(len(keys), spare))
        made = top(by, count, "nth" if ranked else None)
        driven, model = harness_of(made), Model(by, count, ranked)
        names = [*COLUMNS.names, "nth"] if ranked else COLUMNS.names
        pieces: list[pa.Table] = []
        newest = -20
        for at, some in enumerate(steps):
            driven.send(as_batch(some))
            model.take(some)
            pieces.append(driven.taken())
            assert net(pa.concat_tables(pieces), names) == model.expected()
            newest = max([newest, *(row[-1] for row in some)])
            driven.advance(newest - 3)
            if dies and at % 3 == dies - 1:
                driven.restart()
        held = driven.processor._held
        assert held._index.rows == sum(1 for times in model.rows.values() if times)
        assert driven.rows_behind_watermark == 0


@given(changes(), st.integers(1, 3), st.booleans())
@FEW
def test_a_top_without_key_of_what_is_still_there(
    steps: list[list[Row]], count: int, ranked: bool
) -> None:
    made = top("v desc", count, "nth" if ranked else None, keys=[])
    driven, model = harness_of(made), Model("v desc", count, ranked, keys=0)
    for at, some in enumerate(steps):
        driven.send(as_batch(some))
        model.take(some)
        if at % 7 == 0:
            driven.restart()
    names = [*COLUMNS.names, "nth"] if ranked else COLUMNS.names
    assert net(driven.end().taken(), names) == model.expected()


@given(changes(), st.integers(1, 3))
@FEW
def test_what_is_taken_back_lies_just_before_what_comes_in_its_place(
    steps: list[list[Row]], count: int
) -> None:
    driven = harness_of(top("f desc, v", count, "nth"))
    shown: dict[Row, Row] = {}
    for some in steps:
        driven.send(as_batch(some))
        for *row, nth, sign in tuples(driven.taken(), [*COLUMNS.names, "nth", "_change"]):
            place = (row[0], nth)
            if sign > 0:
                assert place not in shown
                shown[place] = tuple(row)
            else:
                assert shown.pop(place) == tuple(row)


def test_an_update_within_a_batch_gives_only_what_it_comes_to() -> None:
    driven = harness_of(top("v desc", 2, "nth", keys=["k"]))
    start = [(1, "a", None, 9, 1, 0), (1, "b", None, 5, 1, 0), (1, "c", None, 3, 1, 0)]
    driven.send(as_batch(start)).taken()
    # b goes to 6 by way of a 0 and a 4, and is second before and after.
    update = [("b", 5, -1), ("b", 0, 1), ("b", 0, -1), ("b", 4, 1), ("b", 4, -1), ("b", 6, 1)]
    driven.send(as_batch([(1, s, None, v, sign, 7) for s, v, sign in update]))
    names = ["s", "v", "nth", "_change", "_time"]
    assert tuples(driven.taken(), names) == [("b", 5, 2, -1, 7), ("b", 6, 2, 1, 7)]
    driven.send(as_batch([(1, "b", None, 6, -1, 8), (1, "b", None, 10, 1, 8)]))
    assert tuples(driven.taken(), names) == [
        ("a", 9, 1, -1, 8), ("b", 10, 1, 1, 8), ("b", 6, 2, -1, 8), ("a", 9, 2, 1, 8),
    ]  # fmt: skip
    driven.send(as_batch([(1, "a", None, 9, -1, 9), (1, "a", None, 9, 1, 9)]))
    assert driven.taken().num_rows == 0


def test_a_row_beyond_the_first_comes_up_when_one_before_it_goes() -> None:
    driven = harness_of(top("v desc", 1, keys=["k"]))
    driven.send(as_batch([(1, "", None, value, 1, value) for value in range(5)])).restart()
    driven.advance(50).taken()
    for value in (4, 3, 2):
        driven.send(as_batch([(1, "", None, value, -1, 20)]))
    assert tuples(driven.taken(), ["v", "_change", "_time"]) == [
        (4, -1, 51), (3, 1, 51), (3, -1, 51), (2, 1, 51), (2, -1, 51), (1, 1, 51),
    ]  # fmt: skip


def test_equal_rows_are_as_many_as_were_added_more_than_taken_back() -> None:
    driven = harness_of(top("v desc", 3, "nth", keys=["k"]))
    driven.send(as_batch([(1, "", math.nan, 7, 1, 0)] * 5 + [(1, "", None, 1, 1, 0)]))
    assert [row[0] for row in tuples(driven.taken(), ["nth"])] == [1, 2, 3]
    driven.send(as_batch([(1, "", math.nan, 7, -1, 0)] * 2)).restart()
    assert driven.taken().num_rows == 0
    driven.send(as_batch([(1, "", math.nan, 7, -1, 0)]))
    assert tuples(driven.taken(), ["v", "nth", "_change"]) == [(7, 3, -1), (1, 3, 1)]


def test_a_row_taken_back_before_it_came_never_shows_also_after_a_restart() -> None:
    driven = harness_of(top("v", 2, keys=["k"]))
    driven.send(as_batch([(1, "", None, 0, -1, 0), (1, "", None, 3, 1, 0)])).restart()
    driven.send(as_batch([(1, "", None, 0, 1, 0), (1, "", None, 4, 1, 0)]))
    assert tuples(driven.taken(), ["v", "_change"]) == [(3, 1), (4, 1)]
    driven.send(as_batch([(1, "", None, v, -1, 0) for v in (3, 4)])).restart()
    assert driven.processor._held._index.rows == driven.processor._held.key_index.rows == 0


def test_silent_keys_are_forgotten_and_what_they_waited_for_is_counted() -> None:
    driven = harness_of(top("v", 2, keys=["k"], ttl_ns=100))
    driven.send(as_batch([(1, "", None, 1, 1, 0), (1, "", None, 8, -1, 0), (2, "", None, 1, 1, 0)]))
    driven.restart()
    driven.send(as_batch([(2, "", None, 9, 1, 90)])).advance(99)
    assert driven.processor._held.key_index.rows == 2
    driven.restart()
    driven.advance(150)
    assert driven.processor._held.key_index.rows == 1
    assert driven.counters[UNMATCHED] == 1
    driven.restart()
    driven.send(as_batch([(1, "", None, 5, 1, 200), (2, "", None, 0, 1, 180)]))
    assert net(driven.taken(), ["k", "v"]) == counted([(1, 1), (1, 5), (2, 1), (2, 0)])


def test_a_ttl_may_come_and_go_between_restarts() -> None:
    sections = harness_of(top("v", 1, keys=["k"])).send(as_batch([(1, "", None, 5, 1, 0)])).cut()
    with_ttl = harness_of(top("v", 1, keys=["k"], ttl_ns=100), restored=sections)
    with_ttl.advance(1000).advance(1050)
    assert with_ttl.processor._held.key_index.rows == 1
    with_ttl.send(as_batch([(2, "", None, 5, 1, 1100)]))
    sections = with_ttl.cut()
    without = harness_of(top("v", 1, keys=["k"]), restored=sections)
    without.advance(5000)
    assert {s.name: s.batch.num_rows for s in without.cut()} == {"rows": 2, "newest": 0}


@settings(max_examples=40, deadline=None)
@given(
    steps=st.lists(
        st.tuples(
            st.lists(st.tuples(rows, st.integers(-20, 40)), max_size=6),
            st.sampled_from([None, 0, 2, 9]),
            st.booleans(),
        ),
        max_size=12,
    ),
    ttl=st.sampled_from([1, 4, 7, 25]),
    count=st.integers(1, 2),
)
def test_keys_of_an_updating_stream_are_there_for_their_ttl(
    steps: list[Any], ttl: int, count: int
) -> None:
    """What was given of a forgotten key stays, and it begins anew beside that."""
    driven = harness_of(top("v desc", count, ttl_ns=ttl))
    models: dict[Row, Model] = {}
    newest: dict[Row, int] = {}
    watermark, stays = -30, Counter[Row]()
    for some, further, dies in steps:
        # Each second row is taken back, so that keys are there that hold nothing.
        batch = [(*row, -1 if at % 2 else 1, time) for at, (row, time) in enumerate(some)]
        driven.send(as_batch(batch))
        for row in batch:
            models.setdefault(row[:1], Model("v desc", count, False)).take([row])
            newest[row[:1]] = max(newest.get(row[:1], -100), row[-1])
        for key in [key for key, model in models.items() if not any(model.rows.values())]:
            del models[key], newest[key]
        if dies:
            driven.restart()
        if further is not None:
            watermark += further
            driven.advance(watermark)
            for key in [key for key, time in newest.items() if time <= watermark - ttl]:
                stays += models.pop(key).expected()
                del newest[key]
    found = net(driven.end().taken(), COLUMNS.names) if driven._taken else Counter[Row]()
    assert found == stays + sum((m.expected() for m in models.values()), Counter[Row]())
    assert driven.rows_behind_watermark == 0


def test_rows_go_to_the_subtask_that_owns_their_key() -> None:
    before = [(key, "", None, value, 1, 0) for key in range(200) for value in range(5)]
    one = harness_of(top("v desc", 2, "nth", keys=["k"])).send(as_batch(before))
    sections, pieces = one.cut(), [one.taken()]
    after = as_batch([(key, "", None, 4, -1, 1) for key in range(0, 200, 2)])
    groups = (hash_columns(after, ["k"]) >> np.uint64(52)).astype(np.int64)
    for subtask in range(3):
        made = top("v desc", 2, "nth", keys=["k"])
        part = harness_of(made, restored=sections, subtask=subtask, parallelism=3)
        own = owned_groups(subtask, 3)
        part.send(after.filter(pa.array((groups >= own.start) & (groups < own.stop))))
        pieces.append(part.taken())
    expected = [(key, 4 - nth - (key + 1) % 2, nth + 1) for key in range(200) for nth in range(2)]
    assert net(pa.concat_tables(pieces), ["k", "v", "nth"]) == counted(expected)


def test_a_key_of_many_rows_is_not_sorted_anew_for_each_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driven = harness_of(top("v desc", 10, "nth", keys=["k"]))
    driven.send(as_batch([(1, "", None, value, 1, 0) for value in range(5_000)]))
    seen = []
    sort = RowOrder.sort
    monkeypatch.setattr(
        RowOrder, "sort", lambda *given: (seen.append(given[1].num_rows), sort(*given))[1]
    )
    kept = list(range(5_000))
    for at in range(200):
        # Those in front go one after another, and one far behind changes.
        batch = [(1, "", None, kept.pop(), -1, 0), (1, "", None, at, -1, 0)]
        driven.send(as_batch([*batch, (1, "", None, -1 - at, 1, 0)]))
    sizes = Counter(size > 1000 for size in seen)
    assert sizes == {False: 200, True: 2}
    held = driven.processor._held
    assert len(held.of(FRONT, np.array([0]))[0]) < 190
    found = net(driven.taken(), ["v", "nth"])
    assert found == counted([(kept[-1 - nth], nth + 1) for nth in range(10)])


def test_ranks_that_have_the_same_row_as_before_are_no_moves() -> None:
    groups = np.array([0, 0, 0, 2, 2])
    moves = rank_moves(groups, np.array([1, 2, 0, 1, 1]), np.array([1, 1, 1, 0, 1]))
    assert [(int(r), int(n), int(w)) for r, n, w in zip(*moves, strict=True)] == [
        (1, 2, -1), (2, 2, 1), (3, 0, -1), (4, 0, 1), (4, 1, -1),
    ]  # fmt: skip


def test_what_a_top_cannot_hold_is_refused() -> None:
    with pytest.raises(PlanError, match='there is a column "v" already'):
        top("v", 1, "v")
    with pytest.raises(PlanError, match='no column "_time"'):
        top("_time", 1)
    odd = with_change(pa.schema([("k", pa.int64()), ("m", pa.map_(pa.string(), pa.int64()))]))
    with pytest.raises(PlanError, match=r"column 'm' of an updating stream(.|\n)*before the top"):
        UpdatingTopProcessor(["k"], RowOrder("k", odd), 1, odd)
