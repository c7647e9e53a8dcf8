"""JoinCondition: what else must be true of two rows with equal keys for them to be a pair.

It belongs to the match, as a condition in SQL's ON does: a row of an outer join whose every
partner fails it is given alone. Null is not true.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penstock.elements.changelog import HIDDEN
from penstock.elements.errors import PlanError
from penstock.expressions.check import Checker, require_condition
from penstock.expressions.expression import ExprLike, as_expr
from penstock.expressions.failures import ExpressionError
from penstock.expressions.functions import NONE, Functions
from penstock.expressions.projection import Projection

from .error_policy import Fail, Failures
from .join_sides import LEFT
from .processor import ProcessorContext

METHOD = "join(where=)"
Numbers = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


class Kept(Protocol):
    """Rows of one side in slots."""

    def take(self, slots: Numbers, names: Sequence[str]) -> pa.RecordBatch: ...


class JoinCondition:
    """A condition over the keys and the other columns of both sides; raises PlanError."""

    def __init__(
        self,
        text: ExprLike,
        left: pa.Schema,
        right: pa.Schema,
        keys: Sequence[str],
        functions: Functions = NONE,
        who: str = "join",
        location: str = "",
    ) -> None:
        joined = condition_schema(left, right, keys, who, location)
        checked = Checker(joined, functions).check(text, who, location)
        require_condition(checked, as_expr(text).text, who, location)
        self.columns_read = frozenset(checked.columns_read)
        read = [name for name in joined.names if name in self.columns_read]
        self.left = tuple(name for name in read if name in left.names)
        """The columns it reads of the left row; keys are the left row's."""
        self.right = tuple(name for name in read if name not in left.names)
        self._read = read
        # A condition that reads nothing still needs a row per pair.
        used = read or [keys[0]]
        self._schema = pa.schema([joined.field(name) for name in used])
        self._spare = () if read else (keys[0],)
        self._projection = Projection([("match", text)], self._schema, functions, who=who)

    @property
    def reads_left(self) -> tuple[str, ...]:
        """Columns that `holds` needs of left rows."""
        return self.left or self._spare

    def open(self, ctx: ProcessorContext) -> None:
        """Learn whom to tell of rows that cannot be compared."""
        self._failures = Failures(ctx, Fail())

    def of_slots(
        self, batch: pa.RecordBatch, index: Numbers, kept: Kept, slots: Numbers, port: int
    ) -> Mask:
        """Whether row `index[i]` of `batch`, of side `port`, and the kept row i are a pair."""
        names = (self.reads_left, self.right)
        mine = batch.select(list(names[port])).take(pa.array(index))
        theirs = kept.take(slots, names[1 - port])
        return self.holds(*((mine, theirs) if port == LEFT else (theirs, mine)))

    def holds(self, left: pa.RecordBatch, right: pa.RecordBatch) -> Mask:
        """Whether row i of `left` and row i of `right` are a pair."""
        arrays = [
            (left if name in self.left or name in self._spare else right).column(name)
            for name in self._schema.names
        ]
        rows = pa.RecordBatch.from_arrays(arrays, schema=self._schema)
        try:
            verdict = self._projection(rows).column(0)
        except ExpressionError as error:
            cause = error.__cause__
            self._failures.whole(
                METHOD, cause if isinstance(cause, Exception) else ValueError(str(error)), rows
            )
            raise
        if verdict.null_count:
            verdict = verdict.fill_null(False)
        mask: Mask = verdict.to_numpy(zero_copy_only=False)
        return mask


def condition_schema(
    left: pa.Schema, right: pa.Schema, keys: Sequence[str], who: str, location: str
) -> pa.Schema:
    """The columns that a condition may name; PlanError where a name means two columns."""
    fields = [left.field(name) for name in keys]
    fields += [f for f in left if f.name not in keys and f.name not in HIDDEN]
    known = {field.name for field in fields}
    for field in right:
        if field.name in keys or field.name in HIDDEN:
            continue
        if field.name in known:
            raise PlanError(
                f"{who}: both sides have a column {field.name!r}  {location}".rstrip()
                + f'\n  Rename one first:  .rename({field.name}_2="{field.name}")'
            )
        fields.append(field)
    return pa.schema(fields)
