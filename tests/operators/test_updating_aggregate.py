"""Aggregates without a window against plain Python: what readers have is what the rows say."""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.elements.changelog import with_change
from penstock.elements.errors import PlanError, StateError
from penstock.operators.aggregates import Aggregation
from penstock.operators.event_times import with_time
from penstock.operators.kernels.compile import MODE_VARIABLE
from penstock.operators.updating_aggregate import UpdatingAggregateProcessor
from penstock.operators.updating_fold import UpdatingFoldProcessor
from penstock.testing.harness import Harness, batch_of

COLUMNS = pa.schema(
    [
        ("k", pa.string()),
        ("n", pa.int64()),
        ("f", pa.float64()),
        ("d", pa.decimal128(12, 2)),
        ("s", pa.string()),
        ("b", pa.bool_()),
    ]
)
LINEAR = {
    "rows": "count(*)",
    "some": "count(n)",
    "total": "sum(n)",
    "sum_f": "sum(f)",
    "sum_d": "sum(d)",
    "mean": "avg(n)",
    "mean_d": "avg(d)",
    "spread": "var_samp(n % 100)",
    "big": "count(*) FILTER (WHERE n > 0)",
}
VALUES = {
    "least": "min(n)",
    "most": "max(f)",
    "text": "min(s)",
    "every": "bool_and(b)",
    "kinds": "count(DISTINCT s)",
    "middle": "median(n)",
}
ITEMS = LINEAR | VALUES
SECOND = 1_000_000_000
Row = tuple[Any, ...]

row = st.tuples(
    st.sampled_from(["a", "b", None, ""]),
    st.sampled_from([None, 0, 1, -7, 2**40]),
    st.sampled_from([None, 0.5, -0.0, 3.25, math.nan, math.inf, -math.inf]),
    st.sampled_from([None, Decimal("0.01"), Decimal("-99.99"), Decimal("1234567.89")]),
    st.sampled_from([None, "x", "y", ""]),
    st.sampled_from([None, True, False]),
)
append_steps = st.lists(st.lists(row, max_size=12), min_size=1, max_size=8)


def canonical(value: Any) -> Any:
    """NaN equals itself; floats within their last digits."""
    if isinstance(value, float):
        if math.isnan(value):
            return "nan"
        return value if math.isinf(value) else float(f"{value:.9g}") + 0.0
    return value


def float_sum(values: list[float]) -> float | None:
    if any(math.isnan(v) for v in values) or {math.inf, -math.inf} <= set(values):
        return math.nan
    infinite = [v for v in values if math.isinf(v)]
    return infinite[0] if infinite else (math.fsum(values) if values else None)


def result_of(rows: list[Row]) -> tuple[Any, ...]:
    """What ITEMS mean."""
    n = [r[1] for r in rows if r[1] is not None]
    f = [r[2] for r in rows if r[2] is not None]
    d = [r[3] for r in rows if r[3] is not None]
    s = [r[4] for r in rows if r[4] is not None]
    b = [r[5] for r in rows if r[5] is not None]
    small = [int(math.fmod(v, 100)) for v in n]
    mean_d = None
    if d:
        mean_d = (sum(d, Decimal(0)) / len(d)).quantize(Decimal("0.000001"))
    most = math.nan if any(math.isnan(v) for v in f) else max(f, default=None)
    return (
        len(rows), len(n), sum(n) if n else None, float_sum(f), sum(d, Decimal(0)) if d else None,
        sum(n) / len(n) if n else None, mean_d,
        float(statistics.variance(small)) if len(n) > 1 else None, sum(1 for v in n if v > 0),
        min(n, default=None), most, min(s, default=None), all(b) if b else None, len(set(s)),
        float(statistics.median(n)) if n else None,
    )  # fmt: skip


def expected(rows: Counter[int], table: list[Row], width: int) -> dict[Any, tuple[Any, ...]]:
    groups: dict[Any, list[Row]] = defaultdict(list)
    for at, times in rows.items():
        groups[table[at][0]].extend([table[at]] * times)
    return {
        key: tuple(canonical(v) for v in result_of(group)[:width])
        for key, group in groups.items()
        if group
    }


class Reader:
    """Applies changes as a sink would; a row that is taken back must be there."""

    def __init__(self) -> None:
        self.table: dict[Any, tuple[Any, ...]] = {}

    def take(self, changes: pa.Table) -> int:
        names = [name for name in changes.column_names if name not in ("_change", "_time")]
        for row in changes.select([*names, "_change"]).to_pylist() if changes.num_rows else []:
            sign, key = row.pop("_change"), row.pop("k")
            values = tuple(canonical(v) for v in row.values())
            if sign > 0:
                assert key not in self.table, f"{key} was given twice"
                self.table[key] = values
            else:
                assert self.table.pop(key) == values
        return changes.num_rows


