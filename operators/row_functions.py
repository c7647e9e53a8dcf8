"""map, flat_map and filter with Python functions on rows; each row's output inherits its `_time`.

The annotation of the first parameter is the row class; without one, rows are attribute rows. The
return annotation (or `returns`) is the output's schema: `-> Late`, `-> Iterator[Late]`. Without
either, the output has the input's schema. Functions may take the Context as second parameter.
"""

from __future__ import annotations

import typing
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from penstock.elements.errors import PlanError
from penstock.elements.row_hints import function_hints
from penstock.elements.row_schema import is_row_class, strip
from penstock.elements.rows import RowCodec, RowError

from .batch_processor import function_name, takes_context
from .context import Context
from .current_row import CurrentRow
from .error_policy import ErrorPolicy, Fail, Failures, dead_output
from .event_time_column import has_time, times_of, with_time_field, without_time_field
from .processor import MAIN, Processor, ProcessorContext
from .python_operator import declared_schema
from .row_input import PART_ROWS, decode_rows
from .row_outputs import RowOutputs

RowKind = Literal["map", "flat_map", "filter"]


def row_function(
    kind: RowKind,
    function: Callable[..., Any],
    in_schema: pa.Schema,
    returns: Any = None,
    policy: ErrorPolicy = Fail(),  # noqa: B008 - frozen and without fields
) -> Processor:
    """The processor of `stream.map(f)`, `stream.flat_map(f)` or `stream.filter(f)`."""
    if not callable(function):
        raise PlanError(f"{kind}: {function!r} is not a function")
    if kind == "filter":
        return RowFilterProcessor(function, in_schema, policy)
    return RowMapProcessor(kind, function, in_schema, returns, policy)


class _RowFunctionProcessor(Processor):
    """What map, flat_map and filter have in common: rows in, a function with or without Context."""

    def __init__(
        self,
        kind: RowKind,
        function: Callable[..., Any],
        in_schema: pa.Schema,
        policy: ErrorPolicy,
    ) -> None:
        self.kind, self.function, self.in_schema, self.policy = kind, function, in_schema, policy
        self._method = function_name(function)
        self.who = f"{kind}({self._method})"
        self._timed = has_time(in_schema)
        self._with_ctx = takes_context(function)
        self._hints = function_hints(function) if not isinstance(function, type) else {}
        self._codec = RowCodec(self._row_in(), in_schema, self.who)
        self.columns_read: tuple[str, ...] = tuple(self._codec.columns_read())
        """The input columns that the function's rows are made of; `_time` is kept anyway."""

    def _row_in(self) -> type[Any] | None:
        for name, hint in self._hints.items():
            if name in ("self", "return") or hint is Context:
                continue
            if is_row_class(hint):
                return typing.cast("type[Any]", hint)
            if hint in (Any, object):
                return None
            raise PlanError(
                f"{self.who}: it takes {getattr(hint, '__name__', hint)}, which is no row class\n"
                "  Annotate its parameter with a dataclass, NamedTuple or pydantic model, or not\n"
                "  at all for attribute rows. For whole batches there is map_batches."
            )
        return None

    def open(self, ctx: ProcessorContext) -> None:
        """Nothing to connect: functions have no life of their own."""
        self._ctx = ctx
        self._row = CurrentRow()
        self._context = Context(ctx, self._row)
        self._failures = Failures(ctx, self.policy)
        function, context = self.function, self._context
        self._call: Callable[[Any], Any] = (
            (lambda row: function(row, context)) if self._with_ctx else function
        )

    def _decoded(self, batch: pa.RecordBatch) -> tuple[list[Any], pa.RecordBatch]:
        rows, batch = decode_rows(
            self._codec, batch, lambda one, error: self._failures.row(self._method, error, one)
        )
        self._row.times = times_of(batch) if self._timed else None
        return rows, batch


