"""One Arrow column ↔ one list of Python values, as a field's hint asks for.

Readers convert whole columns: numbers through NumPy, timestamps by adding to the epoch (six times
as fast as `to_pylist`). A hint of `int` on a temporal column gives the stored integer, the fastest
form. Writers refuse what Arrow would change in silence, such as 1.5 for an integer.
"""

from __future__ import annotations

import enum
import typing
import uuid
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from itertools import repeat
from operator import add, attrgetter
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.types as pat

from .row_schema import RowField, arrow_type, is_row_class, row_class, strip

_PER_TICK_US = {"s": 1_000_000, "ms": 1000, "us": 1}
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Reader = Callable[[pa.Array], list[Any]]
Writer = Callable[[list[Any]], pa.Array]
Convert = Callable[[Any], Any]

_ACCEPTED: dict[Any, Callable[[pa.DataType], bool]] = {
    bool: pat.is_boolean,
    int: lambda t: pat.is_integer(t) or pat.is_temporal(t),
    float: lambda t: pat.is_floating(t) or pat.is_integer(t) or pat.is_decimal(t),
    str: lambda t: _is_text(t),
    bytes: lambda t: _is_bytes(t),
    datetime: lambda t: pat.is_timestamp(t) or pat.is_date(t),
    date: pat.is_date,
    time: pat.is_time,
    timedelta: pat.is_duration,
    Decimal: lambda t: pat.is_decimal(t) or pat.is_integer(t),
    uuid.UUID: lambda t: _is_bytes(t) or _is_text(t),
}


class NotReadable(Exception):
    """The column's type does not fit the hint."""


def column_reader(kind: pa.DataType, hint: Any = Any) -> Reader:
    """How a column of type `kind` becomes values of `hint`; raises NotReadable."""
    if pat.is_dictionary(kind):
        inner = column_reader(kind.value_type, hint)
        return lambda array: inner(array.dictionary_decode())
    if hint is Any or hint is object:
        return _plain_reader(kind)
    accepted = _ACCEPTED.get(hint)
    if accepted is not None:
        if not accepted(kind):
            raise NotReadable(f"{kind} is not {hint.__name__}")
        return _simple_reader(kind, hint)
    target = arrow_type(hint, "field")
    if _shape(kind) != _shape(target):
        raise NotReadable(f"{kind} is not {_name_of(hint)}")
    convert = _reading(hint)

    def read(array: pa.Array) -> list[Any]:
        values = (array if kind.equals(target) else array.cast(target, safe=False)).to_pylist()
        return values if convert is None else [None if v is None else convert(v) for v in values]

    return read


def column_writer(field: RowField | None, kind: pa.DataType) -> Writer:
    """How values of a field become a column of type `kind`; raises ValueError or TypeError."""
    convert = _writing(field.hint) if field is not None else None
    whole = pat.is_integer(kind) or pat.is_temporal(kind)
    dates = pat.is_date(kind)

    def write(values: list[Any]) -> pa.Array:
        if convert is not None:
            values = [None if v is None else convert(v) for v in values]
        if whole:
            _refuse_fractions(values)
        if dates and datetime in set(map(type, values)):
            raise TypeError("a datetime is not a date")
        return pa.array(values, kind)

    return write


def datetimes(array: pa.Array) -> list[Any]:
    """The values of a timestamp column, floored to microseconds; aware in UTC if it has a zone."""
    zone = array.type.tz
    ticks = _microseconds(array)
    if zone is not None and zone not in ("UTC", "Etc/UTC", "+00:00"):
        local = pa.array(ticks, pa.timestamp("us", zone), mask=_missing(array))
        return list(local.to_pylist())
    epoch = EPOCH if zone is not None else EPOCH.replace(tzinfo=None)
    # Both are calls of C; a comprehension takes five times as long.
    found: list[Any] = list(map(add, repeat(epoch), ticks.view("m8[us]").tolist()))
    if array.null_count:
        for index in np.flatnonzero(_missing(array)).tolist():
            found[index] = None
    return found


def _microseconds(array: pa.Array) -> npt.NDArray[np.int64]:
    """Since the epoch, floored; 0 for nulls. Arrow's own cast would round towards 1970."""
    stored = array.cast(pa.int64())
    ticks = (stored.fill_null(0) if stored.null_count else stored).to_numpy()
    if array.type.unit == "ns":
        return np.floor_divide(ticks, 1000)  # type: ignore[no-any-return]
    return np.multiply(ticks, _PER_TICK_US[array.type.unit])  # type: ignore[no-any-return]


def _missing(array: pa.Array) -> npt.NDArray[np.bool_]:
    return np.asarray(array.is_null().to_numpy(zero_copy_only=False), np.bool_)


def _plain_reader(kind: pa.DataType) -> Reader:
    if pat.is_timestamp(kind):
        return datetimes
    if pat.is_time(kind) or pat.is_duration(kind):
        unit = pa.time64("us") if pat.is_time(kind) else pa.duration("us")
        return lambda array: list(array.cast(unit, safe=False).to_pylist())
    if pat.is_integer(kind) or pat.is_floating(kind):
        return _numbers
    return lambda array: list(array.to_pylist())


