"""Random record batches of every Arrow type, the same for the same seed.

For tests of what carries, stores or hashes rows: nulls at every depth, empty values, extremes,
not-a-number, slices with an offset. Not for benchmarks: values are made one by one.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

NULL_SHARE = 0.2
_WORDS = ("", "a", "Zürich", "水", "\x00", "penstock" * 9, " ", "👩‍🔬")

Maker = Callable[[Random], Any]


def _integer(bits: int, signed: bool) -> Maker:
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    return lambda r: r.choice((low, high, 0, 1, r.randint(low, high)))


def _real(r: Random) -> float:
    return r.choice((0.0, -0.0, 1.5, float("inf"), float("nan"), float(r.randint(-2048, 2048))))


def _instant(r: Random) -> datetime:
    return datetime(1990, 1, 1) + timedelta(seconds=r.randint(-(10**9), 10**9))  # noqa: DTZ001


SIMPLE: dict[pa.DataType, Maker] = {
    pa.null(): lambda _: None,
    pa.bool_(): lambda r: r.random() < 0.5,
    pa.int8(): _integer(8, True),
    pa.int16(): _integer(16, True),
    pa.int32(): _integer(32, True),
    pa.int64(): _integer(64, True),
    pa.uint8(): _integer(8, False),
    pa.uint16(): _integer(16, False),
    pa.uint32(): _integer(32, False),
    pa.uint64(): _integer(64, False),
    pa.float16(): _real,
    pa.float32(): _real,
    pa.float64(): _real,
    pa.decimal32(7, 2): lambda r: Decimal(r.randint(-(10**7) + 1, 10**7 - 1)).scaleb(-2),
    pa.decimal64(18, 0): lambda r: Decimal(r.randint(-(10**18) + 1, 10**18 - 1)),
    pa.decimal128(38, 10): lambda r: Decimal(r.randint(-(10**20), 10**20)).scaleb(-10),
    pa.decimal256(60, 5): lambda r: Decimal(r.randint(-(10**20), 10**20)).scaleb(-5),
    pa.date32(): lambda r: date(1970, 1, 1) + timedelta(days=r.randint(-9999, 9999)),
    pa.date64(): lambda r: date(1970, 1, 1) + timedelta(days=r.randint(-9999, 9999)),
    pa.time32("ms"): lambda r: time(r.randint(0, 23), 5, 7, r.randint(0, 999) * 1000),
    pa.time64("us"): lambda r: time(r.randint(0, 23), 5, 7, r.randint(0, 999_999)),
    pa.timestamp("s"): _instant,
    pa.timestamp("ns", "UTC"): _instant,
    pa.duration("us"): lambda r: timedelta(microseconds=r.randint(-(10**12), 10**12)),
    pa.month_day_nano_interval(): lambda r: (r.randint(-9, 9), r.randint(-9, 9), r.randint(0, 9)),
    pa.utf8(): lambda r: r.choice(_WORDS),
    pa.large_utf8(): lambda r: r.choice(_WORDS),
    pa.string_view(): lambda r: r.choice(_WORDS),
    pa.binary(): lambda r: r.randbytes(r.randint(0, 20)),
    pa.large_binary(): lambda r: r.randbytes(r.randint(0, 20)),
    pa.binary_view(): lambda r: r.randbytes(r.randint(0, 40)),
    pa.binary(16): lambda r: r.randbytes(16),
}
"""Every type without children, and how to make one value of it."""

NESTED = (
    "list",
    "large_list",
    "fixed_size_list",
    "list_view",
    "large_list_view",
    "struct",
    "map",
    "dictionary",
    "run_end_encoded",
    "sparse_union",
    "dense_union",
    "uuid",
)
"""Every kind of type with children, extension types among them."""


def random_array(rows: int, r: Random, kind: str | pa.DataType, depth: int = 1) -> pa.Array:
    """An array of a SIMPLE type or of a NESTED kind, whose children are nested up to `depth`."""
    if isinstance(kind, pa.DataType):
        maker = SIMPLE[kind]
        values = [None if r.random() < NULL_SHARE else maker(r) for _ in range(rows)]
        return pa.array(values, kind)
    return _nested(rows, r, kind, depth)


def _child(rows: int, r: Random, depth: int) -> pa.Array:
    if depth > 0 and r.random() < 0.3:
        return random_array(rows, r, r.choice(NESTED), depth - 1)
    return random_array(rows, r, r.choice(list(SIMPLE)), depth)


def _nested(rows: int, r: Random, kind: str, depth: int) -> pa.Array:
    missing = pa.array([r.random() < NULL_SHARE for _ in range(rows)], pa.bool_())
    if kind == "struct":
        children = [_child(rows, r, depth) for _ in range(r.randint(0, 3))] if rows else []
        if not children:
            children = [random_array(rows, r, pa.int64())]
        names = [f"f{i}" for i in range(len(children))]
        return pa.StructArray.from_arrays(children, names=names, mask=missing)
    if kind == "dictionary":
        # The index is the identity of a value here, so nulls sit in the indices.
        values = random_array(4, r, r.choice((pa.utf8(), pa.int64(), pa.binary())))
        indices = [None if r.random() < NULL_SHARE else r.randint(0, 3) for _ in range(rows)]
        return pa.DictionaryArray.from_arrays(pa.array(indices, pa.int8()), values)
    if kind == "run_end_encoded":
        return pc.run_end_encode(random_array(rows, r, r.choice((pa.int64(), pa.utf8()))))
    if kind == "uuid":
        ids = [
            None if r.random() < NULL_SHARE else uuid.UUID(int=r.getrandbits(128)).bytes
            for _ in range(rows)
        ]
        return pa.ExtensionArray.from_storage(pa.uuid(), pa.array(ids, pa.binary(16)))
    if kind in ("sparse_union", "dense_union"):
        return _union(rows, r, kind, depth)
    if kind == "fixed_size_list":
        child = _child(rows * 2, r, depth)
        type_ = pa.list_(child.type, 2)
        return pa.FixedSizeListArray.from_arrays(child, type=type_, mask=missing)
    return _list(rows, r, kind, depth, missing)


def _list(rows: int, r: Random, kind: str, depth: int, missing: pa.Array) -> pa.Array:
    offsets = [0]
    for _ in range(rows):
        offsets.append(offsets[-1] + r.randint(0, 3))
    width = pa.int64() if kind.startswith("large") else pa.int32()
    ends = pa.array(offsets, width)
    if kind == "map":
        keys = pa.array([r.choice(_WORDS) for _ in range(offsets[-1])], pa.utf8())
        items = _child(offsets[-1], r, depth)
        return pa.MapArray.from_arrays(ends, keys, items, mask=missing)
    child = _child(offsets[-1], r, depth)
    if kind == "list":
        return pa.ListArray.from_arrays(ends, child, mask=missing)
    if kind == "large_list":
        return pa.LargeListArray.from_arrays(ends, child, mask=missing)
    # Views may lie in any order and overlap.
    begins = pa.array([r.choice(offsets[:-1]) for _ in range(rows)], width)
    sizes = pa.array([r.randint(0, min(3, offsets[-1] - b)) for b in begins.to_pylist()], width)
    view = pa.ListViewArray if kind == "list_view" else pa.LargeListViewArray
    return view.from_arrays(begins, sizes, child, mask=missing)


def _union(rows: int, r: Random, kind: str, depth: int) -> pa.Array:
    codes = [r.randint(0, 1) for _ in range(rows)]
    types = pa.array(codes, pa.int8())
    if kind == "sparse_union":
        return pa.UnionArray.from_sparse(types, [_child(rows, r, depth), _child(rows, r, depth)])
    counts = [0, 0]
    places: list[int] = []
    for code in codes:
        places.append(counts[code])
        counts[code] += 1
    children = [_child(counts[0], r, depth), _child(counts[1], r, depth)]
    return pa.UnionArray.from_dense(types, pa.array(places, pa.int32()), children)


def random_batch(seed: int, rows: int, kinds: list[str | pa.DataType]) -> pa.RecordBatch:
    """A batch with a column per kind, cut out of a longer one so that its offset is not 0."""
    r = Random(seed)
    arrays = [random_array(rows + 3, r, kind) for kind in kinds]
    names = [f"c{i}" for i in range(len(arrays))]
    return pa.RecordBatch.from_arrays(arrays, names=names).slice(2, rows)


def random_kinds(seed: int, columns: int) -> list[str | pa.DataType]:
    """Some kinds of columns, simple and nested."""
    r = Random(seed)
    every: list[str | pa.DataType] = [*SIMPLE, *NESTED]
    return [r.choice(every) for _ in range(columns)]


def rows_of(batch: pa.RecordBatch) -> str:
    """The rows as text, to compare: not-a-number equals itself, -0.0 differs from 0.0."""
    return f"{batch.num_rows} {[repr(column.to_pylist()) for column in batch.columns]}"
