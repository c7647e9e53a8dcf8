"""drive: an operator under test without runtime or processes, as strictly as if it ran in both.

Rows go in by `send`, event time by `advance`, the wall clock by `tick`; `restart` takes a snapshot,
throws the instance away and restores a new one. After each call it fails if public attributes
changed (undeclared state), or if state was changed through a reference from an earlier call. Lists
of rows also go row by row through a twin: what comes out must not depend on batch borders.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from penstock.elements.clock import ManualClock
from penstock.elements.durations import Duration, duration_ns
from penstock.elements.errors import PlanError
from penstock.elements.keys import canonical_key
from penstock.elements.row_schema import is_row_class, row_schema
from penstock.elements.rows import RowCodec, row_text
from penstock.operators.batch_processor import BatchProcessor
from penstock.operators.broadcast_input import BROADCAST_PORT
from penstock.operators.declared import Declared, Output, declarations
from penstock.operators.error_policy import ErrorPolicy, Fail
from penstock.operators.event_time_column import times_of, with_time_field, without_time_field
from penstock.operators.frozen import Frozen, refuse_assignment
from penstock.operators.instants import Instant, instant_ns
from penstock.operators.keyed_operator import KeyedOperator, row_in, row_out
from penstock.operators.keyed_processor import KeyedProcessor
from penstock.operators.processor import MAIN
from penstock.operators.python_operator import Operator
from penstock.state.backend import RestoredState, StateBackend

from .driven_rows import RowIntake, comparable
from .harness import Harness, memory_state
from .state_guard import GuardedBackend, fingerprint

START = 1_700_000_000_000_000_000
"""Where the mock wall clock stands at first: 2023-11-14, nanoseconds."""


def drive(
    operator: KeyedOperator[Any, Any] | Operator,
    key: str | Sequence[str] = (),
    *,
    schema: type[Any] | pa.Schema | None = None,
    event_time: str | None = None,
    broadcast: type[Any] | pa.Schema | None = None,
    on_error: ErrorPolicy | None = None,
    check_borders: bool = True,
) -> Driven:
    """Open a copy of `operator` for a test.

    `schema` is that of the input where the operator's row class does not say it all. Rows get
    their event time from the column `event_time`, by default the only datetime column, else from
    `send(..., at=)`. `check_borders=False` leaves the row-by-row twin out.
    """
    if isinstance(operator, KeyedOperator) and not key:
        raise PlanError(f'drive({type(operator).__name__}): say by which column:  key="tail"')
    return Driven(
        operator,
        (key,) if isinstance(key, str) else tuple(key),
        schema,
        event_time,
        broadcast,
        on_error or Fail(),
        check_borders,
    )


class StateView:
    """The declared state of one key: `view.last` is a plain value, list, dict or datetime."""

    def __init__(self, operator: Frozen, key: Any) -> None:
        self._operator, self._key = operator, canonical_key(key)

    def __getattr__(self, name: str) -> Any:
        bound = vars(self._operator).get(name)
        if not isinstance(bound, Declared) or not hasattr(bound, "view"):
            known = ", ".join(declarations(type(self._operator)))
            raise AttributeError(f"{type(self._operator).__name__} declares {known}; not {name}")
        return bound.view(self._key)


class Driven:
    """What `drive` returns. `clock` is the mock wall clock, `counters` the operator's counters."""

    def __init__(
        self,
        operator: KeyedOperator[Any, Any] | Operator,
        keys: tuple[str, ...],
        schema: type[Any] | pa.Schema | None,
        event_time: str | None,
        broadcast: type[Any] | pa.Schema | None,
        policy: ErrorPolicy,
        check_borders: bool,
    ) -> None:
        self._operator, self._keys, self._policy = operator, keys, policy
        self._event_time = event_time
        self._check_borders = check_borders
        self._broadcast = None if broadcast is None else _codec_of(broadcast)
        self._lanes: list[_Lane] = []
        self._sides: dict[str, list[Any]] = {}
        if schema is None and isinstance(operator, KeyedOperator):
            schema = row_in(operator)
        if schema is not None:
            self._start(schema)

    def _start(self, schema: type[Any] | pa.Schema) -> None:
        self._intake = RowIntake(schema, self._event_time)
        timed = with_time_field(self._intake.codec.schema)
        lanes = 2 if self._check_borders else 1
        self._lanes = [_Lane(self._processor(timed), timed, self._broadcast) for _ in range(lanes)]

    def _processor(self, timed: pa.Schema) -> KeyedProcessor | BatchProcessor:
        side = None if self._broadcast is None else with_time_field(self._broadcast.schema)
        if isinstance(self._operator, KeyedOperator):
            return KeyedProcessor(self._operator, self._keys, timed, self._policy, side)
        return BatchProcessor(self._operator, timed, self._policy, side)

    # Driving -----------------------------------------------------------------------------------

    def send(self, *rows: Any, at: Instant | None = None) -> list[Any]:
        """Rows, one list of rows, a batch or a frame; returns the rows of the main output."""
        if len(rows) == 1 and isinstance(rows[0], list | tuple) and not hasattr(rows[0], "_fields"):
            rows = tuple(rows[0])
        if not self._lanes:
            self._start(_schema_of(rows))
        batch = self._intake.batch(rows, at, self._lanes[0].harness.watermark)
        return self._each(lambda lane, whole: lane.send(batch, whole))

    def send_broadcast(self, *rows: Any) -> None:
        """Rows of the broadcast stream."""
        assert self._broadcast is not None, "drive(..., broadcast=Rule) names their schema"
        if not self._lanes:
            raise PlanError("drive(..., schema=) names the schema of the main input")
        intake = RowIntake.of(self._broadcast)
        batch = intake.batch(rows, None, self._lanes[0].harness.watermark)
        self._each(lambda lane, _: lane.send(batch, True, BROADCAST_PORT))

    def advance(self, to: Instant) -> list[Any]:
        """The watermark passes `to`: event timers up to it fire. Returns the main output's rows."""
        watermark = instant_ns(to, "advance")
        return self._each(lambda lane, _: lane.harness.advance(watermark))

    def tick(self, step: Duration) -> list[Any]:
        """The wall clock moves by `step`: processing-time timers that are due fire."""
        step_ns = duration_ns(step, "tick")
        return self._each(lambda lane, _: lane.harness.tick(step_ns))

    def end(self) -> list[Any]:
        """End of data: all event timers fire."""
        return self._each(lambda lane, _: lane.harness.end())

    def restart(self) -> list[Any]:
        """Snapshot, death, a new instance on the restored state. Scratch attributes are gone."""
        return self._each(lambda lane, _: lane.harness.restart())

    # Looking ---------------------------------------------------------------------------------

    @property
    def operator(self) -> Any:
        """The open instance, which is another one after each restart."""
        return self._lane.operator

    def state(self, key: Any) -> StateView:
        """The state of one key as plain values."""
        return StateView(self._lane.operator, key)

    def side(self, name: str) -> list[Any]:
        """Rows of a side output since the last call."""
        outputs = declarations(type(self._operator))
        if not isinstance(outputs.get(name), Output) and name not in ("late", "dead"):
            raise AttributeError(f"{type(self._operator).__name__} has no side output {name!r}")
        return self._sides.pop(name, [])

    @property
    def counters(self) -> dict[str, int]:
        """dropped, dead_lettered, timers_dropped and what the operator counts itself."""
        return dict(self._lane.harness.counters)

    @property
    def clock(self) -> ManualClock:
        """The mock wall clock; `tick` moves it."""
        return self._lane.harness.clock

    @property
    def _lane(self) -> _Lane:
        if not self._lanes:
            raise PlanError("drive: send something first, or give schema=")
        return self._lanes[0]

    def _each(self, act: Callable[[_Lane, bool], object]) -> list[Any]:
        """Do it to the operator, then to its twin; both must give the same rows."""
        self._lane.guarded(act, True)
        given = self._lane.taken()
        if len(self._lanes) > 1:
            self._lanes[1].guarded(act, False)
            _same(type(self._operator).__name__, given, self._lanes[1].taken())
        for name, rows in given.items():
            if name != MAIN:
                self._sides.setdefault(name, []).extend(rows)
        return given.get(MAIN, [])


