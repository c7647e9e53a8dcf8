"""What a source's generator yields, read from its annotations: the row class, and pairs or not."""

from __future__ import annotations

import collections.abc
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from penstock.elements.errors import PlanError
from penstock.elements.row_hints import function_hints


@dataclass(frozen=True)
class Yielded:
    """`element` is a row class, or a pa.Schema for batches and dicts.

    `paired`: items are (row, position); None when the annotations do not say.
    """

    element: Any
    paired: bool | None


_GENERATORS = (
    collections.abc.Iterator,
    collections.abc.Iterable,
    collections.abc.Generator,
    collections.abc.AsyncIterator,
    collections.abc.AsyncIterable,
    collections.abc.AsyncGenerator,
)


def yielded_by(
    function: Callable[..., Any], returns: Any, around: Mapping[str, Any], what: str
) -> Yielded:
    """From a generator function; `around` are the locals of the frame that defines it."""
    return _declared(_item_hint(function, around, returns is None, what), returns, what)


def yielded_by_source(source: Any, returns: Any) -> Yielded:
    """From a ps.Source: its `returns`, else the row class it was subscripted with."""
    kind = type(source)
    what = f"source {kind.__name__}"
    if returns is None:
        returns = _subscript(kind)
    hint = _item_hint(kind.read, {}, False, what)
    # An annotation inherited or written as the base class has it says nothing about pairs.
    paired = _pair_of(hint)[1] if typing.get_origin(hint) is tuple else None
    return Yielded(_declared(None, returns, what).element, paired)


def _subscript(kind: type) -> Any:
    for cls in kind.__mro__:
        for base in getattr(cls, "__orig_bases__", ()):
            arguments = typing.get_args(base)
            if arguments and not isinstance(arguments[0], typing.TypeVar):
                return arguments[0]
    return None


def _item_hint(
    function: Callable[..., Any], around: Mapping[str, Any], needed: bool, what: str
) -> Any:
    """X of Iterator[X]; None without a usable annotation."""
    try:
        annotated = function_hints(function, dict(around)).get("return")
    except PlanError as error:
        if not needed:
            return None
        raise PlanError(
            f"{what}: {error}\n  Or say what it yields:  @ps.source(returns=MyRow)"
        ) from error
    arguments = typing.get_args(annotated)
    if typing.get_origin(annotated) in _GENERATORS and arguments:
        return arguments[0]
    return None


def _pair_of(hint: Any) -> tuple[Any, bool | None]:
    if typing.get_origin(hint) is tuple and len(typing.get_args(hint)) == 2:
        return typing.get_args(hint)[0], True
    return hint, None


def _declared(hint: Any, returns: Any, what: str) -> Yielded:
    element, paired = (None, None) if hint is None else _pair_of(hint)
    if returns is not None:
        element = returns
    if isinstance(element, pa.Schema):
        return Yielded(element, paired)
    if isinstance(element, type) and not _is_batch_class(element) and element not in (dict, tuple):
        return Yielded(element, paired)
    raise PlanError(
        f"{what}: what are its columns?\n"
        "  Annotate the rows it yields:  -> Iterator[MyRow]  or  -> Iterator[tuple[MyRow, int]]\n"
        "  or, for batches and dicts, declare them:  returns=pa.schema([...])"
    )


def _is_batch_class(kind: type) -> bool:
    return kind in (pa.RecordBatch, pa.Table) or kind.__name__ == "DataFrame"
