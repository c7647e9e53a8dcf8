"""Expressions inside an operator, such as the arguments of aggregates, over rows they cannot take.

Promises: the error names the operator, the user's line, the row and what it is good for; one that
every try would meet again ends the job instead of being retried.

Does not: set rows aside. An operator may hold half of a batch already; a row has to be set aside
before it, in an expression of its own.
"""

from __future__ import annotations

import pyarrow as pa

from penstock.elements.errors import PenstockError, StateError
from penstock.elements.rows import row_text
from penstock.expressions.failures import ExpressionError
from penstock.expressions.projection import Projection


def evaluated(
    projection: Projection, batch: pa.RecordBatch, who: str, location: str
) -> list[pa.Array]:
    """The columns of `projection`; raises an error that names the first row it fails for."""
    try:
        return list(projection(batch).columns)
    except ExpressionError as error:
        raise _report(projection, batch, error, who, location) from error.__cause__


def _report(
    projection: Projection, batch: pa.RecordBatch, error: ExpressionError, who: str, location: str
) -> PenstockError:
    row, error = _first_bad(projection, batch, error)
    where = f"  ({location})" if location else ""
    texts = ", ".join(each.sql for each in projection.expressions if each.column is None)
    shown = row.select(list(projection.columns_read)).to_pylist()[0]
    text = (
        f"{who}: {error}{where}\n    {texts}\n  row    {row_text(shown)}\n"
        "  To set such rows aside, compute it before:  "
        '.with_columns(x="…").on_error(ps.DeadLetter("bad/"))'
    )
    # What user functions raise may pass; casts and arithmetic fail the same way for ever.
    certain = error.__cause__ is None or isinstance(error.__cause__, ArithmeticError)
    return StateError(text) if certain else ExpressionError(text)


def _first_bad(
    projection: Projection, batch: pa.RecordBatch, error: ExpressionError
) -> tuple[pa.RecordBatch, ExpressionError]:
    """One row and what it raises; the last row if none fails alone any more."""
    while batch.num_rows > 1:
        half = batch.num_rows // 2
        try:
            projection(batch.slice(0, half))
            batch = batch.slice(half)
        except ExpressionError as again:
            batch, error = batch.slice(0, half), again
    try:
        projection(batch)
    except ExpressionError as again:
        error = again
    return batch, error
