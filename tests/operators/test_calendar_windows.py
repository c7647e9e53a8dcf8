"""Windows of days and months in time zones, against what clocks there show row by row."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.elements.durations import DAYS_MAX
from penstock.elements.errors import PlanError
from penstock.elements.signals import WATERMARK_MAX, WATERMARK_MIN
from penstock.operators.aggregates import Aggregation
from penstock.operators.event_times import EARLIEST_NS, LATEST_NS, with_time
from penstock.operators.processor import LATE
from penstock.operators.windows import cumulate, hop, tumble
from penstock.operators.windows.aggregate import WindowAggregateProcessor
from penstock.operators.windows.assign import expand, grid_of
from penstock.testing.harness import Harness, batch_of

HOUR = 3600 * 10**9
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
CENTURY_NS = DAYS_MAX * 24 * HOUR


def ns(*when: int, zone: str = "UTC") -> int:
    moment = datetime(*when, tzinfo=ZoneInfo(zone))  # type: ignore[misc, arg-type]
    return (moment - EPOCH) // timedelta(microseconds=1) * 1000


def window_at(window: Any, time: int) -> tuple[int, int]:
    grid = grid_of(window)
    panes = grid.panes(np.array([time], np.int64))
    ends = grid.first_ends(panes)
    assert grid.starts(ends).tolist() == panes.tolist()
    return int(panes[0]), int(ends[0])


@pytest.mark.parametrize(
    ("day", "hours"), [((2024, 3, 31), 23), ((2024, 10, 27), 25), ((2024, 6, 1), 24)]
)
def test_days_in_berlin_are_as_long_as_its_clocks_make_them(day: Any, hours: int) -> None:
    window = tumble("1 day", timezone="Europe/Berlin")
    start, end = window_at(window, ns(*day, 12, zone="Europe/Berlin"))
    assert start == ns(*day, zone="Europe/Berlin")
    assert end - start == hours * HOUR


def test_a_day_whose_midnight_does_not_exist_begins_when_clocks_jump_over_it() -> None:
    # Sao Paulo, 2018-11-04: clocks went from 23:59:59 to 01:00.
    window = tumble("1 day", timezone="America/Sao_Paulo")
    jump = ns(2018, 11, 4, 3)
    assert window_at(window, jump) == (jump, jump + 23 * HOUR)
    assert window_at(window, jump - 1) == (jump - 24 * HOUR, jump)


def test_a_date_that_a_place_left_out_has_no_window() -> None:
    # Samoa crossed the date line: 2011-12-30 never was.
    window = tumble("1 day", timezone="Pacific/Apia")
    start, end = window_at(window, ns(2011, 12, 29, 12, zone="Pacific/Apia"))
    assert end - start == 24 * HOUR
    assert window_at(window, end)[0] == ns(2011, 12, 31, zone="Pacific/Apia") == end


@pytest.mark.parametrize(
    ("size", "starts"),
    [
        ("1 month", [(2023, 12, 1), (2024, 1, 1), (2024, 2, 1), (2024, 3, 1)]),
        ("1 quarter", [(2023, 10, 1), (2024, 1, 1), (2024, 4, 1)]),
        ("1 year", [(2023, 1, 1), (2024, 1, 1), (2025, 1, 1)]),
        ("1 week", [(2024, 1, 1), (2024, 1, 8), (2024, 1, 15)]),
        ("2 months", [(2024, 1, 1), (2024, 3, 1)]),
    ],
)
@pytest.mark.parametrize("zone", ["UTC", "Asia/Kathmandu", "America/New_York"])
def test_longer_windows_begin_at_the_dates_of_the_calendar(
    size: str, starts: list[Any], zone: str
) -> None:
    window = tumble(size, timezone=zone)
    for begin, end in pairwise(starts):
        expected = (ns(*begin, zone=zone), ns(*end, zone=zone))
        assert window_at(window, expected[0]) == expected
        assert window_at(window, expected[1] - 1) == expected


def test_an_offset_is_told_by_the_clocks_of_the_place() -> None:
    window = tumble("1 day", offset="6 hours", timezone="Europe/Berlin")
    start, end = window_at(window, ns(2024, 3, 31, 5, 59, zone="Europe/Berlin"))
    assert (start, end) == (
        ns(2024, 3, 30, 6, zone="Europe/Berlin"),
        ns(2024, 3, 31, 6, zone="Europe/Berlin"),
    )


zones = st.sampled_from(
    ["Europe/Berlin", "America/Sao_Paulo", "Australia/Lord_Howe", "America/Havana", "Africa/Cairo"]
)
times = st.lists(st.integers(ns(1970, 1, 1), ns(2030, 1, 1)), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None)
@given(zone=zones, times=times, hour=st.sampled_from([0, 2, 23]))
def test_rows_of_one_window_show_one_date_and_windows_leave_no_gap(
    zone: str, times: list[int], hour: int
) -> None:
    grid = grid_of(tumble("1 day", offset=f"{hour} hours", timezone=zone))
    panes = grid.panes(np.array(times, np.int64))
    ends = grid.first_ends(panes)
    assert (grid.panes(ends) == ends).all()
    place = ZoneInfo(zone)
    for time, start, end in zip(times, panes.tolist(), ends.tolist(), strict=True):
        assert start <= time < end
        shown = [EPOCH + timedelta(microseconds=at // 1000) for at in (start, time, end - 1000)]
        first, _, last = (
            (moment.astimezone(place).replace(tzinfo=None) - timedelta(hours=hour)).date()
            for moment in shown
        )
        # Where clocks go back over the border, a few minutes of the next date belong to the last.
        assert (last - first).days <= 1
        assert 22 * HOUR <= end - start <= 26 * HOUR


def test_daily_counts_in_a_zone_are_those_of_plain_python_also_late_and_over_a_restart() -> None:
    columns = pa.schema([("k", pa.int64())])
    schema = with_time(columns)
    window = tumble("1 day", timezone="Europe/Berlin")
    made = WindowAggregateProcessor(window, ["k"], Aggregation({"n": "count(*)"}, schema), schema)
    run = Harness(made, [schema], out_schemas={"main": made.out_schema, LATE: schema})
    first = ns(2024, 3, 28)
    stamps = [first + at * HOUR // 2 for at in range(48 * 6)]
    for at in range(0, len(stamps), 50):
        part = stamps[at : at + 50]
        run.send(batch_of(columns, [(stamp // HOUR % 3,) for stamp in part], part))
        run.advance(part[-1] - HOUR)
        run.restart()
    run.send(batch_of(columns, [(9,)], [first]))
    assert run.taken(LATE).num_rows == 1
    run.end()
    place = ZoneInfo("Europe/Berlin")
    expected = Counter(
        (
            stamp // HOUR % 3,
            (EPOCH + timedelta(microseconds=stamp // 1000)).astimezone(place).date(),
        )
        for stamp in stamps
    )
    found = Counter(
        {(r["k"], r["window_start"].astimezone(place).date()): r["n"] for r in run.rows()}
    )
    assert found == expected
    assert run.rows_behind_watermark == 0


def test_watermarks_at_their_limits_close_nothing_and_everything() -> None:
    grid = grid_of(tumble("1 month"))
    assert grid.unused_before(WATERMARK_MIN, 0) == WATERMARK_MIN
    assert grid.unused_before(WATERMARK_MAX, 0) == WATERMARK_MAX
    assert grid.unused_before(ns(2024, 2, 1) - 1, 0) == ns(2024, 2, 1)
    assert grid.unused_before(ns(2024, 2, 1) - 2, 0) == ns(2024, 1, 1)
    assert grid.unused_before(ns(2024, 2, 1), HOUR) == ns(2024, 1, 1)


def test_what_is_no_calendar_is_refused() -> None:
    for size, options in (
        ("1 hour", {"timezone": "Europe/Berlin"}),
        ("1 day", {"timezone": "Europe/Atlantis"}),
        ("0 months", {}),
        ("101 years", {}),
        ("1 day", {"timezone": "UTC", "offset": "25 hours"}),
    ):
        with pytest.raises(PlanError, match="tumble"):
            tumble(size, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("size", "every", "options", "says"),
    [
        ("24 hours", "1 hour", {"timezone": "Europe/Berlin"}, "Hours are equally long everywhere"),
        ("1 day", "6 hours", {"timezone": "Europe/Berlin"}, "'6 hours' is none of these"),
        ("10 days", "1 week", {"timezone": "UTC"}, "a whole number of  every="),
        ("1 month", "1 day", {}, "Months have no fixed number of days"),
        ("1 month", "1 quarter", {}, "a whole number of  every="),
        ("99 years", "1 day", {"timezone": "UTC"}, "a whole number of  every="),
        ("36000 days", "1 day", {"timezone": "UTC"}, "each row would be in 36000 windows"),
        ("3 months", "1 month", {"offset": "31 days"}, "offset='31 days' must be shorter"),
        (timedelta(days=-7), "1 day", {"timezone": "UTC"}, "not a length between a day and"),
        ("7 days", "1 day", {"timezone": "Mars"}, r"hop\(timezone='Mars'\): there is no such"),
    ],
)
def test_hops_that_the_calendar_has_not_say_which_it_has(
    size: Any, every: str, options: Any, says: str
) -> None:
    with pytest.raises(PlanError, match=says):
        hop(size, every=every, **options)


@pytest.mark.parametrize(
    ("size", "step", "says"),
    [
        ("12 hours", "1 hour", "Hours are equally long everywhere"),
        ("1 day", "7 hours", "the steps that go into 24 hours"),
        ("1 day", "24 hours", "the steps that go into 24 hours"),
        ("1 month", "1 week", "into months days one by one"),
        ("1 month", "2 days", "into months days one by one"),
        ("1 year", "5 months", "into quarters and years also months"),
        ("3 days", "1 month", "a step that goes into the size"),
        ("1 month", "1 min", "each row would be in 44640 windows"),
        ("1 day", "0 s", "must be longer than nothing"),
        ("1 day", "0 days", "is not a length between a day and a hundred years"),
    ],
)
def test_steps_that_do_not_go_into_a_calendar_say_which_do(size: str, step: str, says: str) -> None:
    with pytest.raises(PlanError, match=says):
        cumulate(size, step=step, timezone="Europe/Berlin")


def test_windows_that_differ_have_names_that_differ() -> None:
    made = [
        hop("7 days", every="1 day"),
        hop("7 days", every="1 day", offset="1 hour"),
        hop("7 days", every="1 day", timezone="UTC"),
        hop("7 days", every="1 day", timezone="UTC", offset="1 hour"),
        hop("7 days", every="1 day", timezone="Europe/Berlin"),
        cumulate("7 days", step="1 day", timezone="Europe/Berlin"),
        cumulate("7 days", step="1 hour", timezone="Europe/Berlin"),
        cumulate("1 week", step="1 hour", timezone="Europe/Berlin"),
    ]
    assert len({window.text for window in made}) == len(made)


@pytest.mark.parametrize(
    ("day", "ends"),
    [
        # Clocks went from 02:00 to 03:00, and from 03:00 to 02:00.
        ((2024, 3, 31), [7, 13, 19, 24]),
        ((2024, 10, 27), [5, 11, 17, 23, 24]),
        ((2024, 6, 1), [6, 12, 18, 24]),
    ],
)
def test_steps_within_a_day_are_of_elapsed_time_and_the_last_ends_with_it(
    day: Any, ends: list[int]
) -> None:
    grid = grid_of(cumulate("1 day", step="6 hours", timezone="Europe/Berlin"))
    begin = ns(*day, zone="Europe/Berlin")
    _, found = expand(grid, np.array([begin], np.int64), WATERMARK_MIN, WATERMARK_MAX)
    clocks = [
        (EPOCH + timedelta(microseconds=end // 1000)).astimezone(ZoneInfo("Europe/Berlin")).hour
        for end in found.tolist()
    ]
    assert [hour or 24 for hour in clocks] == ends


def test_seven_days_around_a_date_that_was_left_out_are_seven_others() -> None:
    grid = grid_of(hop("7 days", every="1 day", timezone="Pacific/Apia"))
    end = np.array([ns(2012, 1, 3, zone="Pacific/Apia")], np.int64)
    # Without the 30th, which never was.
    assert grid.starts(end).tolist() == [ns(2011, 12, 26, zone="Pacific/Apia")]
    assert (end - grid.starts(end)).tolist() == [7 * 24 * HOUR]


def test_windows_without_number_are_cut_into_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.operators.windows.aggregate.EXPANDED_ROWS_MAX", 100)
    columns = pa.schema([("k", pa.int64())])
    schema = with_time(columns)
    window = cumulate("1 month", step="1 day", timezone="Asia/Kathmandu")
    made = WindowAggregateProcessor(window, ["k"], Aggregation({"n": "count(*)"}, schema), schema)
    run = Harness(made, [schema])
    run.send(batch_of(columns, [(key,) for key in range(20)], [ns(2024, 2, 3)] * 20)).end()
    table = run.taken()
    assert table.num_rows == 20 * 27
    assert len(table.column("k").chunks) > 3


@pytest.mark.parametrize("time", [EARLIEST_NS, LATEST_NS - 1, 0])
@pytest.mark.parametrize(
    ("window", "held"),
    [
        (tumble("100 years", timezone="Asia/Kathmandu"), 1),
        (hop("100 years", every="1 year", offset="27 days"), 100),
        (hop("5000 weeks", every="1 week", timezone="Pacific/Apia"), 5000),
        (cumulate("100 years", step="1 quarter", timezone="America/Sao_Paulo"), None),
    ],
)
def test_the_longest_windows_hold_the_farthest_times(window: Any, held: Any, time: int) -> None:
    columns = pa.schema([("k", pa.int64())])
    schema = with_time(columns)
    made = WindowAggregateProcessor(
        window, ["k"], Aggregation({"n": "count(*)"}, schema), schema, CENTURY_NS
    )
    run = Harness(made, [schema], out_schemas={"main": made.out_schema, LATE: schema})
    run.send(batch_of(columns, [(1,)], [time])).advance(time).restart()
    run.send(batch_of(columns, [(1,)], [time])).end()
    table = run.taken()
    starts, ends = (
        table.column(name).cast(pa.int64()).to_numpy() for name in ("window_start", "window_end")
    )
    assert ((starts <= time) & (time < ends)).all()
    assert set(table.column("n").to_pylist()) == {2}
    assert len(set(ends.tolist())) == table.num_rows == (held or table.num_rows) > 0
    assert run.taken(LATE).num_rows == 0
