"""User functions in expressions: Python functions per row, or over Arrow arrays.

Promises: a function is plain data until it is called, travels by cloudpickle, and is called when
planning with constants at most. Types come from annotations or are given. Knows no engine.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, overload

import pyarrow as pa

from penstock.elements.errors import PlanError
from penstock.elements.row_hints import function_hints
from penstock.elements.row_schema import arrow_type, strip

from .types import type_text

Volatility = Literal["immutable", "volatile"]


@dataclass(frozen=True)
class ScalarFunction:
    """A function that expressions may call by `name`; in Python it is called as before.

    Row-wise functions are not called for rows with a null in an argument that is not Optional:
    the result is null there. Functions over arrays see the nulls and give an equally long array.
    """

    name: str
    function: Callable[..., Any]
    arguments: tuple[pa.DataType, ...]
    returns: pa.DataType
    takes_null: tuple[bool, ...]
    row_wise: bool = True
    volatility: Volatility = "immutable"

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)

    def evaluate(self, *columns: pa.Array) -> pa.Array:
        """The results for these columns, of type `returns`."""
        if not self.row_wise:
            return self._checked(self.function(*columns), len(columns[0]) if columns else 1)
        lists = [column.to_pylist() for column in columns]
        strict = [values for values, takes in zip(lists, self.takes_null) if not takes]
        call = self.function
        if strict and any(column.null_count for column in columns):
            rows = zip(*lists)
            guards = zip(*strict)
            results = [
                None if None in guard else call(*row)
                for row, guard in zip(rows, guards, strict=True)
            ]
        else:
            results = [call(*row) for row in zip(*lists)] if lists else [call()]
        return pa.array(results, self.returns)

    def _checked(self, result: Any, rows: int) -> pa.Array:
        if isinstance(result, pa.ChunkedArray):
            result = result.combine_chunks()
        if not isinstance(result, pa.Array):
            result = pa.array(result)
        if len(result) != rows:
            raise ValueError(f"{self.name} gave {len(result)} values for {rows} rows")
        return result if result.type == self.returns else result.cast(self.returns)


@dataclass(frozen=True)
class Functions:
    """The functions that one pipeline's expressions know besides SQL's own. Immutable."""

    by_name: dict[str, ScalarFunction] = field(default_factory=dict)

    def with_function(self, function: ScalarFunction) -> Functions:
        """These and one more; PlanError if the name is taken by another function."""
        known = self.by_name.get(function.name)
        if known is not None and known is not function:
            raise PlanError(
                f"register: a function named {function.name!r} is registered already\n"
                "  Give one of them another name:  @ps.udf(name=…)"
            )
        return replace(self, by_name={**self.by_name, function.name: function})

    def find(self, name: str) -> ScalarFunction | None:
        """By exact name, else by one case-insensitive match."""
        if name in self.by_name:
            return self.by_name[name]
        near = [known for known in self.by_name if known.lower() == name.lower()]
        return self.by_name[near[0]] if len(near) == 1 else None

    def __iter__(self) -> Iterator[ScalarFunction]:
        return iter(self.by_name.values())


NONE = Functions()
"""No functions but SQL's own."""


@overload
def udf(function: Callable[..., Any], /) -> ScalarFunction: ...


@overload
def udf(
    *,
    name: str | None = None,
    arguments: Sequence[pa.DataType] | None = None,
    returns: pa.DataType | None = None,
    volatile: bool = False,
) -> Callable[[Callable[..., Any]], ScalarFunction]: ...


def udf(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    arguments: Sequence[pa.DataType] | None = None,
    returns: pa.DataType | None = None,
    volatile: bool = False,
) -> ScalarFunction | Callable[[Callable[..., Any]], ScalarFunction]:
    """Make a function usable in expressions, once it is registered with the pipeline.

    Plain hints (`float`, `str | None`) make it row-wise. Arguments annotated `pa.Array` make it
    work on whole columns: then give the types, `@ps.udf(arguments=[…], returns=…)`. Say
    `volatile=True` if equal arguments may give different results.

    >>> @udf
    ... def grade(delay: float) -> str:
    ...     return "bad" if delay > 60 else "ok"
    >>> grade(61.0), grade.returns
    ('bad', DataType(string))
    """

    def make(inner: Callable[..., Any]) -> ScalarFunction:
        return _scalar_function(inner, name, arguments, returns, volatile)

    return make if function is None else make(function)


def _scalar_function(
    function: Callable[..., Any],
    name: str | None,
    arguments: Sequence[pa.DataType] | None,
    returns: pa.DataType | None,
    volatile: bool,
) -> ScalarFunction:
    called: str = name or str(getattr(function, "__name__", ""))
    if not called.isidentifier():
        raise PlanError(f"udf: {called!r} cannot be a function's name\n  Give one: @ps.udf(name=…)")
    names, hints = _signature(function, called)
    over_arrays = any(_is_array(hints.get(each)) for each in names)
    if arguments is None:
        if over_arrays:
            raise PlanError(
                f"udf {called}: functions over pa.Array do not say the type of their values\n"
                f"  Write  @ps.udf(arguments=[pa.float64()], returns=pa.string())"
            )
        typed = [_typed(called, each, hints) for each in names]
    else:
        if len(arguments) != len(names):
            raise PlanError(
                f"udf {called}: {len(arguments)} argument types for {len(names)} arguments"
            )
        takes_null = [over_arrays or strip(hints.get(each))[1] for each in names]
        typed = list(zip(arguments, takes_null))
    result = returns if returns is not None else _typed(called, "return", hints)[0]
    return ScalarFunction(
        called,
        function,
        tuple(kind for kind, _ in typed),
        result,
        tuple(takes for _, takes in typed),
        row_wise=not over_arrays,
        volatility="volatile" if volatile else "immutable",
    )


def _signature(function: Callable[..., Any], called: str) -> tuple[list[str], dict[str, Any]]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        raise PlanError(
            f"udf {called}: its arguments are unknown; wrap it in a function with annotations"
        ) from None
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if any(parameter.kind not in positional for parameter in parameters):
        raise PlanError(f"udf {called}: *args and keyword-only arguments have no place in SQL")
    return [parameter.name for parameter in parameters], function_hints(function)


def _is_array(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, pa.Array)


def _typed(called: str, name: str, hints: dict[str, Any]) -> tuple[pa.DataType, bool]:
    what = "its result" if name == "return" else f"argument {name!r}"
    if name not in hints:
        raise PlanError(
            f"udf {called}: {what} has no annotation\n"
            "  Expressions are typed when planning: write  def f(x: float) -> str"
        )
    return arrow_type(hints[name], f"udf {called}, {what}"), strip(hints[name])[1]


def describe(function: ScalarFunction) -> str:
    """`name(type, type) -> type`, for messages."""
    arguments = ", ".join(type_text(kind) for kind in function.arguments)
    return f"{function.name}({arguments}) -> {type_text(function.returns)}"
