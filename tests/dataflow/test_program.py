"""A program travels, and is planned again at other widths without losing its operators."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import penstock as ps
from penstock.dataflow.program import Program, program_of
from penstock.elements.errors import PlanError

ROWS = [{"k": n % 3, "v": n, "t": n, "note": "x"} for n in range(10)]


class Plain(ps.Sink):
    def write(self, batch: Any) -> None:
        raise AssertionError("never run")


def program(pipeline: ps.Pipeline) -> Program:
    return Program(pipeline.name, tuple(pipeline._ends), pipeline.functions)


def branching() -> ps.Pipeline:
    """An output with two readers that need different columns, a window, and late rows."""
    pipeline = ps.Pipeline("branching")
    rows = pipeline.source(ROWS, event_time="to_timestamp_millis(t)", out_of_order="5 seconds")
    kept = rows.filter("v > 1")
    kept.sink(Plain())
    kept.select("k", "v").sink(ps.StdoutSink())
    counted = kept.key_by("k").window(ps.tumble("10 seconds")).aggregate(n="count(*)", s="sum(v)")
    counted.sink(ps.FileSink("out"))
    return pipeline


def identities(found: Program, parallelism: int, overrides: dict[str, int]) -> dict[str, str]:
    plan = found.plan(parallelism, overrides).plan
    return {
        op.id: op.name
        for vertex in plan.vertices
        for op in vertex.operators
        if op.name not in ("keep", "fold")
    }


def widths(found: Program, parallelism: int, overrides: dict[str, int]) -> dict[str, int]:
    plan = found.plan(parallelism, overrides).plan
    return {op.name: vertex.parallelism for vertex in plan.vertices for op in vertex.operators}


def test_a_program_that_travelled_gives_the_same_plan() -> None:
    there = program_of(program(branching()).to_bytes())
    here = program(branching()).plan(3).plan
    assert there.plan(3).plan.explain() == here.explain()
    assert there.plan(3).plan.program is there


@pytest.mark.parametrize(
    "overrides",
    [{}, {"": 4}, {"filter": 2}, {"select": 3}, {"plain": 2}, {"file_sink": 3, "select": 2}],
)
@pytest.mark.parametrize("parallelism", [1, 2, 5])
def test_operators_keep_their_ids_whatever_their_widths(
    parallelism: int, overrides: dict[str, int]
) -> None:
    found = program(branching())
    assert identities(found, parallelism, overrides) == identities(found, 1, {})


def test_an_override_stands_above_what_the_program_says() -> None:
    pipeline = ps.Pipeline("wide")
    rows = pipeline.source(ROWS)
    rows.filter("v > 1").options(parallelism=4, name="kept").sink(Plain())
    found = program(pipeline)
    assert widths(found, 2, {})["kept"] == 4
    assert widths(found, 2, {"kept": 2})["kept"] == 2
    assert widths(found, 2, {"": 3, "plain": 5}) == {"memory": 1, "kept": 4, "plain": 5}


def test_an_operator_is_found_by_its_id_as_well() -> None:
    found = program(branching())
    (by_id,) = [key for key, name in identities(found, 1, {}).items() if name == "select"]
    assert widths(found, 1, {by_id: 3}) == widths(found, 1, {"select": 3})


def test_an_unknown_operator_is_answered_with_the_known_ones() -> None:
    with pytest.raises(PlanError, match=r"no operator 'fliter'[^$]*There are: memory.*filter"):
        program(branching()).plan(1, {"fliter": 2})


@pytest.mark.parametrize("overrides", [{"": 0}, {"filter": 0}, {"filter": -1}])
def test_no_width_is_less_than_one(overrides: dict[str, int]) -> None:
    with pytest.raises(PlanError, match="one subtask at least"):
        program(branching()).plan(1, overrides)


def test_what_cannot_travel_is_named_with_its_line() -> None:
    pipeline = ps.Pipeline("stuck")
    sink = Plain()
    pipeline.source(ROWS).sink(sink)
    sink.lock = threading.Lock()  # type: ignore[attr-defined]
    with pytest.raises(PlanError, match=r"(?s)plain.*_thread.lock.*test_program.py"):
        program(pipeline).to_bytes()


def test_a_long_program_travels() -> None:
    pipeline = ps.Pipeline("long")
    stream = pipeline.source(ROWS)
    for number in range(400):
        stream = stream.filter(f"v > {number}").options(name=f"step{number}")
    stream.sink(Plain())
    there = program_of(program(pipeline).to_bytes())
    assert len([*there.plan(1).operations]) == 402


def test_other_bytes_are_no_program() -> None:
    with pytest.raises(PlanError, match="hold a int, not a program"):
        program_of(pickle.dumps(3))


SCRIPT = """
from __future__ import annotations
import sys
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Iterator
import penstock as ps
from penstock.dataflow.program import Program

@dataclass
class Reading:
    at: datetime
    price: Decimal

@dataclass
class Kept:
    at: datetime
    price: Decimal

def keep(row: Reading) -> Iterator[Kept]:
    yield Kept(row.at, row.price)

class Last(ps.KeyedOperator[Kept, Kept]):
    last = ps.ValueState(Kept, default=None)
    def process(self, key: datetime, row: Kept, ctx: ps.Context) -> Iterator[Kept]:
        yield row

@ps.source
def readings(position: int | None) -> Iterator[tuple[Reading, int]]:
    yield Reading(datetime(2024, 1, 1), Decimal(1)), 1

p = ps.Pipeline("script")
kept = p.source(readings()).flat_map(keep)
kept.key_by("at").process(Last()).sink(ps.StdoutSink())
program = Program(p.name, tuple(p._ends), p.functions)
sys.stdout.buffer.write(program.to_bytes())
"""


def test_a_script_is_planned_where_its_names_mean_nothing(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run([sys.executable, script], check=True, capture_output=True)
    plan = program_of(done.stdout).plan(2).plan
    assert [op.name for vertex in plan.vertices for op in vertex.operators] == [
        "readings", "keep", "last", "stdout_sink"
    ]  # fmt: skip
    # Planned here, it is sent on to subtasks.
    assert program_of(program_of(done.stdout).to_bytes()).plan(1).plan.name == "script"
