"""BroadcastInput: the second input of an operator, whose rows every subtask gets."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from penstock.elements.errors import PlanError
from penstock.elements.rows import RowCodec, RowError
from penstock.state.backend import StateBackend

from .broadcast import BroadcastState
from .context import Context
from .declared import declarations
from .error_policy import Failures
from .row_input import decode_rows

METHOD = "process_broadcast"
BROADCAST_PORT = 1
"""The input port of the broadcast stream; 0 is the main one."""


def broadcast_codec(operator: Any, schema: pa.Schema | None) -> RowCodec | None:
    """The codec of the broadcast rows, None without a broadcast stream; raises PlanError.

    An operator that declares BroadcastState needs a stream to fill it, and the other way round.
    """
    cls = type(operator)
    states = [n for n, d in declarations(cls).items() if isinstance(d, BroadcastState)]
    if schema is None:
        if states:
            raise PlanError(
                f"{cls.__name__}.{states[0]} is BroadcastState, but no stream is broadcast to it\n"
                "  Say which:  stream.process(operator, broadcast=rules)"
            )
        return None
    if not states:
        raise PlanError(
            f"{cls.__name__} declares no BroadcastState that broadcast rows could fill\n"
            "  Declare one:  rules = ps.BroadcastState(str, Rule)"
        )
    if not callable(getattr(cls, METHOD, None)) or METHOD not in _defined(cls):
        raise PlanError(f"{cls.__name__} declares BroadcastState but no {METHOD}(self, row, ctx)")
    codec = RowCodec(operator._penstock_broadcast, schema, cls.__name__)
    codec.columns_read()
    return codec


def _defined(cls: type[Any]) -> set[str]:
    """Names that the user's classes define, as opposed to our bases."""
    ours = __name__.rpartition(".")[0]
    return {n for base in cls.__mro__ if not base.__module__.startswith(ours) for n in vars(base)}


class BroadcastInput:
    """Feeds process_broadcast; binds the operator's BroadcastStates and keeps them stored."""

    def __init__(
        self,
        operator: Any,
        codec: RowCodec,
        context: Context,
        failures: Failures,
        backend: StateBackend,
    ) -> None:
        self._operator, self._codec = operator, codec
        self._context, self._failures = context, failures
        self._states: list[BroadcastState[Any, Any]] = []
        for name, declared in declarations(type(operator)).items():
            if isinstance(declared, BroadcastState):
                bound = declared.bind(backend)
                object.__setattr__(operator, name, bound)
                self._states.append(bound)

    def take(self, batch: pa.RecordBatch) -> None:
        """Call process_broadcast for each row; only now BroadcastState takes assignments."""
        rows, batch = decode_rows(
            self._codec, batch, lambda one, error: self._failures.row(METHOD, error, one)
        )
        for state in self._states:
            state.writable(True)
        try:
            for index, row in enumerate(rows):
                try:
                    if self._operator.process_broadcast(row, self._context) is not None:
                        raise RowError(f"{METHOD} runs on every subtask: it may not yield rows")
                except Exception as error:
                    self._failures.row(METHOD, error, batch.slice(index, 1), row=row)
        finally:
            for state in self._states:
                state.writable(False)

    def store(self) -> None:
        """Bring what changed into the backend."""
        for state in self._states:
            state.store()
