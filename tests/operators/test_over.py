"""lag, lead and running aggregates over a key: against lists of Python, row by row."""

from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from analytics_rows import (
    COLUMNS,
    MODERATE,
    NAMES,
    SCHEMA,
    Row,
    as_batch,
    batches,
    by_key,
    content,
    drive,
    known,
    tuples,
)
from hypothesis import given
from hypothesis import strategies as st

from penstock.elements.errors import PlanError, StateError
from penstock.operators.event_times import with_time
from penstock.operators.over import OverProcessor
from penstock.operators.over_items import OverItems
from penstock.operators.processor import LATE
from penstock.testing.harness import Harness, batch_of

KEYS = ["k", "s"]
# Values that may be added up: v without its extremes.
SMALL = "CASE WHEN v BETWEEN 0 AND 2 THEN v END"
ITEMS = {
    "before": "lag(v)",
    "before2": "lag(f, 2)",
    "nth": "row_number()",
    "n": "count(*)",
    "nv": "count(v)",
    "total": f"sum({SMALL})",
    "mean": f"avg({SMALL})",
    "least": "min(v)",
    "most": "max(f)",
    "one": "first(v)",
    "other": "last(f)",
    "step": f"{SMALL} - lag({SMALL})",
}


def small(value: Any) -> Any:
    return value if value in (0, 1, 2) else None


def expected_of(group: list[Row], at: int, preceding: int | None) -> dict[str, Any]:
    start = 0 if preceding is None else max(0, at - preceding)
    frame = group[start : at + 1]
    v = [row[3] for row in frame if row[3] is not None]
    f = [row[2] for row in frame if row[2] is not None]
    sums = [small(row[3]) for row in frame if small(row[3]) is not None]
    before = group[at - 1] if at else None
    now, then = small(group[at][3]), None if before is None else small(before[3])
    nans = [x for x in f if math.isnan(x)]
    return {
        "before": None if before is None else before[3],
        "before2": known(group[at - 2][2]) if at > 1 else None,
        "nth": at + 1,
        "n": len(frame),
        "nv": len(v),
        "total": sum(sums) if sums else None,
        "mean": sum(sums) / len(sums) if sums else None,
        "least": min(v, default=None),
        "most": "NaN" if nans else max(f, default=None),
        "one": frame[0][3],
        "other": known(group[at][2]),
        "step": None if now is None or then is None else now - then,
    }


def over(items: dict[str, str], preceding: int | None = None, keys: Any = KEYS) -> OverProcessor:
    return OverProcessor(keys, OverItems(items, SCHEMA), preceding, SCHEMA)


def listed(rows: list[list[Row]]) -> list[list[Row]]:
    """The rows of each key in their order."""
    return list(by_key(sorted((r for batch in rows for r in batch), key=content)).values())


def as_sorted(rows: list[Row]) -> list[Row]:
    return sorted(rows, key=repr)


@given(batches(), st.sampled_from([None, 0, 1, 2, 6]), st.booleans())
@MODERATE
def test_running_values_look_at_the_rows_before(
    rows: list[list[Row]], preceding: int | None, restarts: bool
) -> None:
    driven = drive(over(ITEMS, preceding), rows, lambda at: restarts and at % 3 == 1)
    expected = [
        (*map(known, row), *expected_of(group, at, preceding).values())
        for group in listed(rows)
        for at, row in enumerate(group)
    ]
    found = tuples(driven.taken(), [*NAMES, *ITEMS])
    assert as_sorted(found) == as_sorted(expected)
    assert driven.rows_behind_watermark == 0


@given(batches(), st.booleans())
@MODERATE
def test_lead_waits_for_the_rows_behind(rows: list[list[Row]], restarts: bool) -> None:
    items = {"next": "lead(v)", "after": "lead(f, 3)", "nth": "row_number()", "p": "lag(v)"}
    driven = drive(over(items), rows, lambda at: restarts and at % 3 == 1)
    expected = []
    for group in listed(rows):
        for at, row in enumerate(group):
            next_ = group[at + 1][3] if at + 1 < len(group) else None
            after = known(group[at + 3][2]) if at + 3 < len(group) else None
            expected.append(
                (*map(known, row[:4]), next_, after, at + 1, group[at - 1][3] if at else None)
            )
    table = driven.taken()
    assert as_sorted(tuples(table, [*COLUMNS.names, *items])) == as_sorted(expected)
    assert driven.rows_behind_watermark == 0


