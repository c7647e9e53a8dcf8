"""Nodes of map_async: a user's function called for many rows at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from penstock.elements.durations import Duration
from penstock.operators.async_calls import CallSettings
from penstock.operators.async_processor import MapAsyncProcessor

from .analytics import checked_count, checked_span
from .python_nodes import PythonLogic
from .schema_check import check_sendable, plan_error

CONCURRENCY = 100
"""Calls at once in a subtask, if the user says nothing."""
CONCURRENCY_MAX = 10_000


@dataclass(frozen=True, eq=False)
class AsyncLogic(PythonLogic):
    """A function per row or per batch; rows in flight are its state."""

    function: Callable[..., Any]
    returns: Any
    settings: CallSettings
    ordered: bool
    batch_rows: int | None
    kind = "map_async"
    stateful = True
    identity_rule = "class"

    @property
    def title(self) -> str:
        """The function's name, where it has one worth reading."""
        name = getattr(self.function, "__name__", None) or type(self.function).__name__
        return "map_async" if name == "<lambda>" else str(name)

    def make(self, inputs: Sequence[pa.Schema], policy: Any) -> Any:
        """The engine's driver of calls."""
        return MapAsyncProcessor(
            self.function,
            inputs[0],
            self.returns,
            self.settings,
            self.ordered,
            self.batch_rows,
            policy,
        )

    def identity(self) -> tuple[str, ...]:
        """The function: rows in flight are its input."""
        function = self.function
        return (getattr(function, "__qualname__", None) or type(function).__qualname__, "")

    def describe(self) -> str:
        """Function and width."""
        order = "ordered" if self.ordered else "unordered"
        return f"map_async {self.title}, {order}, {self.settings.concurrency} at once"


def async_logic(
    function: Callable[..., Any],
    returns: Any,
    ordered: bool,
    concurrency: int,
    timeout: Duration | None,
    retries: int,
    batch: int | None,
    location: str,
) -> AsyncLogic:
    """The node, if all of it makes sense; raises PlanError."""
    who = "map_async"
    if not callable(function):
        raise plan_error(who, f"{function!r} is not a function", location)
    checked_count(concurrency, f"{who}(concurrency=)", location, most=None)
    if concurrency > CONCURRENCY_MAX:
        reason = f"concurrency={concurrency} is more than {CONCURRENCY_MAX} calls at once"
        raise plan_error(who, reason, location)
    if batch is not None:
        checked_count(batch, f"{who}(batch=)", location, most=None)
    if isinstance(retries, bool) or not isinstance(retries, int) or retries < 0:
        raise plan_error(who, f"retries={retries!r} is not a number of tries", location)
    timeout_s = None
    if timeout is not None:
        timeout_s = checked_span(timeout, f"{who}(timeout=)", location) / 1e9
    settings = CallSettings(concurrency, timeout_s, retries)
    logic = AsyncLogic(function, returns, settings, ordered, batch)
    check_sendable(function, f"{who}({logic.title})", location)
    return logic
