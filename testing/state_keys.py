"""Random key batches of every sort, and how they reach the subtasks of a fleet."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from decimal import Decimal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penstock.elements.hash import hash_arrays
from penstock.elements.keygroup import subtask_of

from .state import Fleet

Hashes = npt.NDArray[np.uint64]
HashOf = Callable[[pa.RecordBatch], Hashes]


def _int_keys(rng: random.Random, count: int) -> pa.RecordBatch:
    values = [rng.choice([None, *range(-40, 40)]) for _ in range(count)]
    return pa.record_batch({"k": pa.array(values, pa.int64())})


def text_keys(rng: random.Random, count: int) -> pa.RecordBatch:
    """Text, null and empty text."""
    values = [
        rng.choice([None, "", "a", "Zürich", f"key {rng.randrange(60)}"]) for _ in range(count)
    ]
    return pa.record_batch({"k": pa.array(values, pa.utf8())})


def _float_keys(rng: random.Random, count: int) -> pa.RecordBatch:
    pool = [None, 0.0, -0.0, float("nan"), -float("nan"), float("inf"), 1.5, 2.5]
    return pa.record_batch({"k": pa.array([rng.choice(pool) for _ in range(count)], pa.float64())})


def _mixed_keys(rng: random.Random, count: int) -> pa.RecordBatch:
    return pa.record_batch(
        {
            "a": pa.array([rng.choice([None, 1, 2, 3]) for _ in range(count)], pa.int32()),
            "b": pa.array([rng.choice([None, "x", "yy"]) for _ in range(count)], pa.utf8()),
            "c": pa.array([rng.choice([None, True, False]) for _ in range(count)], pa.bool_()),
            "d": pa.array(
                [rng.choice([None, Decimal("1.50"), Decimal("-7")]) for _ in range(count)],
                pa.decimal128(10, 2),
            ),
        }
    )


def _nested_keys(rng: random.Random, count: int) -> pa.RecordBatch:
    lists = [rng.choice([None, [], ["a"], ["a", None], ["b", "a"]]) for _ in range(count)]
    structs = [rng.choice([None, {"x": None}, {"x": 0.0}, {"x": -0.0}, {"x": 2.0}]) for _ in lists]
    return pa.record_batch(
        {
            "l": pa.array(lists, pa.list_(pa.utf8())),
            "s": pa.array(structs, pa.struct([("x", pa.float64())])),
            "u": pa.array([rng.choice([None, b"0123", b"4567"]) for _ in lists], pa.binary(4)),
        }
    )


def _no_keys(rng: random.Random, count: int) -> pa.RecordBatch:
    return _int_keys(rng, count).select([])


KEY_MAKERS: dict[str, Callable[[random.Random, int], pa.RecordBatch]] = {
    "int": _int_keys,
    "text": text_keys,
    "float": _float_keys,
    "mixed": _mixed_keys,
    "nested": _nested_keys,
    "none": _no_keys,
}


def true_hash(batch: pa.RecordBatch) -> Hashes:
    """The frozen hash of all columns."""
    return hash_arrays(batch.columns, batch.num_rows)


def colliding_hash(batch: pa.RecordBatch) -> Hashes:
    """Few distinct hashes for many keys: what an unlucky or malicious input may do."""
    return true_hash(batch) & np.uint64(0xC000000000000003)


def parts(
    fleet: Fleet, hashes: Hashes, *batches: pa.RecordBatch
) -> Iterable[tuple[int, Hashes, list[pa.RecordBatch]]]:
    """The rows of each subtask: (subtask, hashes, the same rows of each batch)."""
    owner = subtask_of(hashes, fleet.parallelism)
    for subtask in range(fleet.parallelism):
        rows = np.flatnonzero(owner == subtask)
        indices = pa.array(rows)
        yield subtask, hashes[rows], [_take(batch, indices) for batch in batches]


def _take(batch: pa.RecordBatch, indices: pa.Array) -> pa.RecordBatch:
    if batch.num_columns:
        return batch.take(indices)
    return pa.record_batch({"_": pa.nulls(len(indices))}).select([])
