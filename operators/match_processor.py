"""MatchProcessor: rows of a key that follow each other as a pattern says, one result per match.

1. Rows go by event time (ties: row_order), once the watermark has passed them; conditions are
   computed for all of them at once and may look back by lag() and running aggregates.
2. A match spans at most `within`. Its `_time` is when it was certain: that of the row that ended
   it, or the end of its time.
3. A row that is late on arrival goes to LATE as it came, and is counted.
The runs of a key are object state; they are written at a barrier if they have changed.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from penstock.elements.errors import PlanError
from penstock.elements.hash import hash_columns
from penstock.elements.keys import key_batch, python_keys
from penstock.expressions.expression import ExprLike
from penstock.expressions.functions import NONE, Functions

from .event_times import TIME_FIELD, TIME_TYPE, time_array, times_of
from .match_conditions import PASSES, Conditions
from .match_measures import column_of, parse_measures, python_values
from .match_memory import Memory, Recall
from .match_pattern import Pattern
from .match_rounds import Rows, in_rounds
from .match_runs import KeyRuns, Match, Matcher, Run, Skip, Thread
from .over import OverProcessor
from .over_items import OverItems
from .processor import LATE, MAIN, ProcessorContext

START, END = "match_start", "match_end"


class MatchProcessor(OverProcessor):
    """Input and LATE: rows of `in_schema`, with `_time`. MAIN: keys, bounds, measures."""

    def __init__(
        self,
        keys: Sequence[str],
        pattern: Pattern,
        conditions: Mapping[str, ExprLike],
        measures: Mapping[str, str],
        within_ns: int,
        skip: Skip,
        in_schema: pa.Schema,
        functions: Functions = NONE,
        who: str = "match",
        location: str = "",
    ) -> None:
        known = pattern.variables
        for name in conditions:
            if name not in known:
                raise PlanError(
                    f'{who}: the pattern has no "{name}", only {", ".join(known)}  {location}'
                )
        said = Conditions(pattern, conditions, in_schema, functions, who, location)
        self._passes = said.passes
        items = OverItems(said.items or {"__any": "true"}, in_schema, functions, who, location)
        for field in items.out_schema:
            if field.name.startswith(PASSES) and not pa.types.is_boolean(field.type):
                name = field.name.removeprefix(PASSES)
                raise PlanError(f"{who}: {name} is {field.type}, not a condition  {location}")
        if any(call.function == "lead" for call in items.calls):
            raise PlanError(f"{who}: conditions look back; lead() looks ahead  {location}")
        super().__init__(keys, items, None, in_schema, who)
        self._pattern, self._within_ns, self._skip = pattern, within_ns, skip
        self._measures, self._kept = parse_measures(dict(measures), known, in_schema, who, location)
        self._memory: Memory | None = None
        self.columns_read = items.columns_read | frozenset(self._kept)
        if said.referring:
            self._memory = Memory(said, pattern, items.out_schema, functions, who, location)
            read = said.columns_read | self._memory.columns_read
            self.columns_read |= read & frozenset(in_schema.names)
        self._key_schema = pa.schema([in_schema.field(key) for key in keys])
        bounds = [pa.field(name, TIME_TYPE, nullable=False) for name in (START, END)]
        results = [pa.field(m.name, m.kind, m.function != "count") for m in self._measures]
        self.match_schema = pa.schema([*self._key_schema, *bounds, *results, TIME_FIELD])
        names = self.match_schema.names
        for name in names:
            if names.count(name) > 1:
                raise PlanError(f'{who}: two result columns are called "{name}"  {location}')

    @property
    def outputs(self) -> dict[str, pa.Schema]:
        """Matches, and late rows as they came."""
        return {MAIN: self.match_schema, LATE: self.in_schema}

    def open(self, ctx: ProcessorContext) -> None:
        """Find the runs of the checkpoint."""
        super().open(ctx)
        self._matcher = Matcher(self._pattern, self._within_ns, self._skip)
        self._objects = ctx.state.objects("runs", "value")
        self._runs: dict[Any, KeyRuns] = {}
        self._changed: set[Any] = set()
        self._ends: list[tuple[int, int, Any]] = []
        """When runs come to their end: (time, a number that breaks ties, key); may be outdated."""
        self._pushed = 0
        self._found: list[tuple[Any, Match]] = []
        for key in list(self._objects.keys()):
            self._runs[key] = _thawed(self._objects.get(key))
            self._remind(key)

    def _remind(self, key: Any) -> None:
        ends_ns = self._matcher.next_ns(self._runs[key])
        if ends_ns is not None:
            self._pushed += 1
            heapq.heappush(self._ends, (ends_ns, self._pushed, key))

    def _deliver(self, made: pa.RecordBatch) -> None:
        """Let the runs of each key see its rows."""
        keys = python_keys(made, self._keys.names)
        times = times_of(made).tolist()
        conditions = {
            name: made.column(PASSES + name).fill_null(False).to_pylist() for name in self._passes
        }
        columns = [python_values(made.column(name)) for name in self._kept]
        kept = list(zip(*columns)) if columns else [()] * len(keys)
        if self._memory is not None:
            rows = Rows(keys, times, kept, conditions)
            recall = Recall(self._memory, made, conditions)
            matches, changed = in_rounds(self._matcher, self._runs, rows, recall)
            self._found += matches
            self._note_changed(changed)
            return
        touched: set[Any] = set()
        at = 0

        def is_a(variable: str) -> bool:
            found = conditions.get(variable)
            return found is None or found[at]

        # Most rows begin nothing and find nothing that has begun.
        begins = np.zeros(len(keys), np.bool_)
        for variable in self._matcher.first:
            begins |= np.array(conditions.get(variable, True))
        for at, (key, may_begin) in enumerate(zip(keys, begins.tolist(), strict=True)):
            runs = self._runs.get(key)
            if not may_begin and (runs is None or not runs.runs):
                continue
            if runs is None:
                runs = self._runs[key] = KeyRuns()
            row = (times[at], kept[at])
            for match in self._matcher.row(runs, times[at], row, is_a):
                self._found.append((key, match))
            touched.add(key)
        self._note_changed(touched)

    def _note_changed(self, touched: set[Any]) -> None:
        for key in touched:
            self._remind(key)
        self._changed |= touched

    def on_watermark(self, watermark: int) -> None:
        """Rows that are complete now, then runs whose time is over."""
        super().on_watermark(watermark)
        while self._ends and self._ends[0][0] <= watermark:
            *_, key = heapq.heappop(self._ends)
            runs = self._runs.get(key)
            if runs is None:
                continue
            for match in self._matcher.time(runs, watermark):
                self._found.append((key, match))
            self._changed.add(key)
            if runs.runs:
                self._remind(key)
        for key in [key for key in self._changed if not self._runs[key].runs]:
            # Without a run there is nothing to remember: numbers begin anew.
            del self._runs[key]
            self._changed.discard(key)
            self._objects.remove(key)
        self._give_matches()

    def _give_matches(self) -> None:
        found, self._found = self._found, []
        if not found:
            return
        keys = key_batch([key for key, _ in found], self._key_schema)
        rows = [[(name, kept[1]) for name, kept in match.rows] for _, match in found]
        starts = [match.rows[0][1][0] for _, match in found]
        ends = [match.rows[-1][1][0] for _, match in found]
        columns = list(keys.columns) if self._keys.names else []
        columns += [time_array(np.array(each, np.int64)) for each in (starts, ends)]
        captured = [tuple(each) for each in rows]
        columns += [column_of(measure, captured, self._who) for measure in self._measures]
        columns.append(time_array(np.array([match.time_ns for _, match in found], np.int64)))
        self._ctx.collect(pa.RecordBatch.from_arrays(columns, schema=self.match_schema))

    def before_snapshot(self, checkpoint_id: int) -> None:
        """Write the runs that changed."""
        super().before_snapshot(checkpoint_id)
        changed = list(self._changed)
        if changed:
            batch = key_batch(changed, self._key_schema)
            hashes = hash_columns(batch, list(self._keys.names)).tolist()
            for key, hash64 in zip(changed, hashes, strict=True):
                self._objects.put(key, hash64, _frozen(self._runs[key]))
            self._changed = set()


Frozen = tuple[tuple[tuple[int, int, tuple[tuple[Any, ...], ...], Any], ...], int, int]


def _frozen(runs: KeyRuns) -> Frozen:
    """Plain tuples: what lies in a checkpoint names no class of ours."""
    listed = tuple(
        (
            run.start_ns,
            run.number,
            tuple(tuple(t) for t in run.threads),
            run.best and tuple(run.best),
        )
        for run in runs.runs
    )
    return listed, runs.number, runs.used


def _thawed(frozen: Frozen) -> KeyRuns:
    listed, number, used = frozen
    runs = [
        Run(start, at, [Thread(*t) for t in threads], None if best is None else Thread(*best))
        for start, at, threads, best in listed
    ]
    return KeyRuns(runs, number, used)
