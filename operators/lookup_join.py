"""LookupJoinProcessor: rows with what a function of the user's says of their keys.

The function is asked once per batch for the distinct keys that are not in the cache and gives any
number of rows for each. Results are what it said when it was asked: a lookup is not repeatable, and
after a restart rows may be joined with something newer. Keeps no state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from penstock.elements.changelog import HIDDEN
from penstock.elements.conform import ConformError, UnfitValue, conform
from penstock.elements.errors import PenstockError, PlanError
from penstock.elements.hash import Hashes
from penstock.elements.signals import TIME_COLUMN

from .error_policy import ErrorPolicy, Fail, Failures, dead_output
from .event_times import times_of
from .grouping import Mask, group_rows
from .join_sides import (
    LEFT,
    Numbers,
    Results,
    Side,
    checked_how,
    join_schema,
    key_hashes,
    without_null_keys,
)
from .kernels.slot_index import SlotIndex
from .lookup_cache import Answers, LookupCache
from .processor import MAIN, Processor, ProcessorContext
from .python_operator import frame_kind, frames_of, to_batches, to_frame

METHOD = "join_lookup"


class LookupJoinProcessor(Processor):
    """`returns` are the columns beside the keys; `cache_rows` 0: no cache."""

    def __init__(
        self,
        function: Callable[[Any], Any],
        keys: Sequence[str],
        how: str,
        left: pa.Schema,
        returns: pa.Schema,
        cache_rows: int = 0,
        cache_ttl_ns: int | None = None,
        policy: ErrorPolicy = Fail(),  # noqa: B008 - frozen and without fields
        who: str = METHOD,
        location: str = "",
    ) -> None:
        self._how = checked_how(how, who, location)
        if self._how not in ("inner", "left"):
            raise PlanError(f"{who}: how={how!r}; there are inner and left  {location}".rstrip())
        self._function, self._frame = function, frame_kind(function, who)
        self._keys = tuple(keys)
        self._key_schema = pa.schema([left.field(name).with_nullable(False) for name in keys])
        others = [f for f in returns if f.name not in keys and f.name not in HIDDEN]
        if not others:
            raise PlanError(f"{who}: returns= names no column but the keys  {location}".rstrip())
        self._told = pa.schema([*self._key_schema, *others])
        self._values = pa.schema(others)
        self._cache_rows, self._cache_ttl_ns = cache_rows, cache_ttl_ns
        self._policy, self._who, self._left = policy, who, left
        self.out_schema = join_schema(left, self._told, keys, self._how, who, location)
        sides = (Side(LEFT, left, self._keys), Side(1, self._told, self._keys))
        self._results = Results(*sides, self.out_schema, self._how)
        self._timed = TIME_COLUMN in left.names

    @property
    def outputs(self) -> dict[str, pa.Schema]:
        """Results, and rows that the error policy set aside."""
        return {MAIN: self.out_schema, **dead_output(self._policy)}

    def open(self, ctx: ProcessorContext) -> None:
        """Begin with an empty cache."""
        self._ctx = ctx
        self._failures = Failures(ctx, self._policy)
        self._cache = LookupCache(
            self._key_schema, self._values, self._cache_rows, self._cache_ttl_ns
        )

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """Ask for the keys of the batch and give its rows with the answers."""
        usable = without_null_keys(batch, self._keys)
        if not usable.all():
            if self._how == "left":
                self._give_alone(batch.filter(pa.array(~usable)))
            batch = batch.filter(pa.array(usable))
        if not batch.num_rows:
            return
        groups = group_rows([batch.column(name) for name in self._keys], batch.num_rows)
        firsts = batch.take(pa.array(groups.firsts))
        arrays = [firsts.column(name) for name in self._keys]
        keys = pa.RecordBatch.from_arrays(arrays, schema=self._key_schema)
        known, failed, answers = self._answers(keys)
        faulty = np.zeros(len(known), np.bool_)
        faulty[list(failed)] = True
        # Answers are numbered in this order: first those from the cache.
        order = np.concatenate([np.flatnonzero(known), np.flatnonzero(~known & ~faulty)])
        number = np.empty(len(known), np.int64)
        number[order] = np.arange(len(order))
        codes = groups.codes
        if failed:
            bad = faulty[codes]
            for row in np.flatnonzero(bad).tolist():
                one = batch.slice(row, 1)
                shown = one.select(list(self._keys)).to_pylist()[0]
                self._failures.row(METHOD, failed[int(codes[row])], one, row=shown)
            batch, codes = batch.filter(pa.array(~bad)), codes[~bad]
        if batch.num_rows:
            self._give(batch, number[codes], answers)

    def _give(self, batch: pa.RecordBatch, asked: Numbers, answers: Answers) -> None:
        index, at = answers.of(asked)
        if len(index):
            left, right = batch.take(pa.array(index)), answers.rows.take(pa.array(at))
            times = times_of(left) if self._timed else None
            self._ctx.collect(self._results.beside(left, right, times))
        if self._how == "left":
            self._give_alone(batch.filter(pa.array(answers.counts[asked] == 0)))

    def _give_alone(self, rows: pa.RecordBatch) -> None:
        times = times_of(rows) if self._timed else np.zeros(rows.num_rows, np.int64)
        if rows.num_rows:
            self._ctx.collect(self._results.alone(rows, LEFT, times))

    # Asking -----------------------------------------------------------------------------------

    def _answers(self, keys: pa.RecordBatch) -> tuple[Mask, dict[int, Exception], Answers]:
        """(keys found in the cache, errors by key, answers of the found, then of the others)."""
        hashes = key_hashes(keys, self._keys)
        now_ns = self._ctx.clock.monotonic_ns()
        if self._cache_rows:
            known, found = self._cache.get(keys, hashes, now_ns)
        else:
            known, found = np.zeros(keys.num_rows, np.bool_), _nothing(self._values)
        missing = np.flatnonzero(~known)
        if not len(missing):
            return known, {}, found
        told, failed = self._ask(keys.take(pa.array(missing)), missing)
        good = np.array([key for key in missing.tolist() if key not in failed], np.int64)
        if self._cache_rows and len(good):
            self._cache.put(keys.take(pa.array(good)), hashes[good], told, now_ns)
        rows = pa.concat_batches([found.rows, told.rows])
        starts = np.concatenate([found.starts, told.starts + found.rows.num_rows])
        return known, failed, Answers(starts, np.concatenate([found.counts, told.counts]), rows)

    def _ask(self, keys: pa.RecordBatch, numbers: Numbers) -> tuple[Answers, dict[int, Exception]]:
        """Call the function; keys that it cannot take are found by halving."""
        try:
            return self._call(keys), {}
        except PenstockError:
            raise
        except Exception as error:
            if isinstance(error, ConformError) and not isinstance(error, UnfitValue):
                self._failures.whole(METHOD, error, keys)
            if keys.num_rows == 1:
                return _nothing(self._values), {int(numbers[0]): error}
        middle = keys.num_rows // 2
        first, bad = self._ask(keys.slice(0, middle), numbers[:middle])
        second, worse = self._ask(keys.slice(middle), numbers[middle:])
        rows = pa.concat_batches([first.rows, second.rows])
        starts = np.concatenate([first.starts, second.starts + first.rows.num_rows])
        counts = np.concatenate([first.counts, second.counts])
        return Answers(starts, counts, rows), bad | worse

    def _call(self, keys: pa.RecordBatch) -> Answers:
        made = self._function(to_frame(keys, self._frame))
        told = [
            conform(batch, self._told, self._who)
            for frame in frames_of(made)
            for batch in to_batches(frame, self._told)
        ]
        rows = pa.concat_batches(told) if told else pa.RecordBatch.from_pylist([], self._told)
        return self._by_key(keys, rows, key_hashes(keys, self._keys))

    def _by_key(self, keys: pa.RecordBatch, rows: pa.RecordBatch, hashes: Hashes) -> Answers:
        """The rows in the order of the keys that were asked for."""
        index = SlotIndex(self._key_schema)
        slots, _ = index.add(keys, hashes)
        place = np.empty(index.capacity, np.int64)
        place[slots] = np.arange(keys.num_rows)
        of_key = index.find(rows.select(list(self._keys)), key_hashes(rows, self._keys))
        if (of_key < 0).any():
            one = rows.slice(int(np.argmax(of_key < 0)), 1).select(list(self._keys)).to_pylist()[0]
            raise ConformError(f"{self._who}: it told of a key that was not asked for: {one}")
        codes = place[of_key]
        counts = np.bincount(codes, minlength=keys.num_rows).astype(np.int64)
        values = rows.select(self._values.names)
        ordered = values.take(pa.array(np.argsort(codes, kind="stable")))
        return Answers(np.cumsum(counts) - counts, counts, ordered)


def _nothing(values: pa.Schema) -> Answers:
    none = np.zeros(0, np.int64)
    return Answers(none, none, pa.RecordBatch.from_pylist([], schema=values))
