"""User-written sources: `@ps.source` generators, `ps.Source` classes, rows and tables in memory.

Each becomes a SourceConnector. A generator yields (row, position) — the position says where to
resume after that row — or bare rows, which are counted: on a restart it gets the count as its
`position` argument or, having no such argument, runs again while that many rows are left out.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar, Generic, TypeVar, overload

import pyarrow as pa

from penstock.elements.conform import ConformError, conform, plain_type
from penstock.elements.durations import Duration, duration_ns
from penstock.elements.errors import ConnectorError, PlanError
from penstock.elements.rows import RowCodec, row_schema

from .memory_source import MemorySource, empty_source_error, plain_table
from .reader_thread import GeneratorReader, Reading
from .source import Position, ReaderContext, SourceConnector, Split, SplitReader
from .yielded import Yielded, yielded_by, yielded_by_source

T = TypeVar("T")
Generator = Callable[..., Iterator[Any] | AsyncIterator[Any]]


class Source(Generic[T]):
    """Subclass as `ps.Source[Row]` for a source of several splits.

    `read` is a generator, sync or async; the class is pickled, so connect in `read`. Set `returns`
    to a pa.Schema if it yields batches, `bounded` if it ends, `discover_every` if splits appear
    later, and `replay = False` if the feed cannot seek: the job is then at-most-once here.
    """

    returns: ClassVar[type | pa.Schema | None] = None
    bounded: ClassVar[bool] = False
    replay: ClassVar[bool] = True
    discover_every: ClassVar[Duration | None] = None

    def splits(self) -> Iterable[str]:
        """Names that mean the same for ever; called in the coordinator, not in `read`'s process."""
        return ["all"]

    def read(
        self, split: str, position: Any
    ) -> Iterator[T | tuple[T, Any]] | AsyncIterator[T | tuple[T, Any]]:
        """Yield rows of `split` from `position` on; None is the beginning."""
        raise TypeError(f"{type(self).__name__} does not implement read(split, position)")


class GeneratorConnector(SourceConnector[Any]):
    """A SourceConnector whose readers run a generator in a thread each."""

    def __init__(
        self,
        name: str,
        start: Callable[[str, Position], Iterator[Any] | AsyncIterator[Any]],
        names: Callable[[], Iterable[str]],
        yielded: Yielded,
        *,
        counts: bool = False,
        bounded: bool = False,
        replay: bool = True,
        discovery_interval_ns: int | None = None,
    ) -> None:
        """`start(split, position)`; `counts`: it begins anew, so rows already read are skipped."""
        self.name = name
        self.bounded = bounded
        self.replay = replay
        self.discovery_interval_ns = discovery_interval_ns
        self._start = start
        self._names = names
        self._yielded = yielded
        self._counts = counts
        if isinstance(yielded.element, pa.Schema):
            fields = [pa.field(f.name, plain_type(f.type), f.nullable) for f in yielded.element]
            self._schema = pa.schema(fields)
        else:
            self._schema = row_schema(yielded.element)

    @property
    def schema(self) -> pa.Schema:
        """From the row class, or as declared."""
        return self._schema

    def splits(self) -> Sequence[Split]:
        """The user's names."""
        return [Split(str(name)) for name in self._names()]

    def reader(self, split: Split, position: Position, ctx: ReaderContext) -> SplitReader:
        """A thread that runs the generator from `position`."""
        resumed = position if self.replay else None
        reading = Reading(
            start=functools.partial(self._start, split.id),
            encode=self._encoder(),
            conform=self._conform,
            paired=self._yielded.paired,
            skip=self._counts and self.replay,
            name=self.name,
            subtask=ctx.subtask,
        )
        return GeneratorReader(reading, resumed, ctx.wake)

    def _encoder(self) -> Callable[[list[Any]], pa.RecordBatch]:
        if isinstance(self._yielded.element, pa.Schema):
            schema = self._schema
            return lambda rows: pa.RecordBatch.from_pylist(rows, schema=schema)
        codec = RowCodec(self._yielded.element, self._schema)
        encode: Callable[[list[Any]], pa.RecordBatch] = codec.encode
        return encode

    def _conform(self, batch: Any) -> pa.RecordBatch:
        table = _table_of(batch)
        assert table is not None
        pieces = plain_table(table).combine_chunks().to_batches()
        if not pieces:
            return pa.RecordBatch.from_pylist([], schema=self._schema)
        try:
            return conform(pieces[0], self._schema, self.name)
        except ConformError as error:
            raise ConnectorError(str(error)) from error


