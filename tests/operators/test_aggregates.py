"""Aggregates: checked when planning; exact; the same however they are split and merged."""

from __future__ import annotations

import math
import pickle
import random
import struct
from decimal import Decimal
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from penstock.elements.errors import PlanError, StateError
from penstock.expressions.expression import expr
from penstock.operators.aggregates import Aggregation
from penstock.operators.event_times import time_array, with_time
from penstock.operators.grouping import group_rows
from penstock.operators.windows.partials import Folding, MultisetRows, Partials, concat

COLUMNS = pa.schema(
    [
        ("k", pa.int64()),
        ("i", pa.int32()),
        ("u", pa.uint64()),
        ("f", pa.float64()),
        ("d", pa.decimal128(12, 2)),
        ("s", pa.string()),
        ("b", pa.bool_()),
        ("t", pa.timestamp("us")),
    ]
)
ROWS = with_time(COLUMNS)


def rows_of(seed: int, count: int) -> pa.RecordBatch:
    rng = random.Random(seed)

    def some(make: Any) -> list[Any]:
        return [None if rng.random() < 0.2 else make() for _ in range(count)]

    columns = [
        [rng.randint(0, 6) for _ in range(count)],
        some(lambda: rng.randint(-(2**31), 2**31 - 1)),
        some(lambda: rng.randint(0, 2**40)),
        some(lambda: rng.choice([rng.gauss(0, 1e3), 0.0, -0.0, math.inf])),
        some(lambda: Decimal(rng.randint(-(10**11), 10**11)) / 100),
        some(lambda: rng.choice(["", "a", "ab", "é", "z" * 40])),
        some(lambda: rng.random() < 0.5),
        some(lambda: rng.randint(-(10**15), 10**15)),
    ]
    arrays = [pa.array(c, f.type) for c, f in zip(columns, COLUMNS)]
    times = np.array([rng.randint(0, 10**6) for _ in range(count)], np.int64)
    return pa.RecordBatch.from_arrays([*arrays, time_array(times)], schema=ROWS)


def folded(aggregation: Aggregation, batches: list[pa.RecordBatch]) -> dict[int, dict[str, Any]]:
    """Partials of each batch, merged step by step, then finished: one dict per key."""
    folding = Folding(aggregation, [ROWS.field("k")])
    merged: Partials | None = None
    values: list[MultisetRows | None] = [None for _ in aggregation.multisets]
    for batch in batches:
        keys = folding.keys_of(batch)
        times = np.zeros(batch.num_rows, np.int64)
        arguments = aggregation.argument_columns(batch)
        groups = folding.groups(keys, times)
        event_times = batch.column("_time").cast(pa.int64()).to_numpy()
        partials = folding.from_rows(keys, groups, times, arguments, event_times)
        merged = partials if merged is None else folding.merge(concat([merged, partials]))
        for at, multiset in enumerate(aggregation.multisets):
            column = arguments[multiset.argument]
            keep = column.is_valid()
            kept = [key.filter(keep) for key in keys]
            ones = pa.array(np.ones(len(kept[0]), np.int64))
            rows = MultisetRows(kept, np.zeros(len(ones), np.int64), column.filter(keep), ones)
            before = values[at]
            if before is not None:
                joined = [pa.concat_arrays(pair) for pair in zip(before.keys, rows.keys)]
                content = pa.concat_arrays([before.content, rows.content])
                counts = pa.concat_arrays([before.counts, rows.counts])
                rows = MultisetRows(joined, np.zeros(len(counts), np.int64), content, counts)
            values[at] = rows
    assert merged is not None
    columns = folding.results(merged, [rows for rows in values if rows is not None])
    table = pa.table([merged.keys[0], *columns], names=["k", *aggregation.results.names])
    return {row["k"]: row for row in table.to_pylist()}


ITEMS = {
    "rows": "count(*)",
    "some": "count(f)",
    "total": "sum(i)",
    "utotal": "sum(u)",
    "ftotal": "sum(f)",
    "dtotal": "sum(d)",
    "least": "min(s)",
    "most": "max(s)",
    "fleast": "min(f)",
    "fmost": "max(f)",
    "earliest": "min(t)",
    "dmost": "max(d)",
    "mean": "avg(i)",
    "fmean": "avg(f) FILTER (WHERE f < 1000000)",
    "dmean": "avg(d)",
    "spread": "stddev(i)",
    "pop": "var_pop(i)",
    "every": "bool_and(b)",
    "any": "bool_or(b)",
    "middle": "median(i)",
    "high": "quantile(i, 0.9)",
    "kinds": "count(DISTINCT s)",
    "share": "sum(i) FILTER (WHERE i > 0) / count(*)",
}


