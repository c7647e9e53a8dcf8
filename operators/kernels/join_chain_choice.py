"""The choice between the compiled chains and the plain ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import numpy.typing as npt

from .compile import uses_reference
from .join_chains import CompiledChains
from .join_chains_reference import PlainChains

Hashes = npt.NDArray[np.uint64]
Numbers = npt.NDArray[np.int64]


class Chains(Protocol):
    """Slots by hash; see join_chains.py."""

    def resize(self, capacity: int) -> None: ...

    def link(self, hashes: Hashes, slots: Numbers) -> None: ...

    def unlink(self, hashes: Hashes, slots: Numbers) -> None: ...

    def probe(
        self, hashes: Hashes, low: Numbers, high: Numbers, times: Numbers
    ) -> Iterator[tuple[Numbers, Numbers]]: ...


def new_chains() -> Chains:
    """Compiled ones, unless PENSTOCK_KERNELS=reference."""
    return PlainChains() if uses_reference() else CompiledChains()
