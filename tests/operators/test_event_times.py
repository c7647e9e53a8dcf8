"""Which event times there are: those that windows and lengths of time can be reckoned with."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pytest

from penstock.elements.durations import DAYS_MAX
from penstock.operators.event_times import EARLIEST_NS, LATEST_NS, to_times
from penstock.operators.windows.descriptors import tumble


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_the_years_1778_to_2161_are_event_times_in_every_unit(unit: str) -> None:
    moments = [
        datetime(1777, 12, 31, 23, 59, 59, tzinfo=UTC),
        datetime(1778, 1, 1, tzinfo=UTC),
        None,
        datetime(2161, 12, 31, 23, 59, 59, tzinfo=UTC),
        datetime(2162, 1, 1, tzinfo=UTC),
    ]
    times, usable = to_times(pa.array(moments, pa.timestamp(unit, "UTC")))
    assert usable.tolist() == [False, True, False, True, False]
    assert times[1] == EARLIEST_NS
    assert times[3] == LATEST_NS - 10**9 + 1


def test_ends_of_time_that_programs_write_for_never_are_none() -> None:
    ends = pa.array([2**63 - 1, -(2**63) + 1, 0], pa.timestamp("ns"))
    assert to_times(ends)[1].tolist() == [False, False, True]
    assert to_times(pa.array([2**31 - 1, -(2**31), 0], pa.date32()))[1].tolist() == [
        False,
        False,
        True,
    ]


def test_windows_of_a_century_around_either_end_can_be_said() -> None:
    size_ns = tumble(f"{DAYS_MAX} days").size_ns
    for time_ns in (EARLIEST_NS, LATEST_NS):
        start_ns = time_ns // size_ns * size_ns
        assert np.iinfo(np.int64).min < start_ns
        assert start_ns + size_ns < np.iinfo(np.int64).max
