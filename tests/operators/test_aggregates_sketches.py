"""Sketches keep their stated errors, and do not depend on how rows were split or taken back."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.operators.accumulators_sketches import (
    REGISTERS,
    RELATIVE_ERROR,
    DistinctSketch,
    QuantileSketch,
)
from penstock.operators.grouping import Groups

COUNT = DistinctSketch(text="approx_count_distinct(x)")
STANDARD_ERROR = 1.04 / math.sqrt(REGISTERS)


def one_group(rows: int) -> Groups:
    return Groups(np.zeros(rows, np.int64), 1)


def split(sketch: Any, values: pa.Array, pieces: int) -> list[pa.Array]:
    """The sketch of `values`, merged from those of pieces."""
    size = -(-len(values) // pieces)
    parts = []
    for start in range(0, len(values), size):
        piece = values.slice(start, size)
        zeros = np.zeros(len(piece), np.int64)
        parts.append(sketch.partial(one_group(len(piece)), piece, zeros))
    columns = [pa.concat_arrays(each) for each in zip(*parts, strict=True)]
    merged: list[pa.Array] = sketch.merge(one_group(len(parts)), columns)
    return merged


@pytest.mark.parametrize("kind", ["numbers", "texts", "floats"])
def test_distinct_counts_are_within_their_standard_error(kind: str) -> None:
    errors = []
    for count in [1, 10, 100, 1000, 5000, 12_000, 30_000, 200_000]:
        for seed in range(4):
            numbers = np.arange(count, dtype=np.int64) + seed * 10**9
            made = {
                "numbers": lambda n: pa.array(n),
                "texts": lambda n: pa.array(n).cast(pa.string()),
                "floats": lambda n: pa.array(n * 0.37),
            }[kind](numbers)
            twice = pa.concat_arrays([made, made])
            (found,) = COUNT.final(split(COUNT, twice, 3)).to_pylist()
            errors.append((found - count) / count)
            if count <= 10:
                assert found == count
    assert np.abs(errors).max() < 4 * STANDARD_ERROR
    assert math.sqrt(np.mean(np.square(errors))) < STANDARD_ERROR
    assert abs(np.mean(errors)) < STANDARD_ERROR / 2


@settings(max_examples=50, deadline=None)
@given(
    values=st.lists(st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)), min_size=1),
    pieces=st.integers(1, 7),
)
def test_a_distinct_sketch_is_the_same_however_rows_are_split(values: Any, pieces: int) -> None:
    column = pa.array(values, pa.int64())
    whole = split(COUNT, column, 1)
    assert split(COUNT, column, pieces) == whole
    assert split(COUNT, column.take(pa.array(range(len(column))[::-1])), pieces) == whole
    (found,) = COUNT.final(whole).to_pylist()
    distinct = len(set(values) - {None})
    assert abs(found - distinct) <= max(1, 0.1 * distinct)


def test_zeros_and_nans_of_all_kinds_are_one_value_each() -> None:
    column = pa.array([0.0, -0.0, math.nan, -math.nan, None])
    assert COUNT.final(split(COUNT, column, 2)).to_pylist() == [2]


numbers = st.one_of(
    st.none(),
    st.floats(),
    st.sampled_from([0.0, -0.0, math.nan, math.inf, -math.inf, 1e308, -1e308, 2.3e-308]),
)


def exact(values: list[float], fraction: float) -> float:
    """The value of that rank, NaN being the greatest."""
    ordered = sorted(values, key=lambda each: (math.isnan(each), 0.0 if math.isnan(each) else each))
    return ordered[math.floor(fraction * (len(ordered) - 1))]


def near(found: float | None, wanted: float) -> bool:
    if found is None or math.isnan(wanted):
        return found is not None and math.isnan(found)
    if math.isinf(wanted):
        return found == wanted
    if abs(wanted) < 2.3e-308:
        return found == 0
    # The last digits are lost in logarithms of very large numbers.
    return abs(found - wanted) <= RELATIVE_ERROR * (1 + 1e-9) * abs(wanted)


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(numbers, min_size=1, max_size=60),
    fraction=st.one_of(st.sampled_from([0.0, 0.5, 0.99, 1.0]), st.floats(0, 1)),
    pieces=st.integers(1, 5),
)
def test_quantiles_are_within_one_percent_of_the_value_of_their_rank(
    values: list[float | None], fraction: float, pieces: int
) -> None:
    sketch = QuantileSketch(text="approx_quantile(x, q)", fraction=fraction)
    parts = split(sketch, pa.array(values, pa.float64()), pieces)
    (found,) = sketch.final(parts).to_pylist()
    there = [each for each in values if each is not None]
    assert near(found, exact(there, fraction)) if there else found is None
    assert parts == split(sketch, pa.array(values, pa.float64()), 1)


def test_quantiles_of_a_million_values_take_little_room() -> None:
    values = np.random.default_rng(1).lognormal(3, 2, 1_000_000)
    sketch = QuantileSketch(text="approx_quantile(x, 0.99)", fraction=0.99)
    parts = split(sketch, pa.array(values), 10)
    (found,) = sketch.final(parts).to_pylist()
    assert near(found, float(np.quantile(values, 0.99, method="lower")))
    assert len(parts[0].flatten()) < 1_200


def test_values_that_are_taken_back_leave_no_bucket_behind_also_if_that_came_first() -> None:
    sketch = QuantileSketch(text="approx_quantile(x, 0.5)", fraction=0.5)
    values = pa.array([1.0, 50.0, 3.0])
    added = sketch.weighted(one_group(3), values, np.array([1, 1, 1]))
    back = sketch.weighted(one_group(2), pa.array([50.0, 3.0]), np.array([-1, -1]))
    assert sketch.final(back).to_pylist() == [None]
    columns = [pa.concat_arrays(pair) for pair in zip(back, added, strict=True)]
    merged = sketch.merge(one_group(2), columns)
    assert near(sketch.final(merged).to_pylist()[0], 1.0)
    assert merged[1].to_pylist() == [[1]]
    assert not sketch.empty(merged).any()
    rest = sketch.weighted(one_group(1), pa.array([1.0]), np.array([-1]))
    nothing = [pa.concat_arrays(pair) for pair in zip(merged, rest, strict=True)]
    assert sketch.empty(sketch.merge(one_group(2), nothing)).all()
