"""Lookup joins: what the function says of each key, asked as rarely as the cache allows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.elements.errors import PlanError, UserCodeError
from penstock.operators.error_policy import DeadLetter, Drop
from penstock.operators.event_times import with_time
from penstock.operators.lookup_join import LookupJoinProcessor
from penstock.operators.processor import DEAD
from penstock.testing.harness import Harness, batch_of

COLUMNS = pa.schema([("n", pa.int64()), ("k", pa.float64()), ("s", pa.string())])
ROWS = with_time(COLUMNS)
RETURNS = pa.schema([("place", pa.string()), ("rank", pa.int64())])
KEYS = ["k", "s"]


class Books:
    """Tells `int(k) % 4` rows of each key, and remembers what it was asked."""

    asked: list[list[tuple[Any, ...]]] = []

    def __call__(self, keys: pa.RecordBatch) -> pa.Table:
        assert all(column.null_count == 0 for column in keys.columns)
        rows = list(zip(*(column.to_pylist() for column in keys.columns), strict=True))
        assert len(set(map(repr, rows))) == len(rows)
        Books.asked.append(rows)
        found = [(k, s, f"{s}{rank}", rank) for k, s in rows for rank in reversed(range(many(k)))]
        columns = list(zip(*found, strict=True)) or [(), (), (), ()]
        # In another order of columns and rows than was asked for.
        names = ["rank", "k", "place", "s"]
        kinds = [pa.int64(), pa.float64(), pa.string(), pa.string()]
        order = [3, 0, 2, 1]
        arrays = [pa.array(columns[at][::-1], kind) for at, kind in zip(order, kinds, strict=True)]
        return pa.Table.from_arrays(arrays, names)


def many(k: float) -> int:
    return 1 if k != k else int(k) % 4


def harness(
    function: Callable[[Any], Any] | None = None, how: str = "left", **more: Any
) -> Harness:
    made = LookupJoinProcessor(function or Books(), KEYS, how, ROWS, RETURNS, **more)
    Books.asked = []
    return Harness(made, [ROWS], out_schemas=made.outputs)


def shown(value: Any) -> Any:
    return repr(value + 0.0) if isinstance(value, float) else value


def batch(rows: list[tuple[Any, ...]]) -> pa.RecordBatch:
    return batch_of(COLUMNS, rows, range(len(rows)))


def expected(how: str, rows: list[tuple[Any, ...]]) -> Counter[Any]:
    found: Counter[Any] = Counter()
    for n, k, s in rows:
        told = [] if k is None or s is None else [(f"{s}{rank}", rank) for rank in range(many(k))]
        if how == "left" and not told:
            told = [(None, None)]
        for each in told:
            found[(shown(k), s, n, *each)] += 1
    return found


def taken(driven: Harness) -> Counter[Any]:
    return Counter(tuple(map(shown, row.values())) for row in driven.rows())


floats = st.sampled_from([0.0, -0.0, 1.0, 2.0, 3.0, float("nan"), None])
texts = st.sampled_from(["", "x", "y", None])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.integers(0, 3), floats, texts), max_size=12), max_size=8),
    st.sampled_from(["inner", "left"]),
    st.sampled_from([0, 1, 4, 1000]),
    st.sampled_from([None, 0, 15]),
)
def test_every_row_gets_what_is_told_of_its_key(
    batches: list[list[Any]], how: str, cache_rows: int, ttl: int | None
) -> None:
    driven = harness(how=how, cache_rows=cache_rows, cache_ttl_ns=ttl)
    for rows in batches:
        driven.send(batch(rows)).tick(10)
        assert taken(driven) == expected(how, rows)
        assert driven.processor._cache.size <= max(40, 2 * cache_rows)


def test_keys_are_asked_for_once_while_they_are_remembered() -> None:
    driven = harness(cache_rows=1000, cache_ttl_ns=100)
    driven.send(batch([(1, 2.0, "a"), (2, 2.0, "a"), (3, 0.0, "a")]))
    driven.send(batch([(4, 2.0, "a"), (5, 0.0, "a"), (6, 1.0, "a")]))
    assert Books.asked == [[(2.0, "a"), (0.0, "a")], [(1.0, "a")]]
    driven.tick(101).send(batch([(7, 2.0, "a")]))
    assert Books.asked[2:] == [[(2.0, "a")]]


def test_what_is_asked_for_stays_and_what_is_not_goes() -> None:
    driven = harness(cache_rows=40)
    for number in range(200):
        driven.send(batch([(0, 1.0, "hot"), (0, 1.0, f"cold {number}")]))
    assert driven.processor._cache.size <= 44
    asked = [key for keys in Books.asked for key in keys]
    assert asked.count((1.0, "hot")) == 1
    driven.send(batch([(0, 1.0, "cold 0")]))
    assert Books.asked[-1] == [(1.0, "cold 0")]


def test_it_may_work_on_frames() -> None:
    def books(keys: pl.DataFrame) -> pl.DataFrame:
        return keys.with_columns(place=pl.col("s") + "!", rank=1)

    driven = harness(books, how="inner")
    assert driven.send(batch([(1, 2.0, "a")])).rows() == [
        {"k": 2.0, "s": "a", "n": 1, "place": "a!", "rank": 1}
    ]


def picky(keys: pa.RecordBatch) -> pa.RecordBatch | None:
    if "bad" in keys.column("s").to_pylist():
        raise ValueError("no such shelf")
    return None


def test_keys_that_fail_take_only_their_rows_with_them() -> None:
    rows = [(1, 1.0, "a"), (2, 1.0, "bad"), (3, 1.0, "b"), (4, 1.0, "bad"), (5, 1.0, "c")]
    driven = harness(picky, policy=Drop(), cache_rows=10).send(batch(rows))
    assert [row["n"] for row in driven.rows()] == [1, 3, 5]
    assert driven.counters["dropped"] == 2
    driven = harness(picky, policy=DeadLetter("bad/")).send(batch(rows))
    assert ["no such shelf" in row["error"] for row in driven.rows(DEAD)] == [True, True]
    with pytest.raises(UserCodeError, match="no such shelf"):
        harness(picky).send(batch(rows))


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ({"k": [9.0], "s": ["q"], "place": ["p"], "rank": [1]}, "a key that was not asked for"),
        ({"k": [1.0], "s": ["a"], "place": ["p"]}, "rank"),
    ],
)
def test_answers_that_make_no_sense_end_the_attempt(made: dict[str, Any], said: str) -> None:
    driven = harness(lambda keys: pa.table(made), policy=Drop())
    with pytest.raises(UserCodeError, match=said):
        driven.send(batch([(1, 1.0, "a")]))


def test_what_cannot_be_joined_is_refused() -> None:
    with pytest.raises(PlanError, match="how='full'; there are inner and left"):
        harness(how="full")
    with pytest.raises(PlanError, match="names no column but the keys"):
        LookupJoinProcessor(Books(), KEYS, "left", ROWS, pa.schema([("k", pa.float64())]))
