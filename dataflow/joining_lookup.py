"""join_lookup(): rows with what a function of the user's says of their keys."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from penstock.elements.changelog import HIDDEN
from penstock.elements.durations import Duration, ttl_ns
from penstock.elements.errors import PlanError
from penstock.operators.error_policy import DEAD_SCHEMA, Fail
from penstock.operators.lookup_join import LookupJoinProcessor
from penstock.operators.processor import DEAD, MAIN, Processor
from penstock.operators.python_operator import declared_schema

from .graph import BuildContext, Columns, Logic, Options
from .schema_check import at_line, check_keys, check_sendable, plan_error
from .stream import Stream

WHO = "join_lookup"


@dataclass(frozen=True, eq=False)
class LookupLogic(Logic):
    """A function of keys."""

    function: Callable[[Any], Any]
    on: tuple[str, ...]
    how: str
    returns: pa.Schema
    cache_rows: int
    cache_ttl_ns: int | None
    location: str
    kind = "lookup"

    @property
    def title(self) -> str:
        """The function's name, where it has one worth reading."""
        name = getattr(self.function, "__name__", type(self.function).__name__)
        return self.kind if name == "<lambda>" else str(name)

    def _make(self, schema: pa.Schema, policy: Any) -> LookupJoinProcessor:
        cache = (self.cache_rows, self.cache_ttl_ns)
        rest = (*cache, policy, f"{WHO}({self.title})", self.location)
        return LookupJoinProcessor(self.function, self.on, self.how, schema, self.returns, *rest)

    def outputs(self, inputs: Sequence[pa.Schema]) -> dict[str, pa.Schema]:
        """Rows with answers, and those that an error policy set aside."""
        return {**self._make(inputs[0], Fail()).outputs, DEAD: DEAD_SCHEMA}

    def needs(
        self, inputs: Sequence[pa.Schema], required: Mapping[str, Columns]
    ) -> Sequence[Columns]:
        """Keys, and what is required of the stream."""
        wanted = required.get(MAIN, frozenset()) | set(self.on)
        return [(wanted & set(inputs[0].names)) - HIDDEN]

    def processor(self, inputs: Sequence[pa.Schema], build: BuildContext) -> Processor:
        """With the error policy that was chosen."""
        return self._make(inputs[0], build.on_error or Fail())

    def describe(self) -> str:
        """Function and key."""
        return f"{self.how} join with {self.title} on {', '.join(self.on)}"


def join_lookup(
    stream: Stream[Any],
    function: Any,
    on: str | Sequence[str],
    returns: Any,
    how: str,
    cache: tuple[int, Duration | None],
    location: str,
    options: Options,
) -> Stream[Any]:
    """The joined stream; raises PlanError of the user's line."""
    if not callable(function):
        raise plan_error(WHO, f"{function!r} is not a function", location)
    cache_rows, cache_ttl = cache
    if not isinstance(cache_rows, int) or isinstance(cache_rows, bool) or cache_rows < 0:
        raise plan_error(WHO, f"cache_rows={cache_rows!r} is not a number of rows", location)
    if cache_ttl is not None and not cache_rows:
        raise plan_error(
            WHO, "cache_ttl= without cache_rows=", location, "Say how many:  cache_rows=100_000"
        )
    names = [on] if isinstance(on, str) else list(on)
    keys = check_keys(names, stream._schema, f"{WHO}(on=)", location)
    try:
        schema = declared_schema(returns, WHO)
        lives_ns = ttl_ns(cache_ttl, f"{WHO}(cache_ttl=)")
    except PlanError as error:
        raise at_line(error, location) from None
    logic = LookupLogic(function, tuple(keys), how, schema, cache_rows, lives_ns, location)
    check_sendable(function, f"{WHO}({logic.title})", location)
    return stream._then(logic, location, options)
