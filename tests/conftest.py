"""What a machine of few cores leaves out, so that all tests together stay well under half an hour.

On four cores and more everything runs. PENSTOCK_TESTS=full runs it anywhere. What is left out has a
neighbour that runs the same code in another setting; every kind of failure keeps a test.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import pytest

# pytest loads them itself. Looked through for doctests, files of one name are in each other's way.
collect_ignore_glob = ["conftest.py", "*/conftest.py"]
CORES = 4
LONG = (
    "test_rows_arrive_once_although_a_process_is_killed[fork server]",
    "test_rows_arrive_once_although_a_process_is_killed[job agent]",
    "test_a_node_that_comes_back_may_join_again",
    "test_a_stopped_agent_alone_is_noticed_too",
    "test_a_job_goes_on_at_another_width",
    "test_a_stopped_job_goes_on_when_it_is_submitted_again",
    "test_a_job_goes_on_at_other_widths",
    "test_a_killed_job_agent_is_opened_again",
    "test_a_lost_node_costs_one_restart_that_waits_until_it_is_gone",
    "test_links_with_the_controller_work_one_way_only",
    "test_the_controller_is_cut_off_from_all_and_healed",
    "test_a_job_starts_and_ends_although_every_frame_is_late",
    "test_three_months_under_fire_give_what_duckdb_gives",
    "test_the_rows_are_the_same_however_they_are_made[of_changes]",
    "test_first_rows_with_a_ttl",
    "test_the_last_row_of_each_key",
    "test_joins_without_bounds_on_their_results[kinds1]",
    "test_a_join_of_what_is_still_being_counted",
    "test_late_rows_are_emitted_or_late_but_never_lost",
    "test_functions[map]",
    "test_no_two_kinds_of_state_drift_apart",
    "test_timers_that_move",
    "test_union_before_a_keyed_operator",
    "test_hop",
    "test_cumulate",
    "test_rows_and_tables",
    "test_generators[awaited]",
    "test_files[csv]",
    "test_files[jsonl]",
    "test_nexmark",
    "test_dead_letters_are_written_exactly_once[map]",
    "test_rows_reach_files_once_through_kills_and_another_parallelism[partition_by0-0 s]",
    "test_the_table_is_the_same_however_it_is_run[by_values]",
    "test_the_table_is_the_same_however_it_is_run[of_changes]",
)
FOLDERS = ("cluster", "flights", "laws")


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Leave the long ones out where there are few cores, saying so."""
    if os.environ.get("PENSTOCK_TESTS") == "full" or len(os.sched_getaffinity(0)) >= CORES:
        return
    left_out = pytest.mark.skip(
        reason=f"long, on a machine of less than {CORES} cores; PENSTOCK_TESTS=full runs it"
    )
    for item in items:
        if item.path.parent.name in FOLDERS and item.name in LONG:
            item.add_marker(left_out)
