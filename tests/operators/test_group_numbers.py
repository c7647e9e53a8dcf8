"""Groups of equal rows: numbers, first rows, sizes, sums and extremes, compiled and plain."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.operators.grouping import Groups, group_rows
from penstock.operators.kernels.compile import MODE_VARIABLE
from penstock.operators.kernels.group_numbers import GREATEST, LEAST, SUM, numbered, reduced

WIDE = st.one_of(
    st.integers(-3, 3), st.integers(-(2**63), 2**63 - 1), st.sampled_from([-(2**63), 2**63 - 1])
)


@st.composite
def columns(draw: st.DrawFn) -> list[np.ndarray]:
    rows = draw(st.integers(1, 60))
    count = draw(st.integers(1, 3))
    made = [draw(st.lists(WIDE, min_size=rows, max_size=rows)) for _ in range(count)]
    return [np.array(column, np.int64) for column in made]


@settings(max_examples=200, deadline=None)
@given(columns())
def test_groups_are_numbered_in_the_order_of_their_first_rows(given: list[np.ndarray]) -> None:
    codes, firsts, sizes = numbered(given)
    known: dict[tuple[int, ...], int] = {}
    keys = list(zip(*(column.tolist() for column in given), strict=True))
    expected = [known.setdefault(key, len(known)) for key in keys]
    assert codes.tolist() == expected
    assert firsts.tolist() == [expected.index(code) for code in range(len(known))]
    assert sizes.tolist() == [expected.count(code) for code in range(len(known))]


@settings(max_examples=100, deadline=None)
@given(columns())
def test_the_plain_form_gives_the_same_numbers(given: list[np.ndarray]) -> None:
    compiled = numbered(given)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(MODE_VARIABLE, "reference")
        plain = numbered(given)
    for one, other in zip(compiled, plain, strict=True):
        assert one.dtype == other.dtype
        assert one.tolist() == other.tolist()


@settings(max_examples=100, deadline=None)
@given(columns())
def test_sums_and_extremes_are_those_of_the_rows_of_each_group(given: list[np.ndarray]) -> None:
    codes, firsts, _ = numbered(given[:1])
    values = given[-1]
    for how, function in ((LEAST, np.minimum), (GREATEST, np.maximum), (SUM, np.add)):
        found = reduced(codes, len(firsts), values, how)
        expected = [function.reduce(values[codes == code]) for code in range(len(firsts))]
        assert found.tolist() == [int(each) for each in expected]


@settings(max_examples=60, deadline=None)
@given(columns(), st.sampled_from([np.int64, np.uint64, np.int32, np.float64]))
def test_groups_reduce_alike_compiled_and_plain(given: list[np.ndarray], dtype: type) -> None:
    values = given[-1].astype(dtype)
    groups = group_rows([pa.array(column) for column in given[:1]], len(values))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(MODE_VARIABLE, "reference")
        plain = Groups(groups.codes, groups.count)
        expected = [plain.add(values), plain.reduce(np.maximum, values)]
    found = [groups.add(values), groups.reduce(np.maximum, values)]
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert one.tolist() == other.tolist()


def test_a_table_of_many_groups_finds_each_again() -> None:
    rng = np.random.default_rng(5)
    keys = np.tile(rng.permutation(50_000), 2)
    codes, firsts, sizes = numbered([keys])
    assert len(firsts) == 50_000
    assert (codes[:50_000] == codes[50_000:]).all()
    assert (sizes == 2).all()


def test_one_group_of_all_rows_needs_no_columns() -> None:
    groups = group_rows([], 4)
    values = np.array([4, -(2**63), 7, 2**63 - 1])
    assert groups.add(values).tolist() == [10]
    assert groups.reduce(np.minimum, values).tolist() == [-(2**63)]
    assert groups.any(np.array([False, False, True, False])).tolist() == [True]
    assert groups.sizes.tolist() == [4]
    assert groups.firsts.tolist() == [0]


def test_memory_that_may_not_be_written_is_grouped_too() -> None:
    column = pa.array([7, 7, 9, 7], pa.int64())
    groups = group_rows([column], 4)
    assert groups.codes.tolist() == [0, 0, 1, 0]
    assert groups.reduce(np.maximum, column.to_numpy()).tolist() == [7, 9]
