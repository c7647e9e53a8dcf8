"""What the joins have in common: the schema of results, and one side's rows in state.

Rows are kept as they came, by key and event time. A null key equals nothing, as in SQL; its rows
are kept only where an outer join must give them alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penstock.elements.buffers import fixed_dtype, fixed_values
from penstock.elements.errors import PlanError
from penstock.elements.hash import Hashes, hash_columns
from penstock.elements.signals import TIME_COLUMN

from .event_times import TIME_FIELD, time_array, times_of
from .kernels.compile import uses_reference
from .kernels.join_hashes import hash_words

JoinKind = Literal["inner", "left", "right", "full", "semi", "anti"]
LEFT, RIGHT = 0, 1
"""The ports of a join."""
LATE_RIGHT = "late_right"
"""The side output for late rows of the right input; LATE has those of the left one."""

Numbers = npt.NDArray[np.int64]


def checked_how(how: str, who: str, location: str = "") -> JoinKind:
    """`how`, if it is one; raises PlanError."""
    if how in get_args(JoinKind):
        return cast(JoinKind, how)
    choice = ", ".join(get_args(JoinKind))
    raise PlanError(
        f"{who}: how={how!r} is not a way to join; there are {choice}  {location}".rstrip()
    )


def join_schema(
    left: pa.Schema,
    right: pa.Schema,
    keys: Sequence[str],
    how: JoinKind,
    who: str,
    location: str = "",
) -> pa.Schema:
    """Keys, the left's other columns, the right's, `_time`; raises PlanError for equal names."""
    for name in keys:
        if left.field(name).type != right.field(name).type:
            raise PlanError(
                f"{who}: key {name!r} is {left.field(name).type} on the left and "
                f"{right.field(name).type} on the right  {location}".rstrip()
            )
    fields = [_key_field(left.field(name), right.field(name), how) for name in keys]
    apart = [name for name in left.names if name not in keys and name != TIME_COLUMN]
    fields += [_nullable(left.field(name), how in ("right", "full")) for name in apart]
    if how not in ("semi", "anti"):
        others = [name for name in right.names if name not in keys and name != TIME_COLUMN]
        twice = [name for name in others if name in apart]
        if twice:
            raise PlanError(
                f"{who}: both sides have a column {twice[0]!r}  {location}".rstrip()
                + f'\n  Rename one first:  .rename({twice[0]}="…")'
            )
        fields += [_nullable(right.field(name), how in ("left", "full")) for name in others]
    if TIME_COLUMN in left.names:
        fields.append(TIME_FIELD)
    return pa.schema(fields)


def _key_field(left: pa.Field, right: pa.Field, how: JoinKind) -> pa.Field:
    if how == "inner":
        return left.with_nullable(False)
    if how in ("left", "semi", "anti"):
        return left
    return left.with_nullable(right.nullable or (how == "full" and left.nullable))


def _nullable(field: pa.Field, also: bool) -> pa.Field:
    return field.with_nullable(field.nullable or also)


@dataclass(frozen=True)
class Side:
    """One input: its schema, and which of its columns are keys."""

    port: int
    schema: pa.Schema
    keys: tuple[str, ...]

    @property
    def key_schema(self) -> pa.Schema:
        """The key columns, in the order of the keys."""
        return pa.schema([self.schema.field(name) for name in self.keys])

    @property
    def value_schema(self) -> pa.Schema:
        """The other columns, `_time` among them."""
        return pa.schema([field for field in self.schema if field.name not in self.keys])


class Results:
    """Makes result rows."""

    def __init__(self, left: Side, right: Side, schema: pa.Schema, how: JoinKind) -> None:
        self.schema = schema
        self._left, self._right = left, right
        self._both = how not in ("semi", "anti")
        self._timed = TIME_COLUMN in schema.names

    def pairs(self, left: pa.RecordBatch, right: pa.RecordBatch) -> pa.RecordBatch:
        """Equally many rows of both sides, side by side; `_time` is the later one."""
        times = None
        if self._timed:
            times = np.maximum(times_of(left), times_of(right))
        return self._batch(left, right, left, left.num_rows, times)

    def beside(
        self, left: pa.RecordBatch, right: pa.RecordBatch, times_ns: Numbers | None
    ) -> pa.RecordBatch:
        """Equally many rows of both sides, side by side, at these times."""
        return self._batch(left, right, left, left.num_rows, times_ns)

    def alone(self, rows: pa.RecordBatch, port: int, times_ns: Numbers) -> pa.RecordBatch:
        """Rows of one side without a match."""
        left = rows if port == LEFT else None
        right = rows if port == RIGHT else None
        return self._batch(left, right, rows, rows.num_rows, times_ns)

    def _batch(
        self,
        left: pa.RecordBatch | None,
        right: pa.RecordBatch | None,
        keyed: pa.RecordBatch,
        count: int,
        times_ns: Numbers | None,
    ) -> pa.RecordBatch:
        columns = [keyed.column(name) for name in self._left.keys]
        for side, rows in ((self._left, left), (self._right, right)):
            if side is self._right and not self._both:
                continue
            for field in side.value_schema:
                if field.name != TIME_COLUMN:
                    nothing = pa.nulls(count, field.type) if rows is None else None
                    columns.append(nothing if rows is None else rows.column(field.name))
        if times_ns is not None and self._timed:
            columns.append(time_array(times_ns))
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)


def key_hashes(batch: pa.RecordBatch, keys: Sequence[str]) -> Hashes:
    """The frozen hash of the keys, by which rows were routed."""
    if len(keys) == 1 and not uses_reference():
        column = batch.column(keys[0])
        if fixed_dtype(column.type) == np.int64 and not column.null_count:
            # A copy: kernels take writable memory, and a column's is not.
            words, hashes = fixed_values(column).copy(), np.empty(len(column), np.uint64)
            hash_words(words, hashes)
            return hashes
    return hash_columns(batch, list(keys))


def without_null_keys(batch: pa.RecordBatch, keys: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Which rows have a value in every key column."""
    usable = np.ones(batch.num_rows, np.bool_)
    for name in keys:
        column = batch.column(name)
        if column.null_count:
            usable &= column.is_valid().to_numpy(zero_copy_only=False)
    return usable
