"""Merging a batch into stored values, as `Table.accumulate` declares it per column.

Promises: exact or an error. A sum that leaves the type raises StateError before anything has been
changed. Nulls are ignored by sum, min and max; "replace" takes the last row, null or not. NaN is
the largest value, as in SQL engines: max gives NaN, min does not unless there is nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.types as pt

from penstock.elements.buffers import fixed_dtype, fixed_values, validity
from penstock.elements.errors import StateError

from .backend import MergeFunction
from .columns import ArenaColumn, Column, FixedColumn, Slots

Apply = Callable[[], None]


@dataclass(frozen=True)
class MergeTarget:
    """One value column of a table, and what errors call it."""

    table: str
    name: str
    column: Column
    function: MergeFunction

    def refuse_type(self) -> None:
        """StateError when this function cannot merge this type; asked at declaration."""
        kind = self.column.kind
        orders = not (pt.is_nested(kind) or pt.is_null(kind))
        sums = pt.is_integer(kind) or pt.is_floating(kind) or pt.is_decimal128(kind)
        sums = sums or pt.is_duration(kind)
        fits = {"sum": sums, "min": orders, "max": orders, "replace": True}
        if not fits.get(self.function, False):
            raise StateError(
                f"{self.table}: column {self.name} of type {kind} cannot be merged "
                f"by {self.function!r}\n  Merge by 'replace', or keep another type."
            )


def prepare_merge(target: MergeTarget, slots: Slots, array: pa.Array) -> Apply:
    """Check all, change nothing; the result makes the change and cannot fail.

    Requires: slots of new keys are null.
    """
    column = target.column
    if target.function == "replace":
        return lambda: column.write(slots, array)
    if isinstance(column, FixedColumn) and fixed_dtype(column.kind) is not None:
        valid = validity(array)
        values = fixed_values(array)
        if valid is not None:
            slots, values = slots[valid], values[valid]
        if target.function == "sum" and values.dtype.kind in "iu":
            return _prepare_integer_sum(target, column, slots, values)
        return _prepare_in_place(column, target.function, slots, values)
    assert isinstance(column, FixedColumn | ArenaColumn)
    return _prepare_by_arrow(target, column, slots, array)


def _prepare_in_place(
    column: FixedColumn, function: MergeFunction, slots: Slots, values: npt.NDArray[Any]
) -> Apply:
    def apply() -> None:
        absent = slots[~np.take(column.valid, slots)]
        column.values[absent] = _identity(column.values.dtype, function)
        with np.errstate(invalid="ignore", over="ignore"):  # NaN and infinity are values here
            _UFUNCS[function].at(column.values, slots, values)
        column.valid[slots] = True

    return apply


_UFUNCS: dict[MergeFunction, np.ufunc] = {"sum": np.add, "min": np.fmin, "max": np.maximum}


def _identity(dtype: np.dtype[Any], function: MergeFunction) -> Any:
    if function == "sum":
        return dtype.type(0)
    if dtype.kind == "b":
        return function == "min"
    if dtype.kind == "f":
        return np.nan if function == "min" else -np.inf
    info = np.iinfo(dtype)
    return info.max if function == "min" else info.min


def _prepare_integer_sum(
    target: MergeTarget, column: FixedColumn, slots: Slots, values: npt.NDArray[Any]
) -> Apply:
    info = np.iinfo(values.dtype)
    stored = np.where(np.take(column.valid, slots), np.take(column.values, slots), 0)
    # An upper bound of any partial sum, in floating point with room for its own rounding.
    bound = float(np.abs(values.astype(np.float64)).sum())
    bound += float(np.abs(stored.astype(np.float64)).max(initial=0.0))
    if bound < info.max / 2:
        return _prepare_in_place(column, "sum", slots, values)
    unique, inverse = np.unique(slots, return_inverse=True)
    totals = np.where(np.take(column.valid, unique), np.take(column.values, unique), 0)
    exact = totals.astype(object)
    np.add.at(exact, inverse, values.astype(object))
    if len(exact) and not (info.min <= exact.min() and exact.max() <= info.max):
        raise _overflow(target)

    def apply() -> None:
        column.values[unique] = exact.astype(values.dtype)
        column.valid[unique] = True

    return apply


def _prepare_by_arrow(target: MergeTarget, column: Column, slots: Slots, array: pa.Array) -> Apply:
    """Text, binary, decimals: group what is stored and what comes with Arrow's own kernels."""
    unique, inverse = np.unique(slots, return_inverse=True)
    stored = column.take(unique)
    incoming = array if array.type == stored.type else array.cast(stored.type)
    values = pa.chunked_array([stored, incoming])
    groups = np.concatenate([np.arange(len(unique)), inverse])
    if target.function == "sum":
        values = values.cast(pa.decimal256(76, column.kind.scale))
    table = pa.table({"group": groups, "value": values})
    grouped = table.group_by("group", use_threads=False).aggregate([("value", target.function)])
    merged = grouped.column(f"value_{target.function}").combine_chunks()
    order = np.argsort(grouped.column("group").to_numpy())
    merged = merged.take(pa.array(order))
    if target.function == "sum":
        try:
            merged = merged.cast(column.kind)
        except pa.ArrowInvalid as error:
            raise _overflow(target) from error
    return lambda: column.write(unique, merged)


def _overflow(target: MergeTarget) -> StateError:
    return StateError(
        f"{target.table}: the sum in column {target.name} overflows {target.column.kind}\n"
        "  Sum into a wider type: cast the argument to decimal or double."
    )