@overload
def source(function: Generator) -> Callable[..., SourceConnector[Any]]: ...


@overload
def source(
    *,
    returns: type | pa.Schema | None = None,
    bounded: bool = False,
    replay: bool = True,
    name: str | None = None,
) -> Callable[[Generator], Callable[..., SourceConnector[Any]]]: ...


def source(
    function: Generator | None = None,
    *,
    returns: type | pa.Schema | None = None,
    bounded: bool = False,
    replay: bool = True,
    name: str | None = None,
) -> Any:
    """Make a generator function a source: calling it gives what `Pipeline.source` takes.

    If its first parameter is called `position`, it gets the position to resume after, None at
    first. The row class comes from the return annotation, or from `returns`, which may be a
    pa.Schema for generators of batches or dicts.
    """
    around = dict(sys._getframe(1).f_locals)

    def decorate(generator: Generator) -> Callable[..., SourceConnector[Any]]:
        title = name or generator.__name__
        parameters = list(inspect.signature(generator).parameters)
        takes_position = bool(parameters) and parameters[0] == "position"
        yielded = yielded_by(generator, returns, around, f"@ps.source {title}")

        @functools.wraps(generator)
        def configured(*args: Any, **kwargs: Any) -> SourceConnector[Any]:
            def start(split: str, position: Position) -> Iterator[Any] | AsyncIterator[Any]:
                if takes_position:
                    return generator(position, *args, **kwargs)
                return generator(*args, **kwargs)

            return GeneratorConnector(
                title,
                start,
                _one_split,
                yielded,
                counts=not takes_position,
                bounded=bounded,
                replay=replay,
            )

        # What is left after decorating is a plain function: its parameters are the user's own.
        del configured.__wrapped__
        return configured

    return decorate if function is None else decorate(function)


def _one_split() -> list[str]:
    return ["all"]


def as_connector(value: Any, what: str = "value") -> SourceConnector[Any]:
    """The connector for anything that `Pipeline.source` takes; `what` names it in errors."""
    if isinstance(value, SourceConnector):
        return value
    if isinstance(value, Source):
        kind = type(value)
        every = kind.discover_every
        interval_ns = (
            None if every is None else duration_ns(every, f"{kind.__name__}.discover_every")
        )
        return GeneratorConnector(
            kind.__name__,
            value.read,
            value.splits,
            yielded_by_source(value, kind.returns),
            bounded=kind.bounded and every is None,
            replay=kind.replay,
            discovery_interval_ns=interval_ns,
        )
    table = _table_of(value)
    if table is not None:
        return MemorySource(table)
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return MemorySource(_table_of_rows(value, what))
    raise PlanError(
        f"source({what}): {type(value).__name__} is not a source\n"
        "  Pass a connector (ps.FileSource(...)), a call of a @ps.source generator, a ps.Source\n"
        "  instance, a list of rows, a pa.Table or a data frame."
    )


def _table_of(value: Any) -> pa.Table | None:
    if isinstance(value, pa.Table):
        return value
    if isinstance(value, pa.RecordBatch):
        return pa.Table.from_batches([value])
    module = type(value).__module__.partition(".")[0]
    if type(value).__name__ == "DataFrame" and module == "polars":
        return value.to_arrow()
    if type(value).__name__ == "DataFrame" and module == "pandas":
        return pa.Table.from_pandas(value, preserve_index=False)
    return None


def _table_of_rows(rows: Sequence[Any], what: str) -> pa.Table:
    if not rows:
        raise empty_source_error(what)
    if isinstance(rows[0], dict):
        return pa.Table.from_pylist(list(rows))
    kinds = {type(row) for row in rows}
    if len(kinds) > 1:
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise PlanError(f"source({what}): rows of several kinds: {names}")
    kind = kinds.pop()
    return pa.Table.from_batches([RowCodec(kind, row_schema(kind)).encode(list(rows))])
