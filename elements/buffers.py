"""Arrow buffers as NumPy arrays and back, without a Python object per row.

Promises: `fixed_values` and `validity` read; they never write into the array's memory, which may
be shared. `fixed_array` makes an Arrow array over the given NumPy memory.
Not: conversion between types, and anything about bytes or nested types.
"""

from __future__ import annotations

import sys
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.types as pt

from .errors import EngineError

if sys.byteorder != "little":
    raise EngineError("Penstock reads Arrow buffers as little-endian words; this machine is not.")

Scalar = TypeVar("Scalar", bound=np.generic)

_SAME_NAME = {
    pa.int8(): np.int8,
    pa.int16(): np.int16,
    pa.int32(): np.int32,
    pa.int64(): np.int64,
    pa.uint8(): np.uint8,
    pa.uint16(): np.uint16,
    pa.uint32(): np.uint32,
    pa.uint64(): np.uint64,
    pa.float16(): np.float16,
    pa.float32(): np.float32,
    pa.float64(): np.float64,
    pa.bool_(): np.bool_,
}


def fixed_dtype(kind: pa.DataType) -> np.dtype[Any] | None:
    """The NumPy type of one stored value, or None for types that are not one machine word.

    Temporal types are their stored integer.

    >>> fixed_dtype(pa.timestamp("us")), fixed_dtype(pa.utf8())
    (dtype('int64'), None)
    """
    found = _SAME_NAME.get(kind)
    if found is not None:
        return np.dtype(found)
    if pt.is_temporal(kind) and not pt.is_interval(kind):
        return np.dtype(np.int64 if kind.bit_width == 64 else np.int32)
    return None


def wide_bytes(kind: pa.DataType) -> int | None:
    """Bytes per value of decimal128 and fixed_size_binary; None for other types."""
    if pt.is_decimal128(kind):
        return 16
    if pt.is_fixed_size_binary(kind):
        return int(kind.byte_width)
    return None


def fixed_values(array: pa.Array) -> npt.NDArray[Any]:
    """The stored values; what lies under a null is arbitrary. A view where the layout allows.

    Requires: `fixed_dtype` of its type is not None.
    """
    dtype = fixed_dtype(array.type)
    assert dtype is not None
    count = len(array)
    if dtype == np.bool_:
        return _bits(array.buffers()[1], array.offset, count)
    buffer = array.buffers()[1]
    if count == 0 or buffer is None:
        return np.zeros(count, dtype)
    return np.frombuffer(buffer, dtype, count, array.offset * dtype.itemsize)


def wide_values(array: pa.Array) -> npt.NDArray[np.uint8]:
    """The bytes of decimal128 and fixed_size_binary as rows of a uint8 matrix."""
    width = wide_bytes(array.type)
    assert width is not None
    count = len(array)
    buffer = array.buffers()[1]
    if count == 0 or width == 0 or buffer is None:
        return np.zeros((count, width), np.uint8)
    flat = np.frombuffer(buffer, np.uint8, count * width, array.offset * width)
    return flat.reshape(count, width)


def validity(array: pa.Array) -> npt.NDArray[np.bool_] | None:
    """True where a value is present; None when none is missing."""
    if array.null_count == 0:
        return None
    buffer = array.buffers()[0]
    if buffer is None:
        return np.zeros(len(array), np.bool_)  # the null type has no bitmap
    return _bits(buffer, array.offset, len(array))


def fixed_array(
    kind: pa.DataType, values: npt.NDArray[Any], valid: npt.NDArray[np.bool_] | None
) -> pa.Array:
    """An Arrow array of `kind` over stored values; it shares their memory."""
    count = len(values)
    if values.dtype == np.bool_:
        values = np.packbits(values, bitorder="little")
    nulls = 0 if valid is None else int(count - np.count_nonzero(valid))
    bitmap = None
    if nulls and valid is not None:
        bitmap = pa.py_buffer(np.packbits(valid, bitorder="little"))
    data = pa.py_buffer(np.ascontiguousarray(values))
    return pa.Array.from_buffers(kind, count, [bitmap, data], nulls)


def _bits(buffer: pa.Buffer | None, offset: int, count: int) -> npt.NDArray[np.bool_]:
    if count == 0 or buffer is None:
        return np.zeros(count, np.bool_)
    first = offset // 8
    last = (offset + count + 7) // 8
    packed = np.frombuffer(buffer, np.uint8, last - first, first)
    bits = np.unpackbits(packed, bitorder="little")
    return bits[offset - first * 8 : offset - first * 8 + count].view(np.bool_)


def grown(values: npt.NDArray[Scalar], room: int) -> npt.NDArray[Scalar]:
    """A copy with zeros behind, `room` long; the values themselves if they are as long."""
    if len(values) >= room:
        return values
    longer = np.zeros(room, values.dtype)
    longer[: len(values)] = values
    return longer
