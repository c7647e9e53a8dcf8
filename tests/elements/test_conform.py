"""conform gives the declared schema or says what is wrong."""

from __future__ import annotations

from random import Random

import pyarrow as pa
import pytest

from penstock.elements.conform import ConformError, UnfitValue, conform, plain_array, plain_type
from penstock.testing.batches import NESTED, random_array

DECLARED = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False),
        pa.field("name", pa.utf8()),
        pa.field("score", pa.float64()),
        pa.field("at", pa.timestamp("us", "UTC")),
    ]
)


def test_views_dictionaries_large_types_order_and_width_are_put_right() -> None:
    given = pa.record_batch(
        {
            "at": pa.array([1], pa.timestamp("ms", "UTC")),
            "score": pa.array([0.5], pa.float32()),
            "name": pa.array(["x"]).dictionary_encode(),
            "id": pa.array([7], pa.int32()),
        }
    )
    fitted = conform(given, DECLARED)
    assert fitted.schema.equals(DECLARED)
    assert fitted.column("at")[0].value == 1000
    assert fitted.column("name").to_pylist() == ["x"]
    for kind in (pa.large_string(), pa.string_view()):
        view = given.set_column(2, "name", pa.array(["x"], kind))
        assert conform(view, DECLARED).column("name").type == pa.utf8()


def test_missing_unknown_and_repeated_columns_are_named() -> None:
    given = pa.record_batch({"id": [1], "nmae": ["x"], "score": [1.0], "at": pa.nulls(1)})
    with pytest.raises(ConformError, match="without the declared column name and with column nmae"):
        conform(given, DECLARED, "Score")
    twice = pa.RecordBatch.from_arrays([pa.array([1]), pa.array([1])], names=["id", "id"])
    with pytest.raises(ConformError, match="column id twice"):
        conform(twice, pa.schema([("id", pa.int64())]))


@pytest.mark.parametrize(
    ("given", "declared"),
    [
        (pa.array(["1"]), pa.int64()),
        (pa.array([1]), pa.utf8()),
        (pa.array([True]), pa.int64()),
        (pa.array([1]), pa.timestamp("us")),
        (pa.array([b"x"]), pa.utf8()),
    ],
)
def test_another_kind_is_an_error_even_if_a_cast_exists(
    given: pa.Array, declared: pa.DataType
) -> None:
    with pytest.raises(ConformError, match="column c is") as caught:
        conform(pa.record_batch({"c": given}), pa.schema([("c", declared)]))
    assert not isinstance(caught.value, UnfitValue)


@pytest.mark.parametrize(
    ("given", "declared"),
    [
        (pa.array([300]), pa.int8()),
        (pa.array([1.5]), pa.int64()),
        (pa.array([2**53 + 1]), pa.float64()),
        (pa.array([1], pa.timestamp("ns")), pa.timestamp("us")),
    ],
)
def test_a_value_that_would_change_is_an_error_of_the_row(
    given: pa.Array, declared: pa.DataType
) -> None:
    with pytest.raises(UnfitValue, match="column c"):
        conform(pa.record_batch({"c": given}), pa.schema([("c", declared)]))


def test_a_null_where_none_may_be_names_the_row() -> None:
    declared = pa.schema([pa.field("c", pa.int64(), nullable=False)])
    with pytest.raises(UnfitValue, match="Score: column c is null in row 1"):
        conform(pa.record_batch({"c": pa.array([1, None])}), declared, "Score")


def test_a_batch_without_columns_keeps_its_rows() -> None:
    none = pa.record_batch({"c": [1, 2, 3]}).select([])
    assert conform(none, pa.schema([])).num_rows == 3


@pytest.mark.parametrize("kind", NESTED)
def test_nested_columns_of_any_type_become_plain_ones_that_are_valid(kind: str) -> None:
    for seed in range(30):
        array = random_array(50, Random(seed), kind).slice(3, 40)
        plain = plain_array(array)
        plain.validate(full=True)
        assert plain.type.equals(plain_type(array.type))
        assert repr(plain.to_pylist()) == repr(array.to_pylist())
