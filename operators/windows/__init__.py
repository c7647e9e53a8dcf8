"""Windows over event time: what users write (descriptors) and the processors behind it."""

from __future__ import annotations

from .descriptors import (
    Calendar,
    CalendarCumulate,
    CalendarHop,
    CountWindow,
    Cumulate,
    GlobalWindow,
    Hop,
    Session,
    Tumble,
    Window,
    count_window,
    cumulate,
    global_window,
    hop,
    session,
    tumble,
)

__all__ = [
    "Calendar",
    "CalendarCumulate",
    "CalendarHop",
    "CountWindow",
    "Cumulate",
    "GlobalWindow",
    "Hop",
    "Session",
    "Tumble",
    "Window",
    "count_window",
    "cumulate",
    "global_window",
    "hop",
    "session",
    "tumble",
]
