"""Top N, running and by window, and ranks: against sorted lists of Python."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pyarrow as pa
import pytest
from analytics_rows import (
    COLUMNS,
    MODERATE,
    NAMES,
    SCHEMA,
    Descending,
    Row,
    as_batch,
    ascending,
    batches,
    by_key,
    content,
    counted,
    drive,
    known,
    net,
    tuples,
)
from hypothesis import given
from hypothesis import strategies as st

from penstock.elements.changelog import with_change
from penstock.elements.errors import PlanError
from penstock.elements.signals import WATERMARK_MAX
from penstock.operators import ranking, ranking_rows
from penstock.operators.processor import LATE
from penstock.operators.ranking import NewestArrival, RunningTopProcessor
from penstock.operators.ranking_windows import WindowRankProcessor
from penstock.operators.row_order import RowOrder
from penstock.operators.windows.descriptors import Cumulate, Hop, Tumble, tumble
from penstock.testing.harness import Harness

KEYS = ["k", "s"]


def by_text(row: Row) -> Any:
    """Descending, nulls last: the texts at hand, "" and "x", sort like their lengths."""
    return (row[1] is None, -len(row[1] or ""), content(row))


ORDERS = {
    "v desc": lambda row: (Descending(row[3]), content(row)),
    "f desc, v": lambda row: (Descending(row[2]), ascending(row[3]), content(row)),
    "f": lambda row: (ascending(row[2]), content(row)),
    "length(s) desc": by_text,
    "s desc": by_text,
}


def top(by: str, count: int, rank: str | None = None, keys: Any = KEYS) -> RunningTopProcessor:
    return RunningTopProcessor(keys, RowOrder(by, SCHEMA), count, SCHEMA, rank)


@given(batches(), st.sampled_from(sorted(ORDERS)), st.integers(1, 4), st.booleans(), st.booleans())
@MODERATE
def test_a_running_top_is_the_first_rows_of_each_key(
    rows: list[list[Row]], by: str, count: int, ranked: bool, restarts: bool
) -> None:
    made = top(by, count, "nth" if ranked else None)
    driven = drive(made, rows, lambda at: restarts and at % 3 == 1)
    expected = []
    for group in by_key(row for batch in rows for row in batch).values():
        for nth, row in enumerate(sorted(group, key=ORDERS[by])[:count], 1):
            # `_time` of changes says when they came, not when the rows were.
            expected.append((*row[:4], nth) if ranked else row[:4])
    names = [*COLUMNS.names, "nth"] if ranked else COLUMNS.names
    assert net(driven.taken(), names) == counted(expected)
    assert driven.rows_behind_watermark == 0


@given(batches(), st.integers(1, 3))
@MODERATE
def test_after_every_batch_the_changes_sum_up_to_the_top_so_far(
    rows: list[list[Row]], count: int
) -> None:
    driven = Harness(top("f desc, v", count), [SCHEMA])
    given_: list[Row] = []
    pieces: list[pa.Table] = []
    for batch in rows:
        driven.send(as_batch(batch))
        given_ += batch
        table = driven.taken()
        pieces += [table] if table.num_rows else []
        expected = [
            row[:4]
            for group in by_key(given_).values()
            for row in sorted(group, key=ORDERS["f desc, v"])[:count]
        ]
        if pieces:
            assert net(pa.concat_tables(pieces), COLUMNS.names) == counted(expected)


def test_an_update_is_the_old_row_and_then_the_new_one() -> None:
    driven = Harness(top("v desc", 1, keys=["k"]), [SCHEMA])
    driven.send(as_batch([(1, "a", None, 5, 10), (2, "b", None, 7, 11)]))
    driven.taken()
    driven.send(as_batch([(2, "b", None, 9, 12), (1, "a", None, 6, 13)]))
    found = tuples(driven.taken(), ["k", "v", "_change", "_time"])
    # In which order keys are given is not said.
    assert sorted(found, key=lambda row: row[0]) == [
        (1, 5, -1, 13),
        (1, 6, 1, 13),
        (2, 7, -1, 12),
        (2, 9, 1, 12),
    ]


def test_a_row_that_moves_within_the_first_is_no_change_unless_ranks_are_shown() -> None:
    for rank, changes in ((None, 2), ("nth", 6)):
        driven = Harness(top("v desc", 3, rank, keys=["k"]), [SCHEMA])
        driven.send(as_batch([(1, "", None, v, 0) for v in (1, 2, 3)]))
        driven.taken()
        driven.send(as_batch([(1, "", None, 4, 1)]))
        assert driven.taken().num_rows == changes


def test_the_newest_arrival_replaces_the_one_before() -> None:
    driven = Harness(RunningTopProcessor(["k"], NewestArrival(), 1, SCHEMA), [SCHEMA])
    for value in (3, 1, 2):
        driven.send(as_batch([(1, "", None, 0, 50), (1, "", None, value, -value)])).restart()
    changes = tuples(driven.taken(), ["v", "_change"])
    assert changes == [(3, 1), (3, -1), (1, 1), (1, -1), (2, 1)]


def test_silent_keys_are_forgotten_and_begin_anew_beside_what_was_given() -> None:
    made = RunningTopProcessor(["k"], RowOrder("v", SCHEMA), 2, SCHEMA, ttl_ns=100)
    driven = Harness(made, [SCHEMA])
    driven.send(as_batch([(1, "", None, 1, 0), (2, "", None, 1, 0)])).restart()
    driven.send(as_batch([(2, "", None, 9, 90)])).advance(99)
    assert driven.processor._rows.slots.count == 2
    driven.advance(150)
    assert driven.processor._rows.slots.count == 1
    driven.restart()
    assert driven.processor._rows.slots.count == 1
    driven.send(as_batch([(1, "", None, 5, 200), (2, "", None, 0, 180)]))
    assert net(driven.taken(), ["k", "v"]) == counted([(1, 1), (1, 5), (2, 1), (2, 0)])


def test_a_late_row_changes_what_is_given_from_now_on() -> None:
    driven = Harness(top("v", 1, keys=["k"]), [SCHEMA])
    driven.send(as_batch([(1, "", None, 5, 50)])).advance(60)
    driven.send(as_batch([(1, "", None, 4, 40)]))
    changes = tuples(driven.taken(), ["v", "_change", "_time"])
    assert changes == [(5, 1, 50), (5, -1, 61), (4, 1, 61)]
    assert driven.rows_behind_watermark == 0


@given(batches(), st.integers(1, 3))
@MODERATE
def test_a_top_without_key_is_one_list(rows: list[list[Row]], count: int) -> None:
    driven = drive(top("v desc", count, keys=[]), rows, lambda at: at == 2)
    all_rows = [row for batch in rows for row in batch]
    expected = sorted(all_rows, key=ORDERS["v desc"])[:count]
    assert net(driven.taken(), COLUMNS.names) == counted(row[:4] for row in expected)


def test_a_top_survives_a_change_of_parallelism() -> None:
    rows = [(key, "", None, value, value) for key in range(200) for value in range(5)]
    one = Harness(top("v desc", 2, keys=["k"]), [SCHEMA])
    one.send(as_batch(rows))
    sections = one.cut()
    kept = 0
    for subtask in range(3):
        part = Harness(
            top("v desc", 2, keys=["k"]),
            [SCHEMA],
            restored=sections,
            subtask=subtask,
            parallelism=3,
        )
        kept += int(part.processor._rows.filled.sum())
    assert kept == 400


@given(
    batches(),
    st.sampled_from(sorted(ORDERS)),
    st.integers(1, 4),
    st.booleans(),
    st.sampled_from([None, 4]),
    st.booleans(),
)
@MODERATE
def test_compiled_and_sorted_contests_give_the_same_changes_of_each_key(
    rows: list[list[Row]],
    by: str,
    count: int,
    ranked: bool,
    ttl_ns: int | None,
    restarts: bool,
) -> None:
    found = []
    for reference in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ranking, "uses_reference", lambda said=reference: said)
            made = RunningTopProcessor(
                KEYS, RowOrder(by, SCHEMA), count, SCHEMA, "nth" if ranked else None, ttl_ns
            )
            driven = Harness(made, [SCHEMA])
            changes = []
            newest = -100
            for at, batch in enumerate(rows):
                driven.send(as_batch(batch))
                names = [*COLUMNS.names, "_change", *(["nth"] if ranked else [])]
                table = driven.taken()
                changes.append(counted(tuples(table, names)))
                for _, of_key in by_key(tuples(table, names)).items():
                    taken_back = [row for row in of_key if row[4] < 0]
                    if len(taken_back) and not ranked:
                        # What takes its place comes just behind it.
                        assert [row[4] for row in of_key[: 2 * len(taken_back)]] == [
                            -1,
                            1,
                        ] * len(taken_back)
                newest = max([newest, *(row[-1] for row in batch)])
                driven.advance(max(driven.watermark, newest - 7))
                if restarts and at % 3 == 1:
                    driven.restart()
            found.append(changes)
    assert found[0] == found[1]


def test_rows_that_lay_in_lists_are_found_and_lie_in_columns_after_the_next_cut() -> None:
    rows = [(k, "", None, v, 0) for k in range(5) for v in range(4)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking_rows, "STORED_BY_RANK_MAX", 0)
        before = Harness(top("v desc", 3, keys=["k"]), [SCHEMA]).send(as_batch(rows))
        sections = before.cut()
    assert [section.name for section in sections] == ["top"]
    after = Harness(top("v desc", 3, keys=["k"]), [SCHEMA], restored=sections)
    sections = after.cut()
    assert {section.name: section.batch.num_rows for section in sections} == {"top": 0, "ranks": 5}
    again = Harness(top("v desc", 3, keys=["k"]), [SCHEMA], restored=sections)
    again.send(as_batch([(1, "", None, 9, 0), (2, "", None, 1, 0)]))
    assert tuples(again.taken(), ["k", "v", "_change"]) == [(1, 1, -1), (1, 9, 1)]


def test_a_rank_needs_a_name_of_its_own() -> None:
    with pytest.raises(PlanError, match='there is a column "v" already'):
        top("v", 1, "v")
    with pytest.raises(PlanError, match='no column "nope"'):
        top("nope desc", 1)
    assert top("v", 1).out_schema == with_change(SCHEMA)


# Windows ------------------------------------------------------------------------------------------

WINDOWS = [Tumble(10), Hop(10, 5), Hop(4, 10), Cumulate(9, 3)]


def windows_of(window: Any, time: int) -> list[tuple[int, int]]:
    if isinstance(window, Cumulate):
        start = time // window.size_ns * window.size_ns
        ends = range(start + window.step_ns, start + window.size_ns + 1, window.step_ns)
        return [(start, end) for end in ends if time < end]
    every = window.every_ns if isinstance(window, Hop) else window.size_ns
    first = (time // every - window.size_ns // every - 1) * every
    starts = range(first, time + 1, every)
    return [(s, s + window.size_ns) for s in starts if s <= time < s + window.size_ns]


def in_windows(window: Any, rows: list[list[Row]]) -> dict[Any, list[Row]]:
    found: dict[Any, list[Row]] = {}
    for row in (row for batch in rows for row in batch):
        for bounds in windows_of(window, row[-1]):
            found.setdefault((bounds, row[:2]), []).append(row)
    return found


@given(
    batches(),
    st.sampled_from(WINDOWS),
    st.sampled_from(sorted(ORDERS)),
    st.sampled_from([None, 1, 3]),
    st.booleans(),
)
@MODERATE
def test_the_first_rows_of_a_window(
    rows: list[list[Row]], window: Any, by: str, count: int | None, restarts: bool
) -> None:
    made = WindowRankProcessor(
        window, KEYS, RowOrder(by, SCHEMA), SCHEMA, count, {"nth": "row_number"}
    )
    driven = drive(made, rows, lambda at: restarts and at % 3 == 1)
    expected = []
    for (bounds, _), group in in_windows(window, rows).items():
        ordered = sorted(group, key=ORDERS[by])[:count]
        for nth, row in enumerate(ordered, 1):
            expected.append((*row[:4], *bounds, nth, bounds[1] - 1))
    table = driven.taken()
    names = [*COLUMNS.names, "window_start", "window_end", "nth", "_time"]
    assert counted(tuples(table, names)) == counted(expected)
    assert (driven.rows_behind_watermark, driven.counters["late"]) == (0, 0)
    assert driven.processor._rows._table.rows == 0
    numbers = [row[-2] for row in tuples(table, names)]
    assert all(b == a + 1 or b == 1 for a, b in pairwise(numbers))


@given(batches())
@MODERATE
def test_ranks_are_those_of_sql(rows: list[list[Row]]) -> None:
    ranks: Any = {"r": "rank", "d": "dense_rank"}
    made = WindowRankProcessor(Tumble(12), KEYS, RowOrder("v desc", SCHEMA), SCHEMA, None, ranks)
    expected = []
    for group in in_windows(Tumble(12), rows).values():
        for row in group:
            better = [each[3] for each in group if Descending(each[3]) < Descending(row[3])]
            expected.append((*row[:4], len(better) + 1, len(set(better)) + 1))
    found = tuples(drive(made, rows).taken(), [*COLUMNS.names, "r", "d"])
    assert counted(found) == counted(expected)


def test_rows_behind_their_windows_are_late_and_not_lost() -> None:
    made = WindowRankProcessor(Tumble(10), KEYS, RowOrder("v", SCHEMA), SCHEMA, 1)
    driven = Harness(made, [SCHEMA], out_schemas={LATE: SCHEMA})
    driven.send(as_batch([(1, "", None, 5, 3)])).advance(9)
    driven.send(as_batch([(1, "", None, 4, 9), (1, "", None, 4, 10)])).restart()
    driven.send(as_batch([(1, "", None, 3, 2)])).end()
    assert [row[3] for row in tuples(driven.taken(), NAMES[:4])] == [5, 4]
    assert [row[-1] for row in tuples(driven.taken(LATE), NAMES)] == [9, 2]
    assert driven.counters["late"] == 2


def test_many_windows_at_the_end_come_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    import penstock.operators.ranking_windows as module

    monkeypatch.setattr(module, "GIVEN_ROWS_MAX", 10)
    made = WindowRankProcessor(Hop(10, 5), ["k"], RowOrder("v", SCHEMA), SCHEMA, 1)
    driven = Harness(made, [SCHEMA])
    driven.send(as_batch([(1, "", None, time, time) for time in range(200)])).advance(WATERMARK_MAX)
    starts = tuples(driven.taken(), ["window_start", "v"])
    assert starts == [(start, max(start, 0)) for start in range(-5, 200, 5)]


def test_orders_know_text_and_nulls() -> None:
    rows: list[Row] = [(None, t, None, i, 0) for i, t in enumerate(["é", None, "", "a", "zz"])]
    made = top("s desc", 9, "nth", keys=["k"])
    found = tuples(Harness(made, [SCHEMA]).send(as_batch(rows)).taken(), ["s", "nth"])
    assert [known(s) for s, _ in sorted(found, key=lambda row: row[1])] == [
        "é",
        "zz",
        "a",
        "",
        None,
    ]


def test_windows_of_a_calendar_have_their_first_rows_too() -> None:
    window = tumble("1 day", timezone="Europe/Berlin")
    order = RowOrder("v desc", SCHEMA)
    driven = Harness(WindowRankProcessor(window, ["k"], order, SCHEMA, 1), [SCHEMA])
    hour = 3600 * 10**9
    rows = [(1, "", None, at, at * hour) for at in range(47)]
    driven.send(as_batch(rows)).restart().end()
    # In January Berlin is an hour ahead: its days begin at 23:00 UTC.
    assert tuples(driven.taken(), ["v", "window_start"]) == [
        (22, -hour),
        (46, 23 * hour),
    ]
