"""Which updating streams can be kept: a row that is taken back is found by all of its columns."""

from __future__ import annotations

import pyarrow as pa

from penstock.elements.errors import PlanError
from penstock.elements.hash import refuse_unhashable

UNMATCHED = "unmatched_retractions"
"""Counter: rows taken back that are not kept, because they were forgotten or never came."""


def refuse_unfindable(schema: pa.Schema, who: str, location: str) -> None:
    """PlanError if rows of a column's type cannot be told to be equal."""
    for field in schema:
        try:
            refuse_unhashable(field.type)
        except (TypeError, PlanError):
            raise PlanError(
                f"{who}: column {field.name!r} of an updating stream is {field.type}, and rows"
                f" with it cannot be found again when they are taken back  {location}".rstrip()
                + f"\n  Drop it, or cast it to text, before the {who}."
            ) from None
