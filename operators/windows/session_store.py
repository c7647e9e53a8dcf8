"""The sessions of a window operator in the state backend, as rows that may still be merged.

A row is a stretch of one key: its first and last event time, the time since when its values are
kept, whether its result was given, and partials. Stretches of one session need not be one row. The
table's time is when a row must be looked at again, so that a watermark touches only the keys whose
sessions may be complete. The table's key is the hash of the key columns; the columns themselves
are values and are compared, so null keys and equal hashes are no special case.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from penstock.elements.buffers import fixed_values
from penstock.elements.hash import Hashes
from penstock.elements.signals import WATERMARK_MAX
from penstock.operators.grouping import Groups, group_rows
from penstock.operators.multisets import fold_values
from penstock.state.backend import StateBackend, Table

from .partials import Folding, MultisetRows, Numbers, Partials, concat

HASH_SCHEMA = pa.schema([pa.field("__hash", pa.uint64(), nullable=False)])
TRIM_ROWS_MIN = 64 * 1024
"""Values of ended sessions are looked for when a table has grown by this much and doubled."""


@dataclass
class Stretches:
    """Partials whose `times` are first event times, with last event times beside them.

    Values lie from `since` to the last event time: not from the first, as a late row may reach
    back to where a session was that is forgotten, and whose values are still there.
    """

    partials: Partials
    lasts: Numbers
    since: Numbers
    given: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))

    def __len__(self) -> int:
        return len(self.lasts)

    def take(self, rows: Numbers) -> Stretches:
        """These rows."""
        partials = self.partials.take(rows)
        return Stretches(partials, self.lasts[rows], self.since[rows], self.given[rows])


def concat_stretches(pieces: Sequence[Stretches]) -> Stretches:
    """All rows, one piece behind the other."""
    return Stretches(
        concat([piece.partials for piece in pieces]),
        np.concatenate([piece.lasts for piece in pieces]),
        np.concatenate([piece.since for piece in pieces]),
        np.concatenate([piece.given for piece in pieces]),
    )


def session_groups(keys: list[pa.Array], firsts: Numbers, lasts: Numbers, gap_ns: int) -> Groups:
    """Which stretches lie in one session: same key, closer than the gap, also by way of others."""
    count = len(firsts)
    by_key = group_rows(keys, count).codes
    order = np.lexsort((firsts, by_key))
    codes = by_key[order]
    # The latest end so far within a key: keys ascend, so one running maximum serves all of them.
    by_last = np.argsort(lasts, kind="stable")
    rank = np.empty(count, np.int64)
    rank[by_last] = np.arange(count)
    running = np.maximum.accumulate(codes * count + rank[order])
    latest = lasts[by_last][running - codes * count]
    begins = np.ones(count, np.bool_)
    begins[1:] = (codes[1:] != codes[:-1]) | (firsts[order][1:] - latest[:-1] >= gap_ns)
    numbers = np.cumsum(begins) - 1
    of_row = np.empty(count, np.int64)
    of_row[order] = numbers
    return Groups(of_row, int(numbers[-1]) + 1)


class SessionStore:
    """Rows of stretches, and the multisets' values of their rows."""

    def __init__(self, folding: Folding, state: StateBackend) -> None:
        self._folding = folding
        numbers = [pa.field(name, pa.int64()) for name in ("__first", "__last", "__since")]
        fields = [*folding.key_schema, *numbers, pa.field("__given", pa.bool_())]
        self._schema = pa.schema([*fields, *folding.value_schema])
        self._table: Table = state.table("sessions", HASH_SCHEMA, self._schema)
        self._sets: list[Table] = []
        self._set_schemas: list[pa.Schema] = []
        for at, multiset in enumerate(folding.aggregation.multisets):
            columns = [pa.field("__value", multiset.kind), pa.field("__n", pa.int64())]
            schema = pa.schema([*folding.key_schema, *columns])
            self._set_schemas.append(schema)
            self._sets.append(state.table(f"values{at}", HASH_SCHEMA, schema))
        self._trimmed_rows = [table.rows for table in self._sets]

    @property
    def rows(self) -> int:
        """Stretches kept."""
        return self._table.rows

    def append(self, stretches: Stretches, due_ns: Numbers) -> None:
        """Keep stretches until `due_ns` each."""
        if not len(stretches):
            return
        partials = stretches.partials
        columns = [
            *partials.keys,
            pa.array(partials.times),
            pa.array(stretches.lasts),
            pa.array(stretches.since),
            pa.array(stretches.given),
            *partials.parts,
        ]
        hashes = self._folding.hashes(partials.keys, len(stretches))
        values = pa.RecordBatch.from_arrays(columns, schema=self._schema)
        self._table.append(_hash_batch(hashes), values, due_ns, hashes)

    def take_due(self, watermark: int) -> Stretches | None:
        """Remove and return the stretches that are due."""
        before = WATERMARK_MAX if watermark == WATERMARK_MAX else watermark + 1
        return self._read(self._table.expire(before))

    def others(self, due: Stretches) -> Stretches | None:
        """What else is kept of the keys of `due`; it stays."""
        hashes = np.unique(self._folding.hashes(due.partials.keys, len(due)))
        low, high = np.iinfo(np.int64).min, np.iinfo(np.int64).max
        _, found = self._table.probe(_hash_batch(hashes), low, high, hashes)
        return self._read([found])

    def touching(
        self, keys: list[pa.Array], times_ns: Numbers, gap_ns: int
    ) -> tuple[Numbers, Numbers]:
        """(rows that lie closer than the gap to a stretch that is kept, since when that one's
        values are kept)."""
        hashes = self._folding.hashes(keys, len(times_ns))
        low, high = np.iinfo(np.int64).min, np.iinfo(np.int64).max
        index, found = self._table.probe(_hash_batch(hashes), low, high, hashes)
        if not len(index):
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        times = times_ns[index]
        near = times > fixed_values(found.column("__first")) - gap_ns
        near &= times < fixed_values(found.column("__last")) + gap_ns
        near &= self._same_keys(keys, index, self._keys(found))
        rows, at = np.unique(index[near], return_index=True)
        return rows, fixed_values(found.column("__since"))[near][at]

    def _same_keys(
        self, keys: list[pa.Array], index: Numbers, found: list[pa.Array]
    ) -> npt.NDArray[np.bool_]:
        at = pa.array(index)
        both = [
            pa.concat_arrays([key.take(at), other]) for key, other in zip(keys, found, strict=True)
        ]
        codes = group_rows(both, 2 * len(index)).codes
        same: npt.NDArray[np.bool_] = codes[: len(index)] == codes[len(index) :]
        return same

    # Values ------------------------------------------------------------------------------------

    def add_values(self, at: int, keys: list[pa.Array], since: Numbers, values: pa.Array) -> None:
        """Keep values by the time since when those of the stretch that their rows are in are."""
        ones = pa.array(np.ones(len(values), np.int64))
        folded = fold_values([pa.array(since), *keys], values, ones)
        if not folded.num_rows:
            return
        columns = folded.columns
        hashes = self._folding.hashes(columns[1:-2], folded.num_rows)
        batch = pa.RecordBatch.from_arrays(columns[1:], schema=self._set_schemas[at])
        self._sets[at].append(_hash_batch(hashes), batch, fixed_values(columns[0]), hashes)

    def values_of(self, sessions: Stretches) -> list[MultisetRows]:
        """The values of whole sessions, with the sessions' first times."""
        found = []
        keys, firsts = sessions.partials.keys, sessions.partials.times
        for table in self._sets:
            hashes = self._folding.hashes(keys, len(sessions))
            index, rows = table.probe(_hash_batch(hashes), sessions.since, sessions.lasts, hashes)
            values = MultisetRows(
                self._keys(rows), firsts[index], rows.column("__value"), rows.column("__n")
            )
            if len(index):
                same = np.flatnonzero(self._same_keys(keys, index, values.keys))
                values = values if len(same) == len(index) else values.take(same)
            found.append(values)
        return found

    def trim_values(self) -> None:
        """Drop values that are older than every session that is kept."""
        for at, table in enumerate(self._sets):
            if table.rows < TRIM_ROWS_MIN + 2 * self._trimmed_rows[at]:
                continue
            kept = self._read(self._table.scan())
            oldest = WATERMARK_MAX if kept is None else int(kept.since.min())
            table.expire(oldest)
            self._trimmed_rows[at] = table.rows

    # Reading ----------------------------------------------------------------------------------

    def _keys(self, batch: pa.RecordBatch) -> list[pa.Array]:
        return [batch.column(name) for name in self._folding.key_schema.names]

    def _read(self, batches: Iterable[pa.RecordBatch]) -> Stretches | None:
        names = self._folding.value_schema.names
        pieces = [
            Stretches(
                Partials(
                    self._keys(batch),
                    fixed_values(batch.column("__first")),
                    [batch.column(name) for name in names],
                ),
                fixed_values(batch.column("__last")),
                fixed_values(batch.column("__since")),
                fixed_values(batch.column("__given")),
            )
            for batch in batches
            if batch.num_rows
        ]
        return concat_stretches(pieces) if pieces else None


def _hash_batch(hashes: Hashes) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array(hashes)], schema=HASH_SCHEMA)
