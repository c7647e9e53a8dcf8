"""penstock run, explain, version; and how any command line is run.

Exit codes: 0 finished, stopped or already finished; 1 the job gave up; 2 the program or the
command line cannot be used; 130 Ctrl-C before the job had started.
"""

from __future__ import annotations

import logging
import shlex
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Annotated, NoReturn, TextIO

import typer

from penstock import __version__
from penstock.dataflow.launcher import JobHandle, Summary, use_launcher
from penstock.dataflow.overrides import CommandLine, use_command_line
from penstock.dataflow.settings import JobSettings
from penstock.elements.errors import JobFailed, PenstockError
from penstock.runtime.embedded import EmbeddedLauncher
from penstock.runtime.warm_agent import WarmAgent

from .dry import DryLauncher
from .live import watch
from .main import EXIT_INTERRUPTED
from .options import (
    EXIT_FAILED,
    EXIT_UNUSABLE,
    CheckpointInterval,
    File,
    Fresh,
    Parallelism,
    Set,
    said,
    say,
)
from .program import execute, the_pipeline

OWN = (["run"], ["explain"], ["version"])
"""Commands of this file; all others have to do with clusters."""

app = typer.Typer(
    name="penstock",
    help="Stateful stream processing in Python, exactly once.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@app.command()
def run(
    context: typer.Context,
    file: File,
    parallelism: Parallelism = None,
    state_dir: Annotated[
        str | None, typer.Option(help="Where checkpoints lie; the same command resumes.")
    ] = None,
    checkpoint_interval: CheckpointInterval = None,
    fresh: Fresh = False,
    settings: Set = None,
) -> None:
    """Run the pipeline of a file until it ends or Ctrl-C stops it with a checkpoint."""
    overrides = said(
        settings,
        parallelism=parallelism,
        state_dir=state_dir,
        checkpoint_interval=checkpoint_interval,
        fresh=True if fresh else None,
    )
    command_line = CommandLine(overrides, watch=_watch)
    use_command_line(command_line)
    if context.obj is not None:
        use_launcher(EmbeddedLauncher(context.obj))
    names = execute(file)
    if not command_line.ran:
        the_pipeline(file, names).run()
    for summary in command_line.ran.values():
        # The launcher has said already that a job had finished before.
        if summary.outcome != "already finished":
            say(str(summary))


def _watch(handle: JobHandle, settings: JobSettings) -> Summary:
    try:
        return watch(handle)
    except KeyboardInterrupt:
        pass
    try:
        say("stopping with a checkpoint; Ctrl-C again stops at once")
        summary = handle.stop("checkpoint")
    except KeyboardInterrupt:
        summary = handle.stop("now")
    if summary.outcome == "stopped":
        if settings.state_dir is None:
            say("without --state-dir nothing is kept: the next run begins anew")
        else:
            say(f"resume with:  {_resuming_command()}")
    return summary


def _resuming_command() -> str:
    """The command that is running, except that it does not begin anew."""
    return shlex.join(["penstock", *(word for word in _words if word != "--fresh")])


@app.command()
def explain(file: File, parallelism: Parallelism = None, settings: Set = None) -> None:
    """Show the logical and the physical plan, what is read, and the memory that channels take."""
    use_command_line(CommandLine(said(settings, parallelism=parallelism)))
    use_launcher(DryLauncher())
    pipeline = the_pipeline(file, execute(file))
    sys.stdout.write(pipeline.explain() + "\n")


@app.command()
def version() -> None:
    """Print the version."""
    sys.stdout.write(f"penstock {__version__}\n")


class _Stderr(logging.StreamHandler[TextIO]):
    """Writes to what sys.stderr is now: a live panel stands in for it while it is shown."""

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, stream: TextIO) -> None:
        pass


def _log_to_stderr() -> None:
    logging.basicConfig(
        level=logging.INFO, handlers=[_Stderr()], format="%(asctime)s %(levelname)s %(message)s"
    )
    if sys.stderr.isatty():
        # The panel shows each checkpoint and attempt; lines about them would push it around.
        logging.getLogger("penstock.controller").setLevel(logging.WARNING)


_words: Sequence[str] = ()


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """SIGTERM means what Ctrl-C means: stop with a checkpoint."""
    raise KeyboardInterrupt


def run_command(words: Sequence[str], agent: WarmAgent | None) -> None:
    """Run one command line and exit. `agent` serves the first job, if there is one."""
    global _words
    _words = words
    _log_to_stderr()
    # Who supervises us (systemd, Kubernetes, timeout) says it this way.
    signal.signal(signal.SIGTERM, _interrupt)
    if words[:1] not in OWN:
        # What a cluster needs is imported for the commands that have to do with one, and --help.
        from . import agent_command, cluster_commands, controller_command

        cluster_commands.register(app)
        agent_command.register(app)
        controller_command.register(app)
    try:
        app(args=list(words), standalone_mode=True, obj=agent)
    except JobFailed as error:
        say(f"JobFailed: {error}")
        sys.exit(EXIT_FAILED)
    except PenstockError as error:
        say(f"{type(error).__name__}: {error}")
        sys.exit(EXIT_UNUSABLE)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
