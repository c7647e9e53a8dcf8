"""What several commands share: arguments, how settings are said, exit codes, words to the user."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from penstock.elements.errors import SettingsError

EXIT_FAILED = 1
EXIT_UNUSABLE = 2

File = Annotated[str, typer.Argument(metavar="FILE.py", help="The program.")]
Parallelism = Annotated[
    int | None, typer.Option(min=1, help="Subtasks per operator where the program names none.")
]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Any setting; repeatable.")
]
CheckpointInterval = Annotated[
    str | None, typer.Option(metavar="DURATION", help='Such as "1s" or "500 ms".')
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Begin anew.")]


def said(settings: Sequence[str] | None, **options: Any) -> dict[str, Any]:
    """What --set says, and above it the options that were given."""
    found: dict[str, Any] = pairs(settings, "--set", "name=value")
    found.update((name, value) for name, value in options.items() if value is not None)
    return found


def pairs(texts: Sequence[str] | None, option: str, form: str) -> dict[str, str]:
    """`name=value` texts of a repeatable option; SettingsError for others."""
    found: dict[str, str] = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise SettingsError(f"{option} {text}: write  {option} {form}")
        found[name.strip()] = value.strip()
    return found


def say(text: str) -> None:
    """A line to the person: results alone go to stdout."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
