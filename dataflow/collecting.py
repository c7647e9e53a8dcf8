"""head, collect, explain of one stream: a run of just what makes it, with the rows brought here.

Rows come by way of a MemorySink's folder, exactly once. Sinks of the pipeline stay untouched.
"""

from __future__ import annotations

import importlib
import tempfile
from typing import Any, Protocol, cast

import pyarrow as pa

from penstock.elements.errors import JobFailed, PlanError
from penstock.elements.signals import TIME_COLUMN
from penstock.operators.net_changes import net_rows
from penstock.operators.processor import LATE
from penstock.operators.sink import Sink

from .ends import SinkLogic, SourceLogic
from .explaining import explain_plan
from .graph import Node, Port, make_node, topological
from .launcher import JobHandle, current_launcher
from .location import user_location
from .overrides import current_command_line, resolve_settings
from .planner import Planned
from .program import Program
from .schema_check import plan_error
from .settings import JobSettings
from .stream import Stream

LOOK_INTERVAL_S = 0.05
"""How often head() looks whether there are enough rows."""
HEAD_CHECKPOINT_S = 0.2
"""Rows become visible at checkpoints."""


class Collected(Protocol):
    """What head and collect need of a MemorySink."""

    def table(self, schema: pa.Schema | None = None) -> pa.Table:
        """Committed rows."""
        ...

    def rows(self) -> int:
        """How many there are."""
        ...

    def discard(self) -> None:
        """Remove them."""
        ...


def collect(stream: Stream[Any]) -> pa.Table:
    """All rows of a bounded stream; of an updating one, what is left in the end."""
    location = user_location()
    node, sink = _end(stream, "collect", location)
    nodes = topological([node])
    for above in nodes:
        if isinstance(above.logic, SourceLogic) and not above.logic.connector.bounded:
            sink.discard()
            raise plan_error(
                "collect",
                f"source {above.name} has no end",
                location,
                "Look at some rows with  stream.head(10)  or write them to a sink.",
            )
    try:
        settings = _settings()
        planned = _plan(stream, node, settings)
        summary = current_launcher().start(planned.plan, settings).wait()
        reads_late = any(tap.output == LATE for above in nodes for tap in above.upstream)
        if summary.late and not reads_late:
            raise JobFailed(
                f"collect: {summary.late:,} rows came too late and were dropped  ({location})\n"
                "  Allow more disorder at the source (out_of_order=), more lateness in the window\n"
                "  (allowed_lateness=), or take them in as well:  stream.late"
            )
        return net_rows(sink.table(_sink_schema(stream)))
    finally:
        sink.discard()


def head(stream: Stream[Any], rows: int) -> pa.Table:
    """The first rows that come, at most `rows`; then the run is stopped. Changes of an updating
    stream are shown as they come, with `_change`."""
    location = user_location()
    if not isinstance(rows, int) or rows < 1:
        raise plan_error("head", f"{rows!r} is not a number of rows", location)
    node, sink = _end(stream, "head", location)
    try:
        settings = _settings(checkpoint_interval_s=HEAD_CHECKPOINT_S)
        planned = _plan(stream, node, settings)
        handle = current_launcher().start(planned.plan, settings)
        _wait_for_rows(handle, sink, rows)
        return sink.table(_sink_schema(stream)).slice(0, rows)
    finally:
        sink.discard()


def _sink_schema(stream: Stream[Any]) -> pa.Schema:
    """What a sink gets of the stream."""
    return pa.schema([field for field in stream._schema if field.name != TIME_COLUMN])


def explain(stream: Stream[Any]) -> str:
    """The plan of what makes the stream."""
    node, sink = _end(stream, "explain", user_location())
    try:
        settings = _settings()
        return explain_plan(_plan(stream, node, settings), settings)
    finally:
        sink.discard()


def _wait_for_rows(handle: JobHandle, sink: Collected, rows: int) -> None:
    while True:
        try:
            handle.wait(LOOK_INTERVAL_S)
            return
        except TimeoutError:
            if sink.rows() >= rows:
                handle.stop("now")
                return
        except BaseException:
            handle.stop("now")
            raise


def _plan(stream: Stream[Any], node: Node, settings: JobSettings) -> Planned:
    pipeline = stream._pipeline
    return Program(pipeline.name, (node,), pipeline.functions).plan(settings.parallelism)


def _settings(**fixed: Any) -> JobSettings:
    """What stands around the program, without its state: looking is never resumed."""
    found = resolve_settings(fixed)
    return JobSettings(
        **{
            **{name: getattr(found, name) for name in found.__struct_fields__},
            **fixed,
            "state_dir": None,
            "fresh": True,
        }
    )


def _end(stream: Stream[Any], who: str, location: str) -> tuple[Node, Collected]:
    command_line = current_command_line()
    if command_line is not None and command_line.refuses_rows and who != "explain":
        raise plan_error(
            who,
            command_line.refuses_rows,
            location,
            "Write them to a sink, or look at them with  penstock run  on this machine.",
        )
    memory = importlib.import_module("penstock.connectors.memory")
    try:
        sink = memory.MemorySink(tempfile.mkdtemp(prefix="penstock-rows-"))
    except OSError as error:
        raise PlanError(f"{who}: no temporary folder for rows: {error}") from error
    node = make_node(SinkLogic(cast(Sink, sink)), [Port(stream._taps)], location)
    return node, cast(Collected, sink)
