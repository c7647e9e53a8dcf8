"""Runs a user's file as the main program, and finds the one pipeline it defines."""

from __future__ import annotations

import os
import sys
import traceback
import types
from typing import Any

from penstock.dataflow.pipeline import Pipeline
from penstock.elements.errors import PenstockError, SettingsError, UserCodeError


def execute(path: str) -> dict[str, Any]:
    """Execute a file as `__main__` and give its globals.

    The module stays `__main__` afterwards, so classes defined in it are sent by value. Penstock's
    own errors pass through; any other exception of the file becomes a UserCodeError that shows
    the file's frames only.
    """
    if not os.path.isfile(path):
        raise SettingsError(f"there is no file {path!r}")
    module = types.ModuleType("__main__")
    module.__file__ = path
    sys.modules["__main__"] = module
    sys.path.insert(0, os.path.dirname(os.path.abspath(path)))
    sys.argv = [path]
    with open(path, encoding="utf-8") as file:
        text = file.read()
    try:
        exec(compile(text, path, "exec"), module.__dict__)
    except (PenstockError, KeyboardInterrupt):
        raise
    except SystemExit as error:
        if error.code not in (None, 0):
            raise SettingsError(f"{path} ended itself with exit code {error.code}") from error
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        # None of the file's own: it could not be compiled, and the cause says where.
        own = [frame for frame in frames if frame.filename == path]
        text = "".join(traceback.format_list(own))
        cause = "".join(traceback.format_exception_only(error)).strip()
        raise UserCodeError(path, 0, "import", cause, traceback=text) from error
    return module.__dict__


def pipelines_of(names: dict[str, Any]) -> list[Pipeline]:
    """The pipelines bound to module-level names, each once."""
    found: list[Pipeline] = []
    for value in names.values():
        if isinstance(value, Pipeline) and not any(value is p for p in found):
            found.append(value)
    return found


def the_pipeline(path: str, names: dict[str, Any]) -> Pipeline:
    """The one module-level pipeline; SettingsError that lists what there is."""
    found = pipelines_of(names)
    if len(found) == 1:
        return found[0]
    if not found:
        raise SettingsError(
            f"{path} defines no pipeline\n"
            '  penstock run looks for one module-level name such as  p = penstock.Pipeline("name")'
        )
    listed = ", ".join(repr(pipeline.name) for pipeline in found)
    raise SettingsError(
        f"{path} defines {len(found)} pipelines: {listed}\n"
        "  Keep one in the file, or call run() on the one that is meant."
    )
