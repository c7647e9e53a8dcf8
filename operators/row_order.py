"""Total orders of rows: `by="price desc, name"`, then event time, then the row's content.

1. Nulls come last, whichever the direction; NaN is greater than every number, as in SQL.
2. Rows that are equal under `by` go by event time, the earlier one first, then by their other
   columns in the order of the schema, ascending. Rows equal in everything are the same row, so no
   result depends on the order of arrival (hazard 21).
3. Columns that nobody reads are not there to break ties: name in `by` what must decide.
Values of types without an order of their own (lists, structs) go by the hash of the key format.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.types as pt

from penstock.elements.buffers import fixed_dtype, fixed_values, validity
from penstock.elements.changelog import HIDDEN
from penstock.elements.errors import PlanError
from penstock.elements.hash import hash_array
from penstock.elements.signals import TIME_COLUMN
from penstock.expressions.expression import Expr, ExprLike, as_expr
from penstock.expressions.functions import NONE, Functions
from penstock.expressions.projection import Projection

from .argument_failures import evaluated
from .grouping import canonical, ranks

Numbers = npt.NDArray[np.int64]

_DIRECTION = re.compile(r"(.*?)\s+(asc|desc|ascending|descending)\s*", re.IGNORECASE | re.DOTALL)
_SIGN = np.int64(-(2**63))
_BELOW_SIGN = np.int64(2**63 - 1)


class RowOrder:
    """What `by` says, checked when planning; `by` is text, an expression, or several of them."""

    def __init__(
        self,
        by: ExprLike | Sequence[ExprLike],
        schema: pa.Schema,
        functions: Functions = NONE,
        who: str = "top",
        location: str = "",
    ) -> None:
        items = [piece for each in _listed(by) for piece in _pieces(as_expr(each))]
        if not items:
            raise PlanError(f"{who}: by= names no column  {location}".rstrip())
        self._who, self._location = who, location
        self.text = ", ".join(f"{e.text}{' desc' if down else ''}" for e, down in items)
        self.descending = tuple(down for _, down in items)
        self._projection = Projection(
            [(f"o{at}", item) for at, (item, _) in enumerate(items)],
            schema,
            functions,
            who=who,
            location=location,
        )
        self.columns_read = frozenset(self._projection.columns_read) - HIDDEN
        self._rest = _ties(schema)

    @property
    def leading(self) -> tuple[pa.DataType, bool]:
        """Type and direction of what decides first."""
        return self._projection.schema.field(0).type, self.descending[0]

    @property
    def leading_column(self) -> tuple[str, bool] | None:
        """What decides first and whether it goes down, if it is a column as it stands."""
        name = self._projection.expressions[0].column
        return None if name is None else (name, self.descending[0])

    def values(self, batch: pa.RecordBatch) -> list[pa.Array]:
        """The columns to sort by; they may be views of the batch."""
        return evaluated(self._projection, batch, self._who, self._location)

    def sort(self, batch: pa.RecordBatch, groups: Sequence[Numbers]) -> Numbers:
        """Row numbers by group (the first array decides first), then in this order."""
        words = list(groups)
        for column, down in zip(self.values(batch), self.descending, strict=True):
            words += sort_words(column, down)
        return ordered(words, [batch.column(name) for name in self._rest])

    def ties(self, batch: pa.RecordBatch, order: Numbers) -> npt.NDArray[np.bool_]:
        """Whether each row of `order` is equal, under `by` alone, to the row before it."""
        same = np.ones(max(0, len(order) - 1), np.bool_)
        for column in self.values(batch):
            for word in sort_words(column):
                same &= word[order[1:]] == word[order[:-1]]
        return np.concatenate([[False], same]) if len(order) else same


def time_order(batch: pa.RecordBatch, groups: Sequence[Numbers]) -> Numbers:
    """Row numbers by group, then by event time, then by content."""
    words = [*groups, *sort_words(batch.column(TIME_COLUMN))]
    return ordered(words, [batch.column(name) for name in _ties(batch.schema)[1:]])


def run_starts(*words: Numbers) -> Numbers:
    """For each row, where its run of neighbours that are equal in all `words` begins.

    >>> run_starts(np.array([7, 7, 3, 7])).tolist()
    [0, 0, 2, 3]
    """
    count = len(words[0])
    anew = np.zeros(count, np.bool_)
    anew[:1] = True
    for word in words:
        anew[1:] |= word[1:] != word[:-1]
    return np.maximum.accumulate(np.where(anew, np.arange(count), 0))


def sort_words(column: pa.Array, descending: bool = False) -> list[Numbers]:
    """Integers that sort as the values do, the first array decides first.

    Comparable between batches where `has_words`; else within this one only.

    >>> [word.tolist() for word in sort_words(pa.array([5, None, 7]), True)]
    [[0, 1, 0], [-6, 0, -8]]
    """
    if has_words(column.type):
        word = _fixed_words(column)
    elif pt.is_nested(column.type) or pt.is_null(column.type):
        word = _hash_words(column)
    else:
        word = ranks(column)[0]
    if descending:
        word = ~word
    valid = validity(column)
    if valid is None:
        return [word]
    return [(~valid).astype(np.int64), np.where(valid, word, 0)]


def has_words(kind: pa.DataType) -> bool:
    """Whether every value of the type has an integer that sorts like it."""
    return fixed_dtype(kind) is not None


def _fixed_words(column: pa.Array) -> Numbers:
    if pt.is_floating(column.type):
        column = canonical(column).cast(pa.float64())
        bits = fixed_values(column).view(np.int64)
        # Negative numbers count down in their bits.
        return np.where(bits < 0, bits ^ _BELOW_SIGN, bits)
    values = fixed_values(column)
    if values.dtype == np.uint64:
        return values.view(np.int64) ^ _SIGN
    return values.astype(np.int64, copy=False)


def _hash_words(column: pa.Array) -> Numbers:
    try:
        return hash_array(column).view(np.int64)
    except TypeError:
        text = pa.array([str(value) for value in column.to_pylist()], pa.utf8())
        return hash_array(text).view(np.int64)


def ordered(words: Sequence[Numbers], ties: Sequence[pa.Array]) -> Numbers:
    """Row numbers sorted by `words`, and where those are equal by the columns `ties`.

    Ties are looked at only where there are some; the order is stable.
    """
    order = _sorted(words)
    if len(order) < 2:
        return order
    same = np.ones(len(order) - 1, np.bool_)
    for word in words:
        in_order = word[order]
        same &= in_order[1:] == in_order[:-1]
    for column in [*ties, None]:
        if not same.any():
            break
        tied = np.zeros(len(order), np.bool_)
        tied[1:] = same
        tied[:-1] |= same
        at = np.flatnonzero(tied)
        rows = order[at]
        run = np.cumsum(np.concatenate([[True], ~same]))[at]
        # At last equal rows keep the order in which they were given.
        within = [rows] if column is None else sort_words(column.take(pa.array(rows)))
        again = _sorted([run, *within])
        order[at] = rows[again]
        still = np.ones(max(0, len(at) - 1), np.bool_)
        for word in [run, *within]:
            in_order = word[again]
            still &= in_order[1:] == in_order[:-1]
        # Rows of one run lie next to each other, in `order` as in `at`.
        same[at[1:] - 1] = still & (at[1:] == at[:-1] + 1)
    return order


def _sorted(words: Sequence[Numbers]) -> Numbers:
    if not words:
        raise AssertionError("nothing to sort by")
    packed = _packed(words)
    if packed is not None:
        # Several times faster than a stable sort; `ordered` puts right what ties.
        return np.argsort(packed)
    return np.lexsort(words[::-1])


def _packed(words: Sequence[Numbers]) -> Numbers | None:
    """One word per row that sorts like all of them, if their spans fit into it."""
    if len(words) == 1 or not len(words[0]):
        return words[0]
    packed = np.zeros(len(words[0]), np.int64)
    bits = 0
    for word in words:
        low, high = int(word.min()), int(word.max())
        width = (high - low).bit_length()
        bits += width
        if bits > 63:
            return None
        packed = (packed << width) | (word - low)
    return packed


def _ties(schema: pa.Schema) -> list[str]:
    columns = [name for name in schema.names if name not in HIDDEN]
    return [TIME_COLUMN, *columns] if TIME_COLUMN in schema.names else columns


def _listed(by: ExprLike | Sequence[ExprLike]) -> list[ExprLike]:
    return [by] if isinstance(by, (str, Expr)) else list(by)


def _pieces(given: Expr) -> list[tuple[Expr, bool]]:
    """The expressions of a list with commas, each with its direction."""
    found = []
    for text in _split(given.text):
        match = _DIRECTION.fullmatch(text)
        down = match is not None and match.group(2).lower().startswith("desc")
        text = text if match is None else match.group(1)
        names = set(re.findall(r"\$(\w+)", text))
        params = tuple((name, value) for name, value in given.params if name in names)
        found.append((Expr(text.strip(), params), down))
    return found


def _split(text: str) -> list[str]:
    """At commas outside of parentheses and quotes."""
    pieces, depth, quote, start = [], 0, "", 0
    for at, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in "([":
            depth += 1
        elif letter in ")]":
            depth -= 1
        elif letter == "," and depth == 0:
            pieces.append(text[start:at])
            start = at + 1
    return [piece for piece in [*pieces, text[start:]] if piece.strip()]
