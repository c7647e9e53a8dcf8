"""The running projection: batch for batch, in this thread, errors per batch, leases let go."""

from __future__ import annotations

import threading
import weakref

import cloudpickle
import numpy as np
import pyarrow as pa
import pytest

from penstock.elements.errors import EngineError, PlanError
from penstock.expressions.expression import expr
from penstock.expressions.failures import ExpressionError
from penstock.expressions.functions import NONE, ScalarFunction, udf
from penstock.expressions.projection import Projection
from penstock.expressions.session import Session

SCHEMA = pa.schema(
    [
        ("n", pa.int64()),
        ("text", pa.string()),
        ("Price", pa.float64()),
        pa.field("_time", pa.timestamp("ns", "UTC"), nullable=False),
    ]
)


def a_batch(rows: int, first: int = 0) -> pa.RecordBatch:
    numbers = np.arange(first, first + rows)
    return pa.record_batch(
        [
            pa.array(numbers),
            pa.array([str(n) for n in numbers], pa.string()),
            pa.array(numbers * 0.5),
            pa.array(numbers).cast(pa.timestamp("ns", "UTC")),
        ],
        schema=SCHEMA,
    )


def test_each_batch_gives_one_batch_of_its_length_whatever_its_length():
    project = Projection([("double", "price * 2"), ("n", "n")], SCHEMA)
    for rows in [0, 1, 5, 500, 30_000, 0, 7]:
        result = project(a_batch(rows))
        assert result.num_rows == rows
        assert result.schema == project.schema
        assert result.column("double").to_pylist() == [float(n) for n in range(rows)]


def test_many_batches_come_out_one_to_one_and_in_order():
    project = Projection([("m", "n + 1 - 1")], SCHEMA)
    for at in range(2_000):
        assert project(a_batch(3, at)).column("m").to_pylist() == [at, at + 1, at + 2]


def test_user_functions_run_in_the_calling_thread():
    seen = []

    def who(n: int) -> int:
        seen.append(threading.current_thread())
        return n

    project = Projection([("x", "who(n)")], SCHEMA, NONE.with_function(udf(who)))
    project(a_batch(2))
    assert set(seen) == {threading.current_thread()}


def test_a_failed_batch_leaves_the_stream_working():
    project = Projection([("x", "cast(text as bigint) / n")], SCHEMA)
    for _ in range(3):
        with pytest.raises(ExpressionError, match="Divide by zero"):
            project(a_batch(3, 0))
        assert project(a_batch(3, 1)).column("x").to_pylist() == [1, 1, 1]
    assert project.rebuilds == 0


def test_a_bad_cast_says_which_value():
    project = Projection([("x", "cast(text || 'x' as int)")], SCHEMA)
    with pytest.raises(ExpressionError, match="'7x'"):
        project(a_batch(1, 7))


def test_an_error_in_a_user_function_carries_the_exception():
    @udf
    def strict(n: int) -> int:
        raise KeyError(n)

    project = Projection([("x", "strict(n)")], SCHEMA, NONE.with_function(strict))
    with pytest.raises(ExpressionError, match="KeyError") as caught:
        project(a_batch(1))
    assert isinstance(caught.value.__cause__, KeyError)


def test_nothing_of_a_batch_is_held_once_its_output_is_gone():
    class Lease:
        pass

    lease = Lease()
    gone = weakref.ref(lease)
    memory = np.arange(1000, dtype=np.int64)
    buffer = pa.foreign_buffer(memory.ctypes.data, memory.nbytes, base=(lease, memory))
    column = pa.Array.from_buffers(pa.int64(), 1000, [None, buffer])
    batch = pa.record_batch([column], names=["n"])
    project = Projection([("n", "n"), ("y", "n * 2"), ("z", "abs(n)")], batch.schema)
    result = project(batch)
    del lease, memory, buffer, column, batch
    assert gone() is not None, "the column that passes through is the batch's own memory"
    del result
    assert gone() is None


def test_nothing_of_a_batch_is_held_after_a_failure():
    class Lease:
        pass

    lease = Lease()
    gone = weakref.ref(lease)
    memory = np.zeros(8, dtype=np.int64)
    buffer = pa.foreign_buffer(memory.ctypes.data, memory.nbytes, base=(lease, memory))
    batch = pa.record_batch([pa.Array.from_buffers(pa.int64(), 8, [None, buffer])], names=["n"])
    project = Projection([("y", "1 / n")], batch.schema)
    with pytest.raises(ExpressionError):
        project(batch)
    del lease, memory, buffer, batch
    assert gone() is None


