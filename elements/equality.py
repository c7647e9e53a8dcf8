"""Whether two arrays of one type hold equal keys, row by row and vectorised.

Equal as keys: null equals null, NaN equals NaN, -0.0 equals 0.0. Only types that can be hashed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from .buffers import fixed_dtype, fixed_values, validity, wide_bytes, wide_values

Mask = npt.NDArray[np.bool_]


def equal_values(left: pa.Array, right: pa.Array) -> Mask:
    """True where row i of both is the same key value. Requires: equal types and lengths.

    >>> equal_values(pa.array([1.0, None, -0.0]), pa.array([1.0, None, 0.0])).tolist()
    [True, True, True]
    """
    assert len(left) == len(right)
    kind = left.type
    if pt.is_null(kind):
        return np.ones(len(left), np.bool_)
    if fixed_dtype(kind) is not None:
        same = equal_fixed(fixed_values(left), fixed_values(right))
    elif wide_bytes(kind) is not None:
        same = np.asarray((wide_values(left) == wide_values(right)).all(axis=1))
    elif pt.is_struct(kind):
        same = np.ones(len(left), np.bool_)
        for index in range(kind.num_fields):
            same &= equal_values(left.field(index), right.field(index))
    elif pt.is_list(kind) or pt.is_large_list(kind):
        same = _equal_lists(left, right)
    elif pt.is_dictionary(kind):
        return equal_values(left.dictionary_decode(), right.dictionary_decode())
    else:
        same = pc.fill_null(pc.equal(left, right), False).to_numpy(zero_copy_only=False)
    return equal_with_nulls(same, validity(left), validity(right))


def equal_fixed(left: npt.NDArray[Any], right: npt.NDArray[Any]) -> Mask:
    """Equality of stored values, NaN being equal to NaN."""
    same = np.asarray(left == right)
    if left.dtype.kind == "f":
        same |= (left != left) & (right != right)
    return same


def equal_with_nulls(same: Mask, left: Mask | None, right: Mask | None) -> Mask:
    """Correct `same` where a value is missing on either side; the masks say what is present."""
    if left is None:
        return same if right is None else same & right
    if right is None:
        return same & left
    return (same & left & right) | ~(left | right)


def _equal_lists(left: pa.Array, right: pa.Array) -> Mask:
    starts_l, lengths_l = _ranges(left)
    starts_r, lengths_r = _ranges(right)
    same: Mask = np.asarray(lengths_l == lengths_r)
    rows = np.flatnonzero(same & (lengths_l > 0))
    if len(rows) == 0:
        return same
    lengths = lengths_l[rows]
    begins = np.cumsum(lengths) - lengths
    within = np.arange(int(lengths.sum())) - np.repeat(begins, lengths)
    at_l = pa.array(np.repeat(starts_l[rows], lengths) + within)
    at_r = pa.array(np.repeat(starts_r[rows], lengths) + within)
    elements = equal_values(left.values.take(at_l), right.values.take(at_r))
    same[rows] = np.logical_and.reduceat(elements, begins)
    return same


def _ranges(array: pa.Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    offsets = fixed_values(array.offsets).astype(np.int64)
    lengths = np.diff(offsets)
    valid = validity(array)
    if valid is not None:
        lengths[~valid] = 0
    return offsets[:-1], lengths
