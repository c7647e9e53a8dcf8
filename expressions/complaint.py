"""The text of a PlanError about an expression: the line, a caret under the fault, what exists."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

import pyarrow as pa

from penstock.elements.errors import PlanError
from penstock.elements.signals import TIME_COLUMN

from .types import type_text

COLUMNS_SHOWN_MAX = 40
"""Columns listed in one message; wider tables are cut, with their count."""


def complaint(
    who: str,
    location: str,
    reason: str,
    text: str,
    span: tuple[int, int] | None = None,
    *,
    advice: str = "",
    columns: Sequence[str] | None = None,
) -> PlanError:
    """A PlanError as users read it: what and where, the expression, a caret, the columns."""
    where = f"  ({location})" if location else ""
    lines = [f"{who}: {reason}{where}"]
    start, end = span if span is not None else (0, 0)
    begin = text.rfind("\n", 0, start) + 1
    stop = text.find("\n", start)
    line = text[begin : stop if stop >= 0 else len(text)]
    lines.append(f"    {line}")
    if span is not None:
        width = max(1, min(end, begin + len(line)) - start)
        pointer = " " * (start - begin) + "^" * width
        lines.append(f"    {pointer} {advice}".rstrip())
    elif advice:
        lines.append(f"  {advice}")
    if columns is not None:
        lines.append(f"  columns: {column_list(columns)}")
    return PlanError("\n".join(lines))


def column_list(names: Iterable[str]) -> str:
    """The names that users know, in order; ours (with an underscore and time) stay out."""
    shown = [name for name in names if name != TIME_COLUMN and not name.startswith("__")]
    if len(shown) <= COLUMNS_SHOWN_MAX:
        return ", ".join(shown) if shown else "(none)"
    rest = len(shown) - COLUMNS_SHOWN_MAX
    return ", ".join(shown[:COLUMNS_SHOWN_MAX]) + f" and {rest} more"


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The name that was probably meant."""
    lowered = {each.lower(): each for each in names}
    found = difflib.get_close_matches(name.lower(), list(lowered), n=1, cutoff=0.7)
    return lowered[found[0]] if found else None


def no_column(
    who: str, location: str, name: str, quoted: bool, text: str, span: tuple[int, int],
    schema: pa.Schema,
) -> PlanError:  # fmt: skip
    """Unknown column, with the advice that fits: quotes mixed up, or a near name."""
    near = nearest(name, schema.names)
    if near is not None:
        advice = f"did you mean {near}?"
    elif quoted:
        advice = "double quotes name columns; for text write '" + name.replace("'", "''") + "'"
    else:
        advice = ""
    reason = f'no column "{name}"'
    return complaint(who, location, reason, text, span, advice=advice, columns=schema.names)


def ambiguous_column(
    who: str, location: str, name: str, text: str, span: tuple[int, int], matches: Sequence[str]
) -> PlanError:
    """A name that matches several columns when case is ignored."""
    reason = f'"{name}" could be any of {", ".join(matches)}'
    advice = "write it exactly, in double quotes"
    return complaint(who, location, reason, text, span, advice=advice)


def described(schema: pa.Schema) -> str:
    """Columns with their types, for messages about types."""
    return ", ".join(f"{f.name} {type_text(f.type)}" for f in schema if f.name != TIME_COLUMN)
