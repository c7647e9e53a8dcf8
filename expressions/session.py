"""The door to DataFusion: one table of one batch at a time, planned once, in this thread.

Rests on duck typing of datafusion-python's dataset scan (pinned to 55, held by a contract test).
Promises (hazard 19): a batch is taken once and let go; a second pull is an error, never the same
rows again. Never opened at import, and not before a fork: a session has threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
from datafusion import SessionConfig, SessionContext
from datafusion import udf as datafusion_udf

from penstock.elements.errors import EngineError

from .functions import Functions
from .lexer import quote_name

TABLE = "input"
_SETTINGS = {
    # Let go of every batch at once instead of gathering rows.
    "datafusion.execution.batch_size": "1",
    "datafusion.sql_parser.map_string_types_to_utf8view": "false",
    "datafusion.execution.collect_statistics": "false",
}
_SAFE_NODES = ("ProjectionExec", "CooperativeExec", "DatasetExec")
"""Plans of these alone give one batch for each batch, of the same length."""


@dataclass(frozen=True)
class Native:
    """A function of ours registered with the engine: checked arithmetic, for example."""

    name: str
    call: Callable[..., pa.Array]
    arguments: tuple[pa.DataType, ...]
    returns: pa.DataType
    volatility: str = "immutable"


class Trouble:
    """The last exception of a user function; the engine passes on its text only."""

    def __init__(self) -> None:
        self.error: Exception | None = None

    def watch(self, call: Callable[..., pa.Array]) -> Callable[..., pa.Array]:
        """`call`, remembering what it raises."""

        def watched(*columns: pa.Array) -> pa.Array:
            try:
                return call(*columns)
            except Exception as error:
                self.error = error
                raise

        return watched

    def take(self) -> Exception | None:
        """The exception, once."""
        error, self.error = self.error, None
        return error


class _Feed:
    """What the plan reads: each batch that was put here, exactly once."""

    def __init__(self) -> None:
        self.batch: pa.RecordBatch | None = None
        self.pulled_twice = False

    def scan(self, columns: Sequence[int]) -> Iterator[pa.RecordBatch]:
        return _Taking(self, list(columns))


class _Taking:
    """An iterator, not a generator: a raise does not end it."""

    def __init__(self, feed: _Feed, columns: list[int]) -> None:
        self._feed = feed
        self._columns = columns

    def __iter__(self) -> _Taking:
        return self

    def __next__(self) -> pa.RecordBatch:
        batch, self._feed.batch = self._feed.batch, None
        if batch is None:
            self._feed.pulled_twice = True
            raise RuntimeError("the plan asked for a second batch before giving out the first")
        return batch.select(self._columns)


class _Scanner:
    def __init__(self, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> None:
        self.projected_schema = self.dataset_schema = schema
        self._batches = batches

    def to_batches(self) -> Iterator[pa.RecordBatch]:
        return self._batches


class _Fragment:
    partition_expression = None

    def __init__(self, leaf: _Leaf) -> None:
        self._leaf = leaf
        self.physical_schema = leaf.schema

    def scanner(self, *args: Any, **options: Any) -> _Scanner:
        return self._leaf.scanner(*args, **options)


class _Leaf(ds.Dataset):  # type: ignore[misc]
    """Looks like a dataset of one fragment whose only batch is whatever the feed holds."""

    partition_expression = None

    def __init__(self, schema: pa.Schema, feed: _Feed) -> None:
        self._schema = schema
        self._feed = feed

    @property
    def schema(self) -> pa.Schema:
        return self._schema

    def get_fragments(self, filter: Any = None) -> Iterator[_Fragment]:
        if filter is not None:
            raise EngineError("a filter was pushed into the leaf, which would ignore it")
        return iter([_Fragment(self)])

    def scanner(
        self, *args: Any, columns: Any = None, filter: Any = None, **options: Any
    ) -> _Scanner:
        if filter is not None:
            raise EngineError("a filter was pushed into the leaf, which would ignore it")
        names = self._schema.names if columns is None else columns
        at = [self._schema.get_field_index(name) for name in names]
        schema = pa.schema([self._schema.field(index) for index in at])
        return _Scanner(schema, self._feed.scan(at))


class Session:
    """A DataFusion context over one table with `schema`. For one thread."""

    def __init__(
        self, schema: pa.Schema, functions: Functions, natives: Sequence[Native] = ()
    ) -> None:
        config = SessionConfig(dict(_SETTINGS)).with_target_partitions(1)
        self.trouble = Trouble()
        self.feed = _Feed()
        self._context = SessionContext(config)
        # The rule hands simple predicates to the leaf as an exact filter and drops its own.
        self._context.remove_optimizer_rule("push_down_filter")
        self._context.register_dataset(TABLE, _Leaf(schema, self.feed))
        for function in functions:
            self.register(
                Native(
                    function.name,
                    self.trouble.watch(function.evaluate),
                    function.arguments,
                    function.returns,
                    function.volatility,
                )
            )
        for native in natives:
            self.register(replace(native, call=self.trouble.watch(native.call)))

    def register(self, native: Native) -> None:
        """Make a function known to later statements."""
        self._context.register_udf(
            datafusion_udf(
                native.call,
                list(native.arguments),
                native.returns,
                native.volatility,
                native.name,
            )
        )

    def plan(self, items: Mapping[str, str]) -> tuple[pa.Schema, bool]:
        """(the schema of this SELECT list, whether it is row by row). Raises what DataFusion does.

        Aggregates, window functions and unnesting are not row by row.
        """
        frame = self._context.sql(_select(items))
        node = frame.logical_plan()
        scalar = type(node.to_variant()).__name__ == "Projection" and all(
            type(below.to_variant()).__name__ == "TableScan" for below in node.inputs()
        )
        return frame.schema(), scalar

    def stream(self, items: Mapping[str, str]) -> Iterator[Any]:
        """A running projection: put a batch into `feed.batch`, take its result from here."""
        plan = self.physical_plan(items)
        stream: Iterator[Any] = iter(self._context.execute(plan, 0))
        return stream

    def physical_plan(self, items: Mapping[str, str]) -> Any:
        """What `stream` runs; constants are computed here, so it may raise what they raise."""
        plan = self._context.sql(_select(items)).execution_plan()
        node = plan
        while True:
            name = node.display().split(":")[0].strip()
            if name not in _SAFE_NODES:
                raise EngineError(f"{name} in a running projection: it may hold rows back")
            below = node.children()
            if not below:
                break
            node = below[0]
        return plan


def _select(items: Mapping[str, str]) -> str:
    listed = ", ".join(f"{text} AS {quote_name(name)}" for name, text in items.items())
    return f"SELECT {listed} FROM {TABLE}"