def made(items: dict[str, str], schema: pa.Schema, **options: Any) -> UpdatingAggregateProcessor:
    aggregation = Aggregation(items, schema)
    options = {"ttl_ns": None, "flush_ns": SECOND} | options
    return UpdatingAggregateProcessor(["k"], aggregation, schema, **options)


def harness_of(processor: UpdatingAggregateProcessor, **options: Any) -> Harness:
    return Harness(
        processor, [processor.in_schema], out_schemas={"main": processor.out_schema}, **options
    )


@pytest.mark.parametrize("kernels", ["", "reference"])
@settings(max_examples=25, deadline=None)
@given(steps=append_steps, restart=st.sampled_from([None, "cut", "crash", "rescale"]))
def test_append_rows_give_what_plain_python_gives(
    kernels: str, steps: list[list[Row]], restart: str | None
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(MODE_VARIABLE, kernels)
        schema = with_time(COLUMNS)
        run, reader, seen = harness_of(made(ITEMS, schema)), Reader(), []
        for step, rows in enumerate(steps):
            batch = batch_of(COLUMNS, rows, [step * 10 + at for at in range(len(rows))])
            run.send(batch)
            seen += rows
            if step % 2:
                run.tick(SECOND)
                run.advance(step * 10 - 5)
            if step == len(steps) // 2 and restart:
                run.cut()
                reader.take(run.taken())
                run.crash()
        run.end()
        reader.take(run.taken())
        every = Counter(range(len(seen)))
        assert reader.table == expected(every, seen, len(ITEMS))
        assert run.rows_behind_watermark == 0


@settings(max_examples=40, deadline=None)
@given(data=st.data(), rows=st.lists(row, min_size=1, max_size=25))
def test_rows_taken_back_leave_no_trace(data: st.DataObject, rows: list[Row]) -> None:
    """Changes in any order, taken back before or after they came, over restarts."""
    schema = with_change(COLUMNS)
    run, reader = harness_of(made(ITEMS, schema, ttl_ns=None)), Reader()
    balance: Counter[int] = Counter()
    left: Counter[int] = Counter()
    changes = [(at, 1) for at in range(len(rows))]
    changes += [(at, -1) for at in data.draw(st.lists(st.integers(0, len(rows) - 1), unique=True))]
    for at, sign in changes:
        left[at] += sign
    changes = data.draw(st.permutations(changes))
    size = data.draw(st.integers(1, 9))
    for start in range(0, len(changes), size):
        part = changes[start : start + size]
        batch = batch_of(schema, [(*rows[at], sign) for at, sign in part])
        run.send(batch.cast(schema))
        for at, sign in part:
            balance[at] += sign
        if data.draw(st.booleans()):
            run.tick(SECOND)
            reader.take(run.taken())
            if min(balance.values()) >= 0:
                assert reader.table == expected(+balance, rows, len(ITEMS))
        if data.draw(st.integers(0, 4)) == 0:
            run.cut()
            reader.take(run.taken())
            run.crash()
    run.end()
    reader.take(run.taken())
    assert reader.table == expected(+left, rows, len(ITEMS))


@settings(max_examples=25, deadline=None)
@given(steps=append_steps, updating=st.booleans())
def test_folding_before_the_exchange_changes_nothing(
    steps: list[list[Row]], updating: bool
) -> None:
    schema = with_time(with_change(COLUMNS) if updating else COLUMNS)
    aggregation = Aggregation(LINEAR, schema)
    fold = Harness(UpdatingFoldProcessor(["k"], aggregation, schema), [schema])
    run = harness_of(
        UpdatingAggregateProcessor(["k"], aggregation, schema, None, 0, partial_input=True)
    )
    reader, seen = Reader(), []
    for step, rows in enumerate(steps):
        given = [(*r, 1) for r in rows] if updating else rows
        columns = pa.schema(list(schema)[:-1])
        fold.send(batch_of(columns, given, [step] * len(rows)).cast(schema))
        folded = fold.taken()
        assert folded.num_rows == len({r[0] for r in rows})
        for batch in folded.to_batches():
            run.send(batch)
        seen += rows
    reader.take(run.taken())
    assert reader.table == expected(Counter(range(len(seen))), seen, len(LINEAR))


def test_groups_go_to_the_subtask_that_owns_their_keys_after_a_rescale() -> None:
    from penstock.elements.hash import hash_columns
    from penstock.elements.keygroup import owned_groups

    schema = with_change(COLUMNS)
    rows = [(f"key{at % 40}", at, None, None, f"s{at % 7}", None) for at in range(400)]
    first = harness_of(made(ITEMS, schema))
    first.send(batch_of(schema, [(*r, 1) for r in rows]).cast(schema))
    sections, reader = first.cut(), Reader()
    reader.take(first.taken())
    for subtask in range(3):
        run = harness_of(made(ITEMS, schema), restored=sections, subtask=subtask, parallelism=3)
        back = batch_of(schema, [(*r, -1) for r in rows[::2]]).cast(schema)
        own = owned_groups(subtask, 3)
        groups = (hash_columns(back, ["k"]) >> np.uint64(52)).astype(np.int64)
        run.send(back.filter(pa.array((groups >= own.start) & (groups < own.stop))))
        run.end()
        reader.take(run.taken())
    assert reader.table == expected(Counter(range(200)), rows[1::2], len(ITEMS))


def test_only_changed_results_are_given_the_old_row_before_the_new() -> None:
    schema = pa.schema([("k", pa.string()), ("n", pa.int64())])
    run = harness_of(made({"most": "max(n)"}, schema))
    run.send(batch_of(schema, [("a", 5), ("b", 1)])).tick(SECOND)
    assert [r["_change"] for r in run.rows()] == [1, 1]
    run.send(batch_of(schema, [("a", 3), ("b", 9)]))
    assert run.rows() == []
    run.tick(SECOND)
    assert run.rows() == [
        {"k": "b", "most": 1, "_change": -1},
        {"k": "b", "most": 9, "_change": 1},
    ]


def test_a_group_untouched_for_the_ttl_of_event_time_is_taken_back_and_begins_anew() -> None:
    schema = with_time(pa.schema([("k", pa.string()), ("n", pa.int64())]))
    plain = pa.schema(list(schema)[:-1])
    run = harness_of(made({"rows": "count(*)", "kinds": "count(DISTINCT n)"}, schema, ttl_ns=100))
    run.send(batch_of(plain, [("a", 1), ("b", 1)], [10, 60])).tick(SECOND)
    run.taken()
    run.advance(109)
    assert run.rows() == []
    run.advance(110)
    assert run.rows() == [{"k": "a", "rows": 1, "kinds": 1, "_change": -1}]
    run.restart()
    run.send(batch_of(plain, [("a", 7), ("b", 7)], [150, 150])).tick(SECOND)
    assert sorted(tuple(r.values()) for r in run.rows()) == [
        ("a", 1, 1, 1),
        ("b", 1, 1, -1),
        ("b", 2, 2, 1),
    ]
    run.end()
    assert run.rows() == []
    assert run.rows_behind_watermark == 0


def test_without_event_time_the_ttl_goes_by_the_wall_clock_also_after_a_restart() -> None:
    schema = pa.schema([("k", pa.string()), ("n", pa.int64())])
    run = harness_of(made({"rows": "count(*)"}, schema, ttl_ns=100 * SECOND))
    run.send(batch_of(schema, [("a", 1)])).tick(SECOND)
    run.taken()
    run.restart()
    run.tick(98 * SECOND)
    assert run.rows() == []
    run.tick(5 * SECOND)
    assert run.rows() == [{"k": "a", "rows": 1, "_change": -1}]
    assert run.processor.next_wakeup_ns() is None


def test_without_a_key_all_rows_are_one_group() -> None:
    schema = pa.schema([("n", pa.int64())])
    aggregation = Aggregation({"total": "sum(n)"}, schema)
    run = harness_of(UpdatingAggregateProcessor([], aggregation, schema, None, 0))
    run.send(batch_of(schema, [(1,), (2,)])).restart()
    run.send(batch_of(schema, [(-5,)]))
    assert [(r["total"], r["_change"]) for r in run.rows()] == [(3, 1), (3, -1), (-2, 1)]


def test_totals_beyond_64_bits_are_an_error_and_those_just_below_are_exact() -> None:
    for schema in (COLUMNS, with_change(COLUMNS)):
        run = harness_of(made({"total": "sum(n)"}, schema, flush_ns=0))
        sign = (1,) if "_change" in schema.names else ()
        high = ("a", 2**62, None, None, None, None, *sign)
        almost = ("a", 2**62 - 1, None, None, None, None, *sign)
        run.send(batch_of(schema, [high, almost]).cast(schema))
        assert run.rows()[-1]["total"] == 2**63 - 1
        one = ("a", 1, None, None, None, None, *sign)
        with pytest.raises(StateError, match=r"sum\(n\)"):
            run.send(batch_of(schema, [one]).cast(schema))


def test_unsigned_totals_survive_being_below_zero_for_a_while() -> None:
    schema = with_change(pa.schema([("k", pa.string()), ("n", pa.uint64())]))
    run = harness_of(made({"total": "sum(n)"}, schema, flush_ns=0))
    big = 2**63 + 5
    run.send(batch_of(schema, [("a", big, -1)]).cast(schema))
    run.send(batch_of(schema, [("a", big, 1), ("a", big, 1)]).cast(schema))
    assert run.rows()[-1] == {"k": "a", "total": big, "_change": 1}


def test_first_and_last_of_rows_that_may_be_taken_back_are_refused() -> None:
    schema = with_time(with_change(COLUMNS))
    with pytest.raises(PlanError, match=r"first\(n\).*taken back(.|\n)*max_by"):
        made({"opening": "first(n)"}, schema)
