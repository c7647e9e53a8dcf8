"""The frozen 64-bit hash of key columns: it routes rows and orders state on disk.

Promises: the same bits in every process, version and layout (slices, dictionaries, large and view
types); docs/formats/hash.md defines it and tests/elements/test_hash.py pins it.
Not: uniqueness. Equal hashes are not equal keys, and the type, unit and scale of a key are not
hashed, so keys are cast to their declared type first (hazards 30, 54).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.types as pt

from .buffers import fixed_dtype, fixed_values, validity, wide_bytes, wide_values

HASH_VERSION = 1
"""Changes only with a new format version of every run on disk."""
BLOCK_ROWS = 4096
"""Rows per step: the temporaries of a step then stay in the processor's cache."""
NULL_HASH = 0x7FB5D329728EA185
EMPTY_KEY_HASH = 0
"""The hash of a key of no columns: all rows of a stream without keys are one group."""

Hashes = npt.NDArray[np.uint64]
_Words = npt.NDArray[np.uint64]
U = np.uint64
M1, M2, M3 = U(0x9E3779B97F4A7C15), U(0xBF58476D1CE4E5B9), U(0x94D049BB133111EB)
M4 = U(0xD6E8FEB86659FD93)
_NULL = U(NULL_HASH)
_NAN_BITS = U(0x7FF8000000000000)


def hash_columns(batch: pa.RecordBatch, keys: Sequence[str]) -> Hashes:
    """The hash of each row's key, the columns `keys` in that order.

    >>> batch = pa.record_batch({"id": [1000], "site": ["Google"]})
    >>> hex(hash_columns(batch, ["id", "site"])[0])
    '0xbc06f130ee6a97b4'
    """
    return hash_arrays([batch.column(key) for key in keys], batch.num_rows)


def hash_arrays(columns: Sequence[pa.Array], rows: int) -> Hashes:
    """The hash of each row's key, given as arrays of `rows` rows, in key order."""
    if not columns:
        return np.full(rows, EMPTY_KEY_HASH, np.uint64)
    result = hash_array(columns[0])
    for column in columns[1:]:
        result *= M4
        result ^= hash_array(column)
        _mix(result)
    return result


def hash_array(array: pa.Array) -> Hashes:
    """The hash of each value. TypeError for types that cannot be a key."""
    leaf = _leaf(array.type)
    if len(array) <= BLOCK_ROWS:
        return leaf(array)
    result = np.empty(len(array), np.uint64)
    for start in range(0, len(array), BLOCK_ROWS):
        result[start : start + BLOCK_ROWS] = leaf(array.slice(start, BLOCK_ROWS))
    return result


def refuse_unhashable(kind: pa.DataType) -> None:
    """TypeError when no key can have this type; for planners."""
    _leaf(kind)
    if pt.is_struct(kind):
        for index in range(kind.num_fields):
            refuse_unhashable(kind.field(index).type)
    elif pt.is_list(kind) or pt.is_large_list(kind) or pt.is_dictionary(kind):
        refuse_unhashable(kind.value_type)


def _leaf(kind: pa.DataType) -> Callable[[pa.Array], Hashes]:
    if pt.is_null(kind):
        return _hash_null
    if fixed_dtype(kind) is not None:
        return _hash_fixed
    if pt.is_decimal128(kind):
        return _hash_decimal
    if _is_bytes(kind) or wide_bytes(kind) is not None:
        return _hash_bytes
    if pt.is_dictionary(kind):
        return _hash_dictionary
    if pt.is_struct(kind) and kind.num_fields:
        return _hash_struct
    if pt.is_list(kind) or pt.is_large_list(kind):
        return _hash_list
    raise TypeError(
        f"{kind} cannot be a key: use numbers, bool, dates and times, decimal128, text, binary, "
        "or structs and lists of these"
    )


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(
        pt.is_string(kind)
        or pt.is_binary(kind)
        or pt.is_large_string(kind)
        or pt.is_large_binary(kind)
        or pt.is_string_view(kind)
        or pt.is_binary_view(kind)
    )


def _mix(words: _Words) -> _Words:
    """The splitmix64 finaliser, in place."""
    temporary = words >> U(30)
    words ^= temporary
    words *= M2
    np.right_shift(words, U(27), out=temporary)
    words ^= temporary
    words *= M3
    np.right_shift(words, U(31), out=temporary)
    words ^= temporary
    return words


def _word(words: _Words) -> Hashes:
    return _mix(words + M1)


def _with_nulls(array: pa.Array, hashes: Hashes) -> Hashes:
    valid = validity(array)
    if valid is not None:
        hashes[~valid] = _NULL
    return hashes


def _hash_null(array: pa.Array) -> Hashes:
    return np.full(len(array), _NULL, np.uint64)


