"""CurrentRow: which key and row user code is being called for; handles and contexts read it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, NoReturn, Protocol

import numpy as np
import numpy.typing as npt

from penstock.elements.errors import StateError

Times = npt.NDArray[np.int64]


class _NoKey:
    """Stands where there is no key: whoever looks something up under it learns why."""

    def __hash__(self) -> int:
        refuse_without_key()

    def __getitem__(self, index: int) -> int:
        refuse_without_key()

    def __repr__(self) -> str:
        return "<no key>"


def refuse_without_key() -> NoReturn:
    """Raise the StateError of state that is used where no key is."""
    raise StateError(
        "state is kept per key, and no row or timer of any key is being processed here\n"
        "  Use it in process, process_group and on_timer only."
    )


NO_KEY: Any = _NoKey()


class Cell(Protocol):
    """A state that holds the value of the current key itself, and is filled and stored by row."""

    def enter(self) -> None: ...
    def load(self, key: Hashable, hash64: int) -> None: ...
    def store(self, key: Hashable, hash64: int) -> None: ...
    def leave(self) -> None: ...


class CurrentRow:
    """One per operator and subtask. `hashes` and `times` are of the batch, `index` is the row.

    `cells_max`: how many states may be cells. Whoever moves on to another key stores them first.
    """

    __slots__ = ("cells", "cells_max", "hashes", "index", "key", "timer", "times")

    def __init__(self, cells_max: int = 0) -> None:
        self.key: Any = NO_KEY
        self.index = 0
        self.hashes: Sequence[int] | npt.NDArray[np.uint64] = NO_KEY
        self.times: Times | Sequence[int] | None = None
        self.timer = False
        """A timer is firing: there is no row that could be late."""
        self.cells: list[Cell] = []
        self.cells_max = cells_max

    def enter(self) -> None:
        """Rows or a timer come next."""
        for cell in self.cells:
            cell.enter()

    def load(self) -> None:
        """Fill the cells: user code is called for `key` next."""
        for cell in self.cells:
            cell.load(self.key, int(self.hashes[self.index]))

    def store(self) -> None:
        """Keep what user code made of the cells, also if it raised."""
        for cell in self.cells:
            cell.store(self.key, int(self.hashes[self.index]))

    def leave(self) -> None:
        """No key any more."""
        for cell in self.cells:
            cell.leave()
        self.key = self.hashes = NO_KEY
        self.times = None
        self.timer = False

    def time_ns(self) -> int | None:
        """The event time of the row."""
        return None if self.times is None else int(self.times[self.index])
