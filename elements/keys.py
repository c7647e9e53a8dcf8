"""Keys as Python objects: what user code sees and what object state is addressed by.

A key of one column is a scalar, of several a tuple. Rows with equal keys give equal, hashable
objects: -0.0 is 0.0, every NaN is the one object NAN, lists and structs are tuples. Nanosecond
times are integers of nanoseconds, because Python's own types would round them.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.types as pt

from .buffers import fixed_dtype, fixed_values

NAN = float("nan")
"""NaN is unequal to itself; as one object it is still found in a dict, alone or in a tuple."""


def python_keys(batch: pa.RecordBatch, keys: Sequence[str]) -> list[Any]:
    """The key of each row.

    >>> python_keys(pa.record_batch({"a": [1, None], "b": ["x", "y"]}), ["a", "b"])
    [(1, 'x'), (None, 'y')]
    """
    if len(keys) == 1:
        return _scalars(batch.column(keys[0]))
    if not keys:
        return [()] * batch.num_rows
    return list(zip(*(_scalars(batch.column(key)) for key in keys), strict=True))


def canonical_key(key: Any) -> Any:
    """`key` as python_keys would give it: for keys that come from users or out of a pickle."""
    if type(key) is float:
        return NAN if key != key else key + 0.0
    if type(key) in (tuple, list):
        return tuple(canonical_key(part) for part in key)
    if type(key) is dict:
        return tuple(canonical_key(part) for part in key.values())
    return key


def key_batch(keys: Iterable[Hashable], schema: pa.Schema) -> pa.RecordBatch:
    """The inverse of python_keys; `schema` holds the key columns in order."""
    rows = list(keys)
    if len(schema) == 1:
        columns = [rows]
    elif rows:
        columns = [list(column) for column in zip(*rows, strict=True)]
    else:
        columns = [[] for _ in schema]
    if not len(schema):
        return pa.record_batch({"_": pa.nulls(len(rows))}).select([])
    arrays = [_array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _scalars(array: pa.Array) -> list[Any]:
    kind = array.type
    if pt.is_dictionary(kind):
        return _scalars(array.dictionary_decode())
    if pt.is_floating(kind):
        return _floats(array)
    if getattr(kind, "unit", "") == "ns":
        array = array.view(pa.int64())
        kind = array.type
    if pt.is_nested(kind):
        return _tuples(array)
    if array.null_count == 0 and fixed_dtype(kind) is not None and not pt.is_temporal(kind):
        return list(fixed_values(array).tolist())
    return list(array.to_pylist())


def _floats(array: pa.Array) -> list[Any]:
    values = fixed_values(array).astype(np.float64) + 0.0
    result: list[Any] = values.tolist()
    for at in np.flatnonzero(np.isnan(values)).tolist():
        result[at] = NAN
    if array.null_count:
        for at in np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False)).tolist():
            result[at] = None
    return result


def _tuples(array: pa.Array) -> list[Any]:
    missing = array.is_null().to_pylist()
    if pt.is_struct(array.type):
        fields = [_scalars(array.field(index)) for index in range(array.type.num_fields)]
        rows: list[Any] = list(zip(*fields, strict=True))
    else:
        elements = _scalars(array.values)
        offsets = array.offsets.to_pylist()
        rows = [tuple(elements[a:b]) for a, b in pairwise(offsets)]
    return [None if gone else row for row, gone in zip(rows, missing, strict=True)]


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
    if getattr(kind, "unit", "") == "ns":
        return pa.array(values, pa.int64()).view(kind)
    if pt.is_struct(kind):
        missing = np.array([value is None for value in values], np.bool_)
        fields = [kind.field(index) for index in range(kind.num_fields)]
        arrays = [
            _array([None if value is None else value[index] for value in values], field.type)
            for index, field in enumerate(fields)
        ]
        return pa.StructArray.from_arrays(arrays, fields=fields, mask=pa.array(missing))
    if pt.is_list(kind) or pt.is_large_list(kind):
        lists = [
            None if value is None else _array(list(value), kind.value_type) for value in values
        ]
        if all(part is None for part in lists):
            return pa.nulls(len(values), kind)
        lengths = [0 if part is None else len(part) for part in lists]
        present = [part for part in lists if part is not None]
        return _list_array(kind, pa.concat_arrays(present), lengths, lists)
    return pa.array(values, kind)


def _list_array(
    kind: pa.DataType, elements: pa.Array, lengths: list[int], lists: list[pa.Array | None]
) -> pa.Array:
    make = pa.LargeListArray if pt.is_large_list(kind) else pa.ListArray
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    mask = pa.array([part is None for part in lists])
    width = pa.int64() if pt.is_large_list(kind) else pa.int32()
    return make.from_arrays(pa.array(offsets, width), elements, type=kind, mask=mask)
