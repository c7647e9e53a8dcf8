"""penstock run, explain, version.

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
from typing import Annotated, Any, NoReturn, TextIO

import typer

from penstock import __version__
from penstock.dataflow.launcher import JobHandle, Summary, use_launcher
from penstock.dataflow.overrides import CommandLine, use_command_line
from penstock.dataflow.settings import JobSettings
from penstock.elements.errors import JobFailed, PenstockError, SettingsError
from penstock.runtime.embedded import EmbeddedLauncher
from penstock.runtime.warm_agent import WarmAgent

from .dry import DryLauncher
from .live import watch
from .main import EXIT_INTERRUPTED
from .program import execute, the_pipeline

EXIT_FAILED = 1
EXIT_UNUSABLE = 2

app = typer.Typer(
    name="penstock",
    help="Stateful stream processing in Python, exactly once.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

File = Annotated[str, typer.Argument(metavar="FILE.py", help="The program.")]
Parallelism = Annotated[
    int | None, typer.Option(min=1, help="Subtasks per operator where the program names none.")
]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Any setting; repeatable.")
]


@app.command()
def run(
    context: typer.Context,
    file: File,
    parallelism: Parallelism = None,
    state_dir: Annotated[
        str | None, typer.Option(help="Where checkpoints lie; the same command resumes.")
    ] = None,
    checkpoint_interval: Annotated[
        str | None, typer.Option(metavar="DURATION", help='Such as "1s" or "500 ms".')
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Begin anew.")] = False,
    settings: Set = None,
) -> None:
    """Run the pipeline of a file until it ends or Ctrl-C stops it with a checkpoint."""
    said = _said(
        settings,
        parallelism=parallelism,
        state_dir=state_dir,
        checkpoint_interval=checkpoint_interval,
        fresh=True if fresh else None,
    )
    command_line = CommandLine(said, watch=_watch)
    use_command_line(command_line)
    if context.obj is not None:
        use_launcher(EmbeddedLauncher(context.obj))
    names = execute(file)
    if not command_line.ran:
        the_pipeline(file, names).run()
    for summary in command_line.ran.values():
        # The launcher has said already that a job had finished before.
        if summary.outcome != "already finished":
            _say(str(summary))


def _watch(handle: JobHandle, settings: JobSettings) -> Summary:
    try:
        return watch(handle)
    except KeyboardInterrupt:
        pass
    try:
        _say("stopping with a checkpoint; Ctrl-C again stops at once")
        summary = handle.stop("checkpoint")
    except KeyboardInterrupt:
        summary = handle.stop("now")
    if summary.outcome == "stopped":
        if settings.state_dir is None:
            _say("without --state-dir nothing is kept: the next run begins anew")
        else:
            _say(f"resume with:  {_resuming_command()}")
    return summary


def _resuming_command() -> str:
    """The command that is running, except that it does not begin anew."""
    return shlex.join(["penstock", *(word for word in _words if word != "--fresh")])


@app.command()
def explain(file: File, parallelism: Parallelism = None, settings: Set = None) -> None:
    """Show the logical and the physical plan, what is read, and the memory that channels take."""
    use_command_line(CommandLine(_said(settings, parallelism=parallelism)))
    use_launcher(DryLauncher())
    pipeline = the_pipeline(file, execute(file))
    sys.stdout.write(pipeline.explain() + "\n")


@app.command()
def version() -> None:
    """Print the version."""
    sys.stdout.write(f"penstock {__version__}\n")


def _said(settings: Sequence[str] | None, **options: Any) -> dict[str, Any]:
    """What --set says, and above it the options that were given."""
    said: dict[str, Any] = {}
    for text in settings or ():
        name, equals, value = text.partition("=")
        if not equals:
            raise SettingsError(f"--set {text}: write  --set name=value")
        said[name.strip()] = value.strip()
    said.update((name, value) for name, value in options.items() if value is not None)
    return said


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


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
    try:
        app(args=list(words), standalone_mode=True, obj=agent)
    except JobFailed as error:
        _say(f"JobFailed: {error}")
        sys.exit(EXIT_FAILED)
    except PenstockError as error:
        _say(f"{type(error).__name__}: {error}")
        sys.exit(EXIT_UNUSABLE)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
