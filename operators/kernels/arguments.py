"""What compiled kernels take: they have one signature, so memory is writable and without gaps.

A view of an Arrow buffer is read-only memory, though no kernel writes to what it is given to read.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

Scalar = TypeVar("Scalar", bound=np.generic)


def own(values: npt.NDArray[Scalar]) -> npt.NDArray[Scalar]:
    """The values themselves, or a copy where they are read-only or have gaps."""
    if values.flags.c_contiguous and values.flags.writeable:
        return values
    return values.copy()
