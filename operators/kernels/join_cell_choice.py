"""The choice between the compiled cells and the plain ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt

from .compile import uses_reference
from .join_cells import CompiledCells
from .join_cells_reference import PlainCells

Hashes = npt.NDArray[np.uint64]
Numbers = npt.NDArray[np.int64]
Links = npt.NDArray[np.int32]


class Cells(Protocol):
    """Rows of both sides by hash; see join_cells.py."""

    def clear(self, left: int, right: int) -> None: ...

    def link(self, port: int, hashes: Hashes, first: int) -> Links: ...

    def pairs(
        self, port: int, found: Links, within: tuple[Numbers, Numbers, Numbers] | None
    ) -> Iterator[tuple[Numbers | None, Numbers]]: ...


def new_cells() -> Cells:
    """Compiled ones, unless PENSTOCK_KERNELS=reference."""
    return PlainCells() if uses_reference() else CompiledCells()
