"""Pipeline: where streams begin, and how they are run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from penstock.elements.durations import Duration
from penstock.elements.errors import PlanError
from penstock.expressions.functions import NONE, Functions, ScalarFunction, udf
from penstock.operators.source_adapters import as_connector
from penstock.operators.watermarks import event_time as asked_event_time

from .ends import SourceLogic
from .explaining import explain_plan
from .graph import Node, Tap, make_node
from .identity import check_name
from .launcher import JobHandle, Summary, current_launcher
from .location import user_location
from .overrides import current_command_line, resolve_settings
from .planner import Planned
from .program import Program
from .schema_check import at_line, check_schema, check_sendable, plan_error
from .settings import JobSettings
from .stream import Stream
from .stream_checks import checked_options

log = logging.getLogger("penstock")


class Pipeline:
    """A program of streams. Its `name` is the job's: with the state directory it finds the state.

    Nothing runs before run(), start(), head() or collect().
    """

    def __init__(self, name: str) -> None:
        self.name = check_name(name, user_location(), "a pipeline")
        self.functions: Functions = NONE
        self._ends: list[Node] = []

    def source(
        self,
        source: Any,
        *,
        event_time: str | None = None,
        out_of_order: Duration | None = None,
        monotone: bool = False,
        watermark: str | None = None,
        idle: Duration | None = None,
        name: str | None = None,
        parallelism: int | None = None,
    ) -> Stream[Any]:
        """Read a connector, a call of a @ps.source function, a ps.Source, rows, or a table.

        `event_time` is a column or an expression, with one of `out_of_order="5 seconds"`,
        `monotone=True`, `watermark="expression"`. `idle` is how long a split may be silent before
        time goes on without it: 10 seconds, and never for bounded sources.
        """
        location = user_location()
        try:
            connector = as_connector(source, type(source).__name__)
        except PlanError as error:
            raise at_line(error, location) from None
        who = f"source({connector.name})"
        try:
            check_schema(connector.schema, who, location)
            timed = None
            if event_time is not None:
                timed = asked_event_time(
                    event_time,
                    out_of_order=out_of_order,
                    monotone=monotone,
                    watermark=watermark,
                    idle=idle,
                )
            elif out_of_order is not None or watermark is not None or monotone or idle is not None:
                raise plan_error(
                    who,
                    "disorder is said without saying what the event time is",
                    location,
                    'Add  event_time="column"',
                )
            logic = SourceLogic(connector, timed, self.functions, location)
            logic.time_columns()
        except PlanError as error:
            raise at_line(error, location) from None
        check_sendable(connector, connector.name, location)
        options = checked_options(name, parallelism, location)
        return Stream(self, [Tap(make_node(logic, [], location, options))])

    def register(self, function: ScalarFunction | Callable[..., Any]) -> None:
        """Make a function known to all expressions of this pipeline from now on."""
        location = user_location()
        try:
            scalar = function if isinstance(function, ScalarFunction) else udf(function)
            known = self.functions.with_function(scalar)
        except PlanError as error:
            raise at_line(error, location) from None
        check_sendable(scalar.function, f"udf {scalar.name}", location)
        self.functions = known

    def run(
        self,
        *,
        state_dir: str | None = None,
        parallelism: int | None = None,
        checkpoint_interval: Duration | None = None,
        fresh: bool | None = None,
        **settings: Any,
    ) -> Summary:
        """Run to the end of the data, or until Ctrl-C, which stops with a checkpoint.

        The same call with the same `state_dir` resumes; `fresh=True` begins anew. Every setting
        of JobSettings may be given; durations also without their unit, as text.
        """
        command_line = current_command_line()
        if command_line is not None and self.name in command_line.ran:
            return command_line.ran[self.name]
        found = resolve_settings(
            {
                "state_dir": state_dir,
                "parallelism": parallelism,
                "checkpoint_interval": checkpoint_interval,
                "fresh": fresh,
                **settings,
            }
        )
        planned = self._planned(found)
        handle = self._start(planned, found)
        if command_line is None:
            return _wait(handle, found)
        watch = command_line.watch
        summary: Summary = handle.wait() if watch is None else watch(handle, found)
        command_line.ran[self.name] = summary
        return summary

    def start(
        self,
        *,
        state_dir: str | None = None,
        parallelism: int | None = None,
        checkpoint_interval: Duration | None = None,
        fresh: bool | None = None,
        **settings: Any,
    ) -> JobHandle:
        """Start, and come back at once: `.status()`, `.stop()`, `.wait()`. For notebooks."""
        found = resolve_settings(
            {
                "state_dir": state_dir,
                "parallelism": parallelism,
                "checkpoint_interval": checkpoint_interval,
                "fresh": fresh,
                **settings,
            }
        )
        return self._start(self._planned(found), found)

    def explain(self, *, parallelism: int | None = None, **settings: Any) -> str:
        """The plan as text: what is read, what is pushed down, what runs where, memory."""
        found = resolve_settings({"parallelism": parallelism, **settings})
        return explain_plan(self._planned(found), found)

    # Inside -----------------------------------------------------------------------------------

    def _planned(self, settings: JobSettings) -> Planned:
        program = Program(self.name, tuple(self._ends), self.functions)
        return program.plan(settings.parallelism)

    def _start(self, planned: Planned, settings: JobSettings) -> JobHandle:
        for line in planned.plan.warnings:
            log.warning("%s: %s", self.name, line)
        if settings.state_dir is None and current_command_line() is None:
            log.warning(
                "%s: no state_dir, so it survives crashes of its processes, not of this one",
                self.name,
            )
        return current_launcher().start(planned.plan, settings)

    def _add_end(self, node: Node) -> None:
        self._ends.append(node)


def _wait(handle: JobHandle, settings: JobSettings) -> Summary:
    """Until it ends. The first Ctrl-C stops with a checkpoint, the second at once."""
    try:
        return handle.wait()
    except KeyboardInterrupt:
        log.warning("stopping with a checkpoint; Ctrl-C again stops at once")
    try:
        summary = handle.stop("checkpoint")
    except KeyboardInterrupt:
        summary = handle.stop("now")
    if settings.state_dir is None:
        log.warning("%s; without state_dir nothing is kept: the next run begins anew", summary)
    else:
        log.warning("%s; the same call with state_dir=%r goes on", summary, settings.state_dir)
    return summary
