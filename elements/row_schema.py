"""Row classes → Arrow schemas: dataclasses, NamedTuples and pydantic models.

`bool int float str bytes date time timedelta Decimal UUID`, enums and literals of one type,
`list`, `tuple[T, ...]`, `dict` and nested row classes have one Arrow type each. datetime is
timestamp[us, UTC], and naive values are UTC. `Annotated[T, pa.DataType]` chooses another type.
`Optional` is nullable, everything else is not. Names that begin with `_time` are reserved.
"""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
import uuid
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from .errors import PlanError
from .row_hints import class_hints
from .signals import TIME_COLUMN

DECIMAL_PRECISION, DECIMAL_SCALE = 38, 9
"""What a bare Decimal becomes; Annotated[Decimal, pa.decimal128(p, s)] says otherwise."""

_SIMPLE: dict[Any, pa.DataType] = {
    bool: pa.bool_(),
    int: pa.int64(),
    float: pa.float64(),
    str: pa.utf8(),
    bytes: pa.binary(),
    datetime: pa.timestamp("us", "UTC"),
    date: pa.date32(),
    time: pa.time64("us"),
    timedelta: pa.duration("us"),
    Decimal: pa.decimal128(DECIMAL_PRECISION, DECIMAL_SCALE),
    uuid.UUID: pa.binary(16),
    type(None): pa.null(),
}


@dataclasses.dataclass(frozen=True)
class RowField:
    """One field of a row class: its hint without Optional, and whether a row may leave it out."""

    name: str
    hint: Any
    nullable: bool
    arrow: pa.DataType | None
    """The type that Annotated gives, else None."""
    has_default: bool


@dataclasses.dataclass(frozen=True)
class RowClass:
    """What a row class declares."""

    cls: type[Any]
    kind: Literal["dataclass", "namedtuple", "pydantic"]
    fields: tuple[RowField, ...]


_FIELDS = "__penstock_fields__"
"""Where a class remembers its resolved fields; it travels with classes that are sent by value."""


def is_row_class(candidate: object) -> bool:
    """Whether `candidate` is a class that describes rows."""
    return isinstance(candidate, type) and _kind_of(candidate) is not None


def row_class(cls: type[Any], local: dict[str, Any] | None = None) -> RowClass:
    """The fields of `cls`. Remembered, so that later calls need no frame to resolve hints."""
    kind = _kind_of(cls)
    if kind is None:
        raise PlanError(
            f"{getattr(cls, '__name__', cls)!r} is not a row class\n"
            "  A schema is a dataclass, a NamedTuple, a pydantic model, or a pa.Schema."
        )
    known = cls.__dict__.get(_FIELDS)
    if known is None:
        known = tuple(_fields(cls, kind, local))
        type.__setattr__(cls, _FIELDS, known)
    return RowClass(cls, kind, known)


def row_schema(cls: type[Any], local: dict[str, Any] | None = None) -> pa.Schema:
    """The Arrow schema of a row class.

    >>> from typing import NamedTuple
    >>> class Late(NamedTuple):
    ...     tail: str
    ...     delay: float | None
    >>> row_schema(Late)
    tail: string not null
    delay: double
    """
    described = row_class(cls, local)
    fields = []
    for field in described.fields:
        who = f"{cls.__name__}.{field.name}"
        kind = field.arrow if field.arrow is not None else arrow_type(field.hint, who)
        fields.append(pa.field(field.name, kind, field.nullable))
    return pa.schema(fields)


def arrow_type(hint: Any, who: str) -> pa.DataType:
    """The Arrow type of one hint; `who` names it in errors."""
    hint, _, chosen = strip(hint)
    if chosen is not None:
        return chosen
    if hint in _SIMPLE:
        return _SIMPLE[hint]
    if isinstance(hint, type):
        if issubclass(hint, enum.Enum):
            return _one_type({type(member.value) for member in hint}, who)
        if issubclass(hint, np.generic):
            return pa.from_numpy_dtype(np.dtype(hint))
        if _kind_of(hint) is not None:
            return pa.struct(list(row_schema(hint)))
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return _one_type({type(value) for value in arguments}, who)
    if origin is list or (origin is tuple and len(arguments) == 2 and arguments[1] is ...):
        _, inner_nullable, _ = strip(arguments[0])
        item = arrow_type(arguments[0], who)
        return pa.list_(pa.field("item", item, inner_nullable))
    if origin is dict:
        return pa.map_(arrow_type(arguments[0], who), arrow_type(arguments[1], who))
    raise PlanError(
        f"{who}: {getattr(hint, '__name__', hint)} has no Arrow type\n"
        "  Use bool, int, float, str, bytes, datetime, date, time, timedelta, Decimal, UUID, an\n"
        "  Enum, list[...], dict[..., ...], a row class, or Annotated[..., pa.some_type()]."
    )


def strip(hint: Any) -> tuple[Any, bool, pa.DataType | None]:
    """(the hint without Optional and Annotated, whether it was Optional, the annotated type)."""
    nullable, chosen = False, None
    while True:
        origin = typing.get_origin(hint)
        if origin is typing.Annotated:
            for extra in hint.__metadata__:
                if isinstance(extra, pa.DataType):
                    chosen = extra
            hint = hint.__origin__
        elif origin in (typing.Union, types.UnionType):
            inner = [a for a in typing.get_args(hint) if a is not type(None)]
            nullable = nullable or len(inner) < len(typing.get_args(hint))
            if len(inner) != 1:
                return hint, nullable, chosen
            hint = inner[0]
        elif origin in (typing.Required, typing.NotRequired, typing.ClassVar, typing.Final):
            hint = typing.get_args(hint)[0]
        elif isinstance(hint, typing.NewType):
            hint = hint.__supertype__
        else:
            return hint, nullable or hint is Any, chosen


def _one_type(kinds: set[type[Any]], who: str) -> pa.DataType:
    if len(kinds) == 1 and (kind := kinds.pop()) in _SIMPLE:
        return _SIMPLE[kind]
    raise PlanError(f"{who}: its values must all be of one simple type, such as str or int")


def _kind_of(cls: Any) -> Literal["dataclass", "namedtuple", "pydantic"] | None:
    if not isinstance(cls, type):
        return None
    if dataclasses.is_dataclass(cls):
        return "dataclass"
    if issubclass(cls, tuple) and hasattr(cls, "_fields"):
        return "namedtuple"
    if hasattr(cls, "model_fields") and hasattr(cls, "model_validate"):
        return "pydantic"
    return None


def _fields(cls: type[Any], kind: str, local: dict[str, Any] | None) -> list[RowField]:
    hints = class_hints(cls, local)
    defaults: dict[str, bool] = {}
    if kind == "dataclass":
        for field in dataclasses.fields(cls):
            if field.init:
                defaults[field.name] = (
                    field.default is not dataclasses.MISSING
                    or field.default_factory is not dataclasses.MISSING
                )
    elif kind == "namedtuple":
        defaults = {name: name in cls._field_defaults for name in cls._fields}
    else:
        defaults = {name: not f.is_required() for name, f in cls.model_fields.items()}
    if not defaults:
        raise PlanError(f"{cls.__name__} has no fields, so it describes no row")
    found = []
    for name, has_default in defaults.items():
        if name == TIME_COLUMN:
            raise PlanError(
                f"{cls.__name__}.{name}: the name is reserved for the event time of every row\n"
                "  Choose another; event_time() reads it in expressions, ctx.event_time in Python."
            )
        hint, nullable, chosen = strip(hints.get(name, Any))
        found.append(RowField(name, hint, nullable, chosen, has_default))
    return found
