"""Guards hold for every row by itself, whatever rows arrive together."""

from __future__ import annotations

import pyarrow as pa
import pytest

from penstock.expressions.failures import ExpressionError
from penstock.expressions.functions import NONE, udf
from penstock.expressions.projection import Projection

SCHEMA = pa.schema([("a", pa.int64()), ("b", pa.int64()), ("s", pa.string())])
ROWS = [
    (7, 0, "x"),
    (7, 2, "3"),
    (7, None, "x"),
    (None, 0, None),
    (2**62, 1, "12"),
    (2**62, 4, "x"),
    (1, 7, ""),
]
GUARDED = [
    "b <> 0 and a / b > 1",
    "b = 0 or a / b > 1",
    "not (b = 0 or a / b > 1)",
    "b is not null and b <> 0 and 100 / b > 10 and a > 5",
    "case when b <> 0 then a / b > 1 else false end",
    "case when b = 0 then true when a / b > 1 then false end",
    "case b when 0 then false else 7 / b = 1 end",
    "s <> 'x' and s <> '' and cast(s as int) > 5",
    "case when a < 100 then a * a > 5 end",
    "(b <> 0 and a % b = 1) or (b = 0 and a > 1)",
    "b <> 0 and (a > 100 or a * b < 20)",
]


@pytest.fixture
def batch():
    return pa.RecordBatch.from_arrays(
        [pa.array(column, field.type) for column, field in zip(zip(*ROWS), SCHEMA)], schema=SCHEMA
    )


@pytest.mark.parametrize("text", GUARDED)
def test_a_batch_gives_what_its_rows_give_alone(text, batch):
    project = Projection([("x", text)], SCHEMA)
    alone = [project(batch.slice(at, 1)).column("x")[0].as_py() for at in range(len(ROWS))]
    assert project(batch).column("x").to_pylist() == alone
    for at in range(1, len(ROWS)):
        turned = pa.concat_batches([batch.slice(at), batch.slice(0, at)])
        assert project(turned).column("x").to_pylist() == alone[at:] + alone[:at]


def test_three_valued_logic_stays():
    rows = pa.record_batch([[None, 0, 1], [5, 5, 5], ["", "", ""]], schema=SCHEMA)
    items = [
        ("both", "a = 1 and 10 / b = 2"),
        ("either", "a = 1 or 10 / b = 3"),
        ("turned", "10 / b = 2 and a = 1"),
        ("never", "a = 1 and 10 / b = 3"),
    ]
    assert Projection(items, SCHEMA)(rows).to_pylist() == [
        {"both": None, "either": None, "turned": None, "never": False},
        {"both": False, "either": False, "turned": False, "never": False},
        {"both": True, "either": True, "turned": True, "never": False},
    ]


def test_what_stands_first_is_evaluated_first(batch):
    with pytest.raises(ExpressionError, match="Divide by zero"):
        Projection([("x", "a / b > 1 and b <> 0")], SCHEMA)(batch)


def test_python_functions_see_only_rows_that_pass_the_guard(batch):
    seen = []

    @udf
    def looked(s: str) -> bool:
        seen.append(s)
        return True

    functions = NONE.with_function(looked)
    Projection([("x", "s <> 'x' and looked(s)")], SCHEMA, functions)(batch)
    assert sorted(seen) == ["", "12", "3"]


def test_guards_in_front_of_what_cannot_fail_are_left_alone():
    project = Projection([("x", "a > 1 and s = 'x' or b is null")], SCHEMA)
    assert project._computed == {"c0": '((("a" > 1) AND ("s" = \'x\')) OR ("b" IS NULL))'}
