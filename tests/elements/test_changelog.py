"""`_change`: where it stands, who may have it, and what a stream of changes amounts to."""

from __future__ import annotations

import pyarrow as pa
import pytest

from penstock.elements.changelog import is_updating, weights_of, with_change, without_change
from penstock.elements.errors import EngineError, PlanError
from penstock.operators.net_changes import net_rows

TIMED = pa.schema([("a", pa.int64()), ("_time", pa.timestamp("ns", "UTC"))])


def test_change_stands_just_before_the_event_time_and_else_last() -> None:
    assert with_change(TIMED).names == ["a", "_change", "_time"]
    assert with_change(pa.schema([("a", pa.int64())])).names == ["a", "_change"]
    assert with_change(with_change(TIMED)) == with_change(TIMED)
    assert without_change(with_change(TIMED)) == TIMED
    assert is_updating(with_change(TIMED))
    assert not is_updating(TIMED)


def test_a_users_column_of_that_name_is_refused_in_any_case() -> None:
    with pytest.raises(PlanError, match="reserved"):
        with_change(pa.schema([("_Change", pa.int64())]))


def test_rows_without_the_column_are_all_added() -> None:
    assert weights_of(pa.record_batch({"a": [1, 2]})).tolist() == [1, 1]


def test_net_rows_are_those_added_and_not_taken_back_in_whatever_order() -> None:
    changes = pa.table(
        {
            "k": ["b", "a", "a", None, "a", "a"],
            "n": pa.array([1.0, 1.0, float("nan"), 2.0, 1.0, float("nan")]),
            "_change": pa.array([1, -1, 1, 1, 1, -1], pa.int8()),
        }
    )
    assert net_rows(changes).to_pylist() == [{"k": "b", "n": 1.0}, {"k": None, "n": 2.0}]


def test_net_rows_keep_equal_rows_as_often_as_they_were_added() -> None:
    changes = pa.table({"k": [7, 7, 7, 7], "_change": pa.array([1, 1, 1, -1], pa.int8())})
    assert net_rows(changes).to_pylist() == [{"k": 7}, {"k": 7}]


def test_taking_back_what_was_never_there_is_an_error() -> None:
    changes = pa.table({"k": [7], "_change": pa.array([-1], pa.int8())})
    with pytest.raises(EngineError, match="'k': 7"):
        net_rows(changes)
