"""What crosses between the two stages of an aggregate whose keys are split: parts of results.

The first stage aggregates by (key, salt), the second merges a key's parts. A salt is a number below
`salts`, said by the row's content, so that equal rows, and equal values of a DISTINCT, meet in one
part: there they are counted once, and can be taken back. Parts are columns of accumulators; a
quantile has none, so it cannot be split.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penstock.elements.buffers import fixed_values
from penstock.elements.errors import PlanError

from .accumulators import Accumulator, Count
from .aggregate_calls import AggregateCall
from .aggregates import Aggregation
from .grouping import Groups
from .multisets import MultisetResult
from .segments import groups_of, spread, value_ranks
from .updating_calls import UpdatingCalls

SALT = "__salt"
SALT_FIELD = pa.field(SALT, pa.int16(), nullable=False)
ROWS_FIELD = pa.field("__rows", pa.int64(), nullable=False)
Numbers = npt.NDArray[np.int64]


def distinct_argument(aggregation: Aggregation, who: str, location: str) -> int | None:
    """The argument whose equal values must meet; PlanError if the aggregate cannot be split."""
    found: list[int] = []
    for call in aggregation.calls:
        if call.reading is None:
            continue
        if call.reading.function == "quantile":
            raise PlanError(
                f"{who}: {call.text} needs all values of a key in one place, so split_keys="
                f" cannot be said of it  {location}\n"
                "  approx_quantile(x, 0.5) and approx_median(x) can be split."
            )
        assert call.argument is not None
        if call.argument not in found:
            found.append(call.argument)
    if len(found) > 1:
        raise PlanError(
            f"{who}: split_keys= deals rows out by the values of one DISTINCT, and here are"
            f" {len(found)}  {location}\n  Aggregate them apart and join the results."
        )
    return found[0] if found else None


def parts_schema(groups: Sequence[pa.Field], accumulators: Sequence[Accumulator]) -> list[pa.Field]:
    """Columns of a part: what tells groups apart, the number of rows, the accumulators'."""
    parts = [
        pa.field(f"__p{at}_{part}", kind)
        for at, accumulator in enumerate(accumulators)
        for part, kind in enumerate(accumulator.stored)
    ]
    return [*groups, ROWS_FIELD, *parts]


def merging(aggregation: Aggregation, accumulators: Sequence[Accumulator]) -> Aggregation:
    """The same items over parts: one accumulator per call, and no values."""
    found = copy.copy(aggregation)
    found.accumulators = tuple(accumulators)
    found.calls = tuple(
        AggregateCall(call.text, call.argument, accumulator)
        for call, accumulator in zip(aggregation.calls, accumulators, strict=True)
    )
    found.multisets = ()
    return found


def accumulators_of(aggregation: Aggregation) -> list[Accumulator]:
    """What merges the parts of each call, over rows that stay."""
    return [call.accumulator or merges(call.reading, call.text) for call in aggregation.calls]


def updating_accumulators(calls: UpdatingCalls) -> list[Accumulator]:
    """What merges the parts of each call of an aggregate without a window."""
    return [
        call.accumulator or merges(call.reading.how if call.reading else None, known.text)
        for call, known in zip(calls.calls, calls.aggregation.calls, strict=True)
    ]


def merges(reading: MultisetResult | None, text: str) -> Accumulator:
    """What merges parts that were read from values."""
    assert reading is not None
    if reading.accumulator is not None:
        return reading.accumulator
    assert reading.function == "distinct"
    # Each value is in one part: numbers of distinct values add up.
    return Count(text=text)


def parts_of_values(
    how: MultisetResult, owners: Numbers, count: int, content: pa.Array, times: pa.Array
) -> list[pa.Array]:
    """The parts of groups 0 … count-1 from their values; some groups may have none."""
    if how.function == "distinct":
        return [pa.array(np.bincount(owners, minlength=count).astype(np.int64))]
    accumulator = how.accumulator
    assert accumulator is not None
    one = Groups(np.zeros(1, np.int64), 1)
    nothing = accumulator.partial(one, pa.nulls(1, content.type), np.zeros(1, np.int64))
    if not len(content):
        at = pa.array(np.zeros(count, np.int64))
        return [part.take(at) for part in nothing]
    if accumulator.repeats_matter:
        # In the order of values, so that sums of floats are the same again after a restart.
        order = np.lexsort((value_ranks(content), owners))
        if not how.once:
            order = np.repeat(order, fixed_values(times)[order])
        content, owners = content.take(pa.array(order)), owners[order]
    some, used = groups_of(owners, count)
    parts = accumulator.partial(some, content, np.zeros(len(content), np.int64))
    return [spread(part, used, count, none) for part, none in zip(parts, nothing, strict=True)]