@pytest.mark.parametrize("pieces", [1, 7, 300])
def test_aggregates_equal_those_of_a_database_however_rows_are_split(pieces: int) -> None:
    batch = rows_of(1, 300)
    size = -(-300 // pieces)
    parts = [batch.slice(at, size) for at in range(0, 300, size)]
    found = folded(Aggregation(ITEMS, ROWS), parts)
    rows = pa.Table.from_batches([batch])
    names = {"high": "quantile_cont(i, 0.9)", "share": "sum(i) FILTER (WHERE i > 0) // count(*)"}
    listed = ", ".join(f"{names.get(name, text)} AS {name}" for name, text in ITEMS.items())
    query = duckdb.sql(f"SELECT k, {listed} FROM rows GROUP BY k")  # reads `rows` above
    assert rows.num_rows == 300
    wanted = {row["k"]: row for row in query.to_arrow_table().to_pylist()}
    assert found.keys() == wanted.keys()
    for key, row in wanted.items():
        for name, value in row.items():
            if isinstance(value, (float, Decimal)) and found[key][name] is not None:
                # The database's decimal averages are doubles.
                close = pytest.approx(float(value), rel=1e-9, abs=1e-4, nan_ok=True)
                assert float(found[key][name]) == close, (name, key)
            else:
                assert found[key][name] == value, (name, key)


def test_nan_is_greater_than_every_number_and_null_is_left_out() -> None:
    values = [
        [math.nan, 1.0, None],
        [math.nan, None, None],
        [None, None, None],
        [2.0, -math.inf, None],
    ]
    batch = pa.RecordBatch.from_pydict(
        {
            **{f.name: pa.nulls(12, f.type) for f in COLUMNS},
            "k": pa.array([k for k in range(4) for _ in range(3)]),
            "f": pa.array([v for group in values for v in group], pa.float64()),
            "_time": time_array(np.arange(12)),
        },
        schema=ROWS,
    )
    items = {"low": "min(f)", "high": "max(f)", "mid": "median(f)", "n": "count(DISTINCT f)"}
    found = folded(Aggregation(items, ROWS), [batch])
    shown = [[repr(found[k][name]) for name in items] for k in range(4)]
    assert shown == [
        ["1.0", "nan", "nan", "2"],
        ["nan", "nan", "nan", "1"],
        ["None", "None", "None", "0"],
        ["-inf", "2.0", "-inf", "2"],
    ]


def one_column(kind: pa.DataType, values: list[Any]) -> pa.RecordBatch:
    schema = with_time(pa.schema([("k", pa.int64()), ("x", kind)]))
    arrays = [
        pa.array([0] * len(values)),
        pa.array(values, kind),
        time_array(np.arange(len(values))),
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (pa.int64(), [2**63 - 1, 1]),
        (pa.int64(), [-(2**63), -1]),
        (pa.uint64(), [2**64 - 1, 1]),
        (pa.decimal128(38, 0), [Decimal(9 * 10**37), Decimal(9 * 10**37)]),
    ],
)
def test_a_total_that_does_not_fit_is_an_error_naming_it(
    kind: pa.DataType, values: list[Any]
) -> None:
    for text in ("sum(x)", "avg(x)"):
        for pieces in (1, 2):
            batch = one_column(kind, values)
            size = len(values) // pieces
            parts = [batch.slice(at, size) for at in range(0, len(values), size)]
            aggregation = Aggregation({"total": text}, batch.schema)
            with pytest.raises(StateError, match=r"(sum|avg)\(x\): the total"):
                folded(aggregation, parts)


def test_large_totals_that_fit_are_exact() -> None:
    values = [2**63 - 1, -(2**63), 2**62, -5, 2**62 + 4]
    batch = one_column(pa.int64(), values)
    found = folded(Aggregation({"total": "sum(x)"}, batch.schema), [batch])
    assert found[0]["total"] == sum(values)
    small = one_column(pa.int64(), [2**53 + 1] * 3)
    assert folded(Aggregation({"t": "sum(x)"}, small.schema), [small])[0]["t"] == 3 * (2**53 + 1)


def test_infinities_of_both_signs_make_nan_without_a_warning() -> None:
    batch = one_column(pa.float64(), [math.inf, -math.inf, 1.0])
    found = folded(
        Aggregation({"t": "sum(x)", "m": "avg(x)", "v": "var(x)"}, batch.schema), [batch]
    )
    assert all(math.isnan(found[0][name]) for name in ("t", "m", "v"))


def test_first_and_last_do_not_depend_on_the_order_of_arrival() -> None:
    batch = rows_of(5, 200)
    tied = np.asarray(batch.column("_time").cast(pa.int64())) // 10**5
    batch = batch.set_column(8, ROWS.field(8), time_array(tied))
    aggregation = Aggregation({"a": "first(s)", "z": "last(i)"}, ROWS)
    wanted = folded(aggregation, [batch])
    rng = np.random.default_rng(3)
    for _ in range(5):
        mixed = batch.take(pa.array(rng.permutation(200)))
        assert folded(aggregation, [mixed.slice(0, 61), mixed.slice(61)]) == wanted


