"""KeyedStream and WindowedStream: what may follow key_by() and window()."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from penstock.elements.durations import Duration, duration_ns
from penstock.elements.errors import PlanError
from penstock.operators.aggregate_classes import AggregateItem
from penstock.operators.keyed_operator import KeyedOperator
from penstock.operators.python_operator import Operator
from penstock.operators.windows.descriptors import (
    CountWindow,
    Cumulate,
    GlobalWindow,
    Hop,
    Session,
    Tumble,
    Window,
)

from .aggregate_methods import KeyedAggregates, check_items
from .analytic_methods import KeyedAnalytics, WindowAnalytics
from .ends import SourceLogic
from .graph import Port, topological
from .location import user_location
from .python_nodes import KeyedLogic
from .schema_check import at_line, check_event_time, check_sendable, plan_error
from .stream import BroadcastStream, Stream, nodes_above
from .stream_checks import checked_options
from .window_nodes import WindowLogic

T = TypeVar("T")
R = TypeVar("R")
_UNTIMED = {
    CountWindow: (
        "early= and refine= are for windows that end at a time; this one ends with a row,"
        " and no row is late for it",
        "What there is of a key so far:  .key_by(...).aggregate(...), without a window.",
    ),
    GlobalWindow: (
        "early= and refine= are for windows that end; this one gives what it has by its trigger",
        "An updating stream of it:  .key_by(...).aggregate(..., ttl=..., flush=...).",
    ),
}
"""Why windows without an end in time cannot be given early, and what to do."""


class KeyedStream(KeyedAggregates, KeyedAnalytics, Generic[T]):
    """Rows dealt out by key. Not a stream: what comes next says what to do per key."""

    def __init__(self, stream: Stream[T], keys: tuple[str, ...]) -> None:
        self._stream = stream
        self.keys = keys

    def __repr__(self) -> str:
        return f"{self._stream!r} by {', '.join(self.keys)}"

    def process(
        self,
        operator: KeyedOperator[Any, R],
        broadcast: Stream[Any] | BroadcastStream[Any] | None = None,
        *,
        name: str | None = None,
        parallelism: int | None = None,
    ) -> Stream[R]:
        """Run a KeyedOperator: rows of one key one after the other, with state per key.

        `broadcast` is the stream for its process_broadcast; every subtask gets all its rows.
        """
        location = user_location()
        stream = self._stream
        who = type(operator).__name__
        _require_keyed(operator, location)
        check_sendable(operator, who, location)
        ports = [
            Port(stream._taps, "hash", self.keys),
            *stream._broadcast_port(broadcast, who, location),
        ]
        options = checked_options(name, parallelism, location)
        return stream._made(KeyedLogic(operator, self.keys), ports, location, options)

    def window(
        self,
        window: Window,
        *,
        allowed_lateness: Duration | None = None,
        early: Duration | None = None,
        refine: bool = False,
    ) -> WindowedStream[T]:
        """Cut each key's rows into windows: ps.tumble, hop, session, cumulate, count_window,
        global_window.

        Rows up to `allowed_lateness` behind the watermark still count, and correct results: these
        are given again, or with `refine` taken back and given anew, as an updating stream. With
        `early="10 seconds"` so are results so far, that often, before a window is complete.
        """
        return windowed(self, window, allowed_lateness, early, refine, user_location())


class WindowedStream(WindowAnalytics, Generic[T]):
    """Rows by key and window, waiting for aggregate()."""

    def __init__(
        self,
        keyed: KeyedStream[T],
        window: Window,
        lateness_ns: int,
        early_ns: int | None = None,
        refines: bool = False,
    ) -> None:
        self._keyed = keyed
        self._window = window
        self._lateness_ns = lateness_ns
        self._early_ns = early_ns
        self._refines = refines

    def aggregate(self, **items: AggregateItem) -> Stream[Any]:
        """One row per key and window: keys, `window_start`, `window_end`, and the items.

        `aggregate(flights="count(*)", worst="max(dep_delay)")`. Too late rows: `.late`. Every
        keyword is a column, so its name and width are said behind it: `.options(name=...)`.
        """
        location = user_location()
        stream = self._keyed._stream
        check_items(items, location)
        logic = WindowLogic(
            self._window,
            self._keyed.keys,
            tuple(items.items()),
            self._lateness_ns,
            stream._pipeline.functions,
            location,
            self._early_ns,
            self._refines,
        )
        keys = self._keyed.keys
        port = Port(stream._taps, "hash" if keys else "none", keys)
        return stream._made(logic, [port], location)


def windowed(
    keyed: KeyedStream[T],
    window: Any,
    allowed_lateness: Duration | None,
    early: Duration | None,
    refine: bool,
    location: str,
) -> WindowedStream[T]:
    """The windows of a keyed stream, or of a whole one, which has no keys."""
    if not isinstance(window, (Tumble, Hop, Cumulate, Session, CountWindow, GlobalWindow)):
        raise plan_error(
            "window",
            f"{window!r} is not a window",
            location,
            'There are ps.tumble("1 hour"), ps.hop, ps.session, ps.cumulate, ps.count_window,'
            " ps.global_window.",
        )
    if not isinstance(window, GlobalWindow):
        require_event_time(keyed._stream, f"window({window.text})", location)
    elif allowed_lateness is not None:
        raise plan_error("window", "no row is too late for a global window", location)
    if (early is not None or refine) and isinstance(window, (CountWindow, GlobalWindow)):
        reason, advice = _UNTIMED[type(window)]
        raise plan_error(f"window({window.text})", reason, location, advice)
    lateness_ns = _duration(allowed_lateness, "allowed_lateness", location) or 0
    early_ns = _duration(early, "early", location)
    return WindowedStream(keyed, window, lateness_ns, early_ns, refine)


def _duration(value: Duration | None, name: str, location: str) -> int | None:
    if value is None:
        return None
    try:
        found = duration_ns(value, f"window({name}=)")
    except PlanError as error:
        raise at_line(error, location) from None
    if found < 0:
        raise plan_error("window", f"{name} cannot be negative", location)
    return found


def require_event_time(stream: Stream[Any], who: str, location: str) -> None:
    """PlanError of a window or a join on a stream without event time, naming its source."""
    sources = [n for n in topological(nodes_above(stream)) if isinstance(n.logic, SourceLogic)]
    name = f' on "{sources[0].name}"' if len(sources) == 1 else ""
    read = sources[0].outputs["main"] if len(sources) == 1 else stream._schema
    check_event_time(stream._schema, read, f"{who}{name}", location)


def _require_keyed(operator: Any, location: str) -> None:
    if isinstance(operator, KeyedOperator):
        return
    what = operator.__name__ if isinstance(operator, type) else type(operator).__name__
    if isinstance(operator, Operator):
        raise plan_error(
            f"process({what})",
            "an Operator takes batches, in which keys are mixed",
            location,
            f"Leave key_by() out:  stream.process({what}(...)), or derive from ps.KeyedOperator.",
        )
    advice = (
        f"Pass an instance:  process({what}())"
        if isinstance(operator, type)
        else "Write a class that derives from ps.KeyedOperator."
    )
    raise plan_error(f"process({what})", "it is not a keyed operator", location, advice)
