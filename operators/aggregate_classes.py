"""Aggregates that users write: a class per aggregate, used as `aggregate(x=MyAggregate("column"))`.

Aggregate is called row by row, SegmentAggregate with columns of all groups at once. A class says
what it keeps per group and how two of them merge, so that it works in windows, in aggregates
without a window, over two phases and restarts alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penstock.elements.errors import PlanError
from penstock.elements.row_schema import arrow_type
from penstock.expressions.expression import Expr, ExprLike, as_expr


class AggregateClass:
    """What both kinds have in common."""

    returns: Any = None
    """The type of the result: a pa.DataType, or a hint such as `float` or `list[str]`."""
    takes_nulls: ClassVar[bool] = False
    """Whether rows count in which an argument is null; otherwise they are left out, as in SQL."""
    _columns: tuple[Expr, ...] = ()
    _where: Expr | None = None

    def __init__(self, *columns: ExprLike, where: ExprLike | None = None) -> None:
        """The arguments, expressions over the row; `where` is SQL's FILTER (WHERE …)."""
        self._columns = tuple(as_expr(column) for column in columns)
        self._where = None if where is None else as_expr(where)

    @property
    def text(self) -> str:
        """How it is shown: the class and its arguments."""
        arguments = ", ".join(_shown(column) for column in self._columns)
        where = "" if self._where is None else f" FILTER (WHERE {_shown(self._where)})"
        return f"{type(self).__name__}({arguments}){where}"

    def result_type(self) -> pa.DataType:
        """The type of the result; PlanError if the class does not say it."""
        if isinstance(self.returns, pa.DataType):
            return self.returns
        if self.returns is None:
            raise PlanError(
                f"{type(self).__name__}: it does not say what it returns\n"
                "  For example  returns = pa.float64()  or  returns = float"
            )
        return arrow_type(self.returns, f"{type(self).__name__}.returns")


class Aggregate(AggregateClass):
    """An aggregate of your own, row by row.

    State is one Python object per group that can be pickled. Of no rows the result is
    `result(create())`. Rows of a group come in any order, and partial states are merged in any
    order. Over an updating stream rows are taken back: with `retract` from the state, and without
    it all values of a group are kept and added anew.

    >>> class Longest(Aggregate):
    ...     returns = str
    ...     def create(self): return ""
    ...     def add(self, state, word): return max(state, word, key=lambda each: (len(each), each))
    ...     def merge(self, state, other): return self.add(state, other)
    ...     def result(self, state): return state or None
    """

    def create(self) -> Any:
        """The state of no rows."""
        raise NotImplementedError

    def add(self, state: Any, *values: Any) -> Any:
        """The state with one row more: `state` itself, changed, or a new one."""
        raise NotImplementedError

    def merge(self, state: Any, other: Any) -> Any:
        """The state of both."""
        raise NotImplementedError

    def result(self, state: Any) -> Any:
        """What is given; None is null."""
        raise NotImplementedError

    def retract(self, state: Any, *values: Any) -> Any:
        """The state with one row less.

        Define it only for states that are sums of their rows: a row may be taken back from a
        state it has not reached yet, with which it is merged later.
        """
        raise NotImplementedError


class SegmentAggregate(AggregateClass):
    """An aggregate of your own, over columns: fast, because it is called once per batch.

    The values of a group lie next to each other: those of group i are
    `column[starts[i]:starts[i + 1]]`, the last group's go to the end; no group is empty. Of no
    rows the result is NULL.

    >>> class Span(SegmentAggregate):
    ...     returns = pa.float64()
    ...     state = (pa.float64(), pa.float64())
    ...     def fold(self, columns, starts):
    ...         values = columns[0].to_numpy()
    ...         return [np.minimum.reduceat(values, starts), np.maximum.reduceat(values, starts)]
    ...     def merge(self, state, starts):
    ...         low, high = (part.to_numpy() for part in state)
    ...         return [np.minimum.reduceat(low, starts), np.maximum.reduceat(high, starts)]
    ...     def finish(self, state):
    ...         return state[1].to_numpy() - state[0].to_numpy()
    """

    state: Sequence[pa.DataType] = ()
    """The types of the columns that are kept, one value per group each."""

    def fold(self, columns: list[pa.Array], starts: npt.NDArray[np.int64]) -> Sequence[Any]:
        """One value per group and column of `state`, from the arguments' values."""
        raise NotImplementedError

    def merge(self, state: list[pa.Array], starts: npt.NDArray[np.int64]) -> Sequence[Any]:
        """The same from the values of several partial states per group."""
        raise NotImplementedError

    def finish(self, state: list[pa.Array]) -> Any:
        """One result per row of `state`."""
        raise NotImplementedError


AggregateItem = ExprLike | AggregateClass
"""What `aggregate(name=…)` takes."""


def item_expr(item: AggregateItem) -> Expr:
    """An item as people and identities see it."""
    return Expr(item.text) if isinstance(item, AggregateClass) else as_expr(item)


def checked_class(item: AggregateClass, who: str, location: str) -> AggregateClass:
    """`item`, if it can be used; PlanError otherwise."""
    name = type(item).__name__
    kind: type[AggregateClass] = Aggregate if isinstance(item, Aggregate) else SegmentAggregate
    wanted = ["create", "add", "merge", "result"]
    if isinstance(item, SegmentAggregate):
        wanted = ["fold", "merge", "finish"]
    missing = [each for each in wanted if getattr(type(item), each) is getattr(kind, each)]
    reason = ""
    if type(item) is AggregateClass or missing:
        reason = f"{name} does not implement {', '.join(missing) or 'anything'}"
    elif not item._columns:
        reason = f'{name} has no arguments: write {name}("column"), and super().__init__(column)'
    elif isinstance(item, SegmentAggregate) and not item.state:
        reason = f"{name} does not say what it keeps: state = (pa.float64(), …)"
    if reason:
        raise PlanError(f"{who}: {reason}  {location}".rstrip())
    return item


def can_retract(item: Aggregate) -> bool:
    """Whether the class defines `retract`."""
    return type(item).retract is not Aggregate.retract


def _shown(expression: Expr) -> str:
    params = ", ".join(f"{name}={value!r}" for name, value in expression.params)
    return expression.text + (f" [{params}]" if params else "")