def test_equal_calls_are_computed_once() -> None:
    items = {"a": "max(i)", "b": "max(i) - min(i)", "c": "median(i)", "d": "count(DISTINCT i)"}
    aggregation = Aggregation(items, ROWS)
    assert [call.text for call in aggregation.calls] == [
        "max(i)",
        "min(i)",
        "median(i)",
        "count(DISTINCT i)",
    ]
    assert len(aggregation.multisets) == 1
    assert aggregation.columns_read == ("i",)


def test_arguments_are_expressions_and_may_have_parameters() -> None:
    text = expr("sum(i * $rate) FILTER (WHERE s = $tag)", rate=2, tag="a")
    aggregation = Aggregation({"x": text, "y": "max(upper(s))"}, ROWS)
    batch = rows_of(2, 50)
    found = folded(pickle.loads(pickle.dumps(aggregation)), [batch])
    rows = batch.to_pylist()
    for key, row in found.items():
        mine = [r["i"] * 2 for r in rows if r["k"] == key and r["s"] == "a" and r["i"] is not None]
        assert row["x"] == (sum(mine) if mine else None)


def test_groups_of_nulls_nans_and_zeros_are_as_in_the_key_hash() -> None:
    column = pa.array(
        [
            None,
            0.0,
            -0.0,
            math.nan,
            struct.unpack("<d", b"\1" + b"\0" * 5 + b"\xf8\xff")[0],
            None,
            1.0,
        ]
    )
    groups = group_rows([column], 7)
    assert groups.count == 4
    assert groups.codes[1] == groups.codes[2]
    assert groups.codes[3] == groups.codes[4]
    assert groups.codes[0] == groups.codes[5]


@pytest.mark.parametrize("kind", [pa.int8(), pa.int16(), pa.uint8(), pa.int32(), pa.uint64()])
def test_groups_of_integers_span_all_of_their_type(kind: pa.DataType) -> None:
    bits = kind.bit_width
    low = -(2 ** (bits - 1)) if pa.types.is_signed_integer(kind) else 0
    values = [low, low + 2**bits - 1, low + 1, low, low + 2 ** (bits - 1)]
    groups = group_rows([pa.array(values, kind)], 5)
    assert groups.count == 4
    assert len(set(groups.codes[[0, 1, 2, 4]].tolist())) == 4
    assert groups.codes[0] == groups.codes[3]


@pytest.mark.parametrize("seed", range(20))
def test_groups_are_those_of_a_dictionary(seed: int) -> None:
    rng = random.Random(seed)
    count = rng.choice([1, 2, 50, 3000])
    wide = rng.choice([3, 10**6, 2**62])
    columns = [
        pa.array([rng.randint(-wide, wide) for _ in range(count)], pa.int64()),
        pa.array([rng.choice([None, "a", "b"]) for _ in range(count)]),
        pa.array([rng.choice([None, {"x": 1}, {"x": None}]) for _ in range(count)]),
        pa.array([rng.choice([None, [], [None], ["a"], ["a", "b"], ["b"]]) for _ in range(count)]),
    ]
    rng.shuffle(columns)
    columns = columns[: rng.randint(1, 4)]
    groups = group_rows(columns, count)
    seen: dict[Any, int] = {}
    rows = [repr(row) for row in zip(*(column.to_pylist() for column in columns))]
    for row, code in zip(rows, groups.codes.tolist()):
        assert seen.setdefault(row, code) == code
    assert len(set(seen.values())) == len(seen) == groups.count
    assert sorted(groups.order.tolist()) == list(range(count))
    assert (np.diff(groups.codes[groups.order]) >= 0).all()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("i + 1", "no aggregate in it"),
        ("modus(i)", r"modus\(\) is no aggregate; there are count"),
        ("max(nope)", 'no column "nope"'),
        ("sum(s)", "takes numbers"),
        ("bool_and(i)", "takes booleans"),
        ("max(sum(i))", "an aggregate inside an aggregate"),
        ("quantile(i, 3)", "a number from 0 to 1"),
        ("quantile(i)", r"write quantile\(x, 0.99\)"),
        ("first(DISTINCT i)", "is not there"),
        ("min(i, i)", r"write min\(x\)"),
        ("max(i", "missing here"),
    ],
)
def test_what_cannot_be_aggregated_is_refused_when_planning(text: str, reason: str) -> None:
    with pytest.raises(PlanError, match=reason) as caught:
        Aggregation({"x": text}, ROWS, who="aggregate over tumble 1 hour", location="flow.py:7")
    assert "flow.py:7" in str(caught.value)


def test_first_needs_event_time() -> None:
    with pytest.raises(PlanError, match="needs event time"):
        Aggregation({"x": "first(i)"}, COLUMNS)
