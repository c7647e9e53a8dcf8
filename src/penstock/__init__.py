"""Penstock: a distributed, stateful stream processing engine for Python.

The public names, loaded when first used: `import penstock` costs nothing, in workers too.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from penstock import testing
    from penstock.connectors.blackhole import BlackholeSink
    from penstock.connectors.file_sink import FileSink
    from penstock.connectors.file_source import FileSource
    from penstock.connectors.impulse import ImpulseSource
    from penstock.connectors.memory import MemorySink
    from penstock.connectors.nexmark import NexmarkSource
    from penstock.connectors.stdout import StdoutSink
    from penstock.dataflow.keyed_stream import KeyedStream, WindowedStream
    from penstock.dataflow.launcher import JobHandle, JobStatus, Summary
    from penstock.dataflow.pipeline import Pipeline
    from penstock.dataflow.stream import Stream
    from penstock.elements.durations import FOREVER
    from penstock.elements.errors import (
        ConnectorError,
        JobFailed,
        PenstockError,
        PlanError,
        SettingsError,
        StateError,
        UserCodeError,
    )
    from penstock.expressions.expression import Expr, expr
    from penstock.expressions.functions import udf
    from penstock.operators.aggregate_classes import Aggregate, SegmentAggregate
    from penstock.operators.broadcast import BroadcastState
    from penstock.operators.context import Context
    from penstock.operators.declared import (
        Fired,
        ListState,
        MapState,
        Output,
        ReducingState,
        Side,
        Timer,
        ValueState,
    )
    from penstock.operators.error_policy import DeadLetter, Drop, Fail
    from penstock.operators.keyed_operator import KeyedOperator
    from penstock.operators.python_operator import Operator
    from penstock.operators.sink import Sink
    from penstock.operators.source import Split
    from penstock.operators.source_adapters import Source, source
    from penstock.operators.windows.descriptors import (
        count_window,
        cumulate,
        global_window,
        hop,
        session,
        tumble,
    )

__version__ = "0.1.0"

_WHERE = {
    "connectors.blackhole": ("BlackholeSink",),
    "connectors.file_sink": ("FileSink",),
    "connectors.file_source": ("FileSource",),
    "connectors.impulse": ("ImpulseSource",),
    "connectors.memory": ("MemorySink",),
    "connectors.nexmark": ("NexmarkSource",),
    "connectors.stdout": ("StdoutSink",),
    "dataflow.keyed_stream": ("KeyedStream", "WindowedStream"),
    "dataflow.launcher": ("JobHandle", "JobStatus", "Summary"),
    "dataflow.pipeline": ("Pipeline",),
    "dataflow.stream": ("Stream",),
    "elements.durations": ("FOREVER",),
    "elements.errors": (
        "ConnectorError",
        "JobFailed",
        "PenstockError",
        "PlanError",
        "SettingsError",
        "StateError",
        "UserCodeError",
    ),
    "expressions.expression": ("Expr", "expr"),
    "expressions.functions": ("udf",),
    "operators.aggregate_classes": ("Aggregate", "SegmentAggregate"),
    "operators.broadcast": ("BroadcastState",),
    "operators.context": ("Context",),
    "operators.declared": (
        "Fired",
        "ListState",
        "MapState",
        "Output",
        "ReducingState",
        "Side",
        "Timer",
        "ValueState",
    ),
    "operators.error_policy": ("DeadLetter", "Drop", "Fail"),
    "operators.keyed_operator": ("KeyedOperator",),
    "operators.python_operator": ("Operator",),
    "operators.sink": ("Sink",),
    "operators.source": ("Split",),
    "operators.source_adapters": ("Source", "source"),
    "operators.windows.descriptors": (
        "count_window",
        "cumulate",
        "global_window",
        "hop",
        "session",
        "tumble",
    ),
}
_MODULE_OF = {name: module for module, names in _WHERE.items() for name in names}

__all__ = [
    "Aggregate",
    "BlackholeSink",
    "BroadcastState",
    "ConnectorError",
    "Context",
    "DeadLetter",
    "Drop",
    "Expr",
    "FOREVER",
    "Fail",
    "FileSink",
    "FileSource",
    "Fired",
    "ImpulseSource",
    "JobFailed",
    "JobHandle",
    "JobStatus",
    "KeyedOperator",
    "KeyedStream",
    "ListState",
    "MapState",
    "MemorySink",
    "NexmarkSource",
    "Operator",
    "Output",
    "PenstockError",
    "Pipeline",
    "PlanError",
    "ReducingState",
    "SegmentAggregate",
    "SettingsError",
    "Side",
    "Sink",
    "Source",
    "Split",
    "StateError",
    "StdoutSink",
    "Stream",
    "Summary",
    "Timer",
    "UserCodeError",
    "ValueState",
    "WindowedStream",
    "count_window",
    "cumulate",
    "expr",
    "global_window",
    "hop",
    "session",
    "source",
    "testing",
    "tumble",
    "udf",
]


def __getattr__(name: str) -> Any:
    """Load a public name; it is a plain attribute from then on."""
    if name == "testing":
        return importlib.import_module("penstock.testing")
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module 'penstock' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"penstock.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
