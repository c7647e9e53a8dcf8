"""Slices and limits follow the measured pace (hazard 8)."""

from __future__ import annotations

import random

from penstock.runtime.pace import FIRST_ROWS, ROWS_MAX, SLICE_NS, Pace

MILLISECOND = 1_000_000


def test_before_anything_is_measured_little_is_let_in() -> None:
    pace = Pace(500 * MILLISECOND)
    assert pace.slice_rows == FIRST_ROWS
    assert pace.new_limit() == FIRST_ROWS


def test_a_row_per_millisecond_means_small_slices_and_half_a_second_of_rows() -> None:
    pace = Pace(500 * MILLISECOND)
    for _ in range(20):
        pace.measured(20, 20 * MILLISECOND)
    assert 20 <= pace.slice_rows <= 26  # a little longer at times, to see what a slice itself costs
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


def slices_of(fixed_ns: float, row_ns: float, turns: int, seed: int = 1) -> list[int]:
    """Rows per slice when as many rows are handed over as the pace asks for, more or less."""
    chance = random.Random(seed)
    pace, rows, taken = Pace(500 * MILLISECOND), 1, []
    for _ in range(turns):
        noise = chance.uniform(0.7, 1.3)
        pace.measured(rows, int((fixed_ns + row_ns * rows) * noise))
        # Messages end where they end; only what fits is joined.
        rows = max(
            1, int(chance.uniform(0.5, 1.5) * min(pace.slice_rows, pace.new_limit() or 8192))
        )
        taken.append(rows)
    return taken


def test_a_costly_start_of_each_slice_does_not_make_slices_shrink_to_a_row() -> None:
    for seed in range(20):
        taken = slices_of(40 * MILLISECOND, 5_000, turns=200, seed=seed)
        assert min(taken[50:]) >= 500


def test_slices_stay_short_where_it_is_the_rows_that_cost() -> None:
    for seed in range(20):
        taken = slices_of(MILLISECOND / 10, MILLISECOND, turns=500, seed=seed)[50:]
        assert sum(taken) / len(taken) <= 4 * SLICE_NS / MILLISECOND
        assert max(taken) <= 1_000


def test_a_chain_that_becomes_slow_gets_short_slices_soon() -> None:
    pace = Pace(500 * MILLISECOND)
    for rows in (8192, 4000, 8192, 6000):
        pace.measured(rows, rows * 1_000)
    for _ in range(30):
        rows = min(pace.slice_rows, 8192)
        pace.measured(rows, rows * MILLISECOND)
    assert pace.slice_rows <= 40
