"""Checks that a stream's parts fit, when the user's line runs: columns, keys, time, pickling.

Every PlanError here names the operator, the column and the user's line, and says what to write.
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable, Sequence
from typing import Any

import cloudpickle
import pyarrow as pa
import pyarrow.types as pt

from penstock.elements.changelog import CHANGE, HIDDEN, is_updating
from penstock.elements.errors import PlanError
from penstock.elements.hash import refuse_unhashable
from penstock.elements.signals import TIME_COLUMN
from penstock.expressions.types import type_text

from .graph import has_time, user_columns


def plan_error(who: str, reason: str, location: str, *lines: str) -> PlanError:
    """`who: reason  (flow.py:9)` and lines of advice."""
    where = f"  ({location})" if location else ""
    return PlanError("\n".join([f"{who}: {reason}{where}", *(f"  {line}" for line in lines)]))


def at_line(error: PlanError, location: str) -> PlanError:
    """`error` with the user's line at the end of its first line, unless it is there already."""
    text = str(error)
    if not location or location in text:
        return error
    first, *rest = text.split("\n")
    return PlanError("\n".join([f"{first}  ({location})", *rest]))


def column_names(schema: pa.Schema) -> str:
    """The user's columns, for messages."""
    return ", ".join(user_columns(schema)) or "(none)"


def find_column(name: object, schema: pa.Schema, who: str, location: str) -> str:
    """The column that `name` means: exactly, else by one case-insensitive match."""
    if not isinstance(name, str):
        raise plan_error(who, f"{name!r} is not a column's name; write it as a string", location)
    names = user_columns(schema)
    if name in names:
        return name
    near = [known for known in names if known.lower() == name.lower()]
    if len(near) == 1:
        return near[0]
    if name == TIME_COLUMN:
        raise plan_error(
            who,
            f"{TIME_COLUMN} is not a column of yours",
            location,
            "It is the event time that rides with every row; event_time() reads it.",
        )
    if name == CHANGE:
        raise plan_error(
            who,
            f"{CHANGE} is not a column of yours",
            location,
            'It tells added rows from those taken back;  stream.changes("change")  shows it.',
        )
    guess = difflib.get_close_matches(name, names, n=1)
    advice = [f"did you mean {guess[0]!r}?"] if guess else []
    raise plan_error(
        who, f'no column "{name}"', location, *advice, f"columns: {column_names(schema)}"
    )


def check_keys(keys: Sequence[object], schema: pa.Schema, who: str, location: str) -> list[str]:
    """Key columns that exist, are there once, and can be hashed."""
    if not keys:
        raise plan_error(who, "no column is named", location, 'Write  key_by("carrier")')
    found = [find_column(key, schema, who, location) for key in keys]
    for name in found:
        if found.count(name) > 1:
            raise plan_error(who, f'column "{name}" is named twice', location)
        try:
            refuse_unhashable(schema.field(name).type)
        except PlanError as error:
            raise plan_error(who, f'column "{name}": {error}', location) from None
    return found


def check_schema(schema: pa.Schema, who: str, location: str) -> pa.Schema:
    """A user's schema: names are there once, and `_time` and `_change` are ours."""
    names = list(schema.names)
    for name in names:
        if name in HIDDEN:
            use = "the event time of every row" if name == TIME_COLUMN else "updating streams"
            raise plan_error(
                who,
                f"the column name {name} is reserved for {use}",
                location,
                "Rename the column where it is made.",
            )
        if names.count(name) > 1:
            raise plan_error(who, f'two columns are called "{name}"', location)
    return schema


def check_new_name(name: str, who: str, location: str) -> None:
    """A name that the user gives to a column."""
    if name in HIDDEN or name.startswith("__"):
        raise plan_error(who, f'the column name "{name}" is reserved; choose another', location)


def check_event_time(schema: pa.Schema, read: pa.Schema, who: str, location: str) -> None:
    """Windows and joins in event time need a stream that has it; `read` is what its source has."""
    if has_time(schema):
        return
    stamps = [f.name for f in read if pt.is_timestamp(f.type) or pt.is_date(f.type)]
    raise plan_error(
        who,
        "the stream has no event time",
        location,
        'Say it where it is read:  p.source(..., event_time="ts", out_of_order="5 seconds")',
        f"timestamp columns: {', '.join(stamps) or '(none)'}",
    )


