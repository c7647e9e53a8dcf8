"""The value stage: fused steps give what the steps one by one would, and bad rows stand alone."""

from __future__ import annotations

import datetime
import json

import numpy as np
import pyarrow as pa
import pytest

from penstock.elements.errors import PlanError, UserCodeError
from penstock.expressions.expression import expr
from penstock.expressions.functions import NONE, udf
from penstock.expressions.projection import Projection
from penstock.operators.error_policy import DEAD_SCHEMA, DeadLetter, Drop
from penstock.operators.processor import DEAD, MAIN
from penstock.operators.value_stage import Step, ValueStage, stage_segments
from penstock.testing.harness import Harness, batch_of

PLAIN = pa.schema([("a", pa.int64()), ("b", pa.int64()), ("s", pa.string())])
TIMED = PLAIN.append(pa.field("_time", pa.timestamp("ns", "UTC"), nullable=False))


def drive(stage, schema):
    """A harness without state, for the stage has none."""
    outputs = {MAIN: stage.schema, DEAD: DEAD_SCHEMA}
    return Harness(stage, [schema], out_schemas=outputs, backend=lambda operator, restored: None)


def run(steps, rows, *, functions=NONE, policy=None, times=None, one_by_one=False):
    schema = PLAIN if times is None else TIMED
    stage = ValueStage(steps, schema, functions, policy, who="stage")
    harness = drive(stage, schema)
    batch = batch_of(PLAIN, rows, times)
    for piece in [batch.slice(i, 1) for i in range(len(rows))] if one_by_one else [batch]:
        harness.send(piece)
    return harness


def projections(steps, schema=PLAIN):
    return len(stage_segments(ValueStage(steps, schema)))


def test_filter_keeps_rows_that_are_true_and_neither_false_nor_null():
    rows = [(1, 1, "x"), (None, 2, "y"), (3, 3, "z"), (-1, 4, "w")]
    kept = run([Step.filter("a > 0")], rows).rows()
    assert [row["s"] for row in kept] == ["x", "z"]


def test_event_time_stays_last_whatever_is_selected():
    steps = [Step.select([("s", "s")]), Step.with_columns([("twice", "s || s")])]
    table = run(steps, [(1, 2, "x")], times=[7]).taken()
    assert table.column_names == ["s", "twice", "_time"]
    assert table.column("_time").cast(pa.int64()).to_pylist() == [7]


def test_with_columns_replaces_in_place_and_sees_the_columns_before():
    made = run([Step.with_columns([("b", "a * 10"), ("c", "b + 1")])], [(1, 2, "x")]).taken()
    assert made.to_pylist() == [{"a": 1, "b": 10, "s": "x", "c": 3}]
    assert made.column_names == ["a", "b", "s", "c"]


def test_rename_and_drop_move_no_data_and_need_no_engine():
    stage = ValueStage([Step.rename({"a": "b", "b": "a"}), Step.drop(["s"])], PLAIN)
    harness = drive(stage, PLAIN)
    harness.send(batch_of(PLAIN, [(1, 2, "x")]))
    assert harness.rows() == [{"b": 1, "a": 2}]
    (segment,) = stage_segments(harness.processor)
    assert segment.projection._session is None


def test_a_step_that_could_fail_never_sees_rows_that_a_filter_dropped():
    steps = [Step.filter("b <> 0"), Step.with_columns([("q", "a / b")]), Step.filter("10 / q > 1")]
    rows = [(6, 0, "x"), (6, 2, "y"), (60, 2, "z")]
    assert [row["s"] for row in run(steps, rows).rows()] == ["y"]


def test_conditions_that_could_fail_are_not_joined_to_the_filter_that_guards_them():
    steps = [Step.filter("s like '1%'"), Step.filter("cast(s as int) > 5")]
    assert projections(steps) == 2
    assert [r["s"] for r in run(steps, [(1, 1, "1x"), (1, 1, "x")], policy=Drop()).rows()] == []
    assert [r["s"] for r in run(steps, [(1, 1, "17"), (1, 1, "x")]).rows()] == ["17"]


