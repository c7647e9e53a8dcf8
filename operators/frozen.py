"""Frozen: after open(), an operator's public attributes are configuration and cannot be assigned.

What looks like state but is not would be lost on restart and shared by all keys (hazard 26).
"""

from __future__ import annotations

import sys
from datetime import date, datetime, timedelta
from typing import Any, NoReturn

from penstock.elements.errors import StateError

from .declared import Declared

_NAMED = (bool, int, float, str, bytes, datetime, date, timedelta)


class Frozen:
    """Base of the public operators."""

    _penstock_open = False
    _penstock_keyed = False

    def __setattr__(self, name: str, value: Any) -> None:
        if self._penstock_open and not name.startswith("_"):
            refuse_assignment(self, name, value, sys._getframe(1).f_code.co_name)
        object.__setattr__(self, name, value)

    def __delattr__(self, name: str) -> None:
        if self._penstock_open and not name.startswith("_"):
            refuse_assignment(self, name, None, sys._getframe(1).f_code.co_name)
        object.__delattr__(self, name)


def freeze(operator: Frozen) -> None:
    """From now on only names that begin with `_` can be assigned."""
    operator._penstock_open = True


def refuse_assignment(
    operator: Frozen, name: str, value: Any, method: str, did: str = "assigned"
) -> NoReturn:
    """Raise the StateError of an assignment to `name` in `method`."""
    who = type(operator).__name__
    declared = getattr(type(operator), name, None)
    if isinstance(declared, Declared):
        raise StateError(
            f"{who}.{method} assigned self.{name}, which is declared on the class\n"
            f"  To change its content use its methods, such as self.{name}.value = ..."
        )
    raise StateError(
        f"{who}.{method} {did} self.{name}, which is not state\n"
        f"  {_loss(operator)}\n"
        f"  Declare  {_declaration(operator, name, value)}  or, for scratch, name it _{name}."
    )


def _loss(operator: Frozen) -> str:
    if operator._penstock_keyed:
        return "It would be lost on restart and shared by all keys on the subtask."
    return "It would be lost on restart."


def _declaration(operator: Frozen, name: str, value: Any) -> str:
    if not operator._penstock_keyed:
        return f'self._{name} = ctx.operator_state("{name}") in open()'
    if isinstance(value, list):
        return f"{name} = ps.ListState({_element(value)})"
    if isinstance(value, dict):
        return f"{name} = ps.MapState({_element(list(value))}, {_element(list(value.values()))})"
    kind = type(value)
    if kind in (bool, int, float, str, bytes):
        return f"{name} = ps.ValueState({kind.__name__}, default={kind()!r})"
    return f"{name} = ps.ValueState({kind.__name__ if kind is not type(None) else 'object'})"


def _element(values: list[Any]) -> str:
    return type(values[0]).__name__ if values and isinstance(values[0], _NAMED) else "object"