class RowMapProcessor(_RowFunctionProcessor):
    """map: one row for each; flat_map: any number."""

    def __init__(
        self,
        kind: Literal["map", "flat_map"],
        function: Callable[..., Any],
        in_schema: pa.Schema,
        returns: Any = None,
        policy: ErrorPolicy = Fail(),  # noqa: B008 - frozen and without fields
    ) -> None:
        super().__init__(kind, function, in_schema, policy)
        cls, schema = self._row_out(returns)
        self._out_codec = RowCodec(cls, schema, self.who)

    @property
    def outputs(self) -> dict[str, pa.Schema]:
        """Each output's schema as collected, with `_time` if the input has it."""
        schema = self._out_codec.schema
        return {MAIN: with_time_field(schema) if self._timed else schema} | dead_output(self.policy)

    def _row_out(self, returns: Any) -> tuple[type[Any] | None, pa.Schema]:
        if returns is None:
            returns = self.function if isinstance(self.function, type) else self._returned()
        if returns is None:
            return self._codec.cls if self._reads_all() else None, without_time_field(
                self.in_schema
            )
        schema = declared_schema(returns, self.who)
        return (returns if is_row_class(returns) else None), schema

    def _returned(self) -> Any:
        """The row class of the return annotation; None if there is none to speak of."""
        hint = self._hints.get("return")
        if self.kind == "flat_map" and typing.get_args(hint) and not is_row_class(hint):
            hint = typing.get_args(hint)[0]
        if hint is None or hint in (Any, object):
            return None
        hint = strip(hint)[0]
        if is_row_class(hint):
            return hint
        raise PlanError(
            f"{self.who}: it returns {getattr(hint, '__name__', hint)}, which is no row class\n"
            f"  Annotate it, or say  {self.kind}(..., returns=MyRow)"
        )

    def _reads_all(self) -> bool:
        """Whether the input's rows are of a class that stands for all their columns."""
        return not self._codec.by_attribute and list(self.columns_read) == self._codec.schema.names

    def open(self, ctx: ProcessorContext) -> None:
        """See the base."""
        super().open(ctx)
        self._out = RowOutputs({MAIN: self._out_codec}, self._timed, ctx.collect)

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """Call the function for each row; rows that raise follow the policy."""
        self._out.drop()
        for start in range(0, batch.num_rows, PART_ROWS):
            self._run_part(batch.slice(start, PART_ROWS))
        self._out.flush()
        self._row.leave()

    def _run_part(self, batch: pa.RecordBatch) -> None:
        rows, batch = self._decoded(batch)
        items: list[Any] = []
        owners: list[int] = []
        start = 0

        def bad(index: int, error: Exception) -> None:
            self._failures.row(self._method, error, batch.slice(index, 1), row=rows[index])

        call_rows = self._map_rows if self.kind == "map" else self._call_rows
        while start < len(rows):
            try:
                call_rows(rows, start, items, owners)
                start = len(rows)
            except Exception as error:
                del items[len(owners) :]
                bad(self._row.index, error)
                start = self._row.index + 1
        self._out.hold(items, owners, self._row.times, bad)

    def _map_rows(self, rows: list[Any], start: int, items: list[Any], owners: list[int]) -> None:
        row, call, add, own = self._row, self._call, items.append, owners.append
        for row.index in range(start, len(rows)):
            made = call(rows[row.index])
            if made is None:
                raise RowError("map must give a row for each; flat_map and filter may leave out")
            add(made)
            own(row.index)

    def _call_rows(self, rows: list[Any], start: int, items: list[Any], owners: list[int]) -> None:
        row, call = self._row, self._call
        for row.index in range(start, len(rows)):
            made = call(rows[row.index])
            if made is not None:
                items.extend(made)
                owners.extend([row.index] * (len(items) - len(owners)))


class RowFilterProcessor(_RowFunctionProcessor):
    """filter with a Python function: keeps the rows, whole, for which it is true."""

    def __init__(
        self,
        function: Callable[..., Any],
        in_schema: pa.Schema,
        policy: ErrorPolicy = Fail(),  # noqa: B008 - frozen and without fields
    ) -> None:
        super().__init__("filter", function, in_schema, policy)

    @property
    def outputs(self) -> dict[str, pa.Schema]:
        """The input's schema."""
        return {MAIN: self.in_schema} | dead_output(self.policy)

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """Keep what the function wants; rows that raise follow the policy."""
        rows, batch = self._decoded(batch)
        keep = np.zeros(len(rows), np.bool_)
        row, call = self._row, self._call
        start = 0
        while start < len(rows):
            try:
                for index in range(start, len(rows)):
                    row.index = index
                    keep[index] = bool(call(rows[index]))
                start = len(rows)
            except Exception as error:
                index = row.index
                self._failures.row(self._method, error, batch.slice(index, 1), row=rows[index])
                start = index + 1
        self._row.leave()
        if keep.all():
            self._ctx.collect(batch)
        elif keep.any():
            self._ctx.collect(batch.filter(pa.array(keep)))