def test_a_row_with_lead_has_the_time_at_which_it_was_certain() -> None:
    driven = Harness(over({"next": "lead(v)"}, keys=["k"]), [SCHEMA])
    driven.send(as_batch([(1, "", None, 1, 10), (1, "", None, 2, 20)])).advance(15)
    assert driven.taken().num_rows == 0
    driven.restart().advance(25)
    assert tuples(driven.taken(), ["v", "next", "_time"]) == [(1, 2, 20)]
    driven.send(as_batch([(1, "", None, 3, 30)])).advance(99).end()
    assert tuples(driven.taken(), ["v", "next", "_time"]) == [(2, 3, 30), (3, None, 100)]


def test_late_rows_are_not_taken_into_account_and_not_lost() -> None:
    driven = Harness(over({"n": "count(*)"}, keys=["k"]), [SCHEMA])
    driven.send(as_batch([(1, "", None, 1, 10)])).advance(10)
    driven.send(as_batch([(1, "", None, 2, 10), (1, "", None, 3, 11)])).end()
    assert tuples(driven.taken(), ["v", "n"]) == [(1, 1), (3, 2)]
    assert tuples(driven.taken(LATE), ["v"]) == [(2,)]


def test_sums_are_exact_or_an_error() -> None:
    big = 2**62
    driven = Harness(over({"t": "sum(v)"}, keys=["k"]), [SCHEMA])
    rows = [(1, "", None, v, at) for at, v in enumerate([big, -big, big - 1, 1, -5])]
    assert tuples(driven.send(as_batch(rows)).advance(9).taken(), ["t"]) == [
        (big,), (0,), (big - 1,), (big,), (big - 5,),
    ]  # fmt: skip
    driven.send(as_batch([(1, "", None, big, 20), (1, "", None, big, 21)]))
    with pytest.raises(StateError, match=r"over: a sum does not fit in 64 bits"):
        driven.end()


def test_decimals_are_summed_as_decimals() -> None:
    columns = pa.schema([("k", pa.int64()), ("d", pa.decimal128(10, 2))])
    schema = with_time(columns)
    for preceding, expected in ((None, "0.31 0.51 0.51"), (1, "0.31 0.51 0.20")):
        items = OverItems({"t": "sum(d)", "a": "avg(d)"}, schema)
        driven = Harness(OverProcessor(["k"], items, preceding, schema), [schema])
        rows = [(1, Decimal("0.31")), (1, Decimal("0.20")), (1, None)]
        driven.send(batch_of(columns, rows, range(3))).restart().end()
        assert [str(t) for t, _ in tuples(driven.taken(), ["t", "a"])] == expected.split()


def test_float_sums_of_a_frame_do_not_remember_what_has_left_it() -> None:
    driven = Harness(over({"t": "sum(f)"}, 1, keys=["k"]), [SCHEMA])
    values = [1e300, 1.0, 2.0, math.inf, 3.0, 4.0]
    driven.send(as_batch([(1, "", f, 0, at) for at, f in enumerate(values)])).end()
    found = [t for (t,) in tuples(driven.taken(), ["t"])]
    assert found == [1e300, 1e300, 3.0, math.inf, math.inf, 7.0]


def test_running_values_survive_a_change_of_parallelism() -> None:
    made = over({"n": "count(*)", "p": "lag(v)"}, keys=["k"])
    rows = [(key, "", None, key, key) for key in range(200)]
    sections = Harness(made, [SCHEMA]).send(as_batch(rows)).advance(500).cut()
    found: list[Row] = []
    for subtask in range(3):
        part = Harness(
            made, [SCHEMA], restored=sections, subtask=subtask, parallelism=3, watermark=500
        )
        groups = part.ctx.key_groups
        mine = [(key, "", None, -1, 501) for key in range(200) if _group(key) in groups]
        if mine:
            found += tuples(part.send(as_batch(mine)).end().taken(), ["k", "n", "p"])
    assert sorted(found) == [(key, 2, key) for key in range(200)]


def _group(key: int) -> int:
    from penstock.elements.hash import hash_columns

    hashes = hash_columns(pa.record_batch({"k": pa.array([key])}), ["k"])
    return int(hashes[0] >> 52)


def test_what_cannot_be_meant_is_said_when_planning() -> None:
    for text, reason in (
        ("lag(v, 0)", "a number of rows, 1 to"),
        ("lag(v, k)", "a number of rows, 1 to"),
        ("sum(lag(v))", "a call inside sum"),
        ("sum(s)", "takes numbers, not"),
        ("row_number(v)", "write row_number"),
        ("count(distinct v)", "knows no DISTINCT"),
        ("lag(nope)", 'no column "nope"'),
    ):
        with pytest.raises(PlanError, match=reason):
            OverItems({"x": text}, SCHEMA)
