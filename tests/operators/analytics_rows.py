"""Rows for tests of analytics: nulls, NaN, extremes, ties, disorder; and how they are driven."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import pyarrow as pa
from hypothesis import settings
from hypothesis import strategies as st

from penstock.operators.event_times import with_time
from penstock.operators.processor import Processor
from penstock.testing.harness import Harness, batch_of

DISORDER_NS = 6
COLUMNS = pa.schema([("k", pa.int64()), ("s", pa.string()), ("f", pa.float64()), ("v", pa.int64())])
SCHEMA = with_time(COLUMNS)
NAMES = (*COLUMNS.names, "_time")
Row = tuple[Any, ...]
"""(k, s, f, v, time)"""

MODERATE = settings(max_examples=50, deadline=None)

_values = st.sampled_from([None, 0, 1, 2, 2**63 - 1, -(2**63)])
_floats = st.sampled_from([None, math.nan, 0.0, 1.5, -2.5, math.inf, -math.inf])
_steps = st.tuples(
    st.sampled_from([None, 0, 1]),
    st.sampled_from([None, "", "x"]),
    _floats,
    _values,
    st.integers(0, 3),
    st.integers(0, DISORDER_NS),
)


@st.composite
def batches(draw: st.DrawFn, empties: bool = True) -> list[list[Row]]:
    """Batches of any size, none later than DISORDER_NS behind the newest row before it."""
    now, rows = draw(st.integers(-20, 20)), []
    for k, s, f, v, step, behind in draw(st.lists(_steps, max_size=40)):
        now += step
        rows.append((k, s, f, v, now - behind))
    sizes = draw(st.sampled_from(["one", "all", "some"]))
    if sizes == "one":
        return [[row] for row in rows]
    if sizes == "all":
        return [rows]
    found, at = [], 0
    while at < len(rows):
        size = draw(st.integers(0 if empties else 1, 8))
        found.append(rows[at : at + size])
        at += size
    return found


def as_batch(rows: Iterable[Row]) -> pa.RecordBatch:
    """A batch with `_time`."""
    listed = list(rows)
    return batch_of(COLUMNS, [row[:-1] for row in listed], [row[-1] for row in listed])


def drive(
    made: Processor,
    given: list[list[Row]],
    restarts: Callable[[int], bool] = lambda at: False,
    end: bool = True,
    **options: Any,
) -> Harness:
    """Rows with the watermark that their disorder allows, and restarts where asked for."""
    driven = Harness(made, [SCHEMA], **options)
    newest = None
    for at, rows in enumerate(given):
        driven.send(as_batch(rows))
        times = [row[-1] for row in rows]
        newest = max([*times, *([] if newest is None else [newest])], default=None)
        if newest is not None:
            driven.advance(max(driven.watermark, newest - DISORDER_NS - 1))
        if restarts(at):
            driven.restart()
    return driven.end() if end else driven


def known(value: Any) -> Any:
    """A value that equals itself: NaN by name."""
    return "NaN" if isinstance(value, float) and math.isnan(value) else value


def tuples(table: pa.Table, names: Iterable[str]) -> list[Row]:
    """Rows of these columns; times as nanoseconds."""
    if not table.num_rows:
        return []
    columns = []
    for name in names:
        column = table.column(name)
        column = column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column
        columns.append([known(value) for value in column.to_pylist()])
    return list(zip(*columns, strict=True))


def counted(rows: Iterable[Row]) -> Counter[Row]:
    """A multiset of rows."""
    return Counter(tuple(known(value) for value in row) for row in rows)


def net(table: pa.Table, names: Iterable[str]) -> Counter[Row]:
    """The multiset that the changes of an updating stream sum up to."""
    found: Counter[Row] = Counter()
    listed = list(names)
    for row in tuples(table, [*listed, "_change"]):
        found[row[:-1]] += row[-1]
    assert all(weight >= 0 for weight in found.values())
    return +found


def ascending(value: Any) -> Any:
    """A sort key: nulls last, NaN behind all numbers."""
    if value is None:
        return (1, 0, 0)
    if isinstance(value, float):
        return (0, 1, 0) if math.isnan(value) else (0, 0, value)
    return (0, 0, value)


class Descending:
    """A sort key that turns an order around, but leaves nulls last."""

    def __init__(self, value: Any) -> None:
        self.key = ascending(value)

    def __lt__(self, other: Descending) -> bool:
        if self.key[0] != other.key[0]:
            return bool(self.key[0] < other.key[0])
        return bool(other.key < self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Descending) and self.key == other.key


def content(row: Row) -> tuple[Any, ...]:
    """How ties are broken: event time, then the columns."""
    return (row[-1], *(ascending(value) for value in row[:-1]))


def by_key(rows: Iterable[Row]) -> dict[Row, list[Row]]:
    """Rows by (k, s), in their order."""
    found: dict[Row, list[Row]] = {}
    for row in rows:
        found.setdefault(row[:2], []).append(row)
    return found
