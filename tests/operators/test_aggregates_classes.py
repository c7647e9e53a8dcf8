"""Users' aggregate classes: like built-in ones in windows, over two phases, over changes."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from aggregate_rows import (
    COLUMNS,
    SCHEMA,
    Row,
    batch,
    batches,
    by_key,
    database,
    folded_without_a_window,
    in_a_window,
    in_two_phases,
    left_of,
    row,
    updating,
    without_a_window,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import penstock as ps
from penstock.elements.changelog import with_change
from penstock.elements.errors import PlanError
from penstock.operators.aggregates import Aggregation
from penstock.testing.harness import batch_of


class Total(ps.Aggregate):
    """sum(h * factor), with a count so that nothing is NULL; rows can be taken back."""

    returns = float

    def __init__(self, column: str, factor: float, **options: Any) -> None:
        super().__init__(column, **options)
        self.factor = factor

    def create(self) -> list[float]:
        return [0, 0.0]

    def add(self, state: list[float], value: float) -> list[float]:
        state[0] += 1
        state[1] += value * self.factor
        return state

    def merge(self, state: list[float], other: list[float]) -> list[float]:
        return [state[0] + other[0], state[1] + other[1]]

    def result(self, state: list[float]) -> float | None:
        return state[1] if state[0] else None

    def retract(self, state: list[float], value: float) -> list[float]:
        state[0] -= 1
        state[1] -= value * self.factor
        return state


class Texts(ps.Aggregate):
    """The distinct pairs (s, b) as a sorted list, nulls too; rows cannot be taken back."""

    returns = list[str]
    takes_nulls = True

    def create(self) -> frozenset[str]:
        return frozenset()

    def add(self, state: frozenset[str], text: str | None, number: int | None) -> frozenset[str]:
        return state | {f"{text}/{number}"}

    def merge(self, state: frozenset[str], other: frozenset[str]) -> frozenset[str]:
        return state | other

    def result(self, state: frozenset[str]) -> list[str]:
        return sorted(state)


class Width(ps.SegmentAggregate):
    """max(h) - min(h)."""

    returns = pa.float64()
    state = (pa.float64(), pa.float64())

    def fold(self, columns: list[pa.Array], starts: Any) -> list[Any]:
        return self.merge([columns[0], columns[0]], starts)

    def merge(self, state: list[pa.Array], starts: Any) -> list[Any]:
        low, high = (part.to_numpy() for part in state)
        return [np.minimum.reduceat(low, starts), np.maximum.reduceat(high, starts)]

    def finish(self, state: list[pa.Array]) -> Any:
        return state[1].to_numpy() - state[0].to_numpy()


PAIR = "coalesce(s, 'None') || '/' || coalesce(CAST(b AS VARCHAR), 'None')"
ITEMS = {
    "total": Total("h", 2.0),
    "some": Total("h + 1", 1.0, where="n > 0"),
    "texts": Texts("s", "b"),
    "width": Width("h"),
    "part": Width("h", where="b > 0"),
    "rows": "count(*)",
}
SAME = {
    "total": "sum(h * 2)",
    "some": "sum(h + 1) FILTER (WHERE n > 0)",
    "texts": f"coalesce(array_agg(DISTINCT {PAIR} ORDER BY {PAIR}), [])",
    "width": "max(h) - min(h)",
    "part": "max(h) FILTER (WHERE b > 0) - min(h) FILTER (WHERE b > 0)",
    "rows": "count(*)",
}


@pytest.mark.parametrize(
    "way", [in_a_window, in_two_phases, without_a_window, folded_without_a_window]
)
@settings(max_examples=15, deadline=None)
@given(steps=batches, restart=st.booleans())
def test_classes_give_what_the_same_in_sql_gives(
    way: Any, steps: list[list[Row]], restart: bool
) -> None:
    assert way(ITEMS, steps, restart) == database(SAME, list(itertools.chain(*steps)))


@settings(max_examples=25, deadline=None)
@given(data=st.data(), rows=st.lists(row, min_size=1, max_size=20))
def test_rows_are_taken_back_with_retract_and_without(data: st.DataObject, rows: list[Row]) -> None:
    schema = with_change(COLUMNS)
    gone = data.draw(st.lists(st.integers(0, len(rows) - 1), unique=True))
    changes = data.draw(
        st.permutations([(at, 1) for at in range(len(rows))] + [(at, -1) for at in gone])
    )
    run = updating(Aggregation(ITEMS, schema), schema)
    size = data.draw(st.integers(1, 9))
    for start in range(0, len(changes), size):
        some = [(*rows[at][:-1], sign) for at, sign in changes[start : start + size]]
        run.send(batch_of(schema, some).cast(schema)).tick(1)
        if data.draw(st.integers(0, 3)) == 0:
            run.cut()
            run.crash()
    run.end()
    left = [each for at, each in enumerate(rows) if at not in gone]
    assert by_key(left_of(run.rows())) == (database(SAME, left) if left else {})


class Forgetful(Total):
    def add(self, state: list[float], value: float) -> Any:
        state[0] += 1


class Short(Width):
    def fold(self, columns: list[pa.Array], starts: Any) -> list[Any]:
        return [columns[0], columns[0]]


class Narrow(Width):
    def merge(self, state: list[pa.Array], starts: Any) -> list[Any]:
        return super().merge(state, starts)[:1]


class Failing(Total):
    def add(self, state: list[float], value: float) -> Any:
        raise KeyError(value)


@pytest.mark.parametrize(
    ("item", "error", "reason"),
    [
        (Forgetful("h", 1.0), TypeError, r"add\(\) gave None; it must return the state"),
        (Short("h"), ValueError, "it gave 2 values for 1 groups"),
        (Narrow("h"), ValueError, "it gave 1 columns; `state` names 2"),
        (Failing("h", 1.0), KeyError, "1.0"),
    ],
)
def test_what_a_class_does_wrong_is_said_with_its_name(
    item: Any, error: type[Exception], reason: str
) -> None:
    run = updating(Aggregation({"x": item}, SCHEMA), SCHEMA)
    rows = [(0, 1, 1, 1.0, 1.0, None, "a", 0)] * 2
    with pytest.raises(error, match=reason) as caught:
        run.send(batch(rows))
    assert f"of the aggregate {type(item).__name__}(h)" in caught.value.__notes__[0]


class Unfinished(ps.Aggregate):
    returns = float

    def create(self) -> int:
        return 0


class Silent(Total):
    returns = None


class Careless(Total):
    def __init__(self) -> None:
        pass


class Keepless(Width):
    state = ()


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (Unfinished("h"), "Unfinished does not implement add, merge, result"),
        (Silent("h", 1.0), "does not say what it returns"),
        (Careless(), r"Careless has no arguments: .* super\(\).__init__\(column\)"),
        (Keepless("h"), "does not say what it keeps"),
        (Total("nope", 1.0), 'no column "nope"'),
    ],
)
def test_a_class_that_cannot_be_used_is_refused_when_planning(item: Any, reason: str) -> None:
    with pytest.raises(PlanError, match=reason):
        Aggregation({"x": item}, SCHEMA)


def test_results_that_cannot_be_compared_are_refused_where_changes_are_given() -> None:
    class Named(Total):
        returns = pa.map_(pa.string(), pa.int64())

    aggregation = Aggregation({"x": Named("h", 1.0)}, SCHEMA)
    with pytest.raises(PlanError, match=r"x is .*whether it has changed"):
        updating(aggregation, SCHEMA)
