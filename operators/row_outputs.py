"""RowOutputs: rows that user code yielded → batches of the declared schemas, by output.

Each yielded item has an owner: the input row (or timer) for which it was made. An item that does
not fit its schema takes all items of its owner with it, and the owner follows the error policy.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from penstock.elements.rows import RowCodec, RowError, row_text

from .current_row import Times
from .declared import Side
from .event_time_column import with_time_field, with_times
from .processor import MAIN

Bad = Callable[[int, RowError], None]
"""Told of an owner whose items do not fit; raises under the policy Fail."""


class RowOutputs:
    """`codecs` by output; with `timed`, batches get `_time` from the owners' times."""

    def __init__(
        self,
        codecs: Mapping[str, RowCodec],
        timed: bool,
        collect: Callable[[pa.RecordBatch, str], None],
    ) -> None:
        self._codecs = dict(codecs)
        self._timed = timed
        self._collect = collect
        self.schemas: dict[str, pa.Schema] = {
            name: with_time_field(codec.schema) if timed else codec.schema
            for name, codec in codecs.items()
        }

    def emit(
        self, items: Sequence[Any], owners: Sequence[int], times: Times | None, bad: Bad
    ) -> None:
        """Encode and collect; `times[owner]` is the event time of an item."""
        if not items:
            return
        by_output = self._sorted(items, owners)
        try:
            made = self._encoded(by_output)
        except RowError:
            wrong = self._wrong(by_output)
            for owner, error in sorted(wrong.items()):
                bad(owner, error)
            by_output = {
                output: [(row, owner) for row, owner in pairs if owner not in wrong]
                for output, pairs in by_output.items()
            }
            made = self._encoded(by_output)
        for output, batch in made.items():
            if batch.num_rows == 0:
                continue
            if self._timed:
                assert times is not None
                chosen = np.fromiter((owner for _, owner in by_output[output]), np.int64)
                batch = with_times(batch, times[chosen])
            self._collect(batch, output)

    def _sorted(
        self, items: Sequence[Any], owners: Sequence[int]
    ) -> dict[str, list[tuple[Any, int]]]:
        if Side not in set(map(type, items)):
            return {MAIN: list(zip(items, owners, strict=True))}
        by_output: dict[str, list[tuple[Any, int]]] = defaultdict(list)
        for item, owner in zip(items, owners, strict=True):
            if type(item) is Side:
                by_output[item.output].append((item.row, owner))
            else:
                by_output[MAIN].append((item, owner))
        return by_output

    def _encoded(self, by_output: dict[str, list[tuple[Any, int]]]) -> dict[str, pa.RecordBatch]:
        return {
            output: self._codec(output).encode([row for row, _ in pairs])
            for output, pairs in by_output.items()
            if pairs
        }

    def _codec(self, output: str) -> RowCodec:
        codec = self._codecs.get(output)
        if codec is not None:
            return codec
        if output == MAIN:
            raise RowError("a row was yielded, but the operator declares no main output")
        raise RowError(f"there is no side output {output!r} on this operator")

    def _wrong(self, by_output: dict[str, list[tuple[Any, int]]]) -> dict[int, RowError]:
        """The first complaint about each owner, found one row at a time."""
        wrong: dict[int, RowError] = {}
        for output, pairs in by_output.items():
            for row, owner in pairs:
                try:
                    self._codec(output).encode([row])
                except RowError as error:
                    text = f"{error}; it yielded {row_text(row, 120)}"
                    wrong.setdefault(owner, RowError(text))
        return wrong
