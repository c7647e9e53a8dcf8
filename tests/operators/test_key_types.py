"""Keys of every type, with their extremes and nulls, in every operator that tells keys apart."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from penstock.elements.changelog import with_change
from penstock.operators.aggregates import Aggregation
from penstock.operators.asof_join import AsOfJoinProcessor
from penstock.operators.broadcast_join import BroadcastJoinProcessor
from penstock.operators.dedup import FirstRowProcessor
from penstock.operators.event_times import with_time
from penstock.operators.incremental_join import FOREVER_NS, IncrementalJoinProcessor
from penstock.operators.interval_join import IntervalJoinProcessor
from penstock.operators.over import OverProcessor
from penstock.operators.over_items import OverItems
from penstock.operators.ranking import RunningTopProcessor
from penstock.operators.ranking_changes import UpdatingTopProcessor
from penstock.operators.ranking_windows import WindowRankProcessor
from penstock.operators.row_order import RowOrder
from penstock.operators.updating_aggregate import UpdatingAggregateProcessor
from penstock.operators.window_join import WindowJoinProcessor
from penstock.operators.windows.aggregate import WindowAggregateProcessor
from penstock.operators.windows.count import CountAggregateProcessor
from penstock.operators.windows.descriptors import CountWindow, Hop, Session, Tumble
from penstock.operators.windows.sessions import SessionAggregateProcessor
from penstock.operators.windows.updating import UpdatingWindowProcessor
from penstock.operators.windows.updating_sessions import UpdatingSessionProcessor
from penstock.testing.harness import Harness, batch_of

MOMENTS = [datetime(1677, 10, 1, tzinfo=UTC), datetime(1970, 1, 1, tzinfo=UTC), None]
KEYS: dict[pa.DataType, list[Any]] = {
    pa.int8(): [-128, 127, 0, None],
    pa.int64(): [-(2**63), 2**63 - 1, 0, -1, None],
    pa.uint64(): [0, 2**64 - 1, 2**63, None],
    pa.float32(): [math.inf, -math.inf, 0.0, math.nan, None],
    pa.float64(): [math.inf, 5e-324, 0.0, math.nan, None],
    pa.bool_(): [True, False, None],
    pa.string(): ["", "\0", "é", "e\u0301", "x" * 300, None],
    pa.binary(): [b"", b"\0", b"\0\0", b"\xff", None],
    pa.binary(2): [b"\0\0", b"\xff\xff", None],
    pa.decimal128(38, 2): [Decimal(0), Decimal("-1e35"), Decimal("0.01"), None],
    pa.date32(): [date(1, 1, 1), date(9999, 12, 31), date(1970, 1, 1), None],
    pa.timestamp("us", "UTC"): MOMENTS,
    pa.duration("ms"): [timedelta(0), timedelta(days=-999_999), None],
}


def rows_of(values: list[Any]) -> list[tuple[Any, int]]:
    """Keys and numbers, in no order, each key several times."""
    chance = random.Random(3)
    return [(chance.choice(values), number) for number in range(40)]


def drive_changes(made: Any, columns: pa.Schema, rows: list[Any], back: list[Any]) -> Harness:
    """Rows come with others that are taken back later."""
    driven = Harness(made, [made.in_schema])
    signed = [(*row, 1) for row in [*back, *rows]] + [(*row, -1) for row in back]
    for at in range(0, len(signed), 15):
        part = signed[at : at + 15]
        batch = batch_of(with_change(columns), part, [at] * len(part))
        driven.send(batch.cast(made.in_schema)).restart()
    return driven.end()


def shown(value: Any) -> Any:
    return "nan" if isinstance(value, float) and math.isnan(value) else value


def taken(driven: Harness, *names: str) -> Counter[Any]:
    found: Counter[Any] = Counter()
    for row in driven.taken().to_pylist():
        found[tuple(shown(row[name]) for name in names)] += row.get("_change", 1)
    return +found


def counts_of(rows: list[Any]) -> Counter[Any]:
    return Counter((key, n) for key, n in Counter(shown(key) for key, _ in rows).items())


COUNTED: dict[str, Callable[[pa.Schema, Any], Any]] = {
    "tumble": lambda s, a: WindowAggregateProcessor(Tumble(1000), ["k"], a, s),
    "session": lambda s, a: SessionAggregateProcessor(Session(1000), ["k"], a, s),
    "early": lambda s, a: UpdatingWindowProcessor(Tumble(1000), ["k"], a, s, 0),
    "early session": lambda s, a: UpdatingSessionProcessor(Session(1000), ["k"], a, s, 0),
    "updating": lambda s, a: UpdatingAggregateProcessor(["k"], a, s, None, 0),
}
JOINED: dict[str, Callable[[pa.Schema, pa.Schema], Any]] = {
    "window": lambda a, b: WindowJoinProcessor(Tumble(1000), ["k"], "full", a, b),
    "hop": lambda a, b: WindowJoinProcessor(Hop(1000, 2000), ["k"], "full", a, b),
    "interval": lambda a, b: IntervalJoinProcessor((-1000, 1000), ["k"], "full", a, b),
    "for ever": lambda a, b: IncrementalJoinProcessor(FOREVER_NS, ["k"], "full", a, b),
}


@pytest.mark.parametrize("kind", KEYS, ids=str)
def test_rows_are_counted_by_keys_of_every_type(kind: pa.DataType) -> None:
    columns = pa.schema([("k", kind), ("n", pa.int64())])
    schema, rows = with_time(columns), rows_of(KEYS[kind])
    for name, make in COUNTED.items():
        driven = Harness(make(schema, Aggregation({"c": "count(DISTINCT n)"}, schema)), [schema])
        for at in range(0, len(rows), 15):
            part = rows[at : at + 15]
            driven.send(batch_of(columns, part, [n for _, n in part])).restart()
        assert taken(driven.end(), "k", "c") == counts_of(rows), name
    aggregation = Aggregation({"c": "count(*)"}, schema)
    driven = Harness(CountAggregateProcessor(CountWindow(2), ["k"], aggregation, schema), [schema])
    driven.send(batch_of(columns, rows, [n for _, n in rows])).restart().end()
    twos = {(key, 2): n // 2 for key, n in counts_of(rows)}
    assert taken(driven, "k", "c") == Counter(twos)


@pytest.mark.parametrize("kind", KEYS, ids=str)
def test_rows_are_ordered_by_keys_of_every_type(kind: pa.DataType) -> None:
    columns = pa.schema([("k", kind), ("n", pa.int64())])
    schema, rows = with_time(columns), rows_of(KEYS[kind])
    firsts: dict[Any, int] = {}
    for key, n in rows:
        firsts.setdefault(shown(key), n)
    order = RowOrder("n", schema)
    made = [
        FirstRowProcessor(["k"], schema, True, None),
        FirstRowProcessor(["k"], schema, False, None),
        RunningTopProcessor(["k"], order, 1, schema),
        WindowRankProcessor(Tumble(1000), ["k"], order, schema, 1),
    ]
    for each in made:
        driven = Harness(each, [schema])
        for at in range(0, len(rows), 15):
            part = rows[at : at + 15]
            driven.send(batch_of(columns, part, [n for _, n in part])).restart()
        assert taken(driven.end(), "k", "n") == Counter(firsts.items()), type(each).__name__
    changing = with_time(with_change(columns))
    top = UpdatingTopProcessor(["k"], RowOrder("n", columns), 1, changing)
    driven = drive_changes(top, columns, rows, [(key, -1 - n) for key, n in rows])
    assert taken(driven, "k", "n") == Counter(firsts.items())
    over = OverProcessor(["k"], OverItems({"c": "row_number()"}, schema), None, schema)
    driven = Harness(over, [schema])
    driven.send(batch_of(columns, rows, [n for _, n in rows])).restart().end()
    assert taken(driven, "k", "c") == Counter(
        (key, nth + 1) for key, n in counts_of(rows) for nth in range(n)
    )


@pytest.mark.parametrize("kind", KEYS, ids=str)
def test_rows_are_joined_by_keys_of_every_type(kind: pa.DataType) -> None:
    sides = [pa.schema([("k", kind), (name, pa.int64())]) for name in ("l", "r")]
    schemas = [with_time(side) for side in sides]
    values = KEYS[kind]
    left, right = rows_of(values), [(key, at) for at, key in enumerate([*values[:-2], None])]
    pairs = [(shown(a), n, m) for a, n in left for b, m in right if shown(a) == shown(b)]
    pairs = [pair for pair in pairs if pair[0] is not None]
    matched = {pair[0] for pair in pairs}
    alone = [(shown(a), n, None) for a, n in left if shown(a) not in matched]
    rest = [(shown(b), None, m) for b, m in right if shown(b) not in matched]
    batches = [
        batch_of(side, rows, [n for _, n in rows])
        for side, rows in zip(sides, (left, right), strict=True)
    ]
    for name, make in JOINED.items():
        driven = Harness(make(*schemas), schemas)
        driven.send(batches[0], 0).restart().send(batches[1], 1).restart().end()
        assert taken(driven, "k", "l", "r") == Counter(pairs + alone + rest), name
    latest = [(key, n, m if n >= m else None) for key, n, m in pairs]
    for made in (
        AsOfJoinProcessor(["k"], "left", *schemas),
        BroadcastJoinProcessor(["k"], "left", *schemas),
    ):
        driven = Harness(made, schemas)
        driven.send(batches[0], 0).restart().send(batches[1], 1).restart().end()
        assert taken(driven, "k", "l", "r") == Counter(latest + alone), type(made).__name__


def place(value: Any, descending: bool) -> int:
    """Nulls stand last either way, NaN is greater than all numbers."""
    if value is None:
        return 3
    return 1 if shown(value) != "nan" else 0 if descending else 2


@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("kind", KEYS, ids=str)
def test_rows_stand_in_the_order_of_values_of_every_type(
    kind: pa.DataType, descending: bool
) -> None:
    columns = pa.schema([("k", pa.int64()), ("v", kind), ("n", pa.int64())])
    schema = with_time(columns)
    rows = [(n % 3, value, n) for value, n in rows_of(KEYS[kind])]
    by = "v desc" if descending else "v"
    expected = []
    for key in range(3):
        group = [(v, n) for k, v, n in rows if k == key]
        # Ties go to the earlier row: sorts are stable, also those that are reversed.
        plain = [row for row in group if place(row[0], descending) == 1]
        plain.sort(key=lambda row: row[0], reverse=descending)
        others = [[row for row in group if place(row[0], descending) == at] for at in (0, 2, 3)]
        ordered = [*others[0], *plain, *others[1], *others[2]]
        expected += [(key, n, nth) for nth, (_, n) in enumerate(ordered[:5], 1)]
    for made in (
        RunningTopProcessor(["k"], RowOrder(by, schema), 5, schema, "nth"),
        WindowRankProcessor(
            Tumble(1000), ["k"], RowOrder(by, schema), schema, 5, {"nth": "row_number"}
        ),
    ):
        driven = Harness(made, [schema])
        for at in range(0, len(rows), 7):
            part = rows[at : at + 7]
            driven.send(batch_of(columns, part, [n for _, _, n in part])).restart()
        assert taken(driven.end(), "k", "n", "nth") == Counter(expected), type(made).__name__
    changing = with_time(with_change(columns))
    top = UpdatingTopProcessor(["k"], RowOrder(by, columns), 5, changing, "nth")
    driven = drive_changes(top, columns, rows, [(k, v, n + 100) for k, v, n in rows])
    assert taken(driven, "k", "n", "nth") == Counter(expected)


EDGES = {
    "least": "min(v)",
    "most": "max(v)",
    "kinds": "count(DISTINCT v)",
    "opening": "first(v)",
    "closing": "last(v)",
    "at_least": "min_by(n, v)",
    "of_last": "max_by(v, n)",
    "all": "array_agg(v)",
}


@pytest.mark.parametrize("kind", KEYS, ids=str)
def test_values_of_every_type_have_a_least_a_last_and_a_number(kind: pa.DataType) -> None:
    columns = pa.schema([("k", pa.int64()), ("v", kind), ("n", pa.int64())])
    schema = with_time(columns)
    rows = [(n % 3, value, n) for value, n in rows_of(KEYS[kind])]
    expected = Counter[Any]()
    for key in range(3):
        values = [value for k, value, _ in rows if k == key]
        there = [value for value in values if value is not None]
        ordered = sorted(there, key=lambda v: (shown(v) == "nan", 0 if shown(v) == "nan" else v))
        least, most = (shown(ordered[0]), shown(ordered[-1])) if ordered else (None, None)
        at_least = [n for k, v, n in rows if k == key and v is not None and shown(v) == least]
        edges = (least, most, len(set(map(shown, there))), shown(values[0]), shown(values[-1]))
        of_last = shown(there[-1]) if there else None
        listed = tuple(map(shown, values))
        expected[(key, *edges, min(at_least, default=None), of_last, listed)] += 1
    for name, make in COUNTED.items():
        driven = Harness(make(schema, Aggregation(EDGES, schema)), [schema])
        for at in range(0, len(rows), 7):
            part = rows[at : at + 7]
            driven.send(batch_of(columns, part, [n for _, _, n in part])).restart()
        found: Counter[Any] = Counter()
        for row in driven.end().taken().to_pylist():
            values = [shown(row[each]) for each in ("k", *list(EDGES)[:-1])]
            found[(*values, tuple(map(shown, row["all"])))] += row.get("_change", 1)
        assert +found == expected, name


@pytest.mark.parametrize("kind", KEYS, ids=str)
def test_values_of_every_type_can_be_taken_back(kind: pa.DataType) -> None:
    schema = with_change(pa.schema([("k", pa.int64()), ("v", kind), ("n", pa.int64())]))
    items = {name: text for name, text in EDGES.items() if name not in ("opening", "closing")}
    made = [UpdatingAggregateProcessor(["k"], Aggregation(items, schema), schema, None, 0)] * 2
    driven, alone = (Harness(each, [schema]) for each in made)
    rows = [(n % 3, value, n) for value, n in rows_of(KEYS[kind])]
    left = [row for row in rows if row[2] % 4]
    gone = [row for row in rows if not row[2] % 4]

    def send(to: Harness, some: list[Any], sign: int) -> None:
        to.send(batch_of(schema, [(*row, sign) for row in some]).cast(schema)).restart()

    send(driven, rows, 1)
    send(driven, gone, -1)
    send(alone, left, 1)
    tables = []
    for each in (driven, alone):
        table: Counter[str] = Counter()
        for row in each.end().taken().to_pylist():
            table[repr([row[name] for name in ("k", *items)])] += row["_change"]
        tables.append(+table)
    assert tables[0] == tables[1]
    assert len(tables[1]) == 3
