"""penstock run, explain, version.

Exit codes: 0 finished, stopped or already finished; 1 the job gave up; 2 the program or the
command line cannot be used.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from penstock import __version__
from penstock.dataflow.launcher import JobHandle, Summary, use_launcher
from penstock.dataflow.overrides import CommandLine, use_command_line
from penstock.elements.errors import JobFailed, PenstockError, SettingsError, UserCodeError

from .dry import DryLauncher
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
    said: dict[str, Any] = _parse(settings or [])
    said.update(
        parallelism=parallelism,
        state_dir=state_dir,
        checkpoint_interval=checkpoint_interval,
        fresh=True if fresh else None,
    )
    command_line = CommandLine(said, watch=lambda handle, plan: _watch(handle, file, state_dir))
    use_command_line(command_line)
    names = execute(file)
    if not command_line.ran:
        the_pipeline(file, names).run()
    for summary in command_line.ran.values():
        _say(str(summary))


def _watch(handle: JobHandle, file: str, state_dir: str | None) -> Summary:
    from .live import watch

    try:
        return watch(handle)
    except KeyboardInterrupt:
        _say("stopping with a checkpoint; Ctrl-C again stops at once")
    try:
        summary = handle.stop("checkpoint")
    except KeyboardInterrupt:
        summary = handle.stop("now")
    if state_dir is None:
        _say("without --state-dir nothing is kept; the next run begins anew")
    else:
        _say(f"resume with:  penstock run {file} --state-dir {state_dir}")
    return summary


@app.command()
def explain(file: File, parallelism: Parallelism = None, settings: Set = None) -> None:
    """Show the logical and the physical plan, what is read, and the memory that channels take."""
    said = {**_parse(settings or []), "parallelism": parallelism}
    use_command_line(CommandLine(said))
    use_launcher(DryLauncher())
    pipeline = the_pipeline(file, execute(file))
    sys.stdout.write(pipeline.explain() + "\n")


@app.command()
def version() -> None:
    """Print the version."""
    sys.stdout.write(f"penstock {__version__}\n")


def _parse(settings: Sequence[str]) -> dict[str, str]:
    said = {}
    for text in settings:
        name, equals, value = text.partition("=")
        if not equals:
            raise SettingsError(f"--set {text}: write  --set name=value")
        said[name.strip()] = value.strip()
    return said


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script."""
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s"
    )
    try:
        app(args=arguments, standalone_mode=True)
    except JobFailed as error:
        _say(f"JobFailed: {error}")
        sys.exit(EXIT_FAILED)
    except UserCodeError as error:
        _say(f"UserCodeError: {error}")
        sys.exit(EXIT_UNUSABLE)
    except PenstockError as error:
        _say(f"{type(error).__name__}: {error}")
        sys.exit(EXIT_UNUSABLE)