def test_steps_that_cannot_fail_share_one_projection():
    steps = [
        Step.filter("a > 0"),
        Step.with_columns([("f", "a * 0.5")]),
        Step.filter("f < 100.0 AND s = 'x'"),
        Step.rename({"f": "half"}),
        Step.select([("half", "half"), ("plus", "half + 1.0")]),
    ]
    assert projections(steps) == 1
    rows = [(1, 1, "x"), (-1, 1, "x"), (500, 1, "x"), (3, 1, "y")]
    assert run(steps, rows).rows() == [{"half": 0.5, "plus": 1.5}]


def test_columns_that_nobody_reads_later_do_not_pass_a_filter():
    steps = [
        Step.filter("a > 0"),
        Step.with_columns([("u", "upper(s)")]),
        Step.select([("u", "u")]),
    ]
    first, second = stage_segments(ValueStage(steps, PLAIN))
    assert first.projection.schema.names == ["s", "__p"]
    assert second.projection.schema.names == ["u"]


def test_volatile_columns_are_computed_once():
    steps = [
        Step.with_columns([("r", "random()")]),
        Step.with_columns([("r2", "r"), ("same", "r = r + 0.0")]),
    ]
    made = run(steps, [(1, 1, "x")] * 50).rows()
    assert all(row["same"] and row["r"] == row["r2"] for row in made)
    assert len({row["r"] for row in made}) > 1


def test_definitions_that_use_each_other_do_not_explode():
    steps = [Step.with_columns([("a", "a + a")]) for _ in range(40)]
    steps = [Step.with_columns([("a", "cast(1 as bigint)")]), *steps]
    assert run(steps, [(5, 1, "x")]).rows()[0]["a"] == 2**40


def test_fused_steps_give_what_the_steps_one_by_one_give():
    generator = np.random.default_rng(7)
    pool = [
        Step.filter("a > b"),
        Step.filter("b % 3 <> 1"),
        Step.filter("s <> '7' OR a IS NULL"),
        Step.filter("length(s) < 3"),
        Step.with_columns([("a", "a + b"), ("b", "a - 1")]),
        Step.with_columns([("a", "case when b > 10 then a else b end")]),
        Step.with_columns([("s", "s || cast(b as varchar)")]),
        Step.with_columns([("b", "a / (abs(b) + 1)")]),
        Step.rename({"a": "b", "b": "a"}),
        Step.select([("b", "a"), ("a", "coalesce(b, 0)"), ("s", "s")]),
    ]
    values = generator.integers(-50, 50, (300, 3))
    rows = [(None if a % 11 == 0 else int(a), int(b), str(s)) for a, b, s in values]
    for _ in range(25):
        steps = [pool[i] for i in generator.integers(0, len(pool), generator.integers(1, 7))]
        fused = run(steps, rows, times=range(300)).taken()
        table = batch_of(PLAIN, rows, range(300))
        for step in steps:
            stage = ValueStage([step], table.schema)
            harness = drive(stage, table.schema)
            table = harness.send(table).taken().combine_chunks()
            table = pa.Table.from_batches(table.to_batches(), stage.schema)
        assert fused.to_pylist() == table.to_pylist(), steps


def test_batch_borders_mean_nothing():
    steps = [Step.filter("a > 1"), Step.with_columns([("c", "10 / b")])]
    rows = [(i, i % 3, "x") for i in range(20)]
    whole = run(steps, rows, policy=Drop())
    single = run(steps, rows, policy=Drop(), one_by_one=True)
    assert whole.rows() == single.rows()
    assert whole.counters == single.counters == {"dropped": 6}


def test_bad_rows_alone_are_dropped_and_counted_and_order_stays():
    rows = [(i, 0 if i in (0, 7, 8, 99) else 1, str(i)) for i in range(100)]
    harness = run([Step.with_columns([("q", "a / b")])], rows, policy=Drop())
    assert [row["a"] for row in harness.rows()] == [i for i in range(100) if i not in (0, 7, 8, 99)]
    assert harness.counters["dropped"] == 4