def _simple_reader(kind: pa.DataType, hint: Any) -> Reader:
    if hint is int and not pat.is_integer(kind):
        stored = pa.int32() if kind.bit_width == 32 else pa.int64()
        return lambda array: _numbers(array.cast(stored))
    if hint is float and not pat.is_floating(kind):
        return lambda array: _numbers(array.cast(pa.float64(), safe=False))
    if hint is datetime and pat.is_date(kind):
        # A date is the midnight that begins it, in UTC like every other instant.
        return lambda array: datetimes(
            array.cast(pa.timestamp("us")).cast(pa.timestamp("us", "UTC"))
        )
    if hint is Decimal and pat.is_integer(kind):
        return lambda array: [None if v is None else Decimal(v) for v in array.to_pylist()]
    if hint is uuid.UUID:
        make: Convert = uuid.UUID if _is_text(kind) else lambda raw: uuid.UUID(bytes=raw)
        return lambda array: [None if v is None else make(v) for v in array.to_pylist()]
    return _plain_reader(kind)


def _numbers(array: pa.Array) -> list[Any]:
    return list(array.to_pylist()) if array.null_count else array.to_numpy().tolist()


def _is_text(kind: pa.DataType) -> bool:
    return bool(pat.is_string(kind) or pat.is_large_string(kind) or pat.is_string_view(kind))


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(
        pat.is_binary(kind)
        or pat.is_large_binary(kind)
        or pat.is_binary_view(kind)
        or pat.is_fixed_size_binary(kind)
    )


def _shape(kind: pa.DataType) -> str:
    """The family of a type: what a cast may change inside, but not leave."""
    if _is_text(kind):
        return "text"
    if _is_bytes(kind):
        return "bytes"
    if pat.is_list(kind) or pat.is_large_list(kind) or pat.is_fixed_size_list(kind):
        return f"list of {_shape(kind.value_type)}"
    if pat.is_struct(kind):
        return f"struct of {sorted(kind.field(i).name for i in range(kind.num_fields))}"
    if pat.is_map(kind):
        return "map"
    for test in (pat.is_integer, pat.is_floating, pat.is_decimal, pat.is_timestamp):
        if test(kind):
            return str(test.__name__)
    return str(kind)


def _name_of(hint: Any) -> str:
    return getattr(hint, "__name__", None) or str(hint)


def _reading(hint: Any) -> Convert | None:
    """How a value that `to_pylist` gives becomes one of `hint`; None: as it is."""
    hint = strip(hint)[0]
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return hint
    if hint is uuid.UUID:
        return lambda raw: uuid.UUID(bytes=raw)
    if is_row_class(hint):
        return _row_reading(hint)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (list, tuple):
        inner = _reading(arguments[0])
        if inner is None:
            return None if origin is list else tuple
        return lambda values: origin(None if v is None else inner(v) for v in values)
    if origin is dict:
        return _mapping_reading(_reading(arguments[1]))
    return None


def _row_reading(cls: type[Any]) -> Convert:
    inner = {f.name: c for f in row_class(cls).fields if (c := _reading(f.hint)) is not None}

    def read(fields: dict[str, Any]) -> Any:
        for name, convert in inner.items():
            if fields[name] is not None:
                fields[name] = convert(fields[name])
        return cls(**fields)

    return read


def _writing(hint: Any) -> Convert | None:
    """How a value of `hint` becomes one that `pa.array` takes; None: as it is."""
    hint = strip(hint)[0]
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return attrgetter("value")
    if hint is uuid.UUID:
        return attrgetter("bytes")
    if is_row_class(hint):
        return _row_writing(hint)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (list, tuple):
        inner = _writing(arguments[0])
        if inner is None:
            return list
        return lambda values: [None if v is None else inner(v) for v in values]
    if origin is dict:
        return _mapping_writing(_writing(arguments[1]))
    return None


def _mapping_reading(inner: Convert | None) -> Convert:
    if inner is None:
        return dict
    return lambda pairs: {k: None if v is None else inner(v) for k, v in pairs}


def _mapping_writing(inner: Convert | None) -> Convert:
    if inner is None:
        return lambda mapping: list(mapping.items())
    return lambda mapping: [(k, None if v is None else inner(v)) for k, v in mapping.items()]


def _row_writing(cls: type[Any]) -> Convert:
    converts = [(f.name, _writing(f.hint)) for f in row_class(cls).fields]

    def write(row: Any) -> dict[str, Any]:
        made = {}
        for name, convert in converts:
            value = getattr(row, name)
            made[name] = value if convert is None or value is None else convert(value)
        return made

    return write


def _refuse_fractions(values: list[Any]) -> None:
    """Arrow would truncate a float to an integer without a word."""
    for kind in set(map(type, values)):
        if issubclass(kind, float | np.floating | Decimal):
            wrong = next(v for v in values if type(v) is kind)
            raise TypeError(f"{wrong!r} is not whole")
