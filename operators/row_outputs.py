"""RowOutputs: rows that user code yielded → batches of the declared schemas, by output.

Each yielded item has an owner: the input row (or timer) for which it was made. An item that does
not fit its schema takes all items of its owner with it, and the owner follows the error policy.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any, NamedTuple

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
        self._held: dict[str, list[pa.RecordBatch]] = {}
        self.schemas: dict[str, pa.Schema] = {
            name: with_time_field(codec.schema) if timed else codec.schema
            for name, codec in codecs.items()
        }

    def emit(
        self,
        items: Sequence[Any],
        owners: Sequence[int],
        times: Times | Sequence[int] | None,
        bad: Bad,
    ) -> None:
        """Encode and collect; `times[owner]` is the event time of an item."""
        self.hold(items, owners, times, bad)
        self.flush()

    def hold(
        self,
        items: Sequence[Any],
        owners: Sequence[int],
        times: Times | Sequence[int] | None,
        bad: Bad,
    ) -> None:
        """Encode, so that the items can go while the processor's cache still has them; collect
        later, by `flush`. What was held and not flushed when `bad` raised is dropped by `drop`."""
        if not items:
            return
        by_output = self._sorted(items, owners)
        try:
            made = self._encoded(by_output)
        except RowError:
            wrong = self._wrong(by_output)
            for owner, error in sorted(wrong.items()):
                bad(owner, error)
            by_output = {output: rows.without(wrong) for output, rows in by_output.items()}
            made = self._encoded(by_output)
        for output, batch in made.items():
            if self._timed:
                assert times is not None
                at = np.array(by_output[output].owners)
                batch = with_times(batch, np.asarray(times, np.int64)[at])
            self._held.setdefault(output, []).append(batch)

    def flush(self) -> None:
        """Collect what is held, one batch per output."""
        if not self._held:
            return
        held, self._held = self._held, {}
        for output, batches in held.items():
            self._collect(batches[0] if len(batches) == 1 else pa.concat_batches(batches), output)

    def drop(self) -> None:
        """Forget what is held."""
        self._held = {}

    def _sorted(self, items: Sequence[Any], owners: Sequence[int]) -> dict[str, _Rows]:
        if Side not in set(map(type, items)):
            return {MAIN: _Rows(items, owners)}
        by_output: dict[str, tuple[list[Any], list[int]]] = {}
        for item, owner in zip(items, owners, strict=True):
            output, row = (item.output, item.row) if type(item) is Side else (MAIN, item)
            rows = by_output.setdefault(output, ([], []))
            rows[0].append(row)
            rows[1].append(owner)
        return {output: _Rows(*rows) for output, rows in by_output.items()}

    def _encoded(self, by_output: dict[str, _Rows]) -> dict[str, pa.RecordBatch]:
        return {
            output: self._codec(output).encode(rows.rows)
            for output, rows in by_output.items()
            if rows.rows
        }

    def _codec(self, output: str) -> RowCodec:
        codec = self._codecs.get(output)
        if codec is not None:
            return codec
        if output == MAIN:
            raise RowError("a row was yielded, but the operator declares no main output")
        raise RowError(f"there is no side output {output!r} on this operator")

    def _wrong(self, by_output: dict[str, _Rows]) -> dict[int, RowError]:
        """The first complaint about each owner, found one row at a time."""
        wrong: dict[int, RowError] = {}
        for output, given in by_output.items():
            for row, owner in zip(given.rows, given.owners, strict=True):
                try:
                    self._codec(output).encode([row])
                except RowError as error:
                    text = f"{error}; it yielded {row_text(row, 120)}"
                    wrong.setdefault(owner, RowError(text))
        return wrong


class _Rows(NamedTuple):
    """Rows for one output, and for which input row each was made."""

    rows: Sequence[Any]
    owners: Sequence[int]

    def without(self, wrong: Container[int]) -> _Rows:
        kept = [i for i, owner in enumerate(self.owners) if owner not in wrong]
        return _Rows([self.rows[i] for i in kept], [self.owners[i] for i in kept])
