"""CurrentRow: which key and row user code is being called for; handles and contexts read it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from penstock.elements.errors import StateError

Times = npt.NDArray[np.int64]


class _NoKey:
    """Stands where there is no key: whoever looks something up under it learns why."""

    def __hash__(self) -> int:
        _refuse()

    def __getitem__(self, index: int) -> int:
        _refuse()

    def __repr__(self) -> str:
        return "<no key>"


def _refuse() -> NoReturn:
    raise StateError(
        "state is kept per key, and no row or timer of any key is being processed here\n"
        "  Use it in process, process_group and on_timer only."
    )


NO_KEY: Any = _NoKey()


class CurrentRow:
    """One per operator and subtask. `hashes` and `times` are of the batch, `index` is the row."""

    __slots__ = ("hashes", "index", "key", "timer", "times")

    def __init__(self) -> None:
        self.key: Any = NO_KEY
        self.index = 0
        self.hashes: Sequence[int] = NO_KEY
        self.times: Times | Sequence[int] | None = None
        self.timer = False
        """A timer is firing: there is no row that could be late."""

    def leave(self) -> None:
        """No key any more."""
        self.key = self.hashes = NO_KEY
        self.times = None
        self.timer = False

    def time_ns(self) -> int | None:
        """The event time of the row."""
        return None if self.times is None else int(self.times[self.index])
