"""What an inner join keeps: every type comes back as it went in, also after rows were dropped."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from penstock.operators.join_arrays import BYTES_MIN, GrowingArray
from penstock.operators.join_columns import kept_column

VALUES: list[tuple[pa.DataType, list[Any]]] = [
    (pa.int64(), [0, -1, 2**63 - 1, -(2**63)]),
    (pa.int8(), [0, 127, -128]),
    (pa.float64(), [0.0, 1.5, float("inf")]),
    (pa.bool_(), [True, False]),
    (pa.timestamp("us", "UTC"), [datetime(2020, 1, 1, tzinfo=UTC)]),
    (pa.decimal128(20, 2), [Decimal("1.25"), Decimal("-7.00")]),
    (pa.binary(3), [b"abc", b"\0\0\0"]),
    (pa.string(), ["", "x", "longer than a word", "ü"]),
    (pa.binary(), [b"", b"\0", b"bytes"]),
    (pa.large_string(), ["", "wide"]),
    (pa.list_(pa.int64()), [[], [1, 2], [3]]),
    (pa.null(), [None]),
]


@pytest.mark.parametrize(("kind", "values"), VALUES, ids=lambda each: str(each)[:20])
@pytest.mark.parametrize("nulls", [False, True])
def test_values_come_back_as_they_were(kind: pa.DataType, values: list[Any], nulls: bool) -> None:
    seeded = random.Random(7)
    column, kept = kept_column(kind), list[Any]()
    for step in range(60):
        # Nulls come late, so that there are rows without any before them.
        choice = [*values, None] if nulls and step > 20 else values
        rows = [seeded.choice(choice) for _ in range(seeded.choice([0, 1, 7, 400]))]
        column.append(len(kept), pa.array([values[0], *rows], kind).slice(1))
        kept += rows
        some = np.array([seeded.randrange(len(kept)) for _ in range(30) if kept], np.int64)
        expected = pa.array([kept[slot] for slot in some], kind)
        taken = column.take(some)
        assert taken.type == kind
        assert taken.equals(expected)
        taken.validate(full=True)
        start = seeded.randrange(len(kept) + 1)
        assert column.slice(start, len(kept)).equals(pa.array(kept[start:], kind))
        if len(some) and not pa.types.is_nested(kind):
            asked = pa.array([seeded.choice(choice) for _ in some], kind)
            rows_asked = np.arange(len(some))[::-1].copy()
            same = [asked[int(row)].as_py() == kept[slot] for row, slot in zip(rows_asked, some)]
            assert column.equal(some, asked, rows_asked).tolist() == same
        if step % 13 == 12:
            keep = sorted(seeded.sample(range(len(kept)), len(kept) // seeded.choice([1, 2, 40])))
            column.keep(np.array(keep, np.int64))
            kept = [kept[slot] for slot in keep]


def test_an_array_grows_in_place_and_gives_memory_back() -> None:
    array = GrowingArray(np.dtype(np.int64))
    for count in range(1, 100_000, 999):
        array.reserve(count)
        array.values[count - 1] = count
    assert array.values[:100_000:999].tolist() == list(range(1, 100_000, 999))
    array.shrink(10)
    assert array.values.nbytes == BYTES_MIN
    assert array.values[0] == 1
    array.reserve(50_000)
    assert not array.values[BYTES_MIN // 8 : 50_000].any()


def test_an_array_that_is_looked_at_does_not_move() -> None:
    array = GrowingArray(np.dtype(np.int64))
    array.reserve(1)
    view = array.values[:1]
    with pytest.raises(BufferError):
        array.reserve(BYTES_MIN)
    assert view[0] == 0
