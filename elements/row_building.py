"""Rows of a class out of columns, as fast as Python makes objects.

A plain dataclass is allocated and filled without its generated `__init__`, a NamedTuple without its
`__new__`: both would do the same, one call per row later. Any class that does more when it is made
(`__post_init__`, an `__init__` of its own, InitVar, a metaclass) is called, row by row.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from itertools import repeat
from typing import Any

Columns = Sequence[list[Any]]
Build = Callable[[Columns], list[Any]]

_NEW: Any = object.__new__
_GENERATED = "__create_fn__.<locals>.__init__"
"""What `dataclass` calls the `__init__` it writes; one written by a user has another name."""


def row_builder(cls: type[Any], names: Sequence[str]) -> Build:
    """How columns, in the order in which `cls` takes them as arguments, become its rows."""
    if _is_plain_tuple(cls, names):
        make = partial(tuple.__new__, cls)
        return lambda columns: list(map(make, zip(*columns, strict=True)))
    if _is_plain_dataclass(cls, names):
        frozen = vars(cls)["__dataclass_params__"].frozen
        fill = _frozen_builder(cls, names) if frozen else _filling_builder(cls, names)
        return _after_one_call(cls, fill)
    return lambda columns: list(map(cls, *columns))


def _is_plain_tuple(cls: type[Any], names: Sequence[str]) -> bool:
    return (
        cls.__bases__ == (tuple,)
        and list(getattr(cls, "_fields", ())) == list(names)
        and len(names) > 0
        and cls.__init__ is object.__init__
        and type(cls) is type
    )


def _is_plain_dataclass(cls: type[Any], names: Sequence[str]) -> bool:
    made = vars(cls).get("__init__")
    return (
        "__dataclass_params__" in vars(cls)
        and getattr(getattr(made, "__code__", None), "co_qualname", "") == _GENERATED
        and [field.name for field in dataclasses.fields(cls)] == list(names)
        and all(field.init and not field.kw_only for field in dataclasses.fields(cls))
        and made.__code__.co_argcount == len(names) + 1  # no InitVar
        and not hasattr(cls, "__post_init__")
        and cls.__new__ is _NEW
        and type(cls).__call__ is type.__call__
    )


def _after_one_call(cls: type[Any], fill: Build) -> Build:
    """`fill`, but for the first columns, of which rows are made in the usual way.

    CPython lays out the attributes of a class while its first instances are filled. Should many be
    allocated before, every row gets a dictionary of its own and costs twice as much.
    """
    usual = True

    def build(columns: Columns) -> list[Any]:
        nonlocal usual
        if usual and columns[0]:
            usual = False
            return list(map(cls, *columns))
        return fill(columns)

    return build


def _filling_builder(cls: type[Any], names: Sequence[str]) -> Build:
    """Written out for these names: `for row, row.a, row.b in zip(rows, a, b)`."""
    targets = ", ".join(f"row.{name}" for name in names)
    source = (
        "def build(columns):\n"
        "    rows = list(map(new, repeat(cls, len(columns[0]))))\n"
        f"    for row, {targets} in zip(rows, *columns): pass\n"
        "    return rows\n"
    )
    found: dict[str, Any] = {"new": object.__new__, "repeat": repeat, "cls": cls}
    exec(compile(source, __file__, "exec"), found)
    build: Build = found["build"]
    return build


def _frozen_builder(cls: type[Any], names: Sequence[str]) -> Build:
    def build(columns: Columns) -> list[Any]:
        rows = list(map(object.__new__, repeat(cls, len(columns[0]))))
        for name, column in zip(names, columns, strict=True):
            # What a frozen dataclass's own __init__ does; the deque only runs the map to its end.
            deque(map(object.__setattr__, rows, repeat(name), column), 0)
        return rows

    return build