def union_schema(schemas: Sequence[pa.Schema], who: str, location: str) -> pa.Schema:
    """The columns of a union: those of the first, nullable where any is."""
    first = schemas[0]
    for number, other in enumerate(schemas[1:], start=2):
        if has_time(first) != has_time(other):
            lacking = 1 if has_time(other) else number
            raise plan_error(
                who,
                f"stream {lacking} has no event time and the others have",
                location,
                'Say it where it is read:  p.source(..., event_time="ts", ...)',
            )
        if is_updating(first) != is_updating(other):
            updating = number if is_updating(other) else 1
            raise plan_error(
                who,
                f"stream {updating} is updating, its rows are taken back, and others are not",
                location,
                'Read its changes as rows first:  stream.changes("change")',
            )
        if set(first.names) != set(other.names):
            missing = sorted(set(first.names) - set(other.names))
            extra = sorted(set(other.names) - set(first.names))
            raise plan_error(
                who,
                f"stream {number} has other columns than the first",
                location,
                *([f"it lacks: {', '.join(missing)}"] if missing else []),
                *([f"only it has: {', '.join(extra)}"] if extra else []),
                "Make them equal first with select, rename or with_columns.",
            )
    fields = []
    for field in first:
        types_ = [s.field(field.name).type for s in schemas]
        same = common_type(types_)
        if same is None:
            listed = " and ".join(dict.fromkeys(type_text(t) for t in types_))
            raise plan_error(
                who,
                f'column "{field.name}" is {listed}',
                location,
                f'Cast it first:  .with_columns({field.name}="CAST({field.name} AS ...)")',
            )
        fields.append(
            pa.field(field.name, same, any(s.field(field.name).nullable for s in schemas))
        )
    return pa.schema(fields)


def common_type(kinds: Sequence[pa.DataType]) -> pa.DataType | None:
    """The type that holds every value of all `kinds` exactly; None if there is none.

    >>> common_type([pa.int32(), pa.int64()])
    DataType(int64)
    """
    found = kinds[0]
    for kind in kinds[1:]:
        wider = _wider(found, kind)
        if wider is None:
            return None
        found = wider
    return found


_UNITS = ["s", "ms", "us", "ns"]


def _wider(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    if a == b:
        return a
    if pt.is_integer(a) and pt.is_integer(b):
        if pt.is_uint64(a) or pt.is_uint64(b):
            return pa.uint64() if pt.is_unsigned_integer(a) and pt.is_unsigned_integer(b) else None
        return pa.int64()
    if pt.is_floating(a) and pt.is_floating(b):
        return pa.float64()
    if pt.is_timestamp(a) and pt.is_timestamp(b):
        if (a.tz is None) != (b.tz is None):
            return None
        unit = max(a.unit, b.unit, key=_UNITS.index)
        return pa.timestamp(unit, a.tz)
    if pt.is_decimal(a) and pt.is_decimal(b):
        scale = max(a.scale, b.scale)
        digits = max(a.precision - a.scale, b.precision - b.scale) + scale
        return pa.decimal128(digits, scale) if digits <= 38 else None
    if _is_text(a) and _is_text(b):
        return pa.string()
    if _is_bytes(a) and _is_bytes(b):
        return pa.binary()
    return None


def _is_text(kind: pa.DataType) -> bool:
    return bool(pt.is_string(kind) or pt.is_large_string(kind) or pt.is_string_view(kind))


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(
        pt.is_binary(kind)
        or pt.is_large_binary(kind)
        or pt.is_binary_view(kind)
        or pt.is_fixed_size_binary(kind)
    )


def check_sendable(value: Any, who: str, location: str) -> None:
    """User code travels to its process by cloudpickle: say now what could not."""
    try:
        cloudpickle.dumps(value)
        return
    except Exception as error:  # Whatever a __reduce__ of theirs raises.
        cause = error
    for name, part in _parts(value):
        try:
            cloudpickle.dumps(part)
        except Exception:
            raise _not_sendable(value, who, name, part, location) from None
    where = f"  ({location})" if location else ""
    raise PlanError(
        f"{who} cannot be sent to its process: {type(cause).__name__}: {cause}{where}\n"
        "  It travels by cloudpickle, with everything that it refers to."
    )


def _not_sendable(value: Any, who: str, name: str, part: Any, location: str) -> PlanError:
    if isinstance(value, types.FunctionType):
        what = f'variable "{name}" holds'
        advice = "It runs in another process. Write a ps.Operator that connects in open()."
    else:
        what = f'attribute "{name}" holds'
        advice = (
            "__init__ runs here, open() runs there. Keep the path in __init__, connect in open()."
        )
    article = "an" if _class_name(part)[0] in "aeiouAEIOU" else "a"
    where = f"  ({location})" if location else ""
    return PlanError(
        f"{who} cannot be sent to its process: {what} {article} {_class_name(part)}{where}\n"
        f"  {advice}"
    )


def _parts(value: Any) -> Iterable[tuple[str, Any]]:
    if isinstance(value, types.FunctionType):
        code = value.__code__
        for name, cell in zip(code.co_freevars, value.__closure__ or ()):
            try:
                yield name, cell.cell_contents
            except ValueError:  # A variable without a value yet.
                continue
        for name in code.co_names:
            if name in value.__globals__:
                yield name, value.__globals__[name]
        return
    yield from getattr(value, "__dict__", {}).items()


def _class_name(value: Any) -> str:
    kind = type(value)
    return f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")
