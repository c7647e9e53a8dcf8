"""Where in the user's program a call came from: the first frame outside of this package."""

from __future__ import annotations

import os
import sys

_OURS = "penstock."
_CELL = "<"


def user_location() -> str:
    """`delays.py:7`, the line of the caller's caller that is not ours; "" if there is none."""
    frame = sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module != "penstock" and not module.startswith(_OURS):
            name = frame.f_code.co_filename
            if _is_cell(name):
                name = "cell"
            return f"{os.path.basename(name)}:{frame.f_lineno}"
        if frame.f_back is None:
            break
        frame = frame.f_back
    return ""


def _is_cell(filename: str) -> bool:
    # Notebooks compile each cell from a made-up or temporary file.
    return filename.startswith(_CELL) or "ipykernel_" in filename