def test_bad_rows_become_dead_letters_with_what_was_wrong():
    rows = [(1, 1, "12"), (2, 2, "twelve")]
    steps = [Step.select([("n", "cast(s as int)")])]
    harness = run(steps, rows, policy=DeadLetter("bad/"), times=[1, 2])
    assert harness.rows() == [{"n": 12}]
    (letter,) = harness.taken(DEAD).to_pylist()
    assert json.loads(letter["raw"])["s"] == "twelve"
    assert "twelve" in letter["error"]
    assert harness.counters["dead_lettered"] == 1


def test_a_failure_names_the_expression_the_row_and_the_value():
    rows = [(1, 1, "1"), (2**62, 4, "x")]
    with pytest.raises(UserCodeError) as caught:
        run([Step.with_columns([("c", "a + 1"), ("d", "a * b")])], rows)
    text = str(caught.value)
    assert "op[0] failed in with_columns()" in text
    assert "'a': 4611686018427387904, 'b': 4" in text
    assert "a * b does not fit in int64" in text
    assert "on_error" in text


def test_a_failing_condition_is_named():
    with pytest.raises(UserCodeError, match="in the condition"):
        run([Step.filter("1 / a > 0")], [(0, 1, "x")])


def test_an_error_in_a_python_function_shows_the_users_line():
    @udf
    def grade(text: str) -> int:
        return len(text) // int(text)

    steps = [Step.filter("grade(s) >= 0")]
    rows = [(1, 1, "3"), (1, 1, "0")]
    functions = NONE.with_function(grade)
    with pytest.raises(UserCodeError) as caught:
        run(steps, rows, functions=functions)
    assert "return len(text) // int(text)" in caught.value.traceback
    assert "ZeroDivisionError" in caught.value.cause
    assert caught.value.row is not None
    assert "'s': '0'" in caught.value.row
    assert len(run(steps, rows, functions=functions, policy=Drop()).rows()) == 1


def test_python_functions_are_not_called_for_rows_that_a_filter_dropped():
    seen = []

    @udf
    def seen_by(n: int) -> int:
        seen.append(n)
        return n

    stage = ValueStage(
        [Step.filter("a > 1"), Step.with_columns([("x", "seen_by(a)")])],
        PLAIN,
        NONE.with_function(seen_by),
    )
    projection = stage_segments(stage)[1].projection
    assert isinstance(projection, Projection)
    first = stage_segments(stage)[0]
    batch = first.projection(batch_of(PLAIN, [(1, 1, "x"), (2, 2, "y")]))
    batch = batch.filter(batch.column("__p")).drop_columns(["__p"])
    projection(batch)
    assert seen == [2]


def test_parameters_reach_a_stage():
    when = datetime.date(2020, 2, 1)
    steps = [Step.filter(expr("s < $day", day=str(when))), Step.select([("s", "s")])]
    assert len(run(steps, [(1, 1, "2020-01-31"), (1, 1, "2020-02-01")]).rows()) == 1


def test_a_stage_that_selects_nothing_keeps_the_number_of_rows():
    stage = ValueStage([Step.filter("a > 1"), Step.select([])], PLAIN)
    harness = drive(stage, PLAIN)
    harness.send(batch_of(PLAIN, [(1, 1, "x"), (2, 1, "x"), (3, 1, "x")]))
    assert harness._taken[MAIN][0].num_rows == 2


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (Step.filter("a + 1"), "a condition is needed, but this is int64"),
        (Step.drop(["zz"]), 'no column "zz" to drop'),
        (Step.rename({"a": "b"}), "two columns one name"),
        (Step.rename({"a": "_time"}), "reserved"),
        (Step.with_columns([("_time", "a")]), "reserved"),
        (Step.with_columns([("x", "a"), ("x", "b")]), "given twice"),
        (Step.select([("x", "nope")]), 'no column "nope"'),
    ],
)
def test_steps_that_make_no_sense_are_refused_when_planning(step, message):
    with pytest.raises(PlanError, match=message):
        ValueStage([step], PLAIN)


def test_event_time_cannot_be_dropped():
    with pytest.raises(PlanError, match="_time"):
        ValueStage([Step.drop(["_time"])], TIMED)
