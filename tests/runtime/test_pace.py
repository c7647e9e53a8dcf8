"""Slices and limits follow the measured pace (hazard 8)."""

from __future__ import annotations

from penstock.runtime.pace import FIRST_ROWS, ROWS_MAX, Pace

MILLISECOND = 1_000_000


def test_before_anything_is_measured_little_is_let_in() -> None:
    pace = Pace(500 * MILLISECOND)
    assert pace.slice_rows == FIRST_ROWS
    assert pace.new_limit() == FIRST_ROWS


def test_a_row_per_millisecond_means_small_slices_and_half_a_second_of_rows() -> None:
    pace = Pace(500 * MILLISECOND)
    for _ in range(20):
        pace.measured(20, 20 * MILLISECOND)
    assert pace.slice_rows == 20
    assert pace.new_limit() == 500


def test_a_fast_operator_is_not_held_back() -> None:
    pace = Pace(500 * MILLISECOND)
    pace.measured(10_000, MILLISECOND)
    assert pace.slice_rows == ROWS_MAX


def test_one_row_always_passes() -> None:
    pace = Pace(500 * MILLISECOND)
    pace.measured(1, 3600 * 10**9)
    assert pace.slice_rows == 1
    assert pace.new_limit() == 1


def test_small_changes_are_not_published() -> None:
    pace = Pace(500 * MILLISECOND)
    pace.measured(1, MILLISECOND)
    assert pace.new_limit() == 500
    pace.measured(1, MILLISECOND + MILLISECOND // 10)
    assert pace.new_limit() is None
