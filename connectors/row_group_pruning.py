"""Which row groups of a Parquet file can hold rows for which a predicate is true.

Only comparisons of a column with a literal, joined by AND, are looked at; everything else, and
every doubt, keeps the row group. The filter itself stays in the plan.
"""

from __future__ import annotations

import datetime as dt
import operator
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

import pyarrow.parquet as pq

from penstock.expressions.analysis import bare, conjuncts
from penstock.expressions.parser import parse
from penstock.expressions.syntax import Node

Comparison = tuple[str, str, Any]
"""(column, one of = < <= > >=, value)."""

_MIRRORED = {"=": "=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}
_POSSIBLE: dict[str, Callable[[Any, Any, Any], bool]] = {
    "=": lambda low, high, value: bool(low <= value <= high),
    "<": lambda low, high, value: bool(operator.lt(low, value)),
    "<=": lambda low, high, value: bool(operator.le(low, value)),
    ">": lambda low, high, value: bool(operator.gt(high, value)),
    ">=": lambda low, high, value: bool(operator.ge(high, value)),
}


def comparisons_of(predicate: str) -> list[Comparison]:
    """The comparisons that every wanted row must pass.

    >>> comparisons_of("a > -5 and 'x' = b and c + 1 < 3")
    [('a', '>', -5), ('b', '=', 'x')]
    """
    found = []
    for part in conjuncts(parse(predicate)):
        node = bare(part)
        if node.kind != "binary" or node.name not in _MIRRORED:
            continue
        left, right = (bare(child) for child in node.children)
        name = node.name
        if right.kind == "column":
            left, right, name = right, left, _MIRRORED[name]
        value = _value(right)
        if left.kind == "column" and value is not None:
            found.append((left.name, name, value))
    return found


def _value(node: Node) -> Any:
    """A number or a text; None for all that is not certainly one."""
    negative = node.kind == "unary" and node.name == "-"
    literal = bare(node.children[0]) if negative else node
    if literal.kind != "literal":
        return None
    text = literal.name
    if text.startswith("'") and text.endswith("'") and not negative:
        return text[1:-1].replace("''", "'")
    # A negative number in an operand is printed in parentheses.
    text = text.removeprefix("(").removesuffix(")")
    try:
        number: int | float = int(text)
    except ValueError:
        try:
            number = float(text)
        except ValueError:
            return None
    return -number if negative else number


def useful_groups(
    metadata: pq.FileMetaData, groups: Sequence[int], comparisons: Sequence[Comparison]
) -> list[int]:
    """The row groups among `groups` that may hold a wanted row."""
    names = {metadata.schema.column(i).path: i for i in range(metadata.num_columns)}
    return [
        group
        for group in groups
        if all(
            _may_hold(metadata.row_group(group).column(names[column]).statistics, name, value)
            for column, name, value in comparisons
            if column in names
        )
    ]


def _may_hold(statistics: pq.Statistics | None, name: str, value: Any) -> bool:
    if statistics is None or not statistics.has_min_max:
        return True
    low, high = statistics.min, statistics.max
    if not (_comparable(low, value) and _comparable(high, value)):
        return True
    return _POSSIBLE[name](low, high, value)


def _comparable(stored: Any, value: Any) -> bool:
    # Dates and timestamps against text are left alone: how the text is read is not known here.
    # A NaN bound would compare as false with everything, and rule out rows that are there.
    if isinstance(stored, bool | dt.date | dt.time | dt.timedelta) or stored != stored:
        return False
    if isinstance(value, str):
        return isinstance(stored, str)
    return isinstance(stored, int | float | Decimal)
