"""Arrow types as short text for messages, and back.

Promises: `type_from_text(type_text(t)) == t` for every type that a stream may carry, up to the
names and nullability of the fields inside lists.
"""

from __future__ import annotations

import re

import pyarrow as pa

_SIMPLE: dict[str, pa.DataType] = {
    "bool": pa.bool_(),
    "int8": pa.int8(),
    "int16": pa.int16(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "uint8": pa.uint8(),
    "uint16": pa.uint16(),
    "uint32": pa.uint32(),
    "uint64": pa.uint64(),
    "float16": pa.float16(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "text": pa.string(),
    "large text": pa.large_string(),
    "bytes": pa.binary(),
    "large bytes": pa.large_binary(),
    "date": pa.date32(),
    "date64": pa.date64(),
    "interval": pa.month_day_nano_interval(),
    "null": pa.null(),
}
_NAMES = {kind: name for name, kind in _SIMPLE.items()}
_TIMED = re.compile(r"(timestamp|time|duration)\[(s|ms|us|ns)(?:, *([^\]]+))?\]$")
_DECIMAL = re.compile(r"decimal\((\d+), *(-?\d+)\)$")
_BYTES = re.compile(r"bytes\((\d+)\)$")
_DECIMAL128_DIGITS = 38


def type_text(kind: pa.DataType) -> str:
    """What messages call this type.

    >>> type_text(pa.list_(pa.timestamp("us", "UTC")))
    'list<timestamp[us, UTC]>'
    """
    name = _NAMES.get(kind)
    if name is not None:
        return name
    types = pa.types
    if types.is_timestamp(kind):
        return f"timestamp[{kind.unit}{', ' + kind.tz if kind.tz else ''}]"
    if types.is_time(kind):
        return f"time[{kind.unit}]"
    if types.is_duration(kind):
        return f"duration[{kind.unit}]"
    if types.is_decimal(kind):
        return f"decimal({kind.precision}, {kind.scale})"
    if types.is_fixed_size_binary(kind):
        return f"bytes({kind.byte_width})"
    if types.is_map(kind):
        return f"map<{type_text(kind.key_type)}, {type_text(kind.item_type)}>"
    if types.is_list(kind):
        return f"list<{type_text(kind.value_type)}>"
    if types.is_struct(kind):
        return "struct<" + ", ".join(f"{f.name}: {type_text(f.type)}" for f in kind) + ">"
    return str(kind)


def type_from_text(text: str) -> pa.DataType:
    """The type that `type_text` would call so; raises ValueError naming the text."""
    text = text.strip()
    found = _SIMPLE.get(text)
    if found is not None:
        return found
    if timed := _TIMED.match(text):
        return _timed(text, timed[1], timed[2], timed[3])
    if decimal := _DECIMAL.match(text):
        digits = int(decimal[1])
        make = pa.decimal128 if digits <= _DECIMAL128_DIGITS else pa.decimal256
        return make(digits, int(decimal[2]))
    if width := _BYTES.match(text):
        return pa.binary(int(width[1]))
    if text.endswith(">"):
        return _nested(text)
    raise ValueError(f"{text!r} is not the name of a type")


def _timed(text: str, name: str, unit: str, zone: str | None) -> pa.DataType:
    if name == "timestamp":
        return pa.timestamp(unit, zone)
    if zone is None and name == "duration":
        return pa.duration(unit)
    if zone is None:
        return pa.time32(unit) if unit in ("s", "ms") else pa.time64(unit)
    raise ValueError(f"{text!r} is not the name of a type")


def _nested(text: str) -> pa.DataType:
    outer, _, rest = text[:-1].partition("<")
    pieces = _split(rest)
    if outer == "list" and len(pieces) == 1:
        return pa.list_(type_from_text(pieces[0]))
    if outer == "map" and len(pieces) == 2:
        return pa.map_(type_from_text(pieces[0]), type_from_text(pieces[1]))
    if outer == "struct":
        named = [piece.partition(":") for piece in pieces]
        return pa.struct([(n.strip(), type_from_text(t)) for n, _, t in named])
    raise ValueError(f"{text!r} is not the name of a type")


def _split(text: str) -> list[str]:
    """Split at commas that stand outside brackets."""
    pieces, depth, begin = [], 0, 0
    for at, sign in enumerate(text):
        depth += (sign in "<[(") - (sign in ">])")
        if sign == "," and depth == 0:
            pieces.append(text[begin:at])
            begin = at + 1
    return [*pieces, text[begin:]] if text else []