def test_a_second_pull_is_an_error_and_not_the_same_rows_again():
    project = Projection([("x", "n * 1.5")], SCHEMA)
    project(a_batch(1))
    # A plan with a filter swallows batches, and pulls again before it gives anything.
    session = project._session
    plan = session._context.sql("SELECT n * 1.5 AS c0 FROM input WHERE n > 100").execution_plan()
    project._stream = iter(session._context.execute(plan, 0))
    with pytest.raises(EngineError, match="batch for batch"):
        project(a_batch(5))
    assert project.rebuilds == 1
    assert project(a_batch(2)).num_rows == 2


def test_plans_that_may_hold_rows_back_are_refused():
    session = Session(SCHEMA, NONE)
    with pytest.raises(EngineError, match="may hold rows back"):
        session.stream({"x": "row_number() OVER ()"})


def test_a_panic_of_the_engine_rebuilds_the_projection():
    project = Projection([("x", "n * 1.5")], SCHEMA)
    project(a_batch(1))

    class Panic(BaseException):
        pass

    class Panicking:
        def __iter__(self):
            return self

        def __next__(self):
            raise Panic("index out of bounds")

    project._stream = Panicking()
    with pytest.raises(ExpressionError, match="panicked"):
        project(a_batch(1))
    assert project.rebuilds == 1
    assert project(a_batch(4)).num_rows == 4


def test_a_batch_of_another_schema_is_refused():
    project = Projection([("x", "n")], SCHEMA)
    with pytest.raises(EngineError, match="planned for"):
        project(a_batch(1).select(["text", "n", "Price", "_time"]))


def test_columns_that_pass_through_are_not_copied():
    project = Projection([("t", "text"), ("when", "event_time()")], SCHEMA)
    batch = a_batch(10)
    result = project(batch)
    assert result.column("t").buffers()[2].address == batch.column("text").buffers()[2].address
    assert result.schema.field("when") == pa.field("when", pa.timestamp("ns", "UTC"), False)
    assert project._session is None, "no engine is needed for this"


def test_results_have_plain_types_as_planned():
    project = Projection([("h", "md5(text)"), ("l", "make_array(md5(text))"), ("one", "1")], SCHEMA)
    assert project.schema.field("h").type == pa.string()
    result = project(a_batch(4))
    result.validate(full=True)
    assert result.schema == project.schema
    assert result.column("l").type.value_type == pa.string()


def test_a_batch_without_columns_keeps_its_rows():
    empty = pa.record_batch([pa.array([1, 2, 3])], names=["a"]).select([])
    result = Projection([("one", "1")], empty.schema)(empty)
    assert result.column("one").to_pylist() == [1, 1, 1]
    assert Projection([], SCHEMA)(a_batch(5)).num_rows == 5


def test_it_travels_before_and_after_its_first_batch():
    @udf
    def shout(text: str) -> str:
        return text + "!"

    functions = NONE.with_function(shout)
    project = Projection([("x", "shout(text)"), ("y", "n * n")], SCHEMA, functions)
    for _ in range(2):
        project = cloudpickle.loads(cloudpickle.dumps(project))
        assert project._session is None
        result = project(a_batch(2, 3))
        assert result.column("x").to_pylist() == ["3!", "4!"]
        assert result.column("y").to_pylist() == [9, 16]


def test_only_functions_that_are_called_travel():
    lock = threading.Lock()
    stuck = ScalarFunction("stuck", lambda n: lock, (pa.int64(),), pa.int64(), (False,))
    cloudpickle.dumps(Projection([("x", "n + 1")], SCHEMA, NONE.with_function(stuck)))


def test_two_columns_of_one_name_are_refused():
    with pytest.raises(PlanError, match='two columns are called "x"'):
        Projection([("x", "n"), ("x", "text")], SCHEMA)


def test_the_columns_read_are_known():
    assert Projection([("x", "n + 1"), ("y", "TEXT")], SCHEMA).columns_read == ("n", "text")


def test_parameters_are_values():
    project = Projection([("hit", expr("text IN $some AND n < $k", some=["1", "2"], k=2))], SCHEMA)
    assert project(a_batch(3)).column("hit").to_pylist() == [False, True, False]


@pytest.mark.parametrize("text", ["lower(s)", "upper(s)", "s || 'x'", "strpos(s, 'A')"])
def test_no_rows_with_an_offset_give_no_rows(text):
    schema = pa.schema([("s", pa.utf8())])
    projection = Projection([("x", text)], schema)
    batch = pa.record_batch({"s": ["A", "bc", "D"]})
    assert projection(batch.slice(1, 0)).num_rows == 0
    assert projection(batch.slice(1, 1)).num_rows == 1
    assert projection.rebuilds == 0
