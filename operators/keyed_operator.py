"""KeyedOperator: the public class for row-level code with state per key; and how it is read."""

from __future__ import annotations

import typing
from collections.abc import Iterable, Sequence
from typing import Any, Generic, TypeVar

import pyarrow as pa

from penstock.elements.errors import PlanError
from penstock.elements.row_schema import is_row_class, row_schema

from .broadcast import broadcast_hint
from .context import Context
from .declared import (
    Declared,
    Fired,
    KeyedState,
    Output,
    Side,
    Timer,
    check_declarations,
    declarations,
)
from .frozen import Frozen
from .processor import MAIN

In = TypeVar("In")
Out = TypeVar("Out")
Made = Iterable[Out | Side[Any]] | None


class KeyedOperator(Frozen, Generic[In, Out]):
    """Subclass as `KeyedOperator[RowIn, RowOut]` and implement `process`.

    State, timers and side outputs are declared on the class. `__init__` keeps configuration only
    and runs where the pipeline is built; `open` connects and loads, where the operator runs.
    After it, public attributes are frozen; names that begin with `_` are scratch, lost on restart.
    """

    _penstock_keyed = True

    def open(self, ctx: Context) -> None:
        """Connect, load, declare operator_state. Keyed state has no key here."""

    def process(self, key: Any, row: In, ctx: Context) -> Made[Out]:
        """Take one row: yield rows and sides, or return None. Late rows come too: `ctx.is_late`.

        The key is a scalar for one key column, a tuple for several.
        """
        raise TypeError(f"{type(self).__name__} implements neither process nor process_group")

    def process_group(self, key: Any, rows: Sequence[In], ctx: Context) -> Made[Out]:
        """Override *instead of* `process` for speed: the rows of one key that arrived together.

        Where a group ends means nothing. What it yields carries the latest event time of its rows.
        """
        raise TypeError(f"{type(self).__name__} does not implement process_group")

    def on_timer(self, key: Any, timer: Fired, ctx: Context) -> Made[Out]:
        """A declared timer fires. What it yields carries the timer's time."""
        raise TypeError(f"{type(self).__name__} has a timer but no on_timer")

    def process_broadcast(self, row: Any, ctx: Context) -> None:
        """A row of the broadcast stream, which every subtask gets; fills BroadcastState only."""
        raise TypeError(f"{type(self).__name__} does not implement process_broadcast")

    def before_snapshot(self, ctx: Context) -> None:
        """A checkpoint is taken: bring what must survive into `operator_state`."""

    def close(self) -> None:
        """Release what open() took. Not called when the process is killed."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Resolve row classes while the frame that defines them is alive."""
        super().__init_subclass__(**options)
        check_declarations(cls)
        for hint in type_arguments(cls):
            if is_row_class(hint):
                row_schema(hint)
        if cls.process_broadcast is not KeyedOperator.process_broadcast:
            cls._penstock_broadcast = broadcast_hint(cls.process_broadcast)

    _penstock_broadcast: Any = None


def type_arguments(cls: type[Any]) -> tuple[Any, ...]:
    """(In, Out) as the nearest subclass gave them; (Any, Any) where they were left out."""
    for base in cls.__mro__:
        for generic in vars(base).get("__orig_bases__", ()):
            origin = typing.get_origin(generic)
            if isinstance(origin, type) and issubclass(origin, KeyedOperator):
                given = typing.get_args(generic)
                return tuple(Any if isinstance(a, TypeVar) else a for a in given)
    return (Any, Any)


def row_in(operator: KeyedOperator[Any, Any]) -> type[Any] | None:
    """The class of the rows that `process` takes; None: attribute rows."""
    hint = type_arguments(type(operator))[0]
    if is_row_class(hint):
        return typing.cast("type[Any]", hint)
    if hint in (Any, object):
        return None
    raise PlanError(
        f"{type(operator).__name__}: {_name(hint)} is not a row class\n"
        "  KeyedOperator[RowIn, RowOut] takes dataclasses, NamedTuples or pydantic models."
    )


def row_out(operator: KeyedOperator[Any, Any]) -> type[Any] | None:
    """The class of the rows that it yields; None: dictionaries or rows of the schema `returns`."""
    arguments = type_arguments(type(operator))
    hint = arguments[1] if len(arguments) > 1 else Any
    return typing.cast("type[Any]", hint) if is_row_class(hint) else None


def keyed_outputs(operator: KeyedOperator[Any, Any]) -> dict[str, pa.Schema]:
    """Each output's schema, without `_time`. The main one comes from the class or `returns`.

    An operator that yields only sides says `KeyedOperator[RowIn, None]`: it has no main output.
    """
    who = type(operator).__name__
    cls = row_out(operator)
    returns = getattr(operator, "returns", None)
    outputs: dict[str, pa.Schema] = {}
    arguments = type_arguments(type(operator))
    nothing = len(arguments) > 1 and arguments[1] in (None, type(None))
    if cls is not None:
        outputs[MAIN] = row_schema(cls)
    elif isinstance(returns, pa.Schema):
        outputs[MAIN] = returns
    elif is_row_class(returns):
        outputs[MAIN] = row_schema(typing.cast("type[Any]", returns))
    elif not nothing:
        raise PlanError(
            f"{who}: what it yields is not declared\n"
            f"  Say it in the class:  class {who}(ps.KeyedOperator[RowIn, RowOut])"
        )
    for name, declared in declarations(type(operator)).items():
        if isinstance(declared, Output):
            outputs[name] = declared.schema
    return outputs


def check_keyed(operator: KeyedOperator[Any, Any]) -> None:
    """Refuse what can be seen to be wrong before anything runs; raises PlanError."""
    cls = type(operator)
    who = cls.__name__
    by_row = cls.process is not KeyedOperator.process
    by_group = cls.process_group is not KeyedOperator.process_group
    if by_row and by_group:
        raise PlanError(f"{who} implements both process and process_group\n  Keep one of them.")
    if not (by_row or by_group):
        raise PlanError(f"{who} implements neither process nor process_group")
    found = declarations(cls)
    timed = any(isinstance(d, Timer) for d in found.values())
    if timed and cls.on_timer is KeyedOperator.on_timer:
        raise PlanError(f"{who} declares a timer but no on_timer(self, key, timer, ctx)")
    for name in ("process", "process_group", "on_timer", "open", "close", "returns"):
        if name in found:
            raise PlanError(f"{who}.{name} is the name of a method, not of state")


def refuse_event_time(operator: KeyedOperator[Any, Any]) -> None:
    """Raise PlanError for timers and ttls that wait for event time which the stream lacks."""
    for name, declared in declared_of(operator).items():
        ttl = isinstance(declared, KeyedState) and declared.ttl_ns is not None
        timer = isinstance(declared, Timer) and not declared.processing_time
        if ttl or timer:
            what = "a ttl" if ttl else "this timer"
            raise PlanError(
                f"{type(operator).__name__}.{name}: {what} goes by event time, "
                "and the stream has none\n"
                '  Say it where it is read:  p.source(..., event_time="ts", '
                'out_of_order="5 seconds")'
                + ("" if ttl else "\n  or take the wall clock:  ps.Timer(processing_time=True)")
            )


def declared_of(operator: Frozen) -> dict[str, Declared]:
    """The declarations of the operator's class by name."""
    return declarations(type(operator))


def _name(hint: Any) -> str:
    return getattr(hint, "__name__", None) or str(hint)


__all__ = [
    "KeyedOperator",
    "check_keyed",
    "declared_of",
    "keyed_outputs",
    "refuse_event_time",
    "row_in",
    "row_out",
    "type_arguments",
]
