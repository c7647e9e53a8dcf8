"""Resolving the annotations of users' classes and functions, wherever they were defined.

`from __future__ import annotations` turns hints into text. They are evaluated with the module's
globals and with the locals of those frames of the present call stack that define the object, so
that classes made inside a test or a notebook cell resolve. Hints must therefore be resolved while
the defining frame is alive: when a class is created or a stream method is called, not later.
What was resolved can travel with a program that is planned again in another process.
"""

from __future__ import annotations

import inspect
import sys
import typing
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from .errors import PlanError

Resolved = tuple[Any, dict[str, Any]]
"""A class or function, and its hints."""
_recorder: ContextVar[list[Resolved] | None] = ContextVar("recorder", default=None)
_remembered: weakref.WeakKeyDictionary[Any, dict[str, Any]] = weakref.WeakKeyDictionary()


@contextmanager
def recorded_hints() -> Iterator[list[Resolved]]:
    """All that is resolved inside the `with`, for a process without the defining frames."""
    found: list[Resolved] = []
    token = _recorder.set(found)
    try:
        yield found
    finally:
        _recorder.reset(token)


def remember_hints(resolved: Iterable[Resolved]) -> None:
    """Take over what another process has recorded of objects that came from there."""
    _remembered.update(resolved)


def class_hints(cls: type[Any], local: dict[str, Any] | None = None) -> dict[str, Any]:
    """The resolved hints of a class, `Annotated` kept; names that fail are a PlanError."""
    return _resolved(cls, cls.__qualname__, local)


def function_hints(
    function: Callable[..., Any], local: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The resolved hints of a function's parameters and `return`; {} for what has none.

    Objects with `__call__` are looked at through it.
    """
    target: Any = function
    if isinstance(target, type):
        return {"return": target}
    if not hasattr(target, "__code__") and not inspect.ismethod(target):
        target = type(target).__call__
    target = inspect.unwrap(target)
    if not getattr(target, "__annotations__", None):
        return {}
    closure = {}
    code = getattr(target, "__code__", None)
    if code is not None and target.__closure__:
        for name, cell in zip(code.co_freevars, target.__closure__, strict=True):
            try:
                closure[name] = cell.cell_contents
            except ValueError:  # A variable that has no value yet.
                continue
    return _resolved(target, target.__qualname__, {**closure, **(local or {})})


def _resolved(target: Any, qualname: str, local: dict[str, Any] | None) -> dict[str, Any]:
    # Of a bound method the function: methods are made anew at each look.
    target = getattr(target, "__func__", target)
    hints = _remembered.get(target)
    if hints is None:
        hints = _evaluated(target, qualname, local)
    recorder = _recorder.get()
    if recorder is not None:
        recorder.append((target, hints))
    return dict(hints)


def _evaluated(target: Any, qualname: str, local: dict[str, Any] | None) -> dict[str, Any]:
    names = {**_frame_locals(qualname), **(local or {})}
    try:
        return typing.get_type_hints(target, localns=names, include_extras=True)
    except (NameError, TypeError, SyntaxError, AttributeError) as error:
        raise PlanError(
            f"{qualname}: its annotations cannot be evaluated: {error}\n"
            "  Define the classes they name at module level, or in the same function."
        ) from None


def _frame_locals(qualname: str) -> dict[str, Any]:
    """Locals of the functions on the stack that enclose `qualname`, outermost first.

    A class's own locals are never wanted: its fields would shadow types of the same name.
    """
    enclosing = []
    parts = qualname.split(".")
    for end in range(1, len(parts)):
        if parts[end] == "<locals>":
            enclosing.append(".".join(parts[:end]))
    found: dict[str, dict[str, Any]] = {}
    frame = sys._getframe(3)
    while frame is not None and enclosing:
        name = frame.f_code.co_qualname
        if name in enclosing and name not in found:
            found[name] = dict(frame.f_locals)
        frame = frame.f_back  # type: ignore[assignment]
    merged: dict[str, Any] = {}
    for name in enclosing:
        merged.update(found.get(name, {}))
    return merged
