"""Two phases give what one gives: over several first phases, hot keys, lateness and restarts."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pyarrow as pa
import pytest

from penstock.operators.aggregates import Aggregation
from penstock.operators.event_times import with_time
from penstock.operators.processor import LATE
from penstock.operators.two_phase import GlobalAggregateProcessor, LocalAggregateProcessor
from penstock.operators.windows.aggregate import WindowAggregateProcessor
from penstock.operators.windows.descriptors import Cumulate, Hop, Tumble
from penstock.testing.harness import Harness, batch_of

COLUMNS = pa.schema([("k", pa.int64()), ("n", pa.int64()), ("s", pa.string())])
ROWS = with_time(COLUMNS)
ITEMS = {"rows": "count(*)", "total": "sum(n)", "low": "min(s)", "mean": "avg(n)", "end": "last(n)"}


def batch(rows: list[tuple[Any, ...]]) -> pa.RecordBatch:
    return batch_of(COLUMNS, [row[:3] for row in rows], [row[3] for row in rows])


def given(table: pa.Table) -> Counter[Any]:
    return Counter(tuple(row.values()) for row in table.to_pylist())


class TwoPhases:
    """Two first phases in front of one second phase, wired as the runtime would."""

    def __init__(self, window: Any, lateness: int = 0) -> None:
        common = (window, ["k"], Aggregation(ITEMS, ROWS), ROWS, lateness)
        self.local = [self._harness(LocalAggregateProcessor(*common)) for _ in range(2)]
        self.behind = self._harness(GlobalAggregateProcessor(*common))

    @staticmethod
    def _harness(made: Any) -> Harness:
        schemas = {"main": made.out_schema, LATE: made.in_schema}
        return Harness(made, [made.in_schema], out_schemas=schemas)

    def send(self, which: int, rows: list[tuple[Any, ...]]) -> None:
        self.local[which].send(batch(rows))

    def forward(self) -> None:
        for phase in self.local:
            table = phase.taken()
            if table.num_rows:
                self.behind.send(table)

    def advance(self, which: int, watermark: int) -> None:
        phase = self.local[which]
        phase.advance(max(phase.watermark, watermark))
        self.forward()
        self.behind.advance(min(each.watermark for each in self.local))

    def cut_and_crash(self) -> None:
        for phase in self.local:
            phase.cut()
        self.forward()
        self.behind.restart()
        for phase in self.local:
            phase.crash()

    def late_rows(self) -> int:
        return sum(phase.taken(LATE).num_rows for phase in self.local)


@pytest.mark.parametrize("window", [Tumble(10), Hop(10, 4, 1), Hop(3, 10), Cumulate(12, 4)])
@pytest.mark.parametrize("seed", range(3))
def test_two_phases_give_what_one_gives_also_through_restarts(window: Any, seed: int) -> None:
    rng = random.Random(seed)
    single = WindowAggregateProcessor(window, ["k"], Aggregation(ITEMS, ROWS), ROWS)
    one = Harness(single, [ROWS])
    two = TwoPhases(window)
    now = [-100, -100]
    for _ in range(60):
        which = rng.randrange(2)
        rows = []
        for _ in range(rng.choice([1, 30])):
            now[which] += rng.choice([0, 0, 1])
            key = 0 if rng.random() < 0.7 else rng.choice([None, 1, 2])
            number = rng.choice([None, rng.randint(0, 9)])
            rows.append((key, number, rng.choice("ab"), now[which] - rng.randint(0, 5)))
        two.send(which, rows)
        one.send(batch(rows))
        if rng.random() < 0.5:
            two.advance(which, now[which] - 6)
        if rng.random() < 0.15:
            two.cut_and_crash()
    for which in range(2):
        two.advance(which, 2**63 - 1)
    assert given(two.behind.taken()) == given(one.end().taken())
    assert two.behind.rows_behind_watermark == 0
    assert [phase.rows_behind_watermark for phase in two.local] == [0, 0]
    assert two.behind.counters["late"] == 0
    assert two.late_rows() == 0


def test_rows_of_a_hot_key_cross_the_shuffle_as_one_partial() -> None:
    two = TwoPhases(Tumble(1000))
    for _ in range(20):
        two.send(0, [(1, 1, "a", time) for time in range(100)])
    two.local[0].advance(999)
    table = two.local[0].taken()
    assert table.num_rows == 1
    assert table.column("__rows").to_pylist() == [2000]


def test_partials_wait_for_the_window_that_needs_them() -> None:
    two = TwoPhases(Hop(20, 10))
    two.send(0, [(1, 1, "a", 5), (1, 1, "a", 15)])
    two.local[0].advance(8)
    assert two.local[0].taken().num_rows == 0
    two.local[0].advance(9)
    assert two.local[0].taken().column("__pane").to_pylist() == [0]
    two.local[0].cut()
    assert two.local[0].taken().column("__pane").to_pylist() == [10], "a barrier takes the rest"


def test_keys_that_hardly_repeat_are_passed_on_early(monkeypatch: Any) -> None:
    monkeypatch.setattr("penstock.operators.two_phase.PENDING_ROWS_MAX", 100)
    two = TwoPhases(Tumble(1000))
    two.send(0, [(key, 1, "a", 5) for key in range(150)])
    assert two.local[0].taken().num_rows == 150


def test_late_rows_come_out_of_the_first_phase_as_they_were() -> None:
    two = TwoPhases(Tumble(10))
    two.advance(0, 9)
    two.advance(1, 9)
    two.send(0, [(1, 7, "x", 5), (1, 8, "y", 12)])
    assert two.local[0].taken(LATE).column("n").to_pylist() == [7]
    assert two.local[0].counters["late"] == 1


def test_late_rows_within_the_lateness_give_their_window_again() -> None:
    two = TwoPhases(Tumble(10), lateness=20)
    two.send(0, [(1, 7, "x", 5)])
    two.advance(0, 9)
    two.advance(1, 9)
    assert two.behind.taken().column("rows").to_pylist() == [1]
    two.send(1, [(1, 1, "x", 3)])
    two.advance(1, 11)
    two.advance(0, 11)
    assert two.behind.taken().column("rows").to_pylist() == [2]


def test_after_a_restart_at_another_parallelism_the_old_watermark_still_holds() -> None:
    common = (Tumble(10), ["k"], Aggregation(ITEMS, ROWS), ROWS)
    sections = []
    for subtask, watermark in enumerate((25, 30)):
        part = Harness(LocalAggregateProcessor(*common), [ROWS], subtask=subtask, parallelism=2)
        part.advance(watermark)
        sections += part.cut()
    alone = Harness(LocalAggregateProcessor(*common), [ROWS], restored=sections)
    alone.send(batch([(1, 1, "a", 15), (1, 2, "a", 25)]))
    assert alone.taken(LATE).column("n").to_pylist() == [1]
