"""Many pipelines are held to the law here: in brief, unless PENSTOCK_SAME_ROWS=full is said.

In brief, each is run in two ways instead of four, and those in NEARLY_IMPLIED are left out: what
they run is run by a neighbour, too, in another form.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

os.environ.setdefault("PENSTOCK_SAME_ROWS", "brief")

NEARLY_IMPLIED = frozenset(
    {
        "test_ranks_in_hopping_windows",
        "test_running_totals_over_all_rows_so_far",
        "test_a_running_top_with_ranks",
        "test_samples",
        "test_patterns",
        "test_rows_reach_files_once_through_kills_and_another_parallelism[partition_by0-1 hour]",
        "test_rows_reach_files_once_through_kills_and_another_parallelism[partition_by1-0 s]",
        "test_versions_by_event_time[v < w]",
        "test_functions[flat_map]",
        "test_tumble",
        "test_union",
        "test_generators[anew]",
        "test_files[arrow]",
        "test_files[csv.gz]",
        "test_dead_letters_are_written_exactly_once[value stage]",
        "test_the_table_is_the_same_however_it_is_run[simple]",
        "test_the_table_is_the_same_however_it_is_run[days_elsewhere]",
        "test_the_table_is_the_same_however_it_is_run[windows]",
    }
)
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Leave out what is nearly implied, saying so."""
    if os.environ["PENSTOCK_SAME_ROWS"] == "full":
        return
    skipped = pytest.mark.skip(
        reason="nearly implied by other laws; PENSTOCK_SAME_ROWS=full runs it"
    )
    for item in items:
        if item.path.parent == HERE and item.name in NEARLY_IMPLIED:
            item.add_marker(skipped)
