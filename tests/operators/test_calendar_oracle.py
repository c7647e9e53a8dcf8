"""Windows by the calendar of a place in every operator, against what its clocks show."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from calendar_rows import (
    COLUMNS,
    HOUR,
    ITEMS,
    LONG,
    PLACES,
    ROWS,
    SHORT,
    Row,
    batch,
    net,
    ns,
    result_of,
    results,
    runs,
    times_near,
    windows_at,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from test_split_keys import Split, Stage

from penstock.elements.signals import WATERMARK_MIN
from penstock.operators.aggregates import Aggregation
from penstock.operators.event_times import with_time
from penstock.operators.join_sides import LATE_RIGHT, LEFT, RIGHT
from penstock.operators.processor import LATE
from penstock.operators.ranking_windows import WindowRankProcessor
from penstock.operators.row_order import RowOrder
from penstock.operators.split_parts import distinct_argument
from penstock.operators.split_salt import SaltProcessor
from penstock.operators.two_phase import GlobalAggregateProcessor, LocalAggregateProcessor
from penstock.operators.window_join import WindowJoinProcessor
from penstock.operators.windows.aggregate import WindowAggregateProcessor
from penstock.operators.windows.assign import expand, grid_of
from penstock.operators.windows.split import (
    UpdatingWindowMergeProcessor,
    UpdatingWindowPartsProcessor,
    WindowMergeProcessor,
    WindowPartsProcessor,
)
from penstock.operators.windows.updating import UpdatingWindowProcessor
from penstock.testing.harness import Harness, batch_of

places = st.sampled_from(PLACES)
some_windows = st.sampled_from(SHORT)
BRIEF = settings(max_examples=40, deadline=None)


def aggregation(schema: pa.Schema = ROWS) -> Aggregation:
    return Aggregation(ITEMS, schema)


def numbers(*found: int) -> Any:
    return np.array(found, np.int64)


@settings(max_examples=150, deadline=None)
@given(plain=st.sampled_from(SHORT + LONG), place=places, data=st.data())
def test_the_windows_of_a_time_are_those_that_clocks_tell(
    plain: Any, place: Any, data: st.DataObject
) -> None:
    zone, moment = place
    times = data.draw(st.lists(times_near(moment, 5), min_size=1, max_size=8))
    watermark = data.draw(times_near(moment, 9))
    grid = grid_of(plain.in_zone(zone))
    panes = grid.panes(np.array(times, np.int64))
    at, ends = expand(grid, panes, WATERMARK_MIN, 2**62)
    starts = grid.starts(ends)
    found = [[] for _ in times]
    for row, start, end in zip(at.tolist(), starts.tolist(), ends.tolist(), strict=True):
        found[row].append((start, end))
    wanted = [sorted(windows_at(plain, zone, time), key=lambda w: w[1]) for time in times]
    assert found == wanted
    assert grid.first_ends(panes).tolist() == [each[0][1] for each in wanted]
    assert grid.last_ends(panes).tolist() == [each[-1][1] for each in wanted]
    assert ((panes <= times) & (grid.pane_ends(panes) > times)).all()
    lateness = data.draw(st.sampled_from([0, 5 * HOUR]))
    edge = grid.unused_before(watermark, lateness)
    for time, pane, windows in zip(times, panes.tolist(), wanted, strict=True):
        open_ = [end for _, end in windows if end - 1 > watermark]
        closed = all(end - 1 <= watermark - lateness for _, end in windows)
        assert (pane < edge) == (time < edge) == closed
        (after,) = grid.next_ends(numbers(pane), watermark).tolist()
        assert after == open_[0] if open_ else after > windows[-1][1]
        upto = watermark + 9 * HOUR
        _, between = expand(grid, numbers(pane), watermark + 1, upto)
        assert between.tolist() == [end for end in open_ if watermark + 1 < end <= upto]


@BRIEF
@given(plain=some_windows, place=places, lateness=st.sampled_from([0, 5, 80]), data=st.data())
def test_aggregates_by_the_calendar_are_those_of_the_rows_also_late_and_over_restarts(
    plain: Any, place: Any, lateness: int, data: st.DataObject
) -> None:
    zone, moment = place
    lateness_ns = lateness * HOUR
    made = WindowAggregateProcessor(plain.in_zone(zone), ["k"], aggregation(), ROWS, lateness_ns)
    driven = Harness(made, [ROWS], out_schemas={"main": made.out_schema, LATE: ROWS})
    groups: dict[Any, list[Row]] = defaultdict(list)
    table: dict[Any, Any] = {}
    late, watermark = 0, WATERMARK_MIN
    for some, further, dies in data.draw(runs(moment, 4)):
        driven.send(batch(some))
        for row in some:
            windows = windows_at(plain, zone, row[2])
            open_ = [w for w in windows if w[1] - 1 > watermark - lateness_ns]
            late += not open_
            for bounds in open_:
                groups[row[0], *bounds].append(row)
        if dies:
            driven.restart()
        if further is not None and further >= watermark:
            watermark = further
            driven.advance(watermark)
            given_ = results(driven.taken())
            assert [row[2] for row in given_] == sorted(row[2] for row in given_) or lateness
            table |= {row[:3]: row[3:] for row in given_}
            complete = {of for of in groups if of[2] - 1 <= watermark}
            assert table == {of: result_of(groups[of]) for of in complete}
    driven.end()
    table |= {row[:3]: row[3:] for row in results(driven.taken())}
    assert table == {of: result_of(some) for of, some in groups.items()}
    assert driven.taken(LATE).num_rows == driven.counters["late"] == late
    # A window that is given again keeps its last instant, which the watermark has passed.
    assert driven.rows_behind_watermark == 0 or lateness
    assert driven.processor._store.panes.size == 0  # type: ignore[attr-defined]


@BRIEF
@given(
    plain=some_windows,
    place=places,
    early_ns=st.sampled_from([None, 0]),
    lateness=st.sampled_from([0, 5, 80]),
    data=st.data(),
)
def test_windows_by_the_calendar_given_early_and_refined_are_what_the_rows_say(
    plain: Any, place: Any, early_ns: int | None, lateness: int, data: st.DataObject
) -> None:
    zone, moment = place
    made = UpdatingWindowProcessor(
        plain.in_zone(zone), ["k"], aggregation(), ROWS, early_ns, lateness * HOUR
    )
    driven = Harness(made, [ROWS], out_schemas={"main": made.out_schema, LATE: ROWS})
    groups: dict[Any, list[Row]] = defaultdict(list)
    late, watermark = 0, WATERMARK_MIN
    given_: list[pa.Table] = []
    for some, further, dies in data.draw(runs(moment, 4)):
        driven.send(batch(some))
        for row in some:
            windows = windows_at(plain, zone, row[2])
            open_ = [w for w in windows if w[1] - 1 > watermark - lateness * HOUR]
            late += not open_
            for bounds in open_:
                groups[row[0], *bounds].append(row)
        if dies:
            driven.restart()
        if further is not None and further >= watermark:
            watermark = further
            driven.advance(watermark)
            given_.append(driven.taken())
            there = {of for of in groups if of[2] - 1 <= watermark or early_ns == 0}
            assert net(given_) == Counter((*of, *result_of(groups[of])) for of in there)
    given_.append(driven.end().taken())
    assert net(given_) == Counter((*of, *result_of(some)) for of, some in groups.items())
    assert driven.taken(LATE).num_rows == late
    assert driven.rows_behind_watermark == 0


def expected_of(plain: Any, zone: str, rows: list[Row]) -> Counter[Any]:
    groups: dict[Any, list[Row]] = defaultdict(list)
    for row in rows:
        for bounds in windows_at(plain, zone, row[2]):
            groups[row[0], *bounds].append(row)
    return Counter((*of, *result_of(some)) for of, some in groups.items())


def in_order(steps: list[Any], lateness_ns: int) -> list[Any]:
    """Rows sorted by time in batches as before; the watermark follows the last one at distance."""
    times = iter(sorted(row[2] for some, _, _ in steps for row in some))
    made = []
    for some, further, dies in steps:
        rows = [(k, n, next(times)) for k, n, _ in some]
        watermark = rows[-1][2] - lateness_ns if rows and further is not None else None
        made.append((rows[::-1], watermark, dies))
    return made


@BRIEF
@given(plain=some_windows, place=places, data=st.data())
def test_two_phases_by_the_calendar_give_what_the_rows_say_at_any_parallelism(
    plain: Any, place: Any, data: st.DataObject
) -> None:
    zone, moment = place
    items = {name: text for name, text in ITEMS.items() if name != "kinds"}
    common: Any = (plain.in_zone(zone), ["k"], Aggregation(items, ROWS), ROWS)
    first = LocalAggregateProcessor(*common, judges=False)
    local = Harness(first, [ROWS], out_schemas={"main": first.out_schema})
    behind = Stage(lambda: GlobalAggregateProcessor(*common), ["k"], 2)
    rows: list[Row] = []
    given_: list[pa.Table] = []
    for some, watermark, dies in in_order(data.draw(runs(moment, 6)), 7 * HOUR):
        rows += some
        local.send(batch(some))
        if watermark is not None and watermark >= local.watermark:
            local.advance(watermark)
        if dies:
            local.cut()
        behind.send(local.taken())
        for each in behind.run:
            each.advance(local.watermark)
        given_.append(behind.taken())
        if dies:
            local.crash()
            behind.come_back(behind.cut(), data.draw(st.integers(1, 3)))
    behind.send(local.end().taken())
    for each in behind.run:
        each.end()
    given_.append(behind.taken())
    found = Counter(row for table in given_ for row in results(table))
    assert found == Counter(row[:-1] for row in expected_of(plain, zone, rows).elements())
    assert not any(each.rows_behind_watermark for each in [local, *behind.run])


@pytest.mark.parametrize("early_ns", [None, -1, 1000])
@settings(max_examples=15, deadline=None)
@given(plain=some_windows, place=places, data=st.data())
def test_split_keys_by_the_calendar_merge_to_what_the_rows_say_at_any_parallelism(
    early_ns: int | None, plain: Any, place: Any, data: st.DataObject
) -> None:
    zone, moment = place
    salt = SaltProcessor(aggregation(), 3, distinct_argument(aggregation(), "", ""), ROWS)
    window, salted = plain.in_zone(zone), salt.out_schema
    parts: Any = (window, ["k"], aggregation(salted), salted)
    merge: Any = (window, ["k"], aggregation(), ROWS)
    if early_ns is None:
        split = Split(salt, WindowPartsProcessor(*parts), WindowMergeProcessor(*merge))
    else:
        kept = (early_ns if early_ns > 0 else None, 0)
        split = Split(
            salt,
            UpdatingWindowPartsProcessor(*parts, *kept),
            UpdatingWindowMergeProcessor(*merge, *kept),
        )
    rows: list[Row] = []
    for some, watermark, dies in in_order(data.draw(runs(moment, 6, 4)), 7 * HOUR):
        rows += some
        split.send(batch(some))
        split.tick(1000)
        if watermark is not None and watermark >= split.parts.run[0].watermark:
            split.advance(watermark)
        if dies:
            split.rescale(data.draw(st.integers(1, 3)), data.draw(st.integers(1, 2)))
    split.end()
    assert net(split.given) == expected_of(plain, zone, rows)


@BRIEF
@given(plain=some_windows, place=places, count=st.sampled_from([None, 2]), data=st.data())
def test_the_first_rows_by_the_calendar_are_those_of_the_windows(
    plain: Any, place: Any, count: int | None, data: st.DataObject
) -> None:
    zone, moment = place
    made = WindowRankProcessor(
        plain.in_zone(zone), ["k"], RowOrder("n desc", ROWS), ROWS, count, {"nth": "rank"}
    )
    driven = Harness(made, [ROWS], out_schemas={"main": made.out_schema, LATE: ROWS})
    rows: list[Row] = []
    for some, watermark, dies in in_order(data.draw(runs(moment, 6)), 7 * HOUR):
        rows += some
        driven.send(batch(some))
        if watermark is not None and watermark >= driven.watermark:
            driven.advance(watermark)
        if dies:
            driven.restart()
    table = driven.end().taken()
    assert driven.taken(LATE).num_rows == driven.rows_behind_watermark == 0
    expected: list[Any] = []
    groups: dict[Any, list[Row]] = defaultdict(list)
    for row in rows:
        for bounds in windows_at(plain, zone, row[2]):
            groups[row[0], *bounds].append(row)
    for of, some in groups.items():
        # Nulls last; which of equal rows are taken is another test's matter.
        values = sorted((n for _, n, _ in some), key=lambda n: (n is None, -(n or 0)))[:count]
        expected += [(*of, n, values.index(n) + 1) for n in values]
    columns = [table.column(name) for name in ("k", "window_start", "window_end", "n", "nth")]
    cast = [c.cast(pa.int64()).to_pylist() for c in columns] if table.num_rows else []
    assert Counter(zip(*cast, strict=True)) == Counter(expected)


OTHER = with_time(pa.schema([("k", pa.int64()), ("m", pa.int64())]))


@pytest.mark.parametrize("how", ["inner", "full", "semi", "anti"])
@settings(max_examples=20, deadline=None)
@given(plain=some_windows, place=places, data=st.data())
def test_joins_by_the_calendar_are_those_of_nested_loops(
    how: str, plain: Any, place: Any, data: st.DataObject
) -> None:
    zone, moment = place
    made = WindowJoinProcessor(plain.in_zone(zone), ["k"], how, ROWS, OTHER)
    driven = Harness(made, [ROWS, OTHER], out_schemas=made.outputs)
    sides: tuple[list[Row], list[Row]] = ([], [])
    for some, watermark, dies in in_order(data.draw(runs(moment, 4)), 7 * HOUR):
        for row in some:
            port = data.draw(st.sampled_from([LEFT, RIGHT]))
            # Numbers tell rows apart.
            row = (row[0], 1000 * port + len(sides[port]), row[2])
            sides[port].append(row)
            columns = COLUMNS if port == LEFT else OTHER.remove(2)
            driven.send(batch_of(columns, [row[:2]], [row[2]]), port)
        if watermark is not None and watermark >= driven.watermark:
            driven.advance(watermark)
        if dies:
            driven.restart()
    table = driven.end().taken()
    assert driven.taken(LATE).num_rows == driven.taken(LATE_RIGHT).num_rows == 0
    assert driven.rows_behind_watermark == 0
    assert driven.processor.rows == [0, 0]  # type: ignore[attr-defined]
    assert joined(table) == nested(plain, zone, how, *sides)


def joined(table: pa.Table) -> Counter[Any]:
    if not table.num_rows:
        return Counter()
    names = [name for name in ("n", "m") if name in table.column_names]
    columns = [table.column(name).to_pylist() for name in names]
    return Counter(zip(*columns, strict=True))


def nested(plain: Any, zone: str, how: str, left: list[Row], right: list[Row]) -> Counter[Any]:
    lefts = [(row, w) for row in left for w in windows_at(plain, zone, row[2])]
    rights = [(row, w) for row in right for w in windows_at(plain, zone, row[2])]
    pairs = [
        (a, b)
        for a in lefts
        for b in rights
        if a[1] == b[1] and a[0][0] == b[0][0] and a[0][0] is not None
    ]
    if how in ("semi", "anti"):
        matched = {a for a, _ in pairs}
        return Counter((a[0][1],) for a in lefts if (a in matched) == (how == "semi"))
    found = Counter((a[0][1], b[0][1]) for a, b in pairs)
    if how == "full":
        found += Counter((a[0][1], None) for a in lefts if a not in {x for x, _ in pairs})
        found += Counter((None, b[0][1]) for b in rights if b not in {y for _, y in pairs})
    return found


def test_rows_centuries_apart_cost_no_calendar_between_them() -> None:
    window = SHORT[5].in_zone("Europe/Berlin")
    grid = grid_of(window)
    far = [ns(PLACES[0][1]) + day * 24 * HOUR for day in (-80_000, -80_001, 0, 9, 20_000)]
    times = np.array(far, np.int64)
    panes = grid.panes(times)
    alone = [grid_of(window).panes(times[at : at + 1])[0] for at in range(len(far))]
    assert panes.tolist() == alone
    at, ends = expand(grid, panes, WATERMARK_MIN, 2**62)
    counts = [len(windows_at(SHORT[5], "Europe/Berlin", time)) for time in far[2:]]
    assert np.bincount(at)[2:].tolist() == counts
    assert (ends > times[at]).all()
    assert len(grid.steps._known) < 200  # type: ignore[attr-defined]
