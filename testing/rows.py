"""Comparing results as multisets of rows, floats within a relative tolerance (hazard 21)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

FLOAT_TOLERANCE = 1e-9
SHOWN_ROWS_MAX = 10
Row = tuple[Any, ...]


def as_rows(rows: Any, columns: Sequence[str]) -> list[Row]:
    """Rows of a table, of dicts, of row objects or of tuples, as tuples in `columns`' order."""
    if isinstance(rows, (pa.Table, pa.RecordBatch)):
        return list(zip(*(rows.column(name).to_pylist() for name in columns), strict=True))
    found: list[Row] = []
    for row in rows:
        if dataclasses.is_dataclass(row) and not isinstance(row, type):
            found.append(tuple(getattr(row, name) for name in columns))
        elif isinstance(row, Mapping):
            missing = [name for name in row if name not in columns]
            assert not missing, f"expected columns that the result lacks: {missing}"
            found.append(tuple(row[name] for name in columns))
        elif hasattr(row, "_fields") or not isinstance(row, tuple):
            found.append(tuple(getattr(row, name) for name in columns))
        else:
            found.append(tuple(row))
    return found


def differences(
    actual: pa.Table, expected: Any, float_tolerance: float = FLOAT_TOLERANCE
) -> list[str]:
    """What is missing and what is there too often, one line each; empty if the rows are the same.

    >>> differences(pa.table({"n": [2, 1]}), [{"n": 1}, {"n": 2}])
    []
    """
    columns = actual.column_names
    left = sorted(as_rows(actual, columns), key=_order)
    right = sorted(as_rows(expected, columns), key=_order)
    lines = [] if len(left) == len(right) else [f"{len(right)} rows expected, {len(left)} found"]
    unmatched = list(right)
    for row in left:
        # Equal rows are neighbours in the order, so the first few candidates suffice.
        match = next((r for r in unmatched[:50] if _equal(row, r, float_tolerance)), None)
        if match is None:
            lines.append(f"unexpected {dict(zip(columns, row, strict=True))}")
        else:
            unmatched.remove(match)
        if len(lines) > SHOWN_ROWS_MAX:
            return [*lines, "…"]
    return lines + [f"missing {dict(zip(columns, r, strict=True))}" for r in unmatched[:10]]


def _order(row: Row) -> tuple[tuple[bool, str], ...]:
    # Floats are ordered coarsely, so that their last bits do not separate equal rows.
    return tuple((v is None, f"{v:.6g}" if isinstance(v, float) else repr(v)) for v in row)


def _equal(left: Row, right: Row, float_tolerance: float) -> bool:
    return len(left) == len(right) and all(
        _same(a, b, float_tolerance) for a, b in zip(left, right, strict=True)
    )


def _same(left: Any, right: Any, float_tolerance: float) -> bool:
    if isinstance(left, float) and isinstance(right, (float, int)):
        if math.isnan(left) or math.isnan(right):
            return math.isnan(left) and math.isnan(right)
        return math.isclose(left, right, rel_tol=float_tolerance)
    return bool(left == right)
