"""The running projection: a SELECT list planned once and evaluated batch by batch (hazard 47).

Promises: one batch in, one batch out, equally long, in the calling thread, with exactly
`schema`; a failed batch gives an ExpressionError and the next one works; nothing of a batch is
held after its output is gone (hazard 19). Columns that only pass through never reach the engine.
Travels by pickle before its first batch; its session is opened by the first batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from penstock.elements.errors import EngineError, PlanError

from .check import CheckedExpression, Checker
from .expression import ExprLike
from .failures import ExpressionError, reason_of
from .functions import NONE, Functions
from .laziness import TRUTH, guarded
from .overflow import Rewriter, arithmetic_nodes
from .session import Native, Session
from .syntax import Node


class Projection:
    """Evaluates `items`, pairs of name and expression, on batches with `schema`. One thread."""

    def __init__(
        self,
        items: Sequence[tuple[str, ExprLike]],
        schema: pa.Schema,
        functions: Functions = NONE,
        *,
        who: str = "expression",
        location: str = "",
        checker: Checker | None = None,
        declared: Mapping[str, pa.Field] | None = None,
    ) -> None:
        """`declared` gives the fields of columns whose type and nullability are settled."""
        checker = checker or Checker(schema, functions)
        checked = [(name, checker.check(text, who, location)) for name, text in items]
        names = [name for name, _ in checked]
        if len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise PlanError(f'{who}: two columns are called "{twice}"  {location}'.rstrip())
        self.input_schema = schema
        known = declared or {}
        self.schema = pa.schema(
            [known.get(name) or _field(schema, name, each) for name, each in checked]
        )
        self.expressions = tuple(each for _, each in checked)
        read = {name for each in self.expressions for name in each.columns_read}
        self.columns_read = tuple(name for name in schema.names if name in read)
        # Where each output column comes from: a column of the input, or the n-th computed one.
        self._passed: list[int | None] = []
        computed: list[Node] = []
        for each in self.expressions:
            column = each.column
            if column is not None:
                self._passed.append(schema.get_field_index(column))
            else:
                self._passed.append(None)
                computed.append(guarded(each.tree, checker))
        fresh = [self.schema.field(i) for i, passed in enumerate(self._passed) if passed is None]
        self._computed_types = [each.type for each in fresh]
        self._without_nulls = [(i, each.name) for i, each in enumerate(fresh) if not each.nullable]
        self._functions = _only_called(functions, computed)
        rewriter = Rewriter()
        types = checker.types([node for tree in computed for node in arithmetic_nodes(tree)])
        texts = [rewriter.rewrite(tree, types) for tree in computed]
        self._computed = {f"c{at}": text for at, text in enumerate(texts)}
        self._programs = tuple(rewriter.programs)
        if computed:
            self._rehearse(checker, who, location)
        self._session: Session | None = None
        self._stream: Iterator[Any] | None = None
        self.rebuilds = 0
        """How often the session was thrown away after a panic."""

    def _natives(self) -> list[Native]:
        return [TRUTH, *(program.native() for program in self._programs)]

    def _rehearse(self, checker: Checker, who: str, location: str) -> None:
        """Plan it once here, so that constants that cannot be computed are found when planning."""
        for native in self._natives():
            checker.session.register(native)
        try:
            checker.session.physical_plan(self._computed)
        except EngineError:
            raise
        except Exception as error:
            texts = "\n    ".join(each.sql for each in self.expressions if each.column is None)
            where = f"  ({location})" if location else ""
            raise PlanError(f"{who}: {reason_of(error)}{where}\n    {texts}") from error

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_session": None, "_stream": None}

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The projected batch; raises ExpressionError if a row cannot be evaluated."""
        if not batch.schema.equals(self.input_schema):
            raise EngineError(
                f"a projection planned for {self.input_schema.to_string()}\n"
                f"got a batch of {batch.schema.to_string()}"
            )
        computed: list[pa.Array] = []
        if batch.num_rows == 0:
            # The engine's text functions panic on an empty slice whose offset is not 0.
            computed = [pa.array([], kind) for kind in self._computed_types]
        elif self._computed:
            computed = self._evaluate(batch)
        if not self._passed:
            return batch.select([])
        given = batch.columns
        fresh = iter(computed)
        columns = [next(fresh) if at is None else given[at] for at in self._passed]
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)

    def _evaluate(self, batch: pa.RecordBatch) -> list[pa.Array]:
        if self._stream is None:
            self._session = Session(self.input_schema, self._functions, self._natives())
            self._stream = self._session.stream(self._computed)
        session = self._session
        assert session is not None
        feed = session.feed
        feed.batch = batch
        try:
            result: pa.RecordBatch = next(self._stream).to_pyarrow()
        except Exception as error:
            raise self._failure(session, error) from session.trouble.take()
        except BaseException as error:
            self._discard()
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
            # A panic of the engine: its stream is in an unknown state, the batch may be good.
            raise ExpressionError(f"the expression engine panicked: {error}") from None
        finally:
            feed.batch = None
        if result.num_rows != batch.num_rows:
            self._discard()
            raise EngineError(
                f"a projection gave {result.num_rows} rows for {batch.num_rows}: {self._computed}"
            )
        columns: list[pa.Array] = result.columns
        if result.schema.types != self._computed_types:
            columns = [
                column if column.type == kind else column.cast(kind)
                for column, kind in zip(columns, self._computed_types)
            ]
        for at, name in self._without_nulls:
            if columns[at].null_count:
                raise EngineError(f'column "{name}" was planned without nulls and has some')
        return columns

    def _failure(self, session: Session, error: Exception) -> Exception:
        if session.feed.pulled_twice or isinstance(error, StopIteration):
            self._discard()
            return EngineError(
                f"the plan of a projection does not give batch for batch: {self._computed}"
            )
        cause = session.trouble.error
        if type(error) is not Exception:
            self._discard()  # not the engine's own error: do not trust the stream
        if cause is not None:
            return ExpressionError(f"{type(cause).__name__}: {cause}")
        return ExpressionError(reason_of(error))

    def _discard(self) -> None:
        self._session = self._stream = None
        self.rebuilds += 1


def _field(schema: pa.Schema, name: str, checked: CheckedExpression) -> pa.Field:
    column = checked.column
    if column is not None:
        return schema.field(column).with_name(name)
    return pa.field(name, checked.type, checked.nullable)


def _only_called(functions: Functions, trees: Sequence[Node]) -> Functions:
    """The functions that these trees call, so that no others travel with the plan."""
    called = {node.name for tree in trees for node in tree.walk() if node.kind == "call"}
    return Functions({f.name: f for f in functions if f.name in called})
