"""Windows over event time: what users write (descriptors) and the processors behind it."""

from __future__ import annotations

from .descriptors import (
    CountWindow,
    Cumulate,
    Hop,
    Session,
    Tumble,
    Window,
    count_window,
    cumulate,
    hop,
    session,
    tumble,
)

__all__ = [
    "CountWindow",
    "Cumulate",
    "Hop",
    "Session",
    "Tumble",
    "Window",
    "count_window",
    "cumulate",
    "hop",
    "session",
    "tumble",
]
