"""assert_same_rows finds what it is made to find."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pytest
from law_data import Event, events, read

import penstock as ps
from penstock.dataflow.launcher import JobStatus, Summary
from penstock.testing.rows import differences
from penstock.testing.same_rows import _killed, _resumed, assert_same_rows

EVENTS = events(300)


@dataclass
class Number:
    n: int


@dataclass
class Nth:
    k: str
    nth: int


@ps.source(bounded=True)
def forgetful(position: int | None, stop: int) -> Iterator[tuple[Number, int]]:
    """After a resume it leaves a row out."""
    for n in range(0 if position is None else position + 1, stop):
        yield Number(n), n + 1


@ps.source(bounded=True)
def repeating(position: int | None, stop: int) -> Iterator[tuple[Number, int]]:
    """After a resume it gives the last row again."""
    for n in range(0 if position is None else position - 1, stop):
        yield Number(n), n + 1


class Undeclared(ps.KeyedOperator[Event, Nth]):
    """Its count is not state."""

    def open(self, ctx: ps.Context) -> None:
        self._count: dict[str, int] = {}

    def process(self, key: str, row: Event, ctx: ps.Context) -> Iterator[Nth]:
        self._count[key] = self._count.get(key, 0) + 1
        yield Nth(key, self._count[key])


@pytest.mark.parametrize(("made", "word"), [(forgetful, "missing"), (repeating, "unexpected")])
def test_a_source_that_loses_or_repeats_a_row_when_resumed_is_found(made: Any, word: str) -> None:
    with pytest.raises(AssertionError, match=f"(?s)killed|resumed.*{word}"):
        assert_same_rows(
            lambda: ps.Pipeline("law").source(made(stop=300)), [(n,) for n in range(300)]
        )


def test_an_operator_with_undeclared_state_is_found() -> None:
    counts: dict[str, int] = {}
    expected = []
    for e in EVENTS:
        counts[e.k] = counts.get(e.k, 0) + 1
        expected.append((e.k, counts[e.k]))
    with pytest.raises(AssertionError, match=r"killed|resumed"):
        assert_same_rows(
            lambda: read(ps.Pipeline("law"), EVENTS).key_by("k").process(Undeclared()), expected
        )


def test_wrong_rows_are_found_at_once() -> None:
    with pytest.raises(AssertionError, match=r"straight through:\n  300 rows expected, 299 found"):
        assert_same_rows(
            lambda: ps.Pipeline("law").source([Number(n) for n in range(299)]),
            [(n,) for n in range(300)],
        )


class Over:
    """A run, and its job, which had finished before anybody could interfere."""

    def start(self, **settings: Any) -> Over:
        return self

    def status(self) -> JobStatus:
        return JobStatus("law", "finished", 1, 0, 1, 0, 0, 0, 0, None, None)

    def stop(self, mode: str) -> Summary:
        return Summary("law", "finished")

    def wait(self, timeout_s: float) -> Summary:
        return Summary("law", "finished")


@pytest.mark.parametrize("way", [_killed, _resumed])
def test_a_run_that_nobody_interfered_with_proves_nothing(way: Any) -> None:
    with pytest.raises(AssertionError, match=r"nothing to kill|before it could be stopped"):
        way(Over(), "", random.Random(1))


def test_differences_are_those_of_multisets_with_tolerant_floats() -> None:
    table = pa.table({"a": [1, 1, 2], "b": [0.1 + 0.2, None, float("nan")]})
    assert differences(table, [(2, float("nan")), (1, 0.3), (1, None)]) == []
    assert differences(table, [(2, float("nan")), (1, 0.3), (1, 0.3)]) != []
    assert differences(table, [(2, 2.0), (1, 0.3), (1, None)]) != []
    assert len(differences(table.slice(0, 2), [(1, 0.3), (1, None), (1, None)])) == 2
