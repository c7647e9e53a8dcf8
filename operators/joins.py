"""The joins there are, in one place for planning."""

from __future__ import annotations

from .incremental_join import FOREVER_NS, IncrementalJoinProcessor
from .interval_join import IntervalJoinProcessor
from .join_condition import JoinCondition
from .join_processor import JoinProcessor
from .join_sides import LATE_RIGHT, LEFT, RIGHT, JoinKind
from .window_join import WindowJoinProcessor

__all__ = [
    "FOREVER_NS",
    "LATE_RIGHT",
    "LEFT",
    "RIGHT",
    "IncrementalJoinProcessor",
    "IntervalJoinProcessor",
    "JoinCondition",
    "JoinKind",
    "JoinProcessor",
    "WindowJoinProcessor",
]
