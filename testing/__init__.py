"""What users and the engine test with: drive, check_sink, assert_same_rows, conformance kits."""

from __future__ import annotations

from penstock.elements.clock import ManualClock

from .channel import check_channel
from .drive import drive
from .same_rows import assert_same_rows
from .sink import check_sink
from .state import check_backend
from .store import check_store

__all__ = [
    "ManualClock",
    "assert_same_rows",
    "check_backend",
    "check_channel",
    "check_sink",
    "check_store",
    "drive",
]
