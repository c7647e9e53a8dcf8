"""Keys as Python objects: equal rows give equal objects, and the way back is exact."""

from __future__ import annotations

import pickle
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from penstock.elements.hash import hash_columns
from penstock.elements.keys import NAN, canonical_key, key_batch, python_keys


def test_one_column_gives_scalars_and_several_give_tuples() -> None:
    batch = pa.record_batch({"a": [1, None, 3], "b": ["x", "y", None], "c": [True, False, None]})
    assert python_keys(batch, ["a"]) == [1, None, 3]
    assert python_keys(batch, ["b", "a"]) == [("x", 1), ("y", None), (None, 3)]
    assert python_keys(batch, ["c"]) == [True, False, None]
    assert python_keys(batch, []) == [(), (), ()]


def test_every_nan_and_both_zeros_are_one_key() -> None:
    batch = pa.record_batch({"x": [0.0, -0.0, float("nan"), -float("nan"), None]})
    keys = python_keys(batch, ["x"])
    assert len(set(keys)) == 3
    assert str(keys[1]) == "0.0"
    assert keys[2] is keys[3]
    assert len({(key, 1) for key in keys}) == 3


def test_a_key_out_of_a_pickle_is_found_again() -> None:
    held = {("a", NAN): 1}
    loaded = pickle.loads(pickle.dumps(("a", NAN)))
    assert loaded not in held
    assert canonical_key(loaded) in held


def test_nanoseconds_are_integers_and_coarser_times_are_python_times() -> None:
    fine = pa.array([1_700_000_000_000_000_001], pa.int64()).view(pa.timestamp("ns", "UTC"))
    batch = pa.record_batch({"fine": fine, "coarse": fine.cast(pa.timestamp("s", "UTC"), False)})
    (key,) = python_keys(batch, ["fine", "coarse"])
    assert key == (
        1_700_000_000_000_000_001,
        datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC),
    )


ROWS: list[tuple[pa.DataType, list[Any]]] = [
    (pa.int32(), [1, None, -5]),
    (pa.utf8(), ["", "Zürich", None]),
    (pa.binary(3), [b"abc", None, b"\0\0\0"]),
    (pa.decimal128(10, 2), [Decimal("1.00"), None, Decimal("-2.50")]),
    (pa.date32(), [None, date(2024, 1, 1), date(1960, 1, 1)]),
    (pa.list_(pa.utf8()), [["a", None], [], None]),
    (pa.large_list(pa.list_(pa.int64())), [[[1], None], [], [[2, 3], []]]),
    (pa.struct([("a", pa.int64()), ("b", pa.list_(pa.utf8()))]), [{"a": 1, "b": ["x"]}, None]),
    (pa.bool_(), [True, None]),
]


@pytest.mark.parametrize(("kind", "values"), ROWS, ids=str)
def test_keys_are_hashable_and_come_back_as_the_same_column(
    kind: pa.DataType, values: list[Any]
) -> None:
    batch = pa.record_batch({"k": pa.array(values, kind), "n": pa.array(range(len(values)))})
    for columns in (["k"], ["k", "n"]):
        keys = python_keys(batch, columns)
        assert len({*keys}) == len(values)
        schema = pa.schema([batch.schema.field(name) for name in columns])
        back = key_batch(keys, schema)
        assert back.to_pylist() == batch.select(columns).to_pylist()
        assert (hash_columns(back, columns) == hash_columns(batch, columns)).all()


def test_nanosecond_keys_come_back_and_no_keys_make_an_empty_batch() -> None:
    schema = pa.schema([("t", pa.timestamp("ns", "UTC"))])
    times = pa.array([5, None], pa.int64()).view(pa.timestamp("ns", "UTC"))
    batch = pa.RecordBatch.from_arrays([times], schema=schema)
    assert key_batch(python_keys(batch, ["t"]), schema).column(0).equals(times)
    assert key_batch([], schema).num_rows == 0
    assert key_batch([(), ()], pa.schema([])).num_rows == 2
