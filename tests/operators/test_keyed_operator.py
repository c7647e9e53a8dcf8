"""KeyedOperator: state per key, sides, late rows, restarts, rescaling."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
from keyed_events import (
    EVENTS,
    SECOND,
    AllKinds,
    Event,
    Expiring,
    Made,
    events,
    harness,
    texts,
)

from penstock.elements.hash import hash_columns
from penstock.elements.keygroup import subtask_of
from penstock.elements.signals import TIME_COLUMN
from penstock.operators.context import Context
from penstock.operators.declared import (
    Output,
    Side,
    ValueState,
)
from penstock.operators.keyed_operator import KeyedOperator
from penstock.operators.keyed_processor import KeyedProcessor
from penstock.testing.harness import Harness


def test_every_kind_of_state_is_kept_by_key_and_survives_restarts() -> None:
    driven = harness(AllKinds())
    driven.send(events(("a", 1, 1), ("b", 7, 1), ("a", 1, 2)))
    assert texts(driven) == [
        "None [1] {1: 1} 1 [1]",
        "None [7] {7: 1} 7 [7]",
        "1 [1, 1] {1: 2} 2 [1]",
    ]
    driven.restart().send(events(("a", 2, 3), ("b", 7, 3)))
    assert texts(driven) == ["1 [1, 1, 2] {1: 2, 2: 1} 4 [1, 2]", "7 [7, 7] {7: 2} 14 [7]"]


def test_state_follows_its_key_when_the_parallelism_changes() -> None:
    keys = [f"k{i}" for i in range(50)]
    first = harness(AllKinds())
    first.send(events(*((key, i, 1) for i, key in enumerate(keys))))
    sections = first.cut()
    found = []
    for subtask in range(3):
        part = harness(AllKinds(), subtask=subtask, parallelism=3, restored=sections)
        owned = [key for key in keys if _owner(key, 3) == subtask]
        part.send(events(*((key, 1000, 2) for key in owned)))
        found += [text.split()[0] for text in texts(part)]
        assert owned, "every subtask has some of fifty keys"
    assert sorted(map(int, found)) == list(range(50))


def _owner(key: str, parallelism: int) -> int:
    return int(subtask_of(hash_columns(pa.record_batch({"key": [key]}), ["key"]), parallelism)[0])


def test_rows_made_by_process_inherit_the_time_of_their_row() -> None:
    driven = harness(AllKinds())
    driven.send(events(("a", 1, 5), ("b", 1, 3)))
    assert driven.taken().column(TIME_COLUMN).cast(pa.int64()).to_pylist() == [
        5 * SECOND,
        3 * SECOND,
    ]


class Sides(KeyedOperator[Event, Made]):
    late = None
    odd = Output(Event)

    def process(self, key: str, row: Event, ctx: Context) -> Iterator[Made | Side[Event]]:
        if row.n is not None and row.n % 2:
            yield self.odd(row)
        yield Made(key, f"{ctx.is_late} {ctx.event_time:%S}")


def test_side_outputs_and_lateness() -> None:
    driven = harness(Sides()).advance(5 * SECOND)
    driven.send(events(("a", 1, 5), ("a", 2, 6)))
    assert texts(driven) == ["True 05", "False 06"]
    assert driven.rows("odd") == [{"key": "a", "n": 1}]


class Groups(KeyedOperator[Event, Made]):
    total = ValueState(int, default=0)

    def process_group(self, key: str, rows: Sequence[Event], ctx: Context) -> Iterator[Made]:
        self.total.value += sum(row.n or 0 for row in rows)
        yield Made(key, f"{key} {self.total.value} of {len(rows)}")


def test_process_group_gets_the_rows_of_a_key_together_and_the_latest_time() -> None:
    driven = harness(Groups()).send(events(("a", 1, 9), ("b", 2, 1), ("a", 3, 4)))
    table = driven.taken()
    assert table.column("text").to_pylist() == ["a 4 of 2", "b 2 of 1"]
    assert table.column(TIME_COLUMN).cast(pa.int64()).to_pylist() == [9 * SECOND, SECOND]


def test_a_ttl_counts_event_time_since_the_last_write() -> None:
    driven = harness(Expiring()).advance(1 * SECOND).send(events(("a", 5, 2)))
    driven.advance(11 * SECOND).send(events(("a", 6, 12)))
    driven.restart().advance(22 * SECOND).send(events(("a", 7, 23)))
    assert texts(driven) == ["0", "5", "0"]


def test_the_key_is_a_scalar_for_one_column_and_a_tuple_for_several() -> None:
    class Keys(KeyedOperator[Event, Made]):
        def process(self, key: Any, row: Event, ctx: Context) -> Iterator[Made]:
            yield Made(row.key, repr(key))

    processor = KeyedProcessor(Keys(), ("key", "n"), EVENTS)
    driven = Harness(processor, [EVENTS]).send(events(("a", 1, 1), ("b", None, 1)))
    assert texts(driven) == ["('a', 1)", "('b', None)"]
    assert texts(harness(Keys()).send(events(("a", 1, 1)))) == ["'a'"]