class _Lane:
    """One instance in its harness."""

    def __init__(
        self, processor: KeyedProcessor | BatchProcessor, timed: pa.Schema, side: RowCodec | None
    ) -> None:
        self._who = type(processor.operator).__name__
        schemas = [timed] if side is None else [timed, with_time_field(side.schema)]
        self._codecs = {
            name: RowCodec(_row_class(processor, name), without_time_field(schema), self._who)
            for name, schema in processor.outputs.items()
        }
        self.harness = Harness(
            processor,
            schemas,
            out_schemas=processor.outputs,
            backend=self._guarded_state,
            operator_name=self._who,
            clock=ManualClock(START),
        )

    def _guarded_state(self, operator_id: str, restored: RestoredState) -> StateBackend:
        self._state = GuardedBackend(memory_state(operator_id, restored))
        return self._state

    @property
    def operator(self) -> Any:
        processor = self.harness.processor
        assert isinstance(processor, KeyedProcessor | BatchProcessor)
        return processor.operator

    def send(self, batch: pa.RecordBatch, whole: bool, port: int = 0) -> None:
        """One batch, or each row alone; late rows stay together, as their timers follow a batch."""
        times = times_of(batch)
        if whole or (len(times) and times.min() <= self.harness.watermark):
            self.harness.send(batch, port)
            return
        for index in range(batch.num_rows):
            self.harness.send(batch.slice(index, 1), port)
            self._state.check()

    def guarded(self, act: Callable[[_Lane, bool], object], whole: bool) -> None:
        """Act; then nothing but declared state may have changed."""
        before, operator = _public(self.operator), self.operator
        act(self, whole)
        self._state.check()
        if self.operator is not operator:
            return
        after = _public(operator)
        for name in sorted(before.keys() | after.keys()):
            if before.get(name) != after.get(name):
                value = getattr(operator, name, None)
                refuse_assignment(operator, name, value, "process", "changed")

    def taken(self) -> dict[str, list[Any]]:
        """All outputs' rows since the last call."""
        rows = {}
        for name, codec in self._codecs.items():
            table = self.harness.taken(name)
            batches = table.combine_chunks().to_batches() if table.num_rows else []
            rows[name] = [row for batch in batches for row in codec.decode(batch)]
        return rows


