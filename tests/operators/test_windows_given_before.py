"""What readers have of live windows after a restart: what state says, not what a watermark says."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from penstock.elements.signals import WATERMARK_MAX
from penstock.operators.aggregates import Aggregation
from penstock.operators.event_times import with_time
from penstock.operators.windows.descriptors import Session, Tumble
from penstock.operators.windows.updating import UpdatingWindowProcessor
from penstock.operators.windows.updating_sessions import UpdatingSessionProcessor
from penstock.testing.harness import Harness, batch_of

COLUMNS = pa.schema([("k", pa.int64())])
SCHEMA = with_time(COLUMNS)
KINDS = ("sessions", "windows")


def started(kind: str, watermark: int, restored: Any = (), lateness_ns: int = 100) -> Harness:
    """An operator that gives sessions of gap 10, or windows of 10, when they are over."""
    aggregation = Aggregation({"n": "count(*)"}, SCHEMA)
    made = (
        UpdatingSessionProcessor(Session(10), ["k"], aggregation, SCHEMA, None, lateness_ns)
        if kind == "sessions"
        else UpdatingWindowProcessor(Tumble(10), ["k"], aggregation, SCHEMA, None, lateness_ns)
    )
    return Harness(made, [SCHEMA], restored=restored, watermark=watermark)


def rows(*times: int) -> pa.RecordBatch:
    return batch_of(COLUMNS, [(1,)] * len(times), list(times))


def given(driven: Harness) -> list[tuple[int, int]]:
    """(n, +1 or -1) of all changes, in order."""
    return [(row["n"], row["_change"]) for row in driven.rows()]


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_given_is_not_given_twice_though_the_restored_watermark_is_behind(
    kind: str,
) -> None:
    """Another subtask's was, and the least of all is restored."""
    driven = started(kind, -1).send(rows(0, 3)).advance(30)
    assert given(driven) == [(2, 1)]
    again = started(kind, 4, driven.cut())
    assert given(again.advance(8).advance(40).end()) == []


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_given_is_refined_though_the_restored_watermark_is_behind(kind: str) -> None:
    driven = started(kind, -1).send(rows(0, 3)).advance(30)
    driven.rows()
    again = started(kind, 4, driven.cut()).send(rows(5)).advance(6)
    # Once more a cut before the watermark has reached its end again.
    last = started(kind, 6, again.cut())
    changes = given(again) + given(last.advance(60).end())
    assert changes == [(2, -1), (3, 1)]


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_given_at_the_end_of_data_is_not_given_to_those_who_go_on(kind: str) -> None:
    driven = started(kind, -1).send(rows(6)).advance(4).end()
    assert given(driven) == [(1, 1)]
    assert given(started(kind, 4, driven.cut()).advance(50).end()) == []


def test_a_session_far_ahead_with_a_long_lateness_is_kept() -> None:
    far = WATERMARK_MAX - 1000
    driven = started("sessions", -1, lateness_ns=2**62).send(rows(far))
    driven.advance(far + 20).send(rows(far + 5)).end()
    assert given(driven) == [(1, 1), (1, -1), (2, 1)]
