"""The joins there are, in one place for planning."""

from __future__ import annotations

from .interval_join import FOREVER_NS, IntervalJoinProcessor
from .join_processor import JoinProcessor
from .join_sides import LATE_RIGHT, LEFT, RIGHT, JoinKind
from .window_join import WindowJoinProcessor

__all__ = [
    "FOREVER_NS",
    "LATE_RIGHT",
    "LEFT",
    "RIGHT",
    "IntervalJoinProcessor",
    "JoinKind",
    "JoinProcessor",
    "WindowJoinProcessor",
]