def _hash_fixed(array: pa.Array) -> Hashes:
    values = fixed_values(array)
    if values.dtype.kind == "f":
        words = _float_words(values)
    elif values.dtype.kind == "i":
        words = values.astype(np.int64).view(np.uint64)
    else:
        words = values.astype(np.uint64)
    return _with_nulls(array, _word(words))


def _float_words(values: npt.NDArray[Any]) -> _Words:
    wide = values.astype(np.float64)
    wide += 0.0  # -0.0 becomes 0.0
    words = wide.view(np.uint64)
    words[np.isnan(wide)] = _NAN_BITS
    return words


def _hash_decimal(array: pa.Array) -> Hashes:
    halves = wide_values(array).view(np.uint64)
    hashes = _word(halves[:, 0])
    hashes *= M4
    hashes ^= halves[:, 1]
    return _with_nulls(array, _mix(hashes))


def _hash_dictionary(array: pa.Array) -> Hashes:
    hashes = np.append(hash_array(array.dictionary), _NULL)
    at = fixed_values(array.indices).astype(np.int64)
    valid = validity(array.indices)
    if valid is not None:
        at[~valid] = len(hashes) - 1
    return hashes[at]


def _hash_struct(array: pa.Array) -> Hashes:
    fields = [array.field(index) for index in range(array.type.num_fields)]
    return _with_nulls(array, hash_arrays(fields, len(array)))


def _hash_list(array: pa.Array) -> Hashes:
    offsets = fixed_values(array.offsets).astype(np.int64)
    first, last = int(offsets[0]), int(offsets[-1])
    offsets -= first
    elements = hash_array(array.values.slice(first, last - first))
    lengths = np.diff(offsets)
    position = np.arange(last - first) - np.repeat(offsets[:-1], lengths)
    # Sums of words wrap around, so differences of their running sum are exact modulo 2**64.
    running = np.zeros(last - first + 1, np.uint64)
    np.cumsum(_word(elements ^ position.view(np.uint64) * M4), out=running[1:])
    sums = running[offsets[1:]] - running[offsets[:-1]]
    sums += lengths.view(np.uint64) * M2
    return _with_nulls(array, _mix(sums))


def _hash_bytes(array: pa.Array) -> Hashes:
    """Eight bytes of every row at a time, gathered through a stride-1 view of 64-bit words."""
    if len(array) == 0:
        return np.empty(0, np.uint64)
    starts, lengths, data = _byte_ranges(array)
    hashes = lengths.view(np.uint64) * M1
    shortest, longest = int(lengths.min()), int(lengths.max())
    if longest:
        words = np.lib.stride_tricks.as_strided(data[:8].view(np.uint64), (len(data) - 7,), (1,))
        live: npt.NDArray[np.int64] | None = None  # rows that still have bytes; None: all
        for step in range(0, longest, 8):
            if step >= shortest:
                live = (
                    np.flatnonzero(lengths > step) if live is None else live[lengths[live] > step]
                )
            at = starts if live is None else starts[live]
            word = words[at + step]
            if step + 8 > shortest:
                rest = (lengths if live is None else lengths[live]) - step
                spare = np.maximum(64 - 8 * rest, 0).astype(np.uint64)  # bits of the next row
                word = (word << spare) >> spare
            word *= M2
            word ^= word >> U(32)
            state = hashes if live is None else hashes[live]
            state ^= word
            state *= M3
            state ^= state >> U(29)
            if live is not None:
                hashes[live] = state
    return _with_nulls(array, _mix(hashes))


def _byte_ranges(
    array: pa.Array,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """Start and length of each row in `data`, which has 8 spare bytes at its end."""
    count = len(array)
    width = wide_bytes(array.type)
    if width is not None:
        data = np.zeros(count * width + 8, np.uint8)
        data[: count * width] = wide_values(array).reshape(-1)
        return np.arange(count) * width, np.full(count, width, np.int64), data
    if pt.is_string_view(array.type) or pt.is_binary_view(array.type):
        array = array.cast(pa.large_binary())
    large = pt.is_large_string(array.type) or pt.is_large_binary(array.type)
    _, offsets_buffer, values = array.buffers()
    dtype = np.dtype(np.int64 if large else np.int32)
    offsets = np.frombuffer(offsets_buffer, dtype, count + 1, array.offset * dtype.itemsize)
    first, last = int(offsets[0]), int(offsets[-1])
    data = np.zeros(last - first + 8, np.uint8)
    if last > first:
        data[: last - first] = np.frombuffer(values, np.uint8, last - first, first)
    lengths = np.diff(offsets).astype(np.int64)
    return offsets[:-1].astype(np.int64) - first, lengths, data
