"""Keys dealt out over parts and merged again give what the aggregate gives without."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.elements.changelog import with_change
from penstock.elements.errors import PlanError
from penstock.elements.hash import hash_columns
from penstock.elements.keygroup import subtask_of
from penstock.elements.signals import WATERMARK_MIN
from penstock.operators.aggregates import Aggregation
from penstock.operators.event_times import with_time
from penstock.operators.processor import LATE
from penstock.operators.split_parts import SALT, distinct_argument
from penstock.operators.split_salt import SaltProcessor
from penstock.operators.updating_aggregate import UpdatingAggregateProcessor
from penstock.operators.updating_split import UpdatingMergeProcessor, UpdatingPartsProcessor
from penstock.operators.windows.aggregate import WindowAggregateProcessor
from penstock.operators.windows.descriptors import Cumulate, Hop, Tumble, tumble
from penstock.operators.windows.split import (
    UpdatingWindowMergeProcessor,
    UpdatingWindowPartsProcessor,
    WindowMergeProcessor,
    WindowPartsProcessor,
)
from penstock.operators.windows.updating import UpdatingWindowProcessor
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
ITEMS = {
    "rows": "count(*)",
    "some": "count(n)",
    "total": "sum(n)",
    "sum_d": "sum(d)",
    "mean": "avg(n)",
    "spread": "var_samp(n % 100)",
    "least": "min(n)",
    "most": "max(f)",
    "every": "bool_and(b)",
    "kinds": "count(DISTINCT s)",
    "first_kind": "min(s)",
    "joined": "string_agg(DISTINCT s, '')",
    "ratio": "sum(n) / count(*) + count(DISTINCT s)",
}
LISTS = {
    "all": "array_agg(n) FILTER (WHERE b)",
    "texts": "string_agg(s, '-')",
    "kinds": "array_agg(DISTINCT s)",
    "winner": "max_by(s, n)",
    "line": "regr_slope(n, f)",
    "about": "approx_count_distinct(n)",
    "middle": "approx_median(n)",
    "bits": "bit_or(n)",
    "opening": "first(n)",
    "closing": "last(s) FILTER (WHERE b)",
}
FLOATS = {"rows": "count(*)", "kinds": "count(DISTINCT f)", "once": "avg(DISTINCT f)"}
Row = tuple[Any, ...]

row = st.tuples(
    st.sampled_from(["a", "b", None]),
    st.sampled_from([None, 0, 1, -7, 2**40]),
    st.sampled_from([None, 0.5, -0.0, 0.0, 3.25, math.nan, math.inf]),
    st.sampled_from([None, Decimal("0.01"), Decimal("-99.99")]),
    st.sampled_from([None, "x", "y", "z", ""]),
    st.sampled_from([None, True, False]),
)
steps_of_rows = st.lists(st.lists(row, max_size=12), min_size=1, max_size=6)
timed = st.lists(st.tuples(row, st.integers(0, 40)), max_size=12)
timed_steps = st.lists(st.tuples(timed, st.integers(0, 12)), min_size=1, max_size=6)


def canonical(value: Any) -> Any:
    """NaN equals itself; floats within their last digits; hashable."""
    if isinstance(value, float):
        return "nan" if math.isnan(value) else float(f"{value:.9g}") + 0.0
    return tuple(canonical(each) for each in value) if isinstance(value, list) else value


def net(tables: list[pa.Table]) -> Counter[Any]:
    """The rows that are there in the end; `joined` as a set, `_time` left out."""
    found: Counter[Any] = Counter()
    for each in (line for table in tables for line in table.to_pylist()):
        weight = each.pop("_change", 1)
        each.pop("_time", None)
        if each.get("joined") is not None:
            each["joined"] = "".join(sorted(each["joined"]))
        found[tuple(canonical(value) for value in each.values())] += weight
    assert all(times >= 0 for times in found.values())
    return +found


class Stage:
    """One operator at some parallelism, fed by key as the runtime would."""

    def __init__(self, make: Callable[[], Any], keys: list[str], parallelism: int) -> None:
        self.make, self.keys = make, keys
        self.run = self._made(parallelism, (), WATERMARK_MIN)

    def _made(self, parallelism: int, sections: Any, watermark: int) -> list[Harness]:
        made = [self.make() for _ in range(parallelism)]
        return [
            Harness(
                each,
                [each.in_schema],
                out_schemas={"main": each.out_schema},
                restored=sections,
                subtask=subtask,
                parallelism=parallelism,
                watermark=watermark,
            )
            for subtask, each in enumerate(made)
        ]

    def send(self, table: pa.Table) -> None:
        for batch in table.to_batches():
            if not batch.num_rows:
                continue
            hashes = hash_columns(batch, self.keys)
            targets = subtask_of(hashes, len(self.run))
            for at, each in enumerate(self.run):
                rows = np.flatnonzero(targets == at)
                if len(rows):
                    each.send(batch.take(pa.array(rows)))

    def taken(self, output: str = "main") -> pa.Table:
        return pa.concat_tables(
            [found for each in self.run if (found := each.taken(output)).num_columns]
            or [pa.table({})]
        )

    def cut(self) -> list[Any]:
        return [section for each in self.run for section in each.cut()]

    def come_back(self, sections: list[Any], parallelism: int) -> None:
        self.run = self._made(parallelism, sections, self.run[0].watermark)


class Split:
    """Salt, parts over two subtasks, merge over one; `given` is what the merge gave."""

    def __init__(self, salt: Any, parts: Any, merge: Any) -> None:
        self.salt = Harness(salt, [salt.in_schema], out_schemas={"main": salt.out_schema})
        self.parts = Stage(lambda: parts, ["k", SALT], 2)
        self.merge = Stage(lambda: merge, ["k"], 1)
        self.given: list[pa.Table] = []
        self.late: list[pa.Table] = []

    def _flow(self) -> None:
        self.merge.send(self.parts.taken())
        self.late.append(self.parts.taken(LATE))
        assert not any(each.rows_behind_watermark for each in self.parts.run + self.merge.run)
        self.given.append(self.merge.taken())

    def send(self, batch: pa.RecordBatch) -> None:
        self.salt.send(batch)
        self.parts.send(self.salt.taken())
        self._flow()

    def advance(self, watermark: int) -> None:
        for each in self.parts.run:
            each.advance(watermark)
        self._flow()
        for each in self.merge.run:
            each.advance(watermark)
        self._flow()

    def tick(self, step: int) -> None:
        for stage in (self.parts, self.merge):
            for each in stage.run:
                each.tick(step)
            self._flow()

    def rescale(self, parts: int, merge: int) -> None:
        first = self.parts.cut()
        self._flow()
        second = self.merge.cut()
        self._flow()
        self.parts.come_back(first, parts)
        self.merge.come_back(second, merge)

    def end(self) -> None:
        for stage in (self.parts, self.merge):
            for each in stage.run:
                each.end()
            self._flow()


def rows_of(schema: pa.Schema, rows: list[Row], times: list[int] | None = None) -> pa.RecordBatch:
    names = [name for name in schema.names if name != "_time"]
    columns = pa.schema([schema.field(name) for name in names])
    return batch_of(columns, rows, times)


def split_of(schema: pa.Schema, items: dict[str, str], salts: int, flush_ns: int) -> Split:
    aggregation = Aggregation(items, schema)
    salt = SaltProcessor(aggregation, salts, distinct_argument(aggregation, "", ""), schema)
    salted = salt.out_schema
    return Split(
        salt,
        UpdatingPartsProcessor(["k"], Aggregation(items, salted), salted, flush_ns),
        UpdatingMergeProcessor(["k"], aggregation, schema, flush_ns),
    )


@settings(max_examples=25, deadline=None)
@given(
    steps=steps_of_rows,
    updating=st.booleans(),
    items=st.sampled_from([ITEMS, FLOATS]),
    flush_ns=st.sampled_from([0, 1000]),
    data=st.data(),
)
def test_aggregates_without_a_window_merge_to_what_they_are(
    steps: list[list[Row]],
    updating: bool,
    items: dict[str, str],
    flush_ns: int,
    data: st.DataObject,
) -> None:
    schema = with_change(COLUMNS) if updating else COLUMNS
    split = split_of(schema, items, 3, flush_ns)
    whole = UpdatingAggregateProcessor(["k"], Aggregation(items, schema), schema, None, flush_ns)
    alone = Harness(whole, [schema], out_schemas={"main": whole.out_schema})
    seen: list[Row] = []
    given_alone: list[pa.Table] = []
    for rows in steps:
        signed = [(*each, 1) for each in rows]
        seen += rows
        if updating:
            # Some are taken back, now and then before what they take back has come.
            back = (
                data.draw(st.lists(st.sampled_from(seen), max_size=20, unique_by=id))
                if seen
                else []
            )
            for each in back:
                seen.remove(each)
            signed = data.draw(st.permutations([*signed, *((*each, -1) for each in back)]))
        batch = rows_of(schema, [each if updating else each[:-1] for each in signed])
        split.send(batch)
        alone.send(batch)
        split.tick(1000)
        alone.tick(1000)
        given_alone.append(alone.taken())
        assert net(split.given) == net(given_alone)
        if data.draw(st.booleans()):
            split.rescale(data.draw(st.integers(1, 3)), data.draw(st.integers(1, 2)))
    split.end()
    alone.end()
    assert net(split.given) == net([*given_alone, alone.taken()])


WINDOWS = [
    Tumble(10, 3),
    Hop(10, 4, 1),
    Hop(3, 10),
    Cumulate(12, 4, 2),
    tumble("1 day", timezone="Asia/Kathmandu"),
]


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("early_ns", [None, -1, 1000])
@settings(max_examples=5, deadline=None)
@given(steps=timed_steps, data=st.data())
def test_windows_merge_to_what_they_are(
    window: Any, early_ns: int | None, steps: list[Any], data: st.DataObject
) -> None:
    schema = with_time(COLUMNS)
    aggregation = Aggregation(ITEMS, schema)
    salt = SaltProcessor(aggregation, 4, distinct_argument(aggregation, "", ""), schema)
    salted = salt.out_schema
    parts: Any = (window, ["k"], Aggregation(ITEMS, salted), salted)
    merge: Any = (window, ["k"], aggregation, schema)
    whole: Any
    if early_ns is None:
        split = Split(salt, WindowPartsProcessor(*parts), WindowMergeProcessor(*merge))
        whole = WindowAggregateProcessor(*merge)
    else:
        kept: Any = (early_ns if early_ns > 0 else None, 5)
        split = Split(
            salt,
            UpdatingWindowPartsProcessor(*parts, *kept),
            UpdatingWindowMergeProcessor(*merge, *kept),
        )
        whole = UpdatingWindowProcessor(*merge, *kept)
    alone = Harness(whole, [schema], out_schemas={"main": whole.out_schema})
    given_alone, now = [], 0
    for rows, step in steps:
        batch = rows_of(schema, [each for each, _ in rows], [now + at - 15 for _, at in rows])
        split.send(batch)
        alone.send(batch)
        split.tick(1000)
        alone.tick(1000)
        now += step
        split.advance(now)
        alone.advance(now)
        if data.draw(st.booleans()):
            split.rescale(data.draw(st.integers(1, 3)), data.draw(st.integers(1, 2)))
        given_alone.append(alone.taken())
        if early_ns != 1000:
            # Before a cut early results are given, also those that were not asked for yet.
            assert net(split.given) == net(given_alone), "not at the same watermark"
    split.end()
    alone.end()
    assert net(split.given) == net([*given_alone, alone.taken()])
    assert net(split.late) == net([alone.taken(LATE)])


def test_a_hot_key_comes_to_the_merge_as_one_row_per_part_and_flush() -> None:
    schema = pa.schema([("k", pa.string()), ("s", pa.int64())])
    split = split_of(schema, {"kinds": "count(DISTINCT s)"}, 8, 1000)
    crossed = 0
    for step in range(5):
        rows = [("hot", 1000 * step + at) for at in range(1000)]
        split.salt.send(batch_of(schema, rows))
        split.parts.send(split.salt.taken())
        for each in split.parts.run:
            each.tick(1000)
        parts = split.parts.taken()
        crossed += parts.num_rows
        split.merge.send(parts)
    assert crossed == 8 + 4 * 2 * 8
    for each in split.merge.run:
        each.tick(1000)
    assert net([split.merge.taken()]) == Counter({("hot", 5000): 1})


def test_parts_of_a_hot_key_are_about_equal() -> None:
    schema = pa.schema([("k", pa.string()), ("s", pa.int64())])
    aggregation = Aggregation({"kinds": "count(DISTINCT s)"}, schema)
    run = Harness(SaltProcessor(aggregation, 8, 0, schema), [schema])
    run.send(batch_of(schema, [("hot", at) for at in range(8000)]))
    sizes = Counter(run.taken()[SALT].to_pylist())
    assert len(sizes) == 8
    assert min(sizes.values()) > 850
    assert max(sizes.values()) < 1150


def test_values_that_a_filter_leaves_out_are_not_all_in_one_part() -> None:
    schema = pa.schema([("k", pa.string()), ("s", pa.int64())])
    aggregation = Aggregation({"kinds": "count(DISTINCT s) FILTER (WHERE s < 0)"}, schema)
    run = Harness(SaltProcessor(aggregation, 8, 0, schema), [schema])
    run.send(batch_of(schema, [("hot", at) for at in range(800)]))
    assert len(Counter(run.taken()[SALT].to_pylist())) == 8


@pytest.mark.parametrize(
    ("items", "reason"),
    [
        ({"m": "median(n)"}, "needs all values"),
        ({"a": "count(DISTINCT n)", "b": "sum(DISTINCT f)"}, "one DISTINCT"),
    ],
)
def test_what_cannot_be_merged_is_refused(items: dict[str, str], reason: str) -> None:
    with pytest.raises(PlanError, match=reason):
        distinct_argument(Aggregation(items, COLUMNS), "aggregate", "(here)")


def test_a_part_that_is_taken_back_whole_is_gone_also_after_a_restart() -> None:
    schema = with_change(pa.schema([("k", pa.string()), ("n", pa.int64())]))
    items = {"rows": "count(*)", "least": "min(n)", "kinds": "count(DISTINCT n)"}
    split = split_of(schema, items, 4, 1000)
    numbers = range(40)
    split.send(rows_of(schema, [("a", at, 1) for at in numbers]))
    split.tick(1000)
    split.rescale(2, 1)
    split.send(rows_of(schema, [("a", at, -1) for at in numbers if at != 17]))
    split.tick(1000)
    assert net(split.given) == Counter({("a", 1, 17, 1): 1})
    split.rescale(3, 2)
    split.send(rows_of(schema, [("a", 17, -1), ("a", 18, 1)]))
    split.tick(1000)
    assert net(split.given) == Counter({("a", 1, 18, 1): 1})


def test_a_row_taken_back_too_early_counts_until_it_comes() -> None:
    schema = with_change(pa.schema([("k", pa.string()), ("n", pa.int64())]))
    split = split_of(schema, {"rows": "count(*)", "total": "sum(n)"}, 4, 1000)
    split.send(rows_of(schema, [("a", at, 1) for at in range(10)]))
    split.send(rows_of(schema, [("a", 100 + at, -1) for at in range(4)]))
    split.tick(1000)
    assert net(split.given) == Counter({("a", 6, 45 - 406): 1})
    split.send(rows_of(schema, [("a", 100 + at, 1) for at in range(4)]))
    split.tick(1000)
    assert net(split.given) == Counter({("a", 10, 45): 1})


@pytest.mark.parametrize("updating", [False, True])
def test_lists_sketches_pairs_and_edges_merge_too(updating: bool) -> None:
    schema = with_time(with_change(COLUMNS) if updating else COLUMNS)
    items = {name: text for name, text in LISTS.items() if not updating or "ing" not in name}
    chance = random.Random(3)
    split = split_of(schema, items, 4, 0)
    whole = UpdatingAggregateProcessor(["k"], Aggregation(items, schema), schema, None, 0)
    alone = Harness(whole, [schema], out_schemas={"main": whole.out_schema})
    seen: list[Row] = []
    given_alone: list[pa.Table] = []
    for step in range(5):
        rows = [
            (
                chance.choice("ab"),
                chance.choice([None, 1, 5, 99, 64]),
                chance.choice([None, 0.5, 2.5]),
                None,
                chance.choice([None, "x", "y"]),
                chance.choice([None, True, False]),
            )
            for _ in range(20)
        ]
        seen += rows
        signed = [(*each, 1) for each in rows]
        if updating:
            signed += [(*seen.pop(chance.randrange(len(seen))), -1) for _ in range(5)]
        times = [100 * step + at for at in range(len(signed))]
        batch = rows_of(schema, [each if updating else each[:-1] for each in signed], times)
        split.send(batch)
        alone.send(batch)
        given_alone.append(alone.taken())
        assert net(split.given) == net(given_alone)
        if step == 2:
            split.rescale(3, 2)