def _public(operator: Frozen) -> dict[str, bytes | None]:
    """Digests of the public attributes, also of the user's classes, that are not declared."""
    found: dict[str, Any] = {}
    for cls in type(operator).__mro__:
        if not cls.__module__.startswith("penstock.operators"):
            found.update(vars(cls))
    found.update(vars(operator))
    return {
        name: fingerprint(value)
        for name, value in found.items()
        if not name.startswith("_") and not isinstance(value, Declared) and not callable(value)
    }


def _row_class(processor: KeyedProcessor | BatchProcessor, output: str) -> type[Any] | None:
    declared = declarations(type(processor.operator)).get(output)
    if isinstance(declared, Output):
        return declared.row_class
    if output != MAIN:
        return None
    if isinstance(processor.operator, KeyedOperator):
        found = row_out(processor.operator)
        if found is not None:
            return found
    returns = getattr(processor.operator, "returns", None)
    return returns if is_row_class(returns) else None


def _codec_of(schema: type[Any] | pa.Schema) -> RowCodec:
    if isinstance(schema, pa.Schema):
        return RowCodec(None, schema)
    return RowCodec(schema, row_schema(schema))


def _schema_of(rows: Sequence[Any]) -> type[Any] | pa.Schema:
    first = rows[0]
    if is_row_class(type(first)):
        return type(first)
    if isinstance(first, pa.RecordBatch | pa.Table):
        return first.schema
    raise PlanError("drive: the first rows do not tell their schema; give schema=")


def _same(who: str, whole: dict[str, list[Any]], single: dict[str, list[Any]]) -> None:
    for name, rows in whole.items():
        if Counter(map(comparable, rows)) != Counter(map(comparable, single[name])):
            raise AssertionError(
                f"{who}: output {name!r} depends on where batches end\n"
                f"  sent together:  {row_text(rows, 2000)}\n"
                f"  row by row:     {row_text(single[name], 2000)}\n"
                "  Batch borders carry no meaning. If this is intended: check_borders=False."
            )
